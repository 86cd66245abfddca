//! What handlers say over NATS to processes that are gone: the runs go on outside, and their ends are still wanted.
//!
//! Every process listens in one queue group, so each message reaches one of them; it takes those that nobody waits for.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Message, SubscribeError, Subscriber};
use futures_util::StreamExt;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    over_nats::said,
    replies::{Answered, Replies, Sign},
    reply,
};
use crate::{
    handlers::Ended,
    job::{JobType, Update, model::JobId, update::keep_checkpoint},
    ops::{
        Ops,
        error::chain,
        finish::Said,
        signs::{self, Signs},
    },
    store::{Store, outside},
    supervise::{self, Tasks},
};

/// The processes share it.
const GROUP: &str = "late";
/// For how long it is believed which workers are alive.
const ALIVE: Duration = Duration::from_secs(1);
/// Signs of life are written together, this often.
const COLLECT: Duration = Duration::from_millis(250);
/// Signs in one statement, and ends that are recorded at the same time.
const MANY: usize = 500;

/// How often it is tried to end a run that is about to be left outside.
const TRIES: usize = 8;

struct Late {
    ops: Ops,
    worker_id: String,
}

/// Listens until `stop`, on `tasks`, also to what `replies` has no use for.
///
/// # Errors
/// The client is closed.
pub async fn listen(
    ops: &Ops,
    worker_id: &str,
    replies: &Replies,
    stop: &CancellationToken,
    tasks: &Tasks,
) -> Result<(), SubscribeError> {
    let broker = &ops.broker;
    let answers = broker.jetstream.queue_subscribe(broker.subjects.replies_to("*"), GROUP.to_owned()).await?;
    let signs = broker.jetstream.queue_subscribe(broker.subjects.all_progress(), GROUP.to_owned()).await?;
    let late = Arc::new(Late { ops: ops.clone(), worker_id: worker_id.to_owned() });
    let (answers, signs) = (Arc::new(Mutex::new(answers)), Arc::new(Mutex::new(signs)));
    let (rest, left) = mpsc::channel(MANY);
    replies.pass_on(rest);
    let (taking, left) = (late.clone(), Arc::new(Mutex::new(left)));
    tasks.keep_until("left-answers", stop, move || taking.clone().take_left(left.clone()));
    let taking = late.clone();
    tasks.keep_until("late-answers", stop, move || taking.clone().take_answers(answers.clone()));
    tasks.keep_until("late-signs", stop, move || late.clone().take_signs(signs.clone()));
    Ok(())
}

impl Late {
    async fn take_answers(self: Arc<Self>, answers: Arc<Mutex<Subscriber>>) {
        let (mut answers, ending) = (answers.lock().await, Arc::new(Semaphore::new(MANY)));
        let mut alive = Alive::default();
        while let Some(answer) = answers.next().await {
            let Some(Answered { worker_id: worker, job_type, id, run }) = Answered::read(&answer.subject) else {
                continue;
            };
            if worker == self.worker_id || answer.status.is_some() || alive.has(&self.ops.store, worker).await {
                continue;
            }
            let Ok(job_type) = JobType::new(job_type) else { continue };
            let Ok(turn) = ending.clone().acquire_owned().await else { return };
            let taking = self.clone();
            supervise::spawn("late answer", async move {
                taking.end(&answer, &job_type, id, run).await;
                drop(turn);
            });
        }
    }

    /// Runs that this process leaves outside when it stops may be answered before the others hold it to be gone.
    async fn take_left(self: Arc<Self>, left: Arc<Mutex<mpsc::Receiver<Message>>>) {
        let mut left = left.lock().await;
        while let Some(answer) = left.recv().await {
            if self.ops.supervisor.is_stopping() {
                supervise::spawn("late answer", self.clone().end_left(answer));
            }
        }
    }

    async fn end_left(self: Arc<Self>, answer: Message) {
        let Some(Answered { job_type, id, run, .. }) = Answered::read(&answer.subject) else { return };
        let Ok(job_type) = JobType::new(job_type) else { return };
        for _ in 0..TRIES {
            if answer.status.is_some() || self.end(&answer, &job_type, id, run).await {
                return;
            }
            tokio::time::sleep(COLLECT).await;
        }
    }

    async fn take_signs(self: Arc<Self>, signs: Arc<Mutex<Subscriber>>) {
        let mut signs = signs.lock().await;
        let mut fresh = Signs::default();
        let mut collect = tokio::time::interval(COLLECT);
        loop {
            tokio::select! {
                Some(message) = signs.next() => {
                    if let Some(sign) = sign(&message) {
                        fresh.add(sign);
                    }
                }
                _ = collect.tick(), if !fresh.is_empty() => self.write(fresh.take()).await,
                else => return,
            }
            if fresh.are_enough(MANY) {
                self.write(fresh.take()).await;
            }
        }
    }

    /// `false`: the run is not held outside, or not yet.
    async fn end(&self, answer: &Message, job_type: &JobType, id: JobId, run: i64) -> bool {
        let said = said(answer);
        if reply::is_of_another_run(&said, &id.to_string(), run) {
            return true;
        }
        let said = match reply::judge(&said, &answer.payload, self.ops.config.limits.result.as_u64() as usize) {
            Ended::Done(result) => Said::Done(result),
            Ended::Released(delay) => Said::Released { delay },
            Ended::Failed(failure) => Said::Failed(failure),
            // It is held outside already.
            Ended::Outside => return true,
        };
        match self.ops.end_run(Some(job_type), id, run, said).await {
            Ok(ended) => {
                tracing::info!(job.id = %id, "took the answer for job {id}, whose process is gone: {}", ended.status);
                true
            }
            Err(e) => {
                tracing::debug!(job.id = %id, "an answer for job {id} came too late: {}", e.detail);
                false
            }
        }
    }

    /// Not given up while the database is away: a checkpoint is not said twice. Meanwhile the client keeps what comes.
    async fn write(&self, fresh: Vec<outside::Sign>) {
        let mut open = vec![fresh];
        let mut pause = Duration::from_millis(50);
        while let Some(mut batch) = open.pop() {
            match self.ops.store.renew(&batch).await {
                Ok(renewed) => signs::tell(&self.ops.broker, &renewed).await,
                Err(e) if e.is_transient() => {
                    tracing::debug!("signs of life were not written, trying again: {}", chain(&e));
                    open.push(batch);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                // One that can't be written harms no other.
                Err(_) if batch.len() > 1 => {
                    open.push(batch.split_off(batch.len() / 2));
                    open.push(batch);
                }
                Err(e) => tracing::warn!(job.id = %batch[0].id, "a sign of life can't be written: {}", chain(&e)),
            }
        }
    }
}

fn sign(message: &Message) -> Option<outside::Sign> {
    let (job_type, id, Sign { run, percent, message, checkpoint }) = Sign::read(message)?;
    let mut update = Update::of_progress(percent, message);
    update.checkpoint = checkpoint.and_then(|raw| keep_checkpoint(raw).ok()).map(Arc::from);
    Some(outside::Sign { id, run, job_type: Some(job_type.to_owned()), update })
}

/// Which workers are alive, asked now and then.
#[derive(Default)]
struct Alive {
    ids: HashSet<String>,
    asked: Option<Instant>,
}

impl Alive {
    /// In doubt it is: its own limits end the run then.
    async fn has(&mut self, store: &Store, worker_id: &str) -> bool {
        if self.asked.is_none_or(|at| at.elapsed() > ALIVE) {
            match store.live_worker_ids().await {
                Ok(ids) => (self.ids, self.asked) = (ids.into_iter().collect(), Some(Instant::now())),
                Err(_) => return true,
            }
        }
        self.ids.contains(worker_id)
    }
}
