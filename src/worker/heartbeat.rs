//! The lease of this worker, written from a thread of its own: a handler that blocks every thread of the runtime must
//! not look like a death. One that never lets go of them does: then the heartbeat ends, and others take over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use sqlx::PgConnection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Deps;
use crate::{
    job::span::rounded,
    store::{Connector, workers},
    supervise,
    telemetry::Seldom,
};

/// Heartbeats in each lease.
const IN_A_LEASE: u32 = 6;
/// Heartbeats without any sign of the runtime, after which it counts as stuck: ten leases.
const STUCK: u32 = 10 * IN_A_LEASE;

pub(crate) struct Heartbeat {
    stop: CancellationToken,
    beats: watch::Receiver<u64>,
    lease: Lease,
}

/// Whether this worker's lease can still be current, by this process's own clock: not what decides who holds a job, but a
/// reason to begin none.
#[derive(Clone)]
pub(crate) struct Lease {
    span: Duration,
    since: Instant,
    /// When the last heartbeat began that was written, in milliseconds from then on.
    begun: Arc<AtomicU64>,
}

impl Lease {
    fn new(span: Duration) -> Self {
        Self { span, since: Instant::now(), begun: Arc::default() }
    }

    pub fn is_current(&self) -> bool {
        self.now().saturating_sub(self.begun.load(Relaxed)) < self.span.as_millis() as u64
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }
}

impl Heartbeat {
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(deps: &Deps, worker_id: String) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        let (count, beats) = watch::channel(0);
        let lease = Lease::new(deps.config.worker.lease);
        let pulse = Arc::new(AtomicU64::new(0));
        let beat = Arc::new(Beat {
            connector: deps.store.connector().clone(),
            worker_id,
            lease: deps.config.worker.lease,
            pulse: pulse.clone(),
            count,
            kept: lease.clone(),
        });
        let period = deps.config.worker.lease / IN_A_LEASE;
        deps.supervisor.tasks().keep_until("pulse", &stop, move || pulsate(pulse.clone(), period));
        let (supervisor, stopped) = (deps.supervisor.clone(), stop.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        supervise::thread("heartbeat", move || {
            let beats = || stopped.clone().run_until_cancelled_owned(beat.clone().run()).map(drop);
            runtime.block_on(supervisor.supervise("heartbeat", Some(stopped.clone()), beats));
        })?;
        Ok(Self { stop, beats, lease })
    }

    /// Returns when the lease was written for the first time.
    pub async fn first_beat(&self) {
        // An error means that the thread has ended, which only a stop does.
        let _ = self.beats.clone().wait_for(|count| *count > 0).await;
    }

    pub fn lease(&self) -> Lease {
        self.lease.clone()
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.beats.changed().await.is_ok() {}
    }
}

struct Beat {
    connector: Connector,
    worker_id: String,
    lease: Duration,
    /// Grows for as long as the runtime of the jobs runs tasks.
    pulse: Arc<AtomicU64>,
    count: watch::Sender<u64>,
    kept: Lease,
}

impl Beat {
    async fn run(self: Arc<Self>) -> Option<()> {
        let period = self.lease / IN_A_LEASE;
        let (mut seen, mut silent) = (0, 0);
        let mut connection: Option<PgConnection> = None;
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut said = Seldom::default();
        loop {
            ticks.tick().await;
            let pulse = self.pulse.load(Relaxed);
            silent = if pulse == std::mem::replace(&mut seen, pulse) { silent + 1 } else { 0 };
            if silent == STUCK {
                tracing::error!(
                    "all threads have been blocked for {}: others may take over the jobs",
                    rounded(period * STUCK)
                );
            }
            if silent >= STUCK {
                continue;
            }
            let begun = self.kept.now();
            let beat = async {
                if connection.is_none() {
                    connection = Some(self.connector.connect().await?);
                }
                let Some(connection) = &mut connection else { return Ok(()) };
                workers::heartbeat(connection, &self.worker_id, self.lease)
                    .await
                    .map_err(|e| sqlx::Error::Protocol(e.to_string()))
            };
            match tokio::time::timeout(period.max(Duration::from_millis(500)), beat).await {
                Ok(Ok(())) => {
                    self.kept.begun.store(begun, Relaxed);
                    self.count.send_modify(|count| *count += 1);
                    said.clear();
                }
                Ok(Err(e)) => {
                    tell(&mut said, &format!("heartbeat failed, trying again: {e}"));
                    connection = None;
                }
                Err(_) => {
                    tell(&mut said, "heartbeat got no answer, trying again on a new connection");
                    connection = None;
                }
            }
        }
    }
}

/// Why the database can't be reached is told elsewhere, for all.
fn tell(said: &mut Seldom, text: &str) {
    if said.is_due("heartbeat", std::time::Instant::now()) {
        tracing::warn!("{text}");
    } else {
        tracing::debug!("{text}");
    }
}

/// Shows that tasks still have their turn.
async fn pulsate(pulse: Arc<AtomicU64>, period: Duration) {
    let mut ticks = tokio::time::interval(period);
    loop {
        ticks.tick().await;
        pulse.fetch_add(1, Relaxed);
    }
}
