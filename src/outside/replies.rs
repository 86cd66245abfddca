//! What handlers say over NATS to the process that asked them: answers, and progress on the way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use async_nats::{Message, SubscribeError, Subscriber};
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::Broker,
    handlers::RunContext,
    job::{integer::integer, model::JobId},
    supervise::Tasks,
};

/// Answers to one request that may wait to be looked at; further ones are dropped, since the first good one counts.
const ANSWERS: usize = 4;
/// Signs of life that are looked at before an answer that came after them; a flood of them must not hold up answers.
const BEFORE: usize = 1000;

/// The runs that are under way outside. Cheap to clone.
#[derive(Clone)]
pub struct Replies(Arc<Inner>);

struct Inner {
    broker: Broker,
    worker_id: String,
    waiting: Mutex<HashMap<(JobId, i64), Waiting>>,
    /// Takes answers that nobody waits for.
    rest: OnceLock<mpsc::Sender<Message>>,
}

struct Waiting {
    ctx: RunContext,
    answers: mpsc::Sender<Message>,
    heard: watch::Sender<Instant>,
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
    #[serde(deserialize_with = "integer")]
    pub run: i64,
    pub percent: Option<f64>,
    pub message: Option<String>,
    pub checkpoint: Option<Box<RawValue>>,
}

impl Sign {
    /// The type and the job of the subject, and what the message says; `None` for what is no sign of life.
    pub fn read(message: &Message) -> Option<(&str, JobId, Self)> {
        let mut tokens = message.subject.rsplit('.');
        let (id, job_type) = (tokens.next()?, tokens.next()?);
        Some((job_type, id.parse().ok()?, serde_json::from_slice(&message.payload).ok()?))
    }
}

/// The run that an answer is for, as its subject `<prefix>.reply.<worker>.<type>.<id>.<run>` says. Nothing of it is believed
/// that the row does not say as well: whoever may publish there can write any of it.
pub(super) struct Answered<'a> {
    pub worker_id: &'a str,
    pub job_type: &'a str,
    pub id: JobId,
    pub run: i64,
}

impl<'a> Answered<'a> {
    pub fn read(subject: &'a str) -> Option<Self> {
        let mut tokens = subject.rsplit('.');
        let (run, id, job_type, worker_id) = (tokens.next()?, tokens.next()?, tokens.next()?, tokens.next()?);
        Some(Self { worker_id, job_type, id: id.parse().ok()?, run: run.parse().ok()? })
    }
}

impl Replies {
    pub(super) fn new(broker: Broker, worker_id: &str) -> Self {
        let rest = OnceLock::new();
        Self(Arc::new(Inner { broker, worker_id: worker_id.to_owned(), waiting: Mutex::default(), rest }))
    }

    /// Gives answers to this process that nobody waits for to somebody else, as far as he keeps up.
    pub(super) fn pass_on(&self, rest: mpsc::Sender<Message>) {
        let _ = self.0.rest.set(rest);
    }

    /// Listens until `stop`, on `tasks`.
    ///
    /// # Errors
    /// The client is closed.
    pub async fn listen(&self, stop: &CancellationToken, tasks: &Tasks) -> Result<(), SubscribeError> {
        let Inner { broker, worker_id, .. } = &*self.0;
        let answers = broker.jetstream.subscribe(broker.subjects.replies_to(worker_id)).await?;
        let signs = broker.jetstream.subscribe(broker.subjects.all_progress()).await?;
        let (replies, heard) = (self.clone(), Arc::new(tokio::sync::Mutex::new((answers, signs))));
        tasks.keep_until("replies", stop, move || replies.clone().take_all(heard.clone()));
        Ok(())
    }

    async fn take_all(self, heard: Arc<tokio::sync::Mutex<(Subscriber, Subscriber)>>) {
        let mut heard = heard.lock().await;
        let (answers, signs) = &mut *heard;
        loop {
            tokio::select! {
                Some(answer) = answers.next() => {
                    // What was said before it belongs to the run, too. Both come by one connection, so it is here.
                    for _ in 0..BEFORE {
                        let Some(Some(sign)) = signs.next().now_or_never() else { break };
                        self.sign(&sign);
                    }
                    self.answer(answer);
                }
                Some(sign) = signs.next() => self.sign(&sign),
                else => return,
            }
        }
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
        let waiting = Waiting { ctx: ctx.clone(), answers: sender, heard: hear };
        self.lock().insert(key, waiting);
        Expected { replies: self.clone(), key, answers, heard }
    }

    fn answer(&self, message: Message) {
        let Some(Answered { job_type, id, run, .. }) = Answered::read(&message.subject) else { return };
        let all = self.lock();
        let waiting = all.get(&(id, run)).filter(|waiting| waiting.ctx.job_type.as_str() == job_type);
        let taker = waiting.map(|waiting| waiting.answers.clone());
        drop(all);
        if let Some(taker) = taker.as_ref().or(self.0.rest.get()) {
            let _ = taker.try_send(message);
        }
    }

    fn sign(&self, message: &Message) {
        let Some((job_type, id, sign)) = Sign::read(message) else { return };
        let all = self.lock();
        let Some(waiting) = all.get(&(id, sign.run)).filter(|waiting| waiting.ctx.job_type.as_str() == job_type) else {
            return;
        };
        waiting.heard.send_replace(Instant::now());
        waiting.ctx.say(sign.percent, sign.message);
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
