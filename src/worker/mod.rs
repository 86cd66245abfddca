//! The run path: pull → claim → run → settle → finish → ack.
//!
//! An ack always follows the commit of the outcome; a worker that lost its lease neither writes nor acks.

mod claims;
pub(crate) mod eager;
mod heartbeat;
mod held;
mod line;
mod lineup;
pub(crate) mod outcomes;
mod puller;
mod reconcile;
mod record;
pub(crate) mod run;
mod running;
mod slots;
mod unanswered;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::Broker,
    config::Config,
    store::Store,
    supervise::{self, Supervisor, Tasks},
    types::Types,
};
use eager::Eager;
use heartbeat::Heartbeat;
use running::{Running, StopCause};

/// What a worker needs of the rest of the service.
#[derive(Clone)]
pub struct Deps {
    /// Names the process for people, and no other process ever again; see [`new_id`].
    pub id: String,
    pub store: Store,
    pub broker: Broker,
    pub config: Arc<Config>,
    pub types: Types,
    /// Rung when a dead letter was written, so that it is published at once.
    pub relay: Arc<Notify>,
    /// Where the intake leaves what may start here at once.
    pub eager: Eager,
    pub supervisor: Supervisor,
}

/// A worker of this process: all its types, under one lease.
pub struct Worker {
    shared: Arc<Shared>,
    stop_pulling: CancellationToken,
    heartbeat: Heartbeat,
}

/// What the runs of one worker have in common.
pub(crate) struct Shared {
    pub id: String,
    pub deps: Deps,
    pub claims: claims::Claims,
    pub held: Arc<held::Held>,
    /// Rung when a claim got no answer: what it has won is looked for sooner.
    pub doubt: Arc<Notify>,
    /// Taken by the one run that may be what killed workers before.
    pub suspect: tokio::sync::Semaphore,
    pub outcomes: outcomes::Outcomes,
    pub lease: heartbeat::Lease,
    pub running: Running,
    /// Runs and the batchers that they wait for.
    pub tasks: Tasks,
    /// What brings jobs here and looks after those in hand.
    pub pullers: Tasks,
}

/// What a worker had to leave behind when it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Runs whose handler had not ended.
    pub runs: usize,
    /// Runs whose outcome could not be written.
    pub outcomes: usize,
}

/// How long the goodbye to the database may take.
const GOODBYE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("worker.types names '{0}', which this program does not know; `queue-service types` lists the known ones")]
    UnknownType(String),
    #[error("the connection to NATS is closed")]
    Closed(#[from] async_nats::SubscribeError),
    #[error("the heartbeat's thread can't be started")]
    Thread(#[from] std::io::Error),
}

impl Worker {
    /// Starts pulling and running jobs of all types that the settings name, and of those that come later.
    ///
    /// # Errors
    /// Settings that do not fit.
    pub async fn start(deps: Deps) -> Result<Self, Error> {
        let known = deps.types.now();
        if let Some(unknown) = deps.config.worker.types.iter().find(|name| known.get(name).is_none()) {
            return Err(Error::UnknownType(unknown.clone()));
        }
        let id = deps.id.clone();
        let batch_tasks = deps.supervisor.tasks();
        let heartbeat = Heartbeat::start(&deps, id.clone())?;
        // Without a lease every claim would look like the run of a dead worker.
        heartbeat.first_beat().await;
        let (held, doubt) = (Arc::default(), Arc::default());
        let shared = Arc::new(Shared {
            claims: claims::start(&deps, &id, &held, &doubt, &batch_tasks),
            held,
            doubt,
            suspect: tokio::sync::Semaphore::new(1),
            outcomes: outcomes::start("outcomes", &deps.store, &batch_tasks),
            lease: heartbeat.lease(),
            running: Running::default(),
            tasks: batch_tasks,
            pullers: deps.supervisor.tasks(),
            id,
            deps,
        });
        // Runs are no tasks of the supervisor's, so that there is nothing more to do for each of them.
        let (aborted, all) = (shared.deps.supervisor.aborted().clone(), Arc::downgrade(&shared));
        supervise::spawn("crash", async move {
            aborted.cancelled().await;
            if let Some(shared) = all.upgrade() {
                shared.deps.supervisor.begin_stop();
                shared.running.interrupt_all(StopCause::Crash);
            }
        });
        let (pullers, stop_pulling) = (shared.pullers.clone(), CancellationToken::new());
        macro_rules! keep {
            ($name:literal, $work:path) => {{
                let (shared, stop) = (shared.clone(), stop_pulling.clone());
                pullers.keep($name, &stop_pulling, move || $work(shared.clone(), stop.clone()));
            }};
        }
        keep!("cancels", running::obey_cancels);
        keep!("signs-of-life", running::speak_for_runs);
        keep!("reconcile", reconcile::work);
        keep!("held", held::follow);
        let mut lineup = lineup::Lineup::new(shared.clone(), pullers.clone(), stop_pulling.clone());
        lineup.update().await?;
        let lineup = Arc::new(tokio::sync::Mutex::new(lineup));
        pullers.keep("lineup", &stop_pulling, move || lineup::follow(lineup.clone()));
        tracing::info!(worker.id = %shared.id, "worker started");
        Ok(Self { shared, stop_pulling, heartbeat })
    }

    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Stops pulling, and lets running jobs end for up to `worker.drain`, or until `hurry`. To be followed by
    /// [`Worker::end`].
    pub async fn drain(&self, hurry: &CancellationToken) {
        self.stop_pulling.cancel();
        let Shared { running, deps, .. } = &*self.shared;
        let drain = deps.config.worker.drain;
        tokio::select! {
            _ = running.wait_empty() => {}
            _ = tokio::time::sleep(drain) => tracing::warn!("handing back the jobs that still run after {drain:?}"),
            _ = hurry.cancelled() => tracing::warn!("handing back the jobs that still run"),
        }
    }

    /// Hands back what still runs without spending its attempt, and returns when every outcome is written, or at `until`
    /// and half a second: what is not written by then is left to the lease.
    pub async fn end(self, until: Instant) -> Unfinished {
        let Self { shared, stop_pulling, heartbeat } = self;
        stop_pulling.cancel();
        shared.running.interrupt_all(StopCause::Drain);
        let (pullers, tasks) = (shared.pullers.clone(), shared.tasks.clone());
        let ended = timeout_at(until, async {
            shared.running.wait_empty().await;
            pullers.close();
            pullers.wait().await;
            // Now that no further ones may come: those that were won when they were written.
            shared.running.wait_empty().await;
        });
        let mut unfinished = Unfinished::default();
        if ended.await.is_err() {
            unfinished = shared.running.unfinished();
            pullers.cut_off();
            tasks.cut_off();
        }
        let (id, store) = (shared.id.clone(), shared.deps.store.clone());
        // The batchers end with the last handle to them.
        drop(shared);
        tasks.close();
        let goodbye = async {
            tasks.wait().await;
            heartbeat.stop().await;
            if let Err(e) = store.deregister(&id).await {
                tracing::debug!("the worker's row expires by itself: {e}");
            }
        };
        let _ = timeout_at(until + GOODBYE, goodbye).await;
        tracing::info!(worker.id = %id, "worker stopped");
        unfinished
    }
}

/// A name for a worker: for people, and no other process's ever again. Fit for a token of a subject.
pub fn new_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    let host = if host.is_empty() { "worker".to_owned() } else { host };
    format!("{host}-{}-{:08x}", std::process::id(), rand::random::<u32>())
}
