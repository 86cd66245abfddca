//! Frees the jobs of workers that died, soon after their lease: a job that was started without a message
//! (docs/adr/0023) comes again by nothing else. What is not on record as held is left to the repair sweep.

use tokio_util::sync::CancellationToken;

use super::{Deps, Error, repeat};
use crate::{ops::lost, store::sweep::SLICE};

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    // As often as workers report.
    let period = deps.config.worker.lease / 6;
    repeat("freeing the jobs of dead workers", period, &stop, || run_once(&deps)).await;
}

async fn run_once(deps: &Deps) -> Result<(), Error> {
    let Deps { store, broker, relay, .. } = deps;
    loop {
        let claims = store.claims_of_dead_workers().await?;
        if claims.is_empty() {
            return Ok(());
        }
        let jobs: Vec<_> = claims.iter().flat_map(|(_, jobs)| jobs.iter().copied()).collect();
        for slice in jobs.chunks(SLICE as usize) {
            let freed = lost::free(store, broker, relay, slice).await?;
            if freed > 0 {
                tracing::warn!("freed {freed} jobs of workers that are gone");
            }
        }
        let ids: Vec<_> = claims.iter().map(|(id, _)| *id).collect();
        store.remove_held_by_dead_workers(&ids).await?;
    }
}
