//! How a NATS micro-service says that it is a handler. Pure. Source of the shape: NATS ADR-32.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

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

/// `subject_of`: where handlers of a type have to listen.
pub(crate) fn types_of(answer: &[u8], subject_of: impl Fn(&str) -> String) -> Vec<(String, Value)> {
    let info: Info = match serde_json::from_slice(answer) {
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
