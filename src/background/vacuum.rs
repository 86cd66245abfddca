//! Clears what finished jobs leave in the table of live ones, sooner than the database does by itself.
//!
//! Its autovacuum looks once a minute, in which a service deletes hundreds of thousands of rows; the first list that comes
//! upon them has to look at each. See docs/laboratory.md.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Deps, Error, repeat};

/// What is deleted in this time at full speed makes a list no slower than it may be.
const PERIOD: Duration = Duration::from_secs(5);
/// Pause when a vacuum has not helped, since somebody's long transaction may still see the rows: to read them again would be in vain.
const IN_VAIN: Duration = Duration::from_secs(60);

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    repeat("vacuum", PERIOD, &stop, || run_once(&deps)).await;
}

async fn run_once(deps: &Deps) -> Result<(), Error> {
    let store = &deps.store;
    if let Some(before) = store.rows_to_vacuum().await?
        && store.take_turn("vacuum", PERIOD).await?
    {
        store.vacuum().await?;
        // Fewer, and yet many, are those that were deleted meanwhile.
        if store.rows_to_vacuum().await?.is_some_and(|after| after >= before) {
            tokio::time::sleep(IN_VAIN).await;
        }
    }
    Ok(())
}
