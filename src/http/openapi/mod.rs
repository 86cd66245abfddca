//! `/openapi.json` (OpenAPI 3.1): put together from `operations` and the schemas of the types that are really read and
//! written, so that it can't promise anything else.

mod operations;

use std::{collections::BTreeMap, sync::LazyLock};

use axum::{http::header::CONTENT_TYPE, response::IntoResponse};
use schemars::{JsonSchema, schema_for};
use serde_json::{Map, Value, json};

use super::refusal::Answer;
use crate::ops::{
    Check, Health, Verb,
    error::Problem,
    wire::{SchemaReply, VerbsReply},
};
use operations::{ANYWHERE, Gives, OPERATIONS, Operation, Parameter, Place, Takes};

/// The whole document.
pub static DOCUMENT: LazyLock<Value> = LazyLock::new(build);

pub(super) async fn document() -> Answer {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", *DOCUMENT));
    Ok(([(CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response())
}

fn build() -> Value {
    let mut schemas = Schemas::default();
    let problem = schemas.of::<Problem>();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in OPERATIONS {
        let described = describe(operation, &problem, &mut schemas);
        paths.entry(operation.path).or_default().insert(operation.method.to_owned(), described);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "queue-service",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Background jobs for programs in any language. The same verbs, with the same requests and \
                replies, are asked over NATS as `queue.<operationId>`. Errors are problem details (RFC 9457).",
        },
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas.0,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "Needed when `http.token` is set."},
            },
        },
    })
}

fn describe(operation: &Operation, problem: &Value, schemas: &mut Schemas) -> Value {
    let mut described = Map::new();
    let mut put = |key: &str, value: Value| described.insert(key.to_owned(), value);
    put("operationId", operation.id.into());
    put("tags", json!([operation.group]));
    put("summary", operation.summary.into());
    let mut parameters: Vec<Value> = operation.parameters.iter().map(parameter).collect();
    match operation.takes {
        Takes::Nothing => {}
        Takes::Query(verb) => parameters.extend(query_of(verb)),
        Takes::Body(verb, example) => {
            let mut content = json!({"schema": schemas.add(verb.schemas().0)});
            if let Ok(example) = serde_json::from_str::<Value>(example) {
                content["example"] = example;
            }
            put("requestBody", json!({"required": true, "content": {"application/json": content}}));
        }
    }
    if !parameters.is_empty() {
        put("parameters", parameters.into());
    }
    if operation.open {
        put("security", json!([{}]));
    }
    put("responses", responses(operation, problem, schemas));
    Value::Object(described)
}

fn responses(operation: &Operation, problem: &Value, schemas: &mut Schemas) -> Value {
    let content = match operation.gives {
        Gives::Reply(verb) => json!({"application/json": {"schema": schemas.add(verb.schemas().1)}}),
        Gives::Health => json!({"application/json": {"schema": schemas.of::<Health>()}}),
        Gives::Check => json!({"application/json": {"schema": schemas.of::<Check>()}}),
        Gives::Schema => json!({"application/json": {"schema": schemas.of::<SchemaReply>()}}),
        Gives::Verbs => json!({"application/json": {"schema": schemas.of::<VerbsReply>()}}),
        Gives::Json => json!({"application/json": {"schema": {"type": "object"}}}),
        Gives::Text(kind) => json!({kind: {"schema": {"type": "string"}}}),
    };
    let mut responses = Map::new();
    for (status, description) in operation.good {
        responses.insert(status.to_string(), json!({"description": description, "content": content}));
    }
    let mut refused: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    let everywhere = if operation.open { &[] } else { ANYWHERE };
    for code in operation.refusals.iter().chain(everywhere) {
        refused.entry(code.status()).or_default().push(code.as_str());
    }
    for (status, codes) in refused {
        let response = json!({
            "description": format!("`{}`", codes.join("`, `")),
            "content": {"application/problem+json": {"schema": problem}},
        });
        responses.insert(status.to_string(), response);
    }
    Value::Object(responses)
}

fn parameter(parameter: &Parameter) -> Value {
    let place = match parameter.place {
        Place::Path => "path",
        Place::Query => "query",
        Place::Header => "header",
    };
    json!({
        "name": parameter.name,
        "in": place,
        "required": parameter.place == Place::Path,
        "description": parameter.about,
        "schema": {"type": "string"},
    })
}

/// The properties of a verb's request as parameters of a query string. Lists may be repeated or have commas.
fn query_of(verb: Verb) -> Vec<Value> {
    let (request, _) = verb.schemas();
    let properties = request["properties"].as_object().cloned().unwrap_or_default();
    let one = |(name, mut schema): (String, Value)| {
        let about = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        let number = schema["type"].as_array().is_some_and(|types| types.contains(&"integer".into()));
        let list = schema.get("anyOf").is_some();
        let schema = match (number, list) {
            (true, _) => {
                schema["type"] = "integer".into();
                schema.as_object_mut().map(|schema| schema.remove("format"));
                schema
            }
            (false, true) => json!({"type": "array", "items": {"type": "string"}}),
            (false, false) => json!({"type": "string"}),
        };
        json!({"name": name, "in": "query", "required": false, "description": about, "schema": schema})
    };
    properties.into_iter().filter(|(name, _)| name != "jobId").map(one).collect()
}

/// Schemas by name, gathered from root schemas that carry their parts with them.
#[derive(Default)]
struct Schemas(BTreeMap<String, Value>);

impl Schemas {
    fn of<T: JsonSchema>(&mut self) -> Value {
        self.add(schema_for!(T).to_value())
    }

    /// Takes a root schema apart and answers with a reference to it.
    fn add(&mut self, mut root: Value) -> Value {
        redirect(&mut root);
        let Some(object) = root.as_object_mut() else { return root };
        object.remove("$schema");
        if let Some(Value::Object(parts)) = object.remove("$defs") {
            self.0.extend(parts);
        }
        let Some(Value::String(name)) = object.remove("title") else { return root };
        let reference = json!({"$ref": format!("#/components/schemas/{name}")});
        self.0.insert(name, root);
        reference
    }
}

/// Lets references point to where the parts are in the document.
fn redirect(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::String(target)) = object.get_mut("$ref") {
                *target = target.replace("#/$defs/", "#/components/schemas/");
            }
            object.values_mut().for_each(redirect);
        }
        Value::Array(array) => array.iter_mut().for_each(redirect),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http::jobs, ops::VERBS};

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(array) => array.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_to_something() {
        let mut found = Vec::new();
        references(&DOCUMENT, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            assert!(DOCUMENT.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        assert!(!DOCUMENT.to_string().contains("$defs"));
    }

    #[test]
    fn one_name_means_one_schema() {
        let mut schemas = Schemas::default();
        let roots = VERBS.into_iter().flat_map(|verb| [verb.schemas().0, verb.schemas().1]);
        let mut seen: BTreeMap<String, Value> = BTreeMap::new();
        for root in roots.chain([schema_for!(Problem).to_value(), schema_for!(Health).to_value()]) {
            schemas.add(root);
            for (name, schema) in &schemas.0 {
                // A description at the place of use may replace the one of the type.
                let earlier = seen.entry(name.clone()).or_insert_with(|| schema.clone());
                assert_eq!(earlier, schema, "{name}");
            }
        }
    }

    #[test]
    fn every_verb_has_a_route_and_every_query_parameter_is_read() {
        // To wait is a parameter of `getJob` here.
        for verb in VERBS.into_iter().filter(|verb| *verb != Verb::WaitJob) {
            assert!(OPERATIONS.iter().any(|operation| operation.id == verb.name()), "{}", verb.name());
        }
        let described: Vec<String> =
            query_of(Verb::ListJobs).iter().map(|p| p["name"].as_str().unwrap_or_default().to_owned()).collect();
        let mut read: Vec<&str> = jobs::LIST.iter().map(|(name, _)| *name).collect();
        read.sort_unstable();
        assert_eq!(described, read);
    }
}
