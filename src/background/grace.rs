//! Gives runs outside their leases again after an outage, so that none is ended for want of signs of life that could not
//! arrive: when this process begins and nobody else was there, and when Postgres or NATS was away.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Deps;
use crate::{
    ops::error::chain,
    store::{
        self,
        grace::{Grace, Outage, certain_after},
    },
};

/// How often is looked whether NATS is there.
const LOOK: Duration = Duration::from_millis(500);
/// Pause before what failed is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// A shorter outage ends no lease: the shortest is a second, and renewed several times in it.
const SHORT: Duration = Duration::from_millis(500);

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    let life = async {
        begin(&deps).await;
        loop {
            end_of_outage(&deps).await;
            tokio::select! {
                () = deps.store.reach().lost() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    };
    stop.run_until_cancelled(life).await;
}

/// Whether there was an outage before this process began.
async fn begin(deps: &Deps) {
    let (lease, began) = (deps.config.worker.lease, Instant::now());
    loop {
        let (up, asked) = (began.elapsed(), Instant::now());
        let pause = match deps.store.extend_outside(Outage::Maybe { up }, lease).await {
            // It may have died a moment ago.
            Ok(Grace::Witnessed) if up < certain_after(lease) => certain_after(lease) - up,
            Ok(grace) => {
                tell(grace);
                // Else the database stood still before its answer, and leases may have ended meanwhile: an outage by itself.
                if asked.elapsed() < SHORT {
                    deps.store.reach().regain();
                }
                return;
            }
            Err(e) => {
                tracing::debug!("could not extend leases of runs outside, trying again: {}", chain(&e));
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Waits for the end of an outage, if there is one, and extends leases.
async fn end_of_outage(deps: &Deps) {
    let Deps { store, broker, config, .. } = deps;
    loop {
        if !broker.is_connected() {
            store.reach().lose();
        }
        let Some(since) = store.reach().away_since() else { return };
        if broker.is_connected() {
            let asked = Instant::now();
            let there = async {
                store.ping().await?;
                // Now that the database answers, which it may have done late.
                let lasted = since.elapsed();
                if lasted > SHORT {
                    tell(store.extend_outside(Outage::Seen { lasted }, config.worker.lease).await?);
                }
                Ok::<_, store::Error>(())
            };
            match there.await {
                Ok(()) if asked.elapsed() < SHORT => return store.reach().regain(),
                // It may have stood still once more, after leases were extended.
                Ok(()) => {}
                Err(e) => tracing::debug!("leases of runs outside are not ended for now: {}", chain(&e)),
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn tell(grace: Grace) {
    if let Grace::Given(n @ 1..) = grace {
        tracing::info!("extended the leases of {n} runs outside: nobody could renew them");
    }
}
