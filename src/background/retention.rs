//! Makes partitions ahead, drops the days that are past their retention, and forgets keys whose job is gone.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Deps, Error, repeat};
use crate::job::Status;

/// Days are dropped whole, so looking more often finds nothing.
const PERIOD: Duration = Duration::from_secs(3600);
/// Keys forgotten per statement.
const SLICE: i64 = 1000;

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    repeat("retention", PERIOD, &stop, || run_once(&deps)).await;
}

async fn run_once(deps: &Deps) -> Result<(), Error> {
    let (store, keep) = (&deps.store, &deps.config.retention);
    store.make_partitions().await?;
    if !store.take_turn("retention", PERIOD).await? {
        return Ok(());
    }
    // A day that can't be dropped, since something of the operator's depends on it, keeps no other one.
    let mut all = Ok(());
    for (status, keep) in
        [(Status::Completed, keep.completed), (Status::Failed, keep.failed), (Status::Cancelled, keep.cancelled)]
    {
        match store.drop_expired(status, keep).await {
            Ok(days) => days.iter().for_each(|day| {
                tracing::info!("dropped the {status} jobs of {day}, which are past their retention");
            }),
            Err(e) => all = all.and(Err(e)),
        }
    }
    let shortest = keep.completed.min(keep.failed).min(keep.cancelled);
    while store.forget_keys(shortest, SLICE).await? == SLICE as usize {}
    Ok(all?)
}
