//! Keeps the live list of types as the database has it: told by signals, and read every few seconds in case one got lost.

use std::{collections::HashMap, time::Duration};

use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Deps, Error};
use crate::{job::JobType, ops::error::chain};

/// Longest time until a change is known everywhere. Source: docs/protocol.md.
const PERIOD: Duration = Duration::from_secs(2);

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    let Ok(mut signals) = deps.broker.types_changes().await else { return };
    let mut tick = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            _ = stop.cancelled() => return,
            _ = tick.tick() => {}
            Some(_) = signals.next() => {}
        }
        if let Err(e) = run_once(&deps).await {
            tracing::debug!("looking after types: {}", chain(&e));
        }
    }
}

/// Takes over what the database has, and sees that new types have their consumers.
pub(super) async fn run_once(deps: &Deps) -> Result<(), Error> {
    let before = deps.types.now();
    refresh(deps).await?;
    let now = deps.types.now();
    let new: Vec<&JobType> =
        now.iter().map(|known| &known.handler.job_type).filter(|name| before.get(name.as_str()).is_none()).collect();
    // One that fails holds up no other.
    let mut made = Ok(());
    for job_type in new {
        made = made.and(deps.broker.ensure_consumers(job_type.as_str()).await);
    }
    Ok(made?)
}

/// Takes over what the database has, and notes there what it does not know of our types.
pub(crate) async fn refresh(deps: &Deps) -> Result<(), Error> {
    let rows = deps.store.types().await?;
    let noted: HashMap<String, i16> =
        rows.iter().filter_map(|row| Some((row.name.clone(), row.max_attempts?))).collect();
    deps.types.replace(rows);
    let now = deps.types.now();
    let known = now.iter().map(|known| (known.name(), known.settings.retry.max_attempts));
    let news: Vec<_> = known.filter(|(name, n)| noted.get(*name) != Some(&(*n as i16))).collect();
    if !news.is_empty() {
        deps.store.note_known_types(&news).await?;
    }
    Ok(())
}
