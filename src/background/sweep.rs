//! The repair sweep: frees jobs of dead workers, and finds due jobs whose wake-up is gone.

use tokio_util::sync::CancellationToken;

use super::{Deps, Error, repeat, wake_ups};
use crate::{broker::findings::Stream, ops::lost, store::sweep::SLICE};

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
        let Deps { store, broker, relay, config, types, .. } = &self.0;
        // Each by itself: what one of them can't repair is no reason to leave the others undone.
        let freed = self.free_jobs_of_the_dead().await;
        let ended = lost::Ender { store, broker, relay, types }.end_all(config.worker.cancel_grace).await;
        let forgotten = async {
            store.forget_dead_workers().await?;
            store.forget_held().await
        };
        let forgotten = forgotten.await;
        // The only part that needs the stream; where the broker refuses it, that is noted there.
        let rearmed = match broker.is_refused(Stream::WakeUps) {
            true => Ok(()),
            false => wake_ups::rearm_lost(&self.0, config.background.overdue).await,
        };
        freed.and(ended.map_err(Error::from)).and(forgotten.map_err(Error::from)).and(rearmed)
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
}
