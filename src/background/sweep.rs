//! The repair sweep: frees jobs of dead workers, and finds due jobs whose wake-up is gone.
//!
//! A wake-up is missing when its row is pending, due, not in the outbox, and *overtaken*: jobs that became due a while
//! later in the same lane have been claimed already, or the lane is empty in the broker. Counts are not compared:
//! surplus messages would hide missing ones. A wrong guess costs one refused claim.

use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::{AT_ONCE, Deps, Error, repeat};
use crate::{job::Lane, ops::lost, store::sweep::SLICE};

/// The duty; see the module.
pub struct Sweep(Deps);

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    let period = deps.config.background.sweep;
    let sweep = Sweep::new(deps);
    repeat("the repair sweep", period, &stop, || async {
        if sweep.0.store.take_turn("sweep", period).await? { sweep.run_once().await } else { Ok(()) }
    })
    .await;
}

impl Sweep {
    pub fn new(deps: Deps) -> Self {
        Self(deps)
    }

    /// Sweeps once.
    ///
    /// # Errors
    /// The database or the broker is away; what was repaired before stays so.
    pub async fn run_once(&self) -> Result<(), Error> {
        self.free_jobs_of_the_dead().await?;
        let Deps { store, broker, relay, config, .. } = &self.0;
        lost::end_outside(store, broker, relay, config.worker.cancel_grace).await?;
        self.find_forgotten().await?;
        store.forget_dead_workers().await?;
        store.forget_held().await?;
        Ok(())
    }

    async fn free_jobs_of_the_dead(&self) -> Result<(), Error> {
        let Deps { store, broker, relay, .. } = &self.0;
        if !store.has_dead_workers().await? {
            return Ok(());
        }
        loop {
            let ids = store.held_by_dead_workers(SLICE).await?;
            let freed = lost::free(store, broker, relay, &ids).await?;
            if freed > 0 {
                tracing::warn!("freed {freed} jobs of workers that are gone");
            }
            // Fewer than asked for: these were the last. None freed: somebody else was quicker.
            if freed < SLICE as usize {
                return Ok(());
            }
        }
    }

    async fn find_forgotten(&self) -> Result<(), Error> {
        let (store, broker) = (&self.0.store, &self.0.broker);
        let (marks, now) = store.watermarks().await?;
        let overdue = self.0.config.background.overdue;
        let types = store.live_types().await?;
        let lanes: Vec<_> = types.iter().flat_map(|job_type| Lane::ALL.map(|lane| (job_type, lane))).collect();
        let looks: Vec<_> = lanes.iter().map(|(job_type, lane)| broker.backlog(job_type, *lane)).collect();
        let backlogs: Vec<_> = stream::iter(looks).buffered(AT_ONCE).collect().await;
        // To the end: a consumer without a leader answers nothing for a while, and must hold up no other lane.
        let mut failed = None;
        for ((job_type, lane), backlog) in lanes.into_iter().zip(backlogs) {
            let empty = match backlog {
                Ok(backlog) => backlog.is_some_and(|b| b.undelivered + b.unacknowledged == 0),
                Err(e) => {
                    failed.get_or_insert(e);
                    false
                }
            };
            let name = format!("{job_type}.{lane}");
            let mark = marks.iter().find(|(marked, _)| *marked == name).map(|(_, at)| *at);
            let overtaken_by = if empty { now } else { mark.unwrap_or_default().min(now) };
            let n = store.rearm_forgotten(job_type, lane, overtaken_by - overdue).await?;
            if n > 0 {
                tracing::warn!("published {n} wake-ups of {name} again, which the broker had lost");
                self.0.relay.notify_one();
            }
        }
        failed.map_or(Ok(()), |e| Err(e.into()))
    }
}
