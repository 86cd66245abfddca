//! The lease of this worker, written from a thread of its own: a handler that blocks every thread of the runtime must
//! not look like a death.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Deps;
use crate::store::{claim::Claimed, workers};

/// For each `<type>.<lane>` the highest `run_at` that was claimed, in microseconds.
#[derive(Clone, Default)]
pub(crate) struct Watermarks(Arc<Mutex<BTreeMap<String, i64>>>);

impl Watermarks {
    pub fn raise(&self, job: &Claimed) {
        let lane = format!("{}.{}", job.r#type, job.lane());
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = marks.entry(lane).or_insert(i64::MIN);
        *mark = (*mark).max(job.run_at.timestamp_micros());
    }

    fn snapshot(&self) -> BTreeMap<String, i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(crate) struct Heartbeat {
    stop: CancellationToken,
    beats: watch::Receiver<u64>,
}

impl Heartbeat {
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(deps: &Deps, worker_id: String, watermarks: Watermarks) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        let (count, beats) = watch::channel(0);
        let beat = Beat {
            options: deps.store.connect_options().clone(),
            worker_id,
            lease: deps.config.worker.lease,
            watermarks,
            count,
        };
        let stopped = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || runtime.block_on(stopped.run_until_cancelled(beat.run())))?;
        Ok(Self { stop, beats })
    }

    /// Returns when the lease was written for the first time.
    pub async fn first_beat(&self) {
        // An error means that the thread has ended, which only a stop does.
        let _ = self.beats.clone().wait_for(|count| *count > 0).await;
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.beats.changed().await.is_ok() {}
    }
}

struct Beat {
    options: PgConnectOptions,
    worker_id: String,
    lease: Duration,
    watermarks: Watermarks,
    count: watch::Sender<u64>,
}

impl Beat {
    async fn run(self) -> Option<()> {
        let period = self.lease / 6;
        let mut connection: Option<PgConnection> = None;
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let beat = async {
                if connection.is_none() {
                    connection = Some(PgConnection::connect_with(&self.options).await?);
                }
                let Some(connection) = &mut connection else { return Ok(()) };
                workers::heartbeat(connection, &self.worker_id, self.lease, &self.watermarks.snapshot())
                    .await
                    .map_err(|e| sqlx::Error::Protocol(e.to_string()))
            };
            match tokio::time::timeout(period.max(Duration::from_millis(500)), beat).await {
                Ok(Ok(())) => self.count.send_modify(|count| *count += 1),
                Ok(Err(e)) => {
                    tracing::warn!("heartbeat failed, trying again: {e}");
                    connection = None;
                }
                Err(_) => {
                    tracing::warn!("heartbeat got no answer, trying again on a new connection");
                    connection = None;
                }
            }
        }
    }
}
