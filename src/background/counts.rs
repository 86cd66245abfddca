//! Folds the deltas of the statistics, so that reading them stays cheap.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Deps, repeat};

/// Deltas that gather in this time are a few thousand rows at the most.
const PERIOD: Duration = Duration::from_secs(2);

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    repeat("folding the statistics", PERIOD, &stop, || async {
        deps.store.fold_counts().await?;
        Ok(())
    })
    .await;
}
