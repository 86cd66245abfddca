//! What handlers say over NATS to processes that are gone: the runs go on outside, and their ends are still wanted.
//!
//! Every process listens in one queue group, so each message reaches one of them; it takes those that nobody waits for.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Message, SubscribeError};
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    over_nats::said,
    replies::{Sign, run_of},
    reply,
};
use crate::{
    handlers::Ended,
    job::{FailureKind, model::JobId},
    ops::{Ops, error::chain, finish::Said, signs},
    store::{Store, outside},
};

/// The processes share it.
const GROUP: &str = "late";
/// For how long it is believed which workers are alive.
const ALIVE: Duration = Duration::from_secs(1);
/// Signs of life are written together, this often.
const COLLECT: Duration = Duration::from_millis(250);
/// Signs in one statement, and ends that are recorded at the same time.
const MANY: usize = 500;

struct Late {
    ops: Ops,
    worker_id: String,
}

/// Listens until `stop`, on `tasks`.
///
/// # Errors
/// The client is closed.
pub async fn listen(
    ops: &Ops,
    worker_id: &str,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<(), SubscribeError> {
    let broker = &ops.broker;
    let mut answers = broker.jetstream.queue_subscribe(broker.subjects.replies_to("*"), GROUP.to_owned()).await?;
    let mut signs = broker.jetstream.queue_subscribe(broker.subjects.all_progress(), GROUP.to_owned()).await?;
    let late = Arc::new(Late { ops: ops.clone(), worker_id: worker_id.to_owned() });
    let (taking, ending) = (late.clone(), Arc::new(Semaphore::new(MANY)));
    let ends = async move {
        let mut alive = Alive::default();
        while let Some(answer) = answers.next().await {
            let Some((worker, id, run)) = run_of(&answer.subject) else { continue };
            if worker == taking.worker_id || answer.status.is_some() || alive.has(&taking.ops.store, worker).await {
                continue;
            }
            let Ok(turn) = ending.clone().acquire_owned().await else { return };
            let taking = taking.clone();
            tokio::spawn(async move {
                taking.end(&answer, id, run).await;
                drop(turn);
            });
        }
    };
    let beats = async move {
        let mut fresh: Vec<outside::Sign> = Vec::new();
        let mut collect = tokio::time::interval(COLLECT);
        loop {
            tokio::select! {
                Some(message) = signs.next() => fresh.extend(sign(&message)),
                _ = collect.tick(), if !fresh.is_empty() => late.write(std::mem::take(&mut fresh)).await,
                else => return,
            }
            if fresh.len() >= MANY {
                late.write(std::mem::take(&mut fresh)).await;
            }
        }
    };
    tasks.spawn(stop.clone().run_until_cancelled_owned(ends));
    tasks.spawn(stop.clone().run_until_cancelled_owned(beats));
    Ok(())
}

impl Late {
    async fn end(&self, answer: &Message, id: JobId, run: i64) {
        let said = said(answer);
        if reply::is_of_another_run(&said, &id.to_string(), run) {
            return;
        }
        let said = match reply::judge(&said, &answer.payload, self.ops.config.limits.result.as_u64() as usize) {
            Ended::Done(result) => Said::Done(Some(result)),
            Ended::Released(delay) => Said::Released { delay },
            Ended::Failed(failure) => Said::Failed {
                message: failure.message,
                retry: failure.kind != FailureKind::Permanent,
                retry_after: failure.retry_after,
            },
            // It is held outside already.
            Ended::Outside => return,
        };
        match self.ops.end_run(None, id, run, said).await {
            Ok(ended) => {
                tracing::info!(job.id = %id, "took the answer for job {id}, whose process is gone: {}", ended.status)
            }
            Err(e) => tracing::debug!(job.id = %id, "an answer for job {id} came too late: {}", e.detail),
        }
    }

    async fn write(&self, mut fresh: Vec<outside::Sign>) {
        // The newest one of each run says it all, and a statement must not touch a row twice.
        fresh.reverse();
        let mut seen = HashSet::new();
        fresh.retain(|sign| seen.insert(sign.id));
        let renewed = match self.ops.store.renew(&fresh, None).await {
            Ok(renewed) => renewed,
            Err(e) => return tracing::debug!("signs of life were not written: {}", chain(&e)),
        };
        signs::tell(&self.ops.broker, &fresh, &renewed).await;
    }
}

fn sign(message: &Message) -> Option<outside::Sign> {
    let (id, sign) = Sign::read(message)?;
    Some(signs::of(id, sign.run, sign.percent, sign.message, sign.checkpoint.as_deref()))
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
