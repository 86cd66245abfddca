//! What handlers say over NATS to the process that asked them: answers, and progress on the way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_nats::{Message, SubscribeError};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{broker::Broker, handlers::RunContext, job::model::JobId};

/// Answers to one request that may wait to be looked at; further ones are dropped, since the first good one counts.
const ANSWERS: usize = 4;

/// The runs that are under way outside. Cheap to clone.
#[derive(Clone)]
pub struct Replies(Arc<Inner>);

struct Inner {
    broker: Broker,
    worker_id: String,
    waiting: Mutex<HashMap<(JobId, i64), Waiting>>,
}

struct Waiting {
    ctx: RunContext,
    answers: mpsc::Sender<Message>,
    heard: watch::Sender<Instant>,
    percent: f64,
}

/// One run that is waited for. Ends the waiting on drop.
pub(super) struct Expected {
    replies: Replies,
    key: (JobId, i64),
    answers: mpsc::Receiver<Message>,
    /// When the handler gave its last sign of life.
    pub heard: watch::Receiver<Instant>,
}

/// What a handler publishes on `queue.progress.<type>.<id>`.
#[derive(Debug, Deserialize)]
pub(crate) struct Sign {
    pub run: i64,
    pub percent: Option<f64>,
    pub message: Option<String>,
    pub checkpoint: Option<Box<RawValue>>,
}

impl Sign {
    /// The job that a message is about, and what it says; `None` for what is no sign of life.
    pub fn read(message: &Message) -> Option<(JobId, Self)> {
        let id = message.subject.rsplit('.').next()?.parse().ok()?;
        Some((id, serde_json::from_slice(&message.payload).ok()?))
    }
}

/// Worker, job and run of a subject `<prefix>.reply.<worker>.<type>.<id>.<run>`.
pub(super) fn run_of(subject: &str) -> Option<(&str, JobId, i64)> {
    let mut tokens = subject.rsplit('.');
    let (run, id, _type, worker) = (tokens.next()?, tokens.next()?, tokens.next()?, tokens.next()?);
    Some((worker, id.parse().ok()?, run.parse().ok()?))
}

impl Replies {
    pub(super) fn new(broker: Broker, worker_id: &str) -> Self {
        Self(Arc::new(Inner { broker, worker_id: worker_id.to_owned(), waiting: Mutex::default() }))
    }

    /// Listens until `stop`, on `tasks`.
    ///
    /// # Errors
    /// The client is closed.
    pub async fn listen(&self, stop: &CancellationToken, tasks: &TaskTracker) -> Result<(), SubscribeError> {
        let Inner { broker, worker_id, .. } = &*self.0;
        let mut answers = broker.jetstream.subscribe(broker.subjects.replies_to(worker_id)).await?;
        let mut signs = broker.jetstream.subscribe(broker.subjects.all_progress()).await?;
        let replies = self.clone();
        let listening = async move {
            loop {
                tokio::select! {
                    Some(answer) = answers.next() => replies.answer(answer),
                    Some(sign) = signs.next() => replies.sign(&sign),
                    else => return,
                }
            }
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(listening));
        Ok(())
    }

    /// Where the answer to a run has to go.
    pub(super) fn subject(&self, ctx: &RunContext) -> String {
        self.0.broker.subjects.reply(&self.0.worker_id, ctx.job_type.as_str(), ctx.job_id, ctx.run)
    }

    /// To be called before the request is sent.
    pub(super) fn expect(&self, ctx: &RunContext) -> Expected {
        let (sender, answers) = mpsc::channel(ANSWERS);
        let key = (ctx.job_id, ctx.run);
        let (hear, heard) = watch::channel(Instant::now());
        let waiting = Waiting { ctx: ctx.clone(), answers: sender, heard: hear, percent: 0.0 };
        self.lock().insert(key, waiting);
        Expected { replies: self.clone(), key, answers, heard }
    }

    fn answer(&self, message: Message) {
        let Some((_, id, run)) = run_of(&message.subject) else { return };
        if let Some(waiting) = self.lock().get(&(id, run)) {
            let _ = waiting.answers.try_send(message);
        }
    }

    fn sign(&self, message: &Message) {
        let Some((id, sign)) = Sign::read(message) else { return };
        let mut all = self.lock();
        let Some(waiting) = all.get_mut(&(id, sign.run)) else { return };
        waiting.heard.send_replace(Instant::now());
        if sign.percent.is_some() || sign.message.is_some() {
            waiting.percent = sign.percent.unwrap_or(waiting.percent);
            waiting.ctx.progress(waiting.percent, sign.message.unwrap_or_default());
        }
        if let Some(checkpoint) = sign.checkpoint {
            waiting.ctx.checkpoint(&checkpoint);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(JobId, i64), Waiting>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expected {
    /// The next answer.
    pub async fn next(&mut self) -> Option<Message> {
        self.answers.recv().await
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.replies.lock().remove(&self.key);
    }
}
