//! The duties in the background, a file each: they publish what is due, repair what crashes left, and tidy up.
//!
//! A duty is one idempotent `run_once` that takes no input, so it may run at any time, twice, or in several replicas at
//! once. None of them is needed for the normal path; all of them are needed after something went wrong.

mod counts;
mod dead_letters;
mod dead_workers;
mod deadlines;
mod discovery;
mod grace;
mod notices;
mod relay;
mod retention;
mod sweep;
mod topology;
pub(crate) mod types;
mod vacuum;
mod wake_ups;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use crate::ops::Deps;
use crate::{broker, ops::error::chain, store, supervise::Tasks};
pub use relay::Relay;
pub use sweep::Sweep;
pub use topology::Topology;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

impl Error {
    fn is_told(&self) -> bool {
        match self {
            Error::Store(e) => e.is_silence(),
            Error::Broker(broker::Error::Unreachable(why)) => why == broker::NOT_CONNECTED,
            Error::Broker(_) => false,
        }
    }
}

/// Pause after a duty that failed, so that an outage is no hot loop.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Types or lanes that the broker is asked about at the same time.
const AT_ONCE: usize = 16;

/// Starts all duties on `tasks`; they end at `stop`.
pub fn start(deps: &Deps, stop: &CancellationToken, tasks: &Tasks) {
    macro_rules! keep {
        ($name:literal, $work:path) => {{
            let (deps, stopped) = (deps.clone(), stop.clone());
            tasks.keep($name, stop, move || $work(deps.clone(), stopped.clone()));
        }};
    }
    keep!("relay", relay::work);
    keep!("topology", topology::work);
    keep!("lanes", topology::note_lanes);
    keep!("sweep", sweep::work);
    keep!("dead-workers", dead_workers::work);
    keep!("deadlines", deadlines::work);
    keep!("grace", grace::work);
    keep!("retention", retention::work);
    keep!("counts", counts::work);
    keep!("vacuum", vacuum::work);
    keep!("types", types::work);
    keep!("notices", notices::work);
    if deps.config.nats.discovery {
        keep!("discovery", discovery::work);
    }
}

/// Repeats a duty each `period` until `stop`. A failure is told once and not again at each repetition of it.
async fn repeat<F, Fut>(name: &str, period: Duration, stop: &CancellationToken, run_once: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), Error>>,
{
    let mut failing = false;
    loop {
        let pause = match stop.run_until_cancelled(run_once()).await {
            None => return,
            Some(Ok(())) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("{name}: works again");
                }
                period
            }
            Some(Err(e)) => {
                report(name, &e, &mut failing);
                period.min(AFTER_FAILURE)
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

fn report(name: &str, e: &Error, failing: &mut bool) {
    // That one of the servers is away is told once for all, with the reason.
    if e.is_told() {
        *failing = true;
        tracing::debug!("{name}: {}", chain(e));
    } else if std::mem::replace(failing, true) {
        tracing::debug!("{name}: {}", chain(e));
    } else {
        tracing::warn!("{name}: {}", chain(e));
    }
}
