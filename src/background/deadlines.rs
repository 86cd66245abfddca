//! Ends runs outside whose time is up, soon after it, also when nobody fetches. Those that this process waits for it ends
//! itself; that a lease is over is seen by whoever fetches next, or by the repair sweep.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Deps, Error, repeat};
use crate::{job::Work, ops::lost::Ender};

/// Half of what docs/protocol.md promises.
const PERIOD: Duration = Duration::from_secs(1);

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    repeat("ending runs whose time is up", PERIOD, &stop, || run_once(&deps)).await;
}

async fn run_once(deps: &Deps) -> Result<(), Error> {
    let Deps { store, broker, relay, types, .. } = deps;
    let is_outside = |work: Work| matches!(work, Work::Nats | Work::Http | Work::Pull);
    // An idle service without such types leaves its database alone.
    if types.now().iter().any(|known| is_outside(known.handler.work)) {
        Ender { store, broker, relay, types }.end_too_late().await?;
    }
    Ok(())
}
