//! Finds handlers that introduce themselves on the bus: NATS micro-services whose endpoints say which type they do.
//!
//! Source of the answers' shape: NATS ADR-32. What they say is checked like any other definition.

use std::{collections::BTreeMap, time::Duration};

use async_nats::Message;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Deps, Error};
use crate::{ops::error::chain, types::Definition};

/// Time between two questions.
const PERIOD: Duration = Duration::from_secs(5);
/// How long answers are waited for.
const ANSWERS: Duration = Duration::from_millis(400);
/// Most answers that are looked at in one round.
const MOST: usize = 10_000;

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    subject: String,
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
}

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    if !deps.config.nats.discovery {
        return;
    }
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
        changed |= deps.store.define_type(&name, &definition.to_string(), true).await?;
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
        found.extend(types_of(&answer, |name| deps.broker.subjects.handler(name)));
    }
    let _ = answers.unsubscribe().await;
    found
}

/// `subject_of`: where handlers of a type have to listen.
fn types_of(answer: &Message, subject_of: impl Fn(&str) -> String) -> Vec<(String, Value)> {
    let info: Info = match serde_json::from_slice(&answer.payload) {
        Ok(info) => info,
        Err(_) => return Vec::new(),
    };
    let one = |endpoint: Endpoint| {
        let metadata = endpoint.metadata?;
        let name = metadata.get("queue.type")?.clone();
        (endpoint.subject == subject_of(&name)).then(|| (name, definition(&metadata)))
    };
    info.endpoints.into_iter().filter_map(one).collect()
}

/// The definition that the metadata of an endpoint amounts to; all its values are texts.
fn definition(metadata: &BTreeMap<String, String>) -> Value {
    let mut definition = json!({"handler": "nats"});
    for (key, text) in metadata {
        let Some(key) = key.strip_prefix("queue.").filter(|key| *key != "type") else { continue };
        definition[key] = match key {
            "maxAttempts" | "concurrency" | "payloadSchema" | "resultSchema" | "backoff" => {
                serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.clone()))
            }
            _ => Value::from(text.clone()),
        };
    }
    definition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_as_a_definition() {
        let metadata = BTreeMap::from(
            [("queue.type", "thumbnail"), ("queue.timeout", "2m"), ("queue.maxAttempts", "5"), ("other", "x")]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        assert_eq!(definition(&metadata), json!({"handler": "nats", "timeout": "2m", "maxAttempts": 5}));
    }
}
