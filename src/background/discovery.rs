//! Finds handlers that introduce themselves on the bus: NATS micro-services whose endpoints say which type they do.
//! What they say is checked like any other definition.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Deps, Error};
use crate::{
    ops::error::chain,
    types::{Definition, introduction::types_of},
};

/// Time between two questions.
const PERIOD: Duration = Duration::from_secs(5);
/// How long answers are waited for.
const ANSWERS: Duration = Duration::from_millis(400);
/// Most answers that are looked at in one round.
const MOST: usize = 10_000;

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stop.cancelled() => return,
            _ = tick.tick() => {}
            // Somebody asked for a type that is not known.
            _ = deps.types.wanted() => {}
        }
        let round = deps.types.begin_search();
        if let Some(Err(e)) = stop.run_until_cancelled(run_once(&deps)).await {
            tracing::debug!("looking for handlers: {}", chain(&e));
        }
        deps.types.end_search(round);
    }
}

/// Asks who is there, and makes types of those who say so.
async fn run_once(deps: &Deps) -> Result<(), Error> {
    let found = ask(deps).await;
    let mut changed = false;
    for (name, definition) in found {
        let known = deps.types.now();
        if deps.types.fixed(&name).is_some() {
            continue;
        }
        if let Some(known) = known.get(&name) {
            known.handler.seen().await;
            if !known.is_discovered_otherwise(&definition) {
                continue;
            }
        }
        if let Err(faults) = check(deps, &name, &definition) {
            tracing::warn!("a handler on the bus describes the type '{name}' wrongly: {faults}");
            continue;
        }
        match deps.store.define_type(&name, &definition.to_string(), true).await {
            Ok(is_new) => changed |= is_new,
            Err(e) if e.may_be_about_one() => {
                tracing::warn!("the type '{name}' of a handler on the bus can't be noted: {}", chain(&e));
                continue;
            }
            Err(e) => return Err(e.into()),
        }
        tracing::info!("found a handler of the type '{name}'");
    }
    if changed {
        super::types::run_once(deps).await?;
        deps.broker.signal_types_changed("*").await;
    }
    Ok(())
}

fn check(deps: &Deps, name: &str, definition: &Value) -> Result<(), String> {
    let definition: Definition = serde_json::from_value(definition.clone()).map_err(|e| e.to_string())?;
    deps.types.check(name, &definition).map(|_| ()).map_err(|faults| faults.to_string())
}

/// The types that services on the bus say they do.
async fn ask(deps: &Deps) -> BTreeMap<String, Value> {
    let client = &deps.broker.jetstream;
    let mut found = BTreeMap::new();
    let inbox = client.new_inbox();
    let Ok(mut answers) = client.subscribe(inbox.clone()).await else { return found };
    let asked = client.publish_with_reply("$SRV.INFO", inbox, bytes::Bytes::new()).await;
    let end = Instant::now() + ANSWERS;
    let mut n = 0;
    while asked.is_ok()
        && n < MOST
        && let Ok(Some(answer)) = timeout_at(end, answers.next()).await
    {
        n += 1;
        found.extend(types_of(&answer.payload, |name| deps.broker.subjects.handler(name)));
    }
    let _ = answers.unsubscribe().await;
    found
}
