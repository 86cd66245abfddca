//! From bytes to typed requests: the same rules on every door, and every fault named.

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Visitor},
};

use super::error::{ApiError, Code, Fault, MAX_FAULTS, quoted};
use crate::{
    handlers::{
        schema_faults,
        typed::{pointer, without_place},
    },
    job::{json, model::JobId},
};

/// Checks the general rules and decodes. An empty body counts as `{}`.
///
/// # Errors
/// `invalid_json` for what is no JSON, `invalid_payload` for a broken rule below `/payload`, else `invalid_request`.
pub fn parse<T: DeserializeOwned + JsonSchema>(body: &[u8]) -> Result<T, ApiError> {
    decode(object(body)?)
}

/// As [`parse`], for what is said of a run: its result and its checkpoint are judged later, by the rules for what runs
/// hand over.
///
/// # Errors
/// As [`parse`].
pub fn parse_of_run<T: DeserializeOwned + JsonSchema>(body: &[u8]) -> Result<T, ApiError> {
    decode(object_but(body, OF_RUNS)?)
}

const OF_RUNS: &[&str] = &["result", "checkpoint"];

/// A body that is an object by the general rules. An empty one counts as `{}`.
fn object(body: &[u8]) -> Result<&[u8], ApiError> {
    object_but(body, &[])
}

fn object_but<'a>(body: &'a [u8], judged_later: &'static [&'static str]) -> Result<&'a [u8], ApiError> {
    let body = if body.iter().all(u8::is_ascii_whitespace) { b"{}" } else { body };
    json::check_object_but(body, judged_later).map_err(broken_rule)?;
    Ok(body)
}

/// Decodes an object that has passed the general rules, or is checked for them in parts later.
///
/// # Errors
/// As [`parse`].
pub fn decode<T: DeserializeOwned + JsonSchema>(body: &[u8]) -> Result<T, ApiError> {
    // The decoder would take an array for an object, by the order of its fields.
    if body.trim_ascii_start().first() != Some(&b'{') {
        json::check_object(body).map_err(broken_rule)?;
    }
    match serde_json::from_slice(body) {
        Ok(request) => Ok(request),
        Err(e) if e.is_syntax() || e.is_eof() => Err(ApiError::new(Code::InvalidJson, e.to_string())),
        Err(_) => Err(explain::<T>(body)),
    }
}

/// The faults of a text against the input rules.
pub fn broken_rule(fault: json::Fault) -> ApiError {
    match fault {
        json::Fault::Syntax { .. } => ApiError::new(Code::InvalidJson, fault.to_string()),
        json::Fault::Rule { pointer, message } => {
            let in_payload = pointer == "/payload" || pointer.starts_with("/payload/");
            let code = if in_payload { Code::InvalidPayload } else { Code::InvalidRequest };
            ApiError::fault(code, pointer, message)
        }
    }
}

/// The decoder stops at the first fault and does not always say where; the schema names them all.
fn explain<T: DeserializeOwned + JsonSchema>(body: &[u8]) -> ApiError {
    let mut faults = Vec::new();
    let schema = schemars::schema_for!(T);
    let value = serde_json::from_slice(body).unwrap_or_default();
    if let Ok(validator) = jsonschema::validator_for(schema.as_value()) {
        let found = validator.iter_errors(&value).flat_map(|error| schema_faults::of(&error, &value)).take(MAX_FAULTS);
        faults.extend(found.map(|(path, message)| Fault { path, message }));
    }
    if faults.is_empty() {
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        if let Err(e) = serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
            faults.push(Fault { path: pointer(e.path()), message: without_place(e.inner()) });
        }
    }
    ApiError::faults(Code::InvalidRequest, faults)
}

/// As [`parse_of_run`], with a field that was named outside the body, which the body may repeat.
///
/// # Errors
/// As [`parse`]; `invalid_request` when the body says otherwise.
pub fn parse_of_run_with<T: DeserializeOwned + JsonSchema>(
    body: &[u8],
    field: &str,
    value: serde_json::Value,
) -> Result<T, ApiError> {
    let mut fields: std::collections::BTreeMap<String, Box<serde_json::value::RawValue>> =
        serde_json::from_slice(object_but(body, OF_RUNS)?)
            .map_err(|e| ApiError::new(Code::InvalidJson, e.to_string()))?;
    let raw = serde_json::value::to_raw_value(&value).map_err(|e| ApiError::internal(&e))?;
    match fields.get(field) {
        Some(said) if serde_json::from_str::<serde_json::Value>(said.get()).ok().as_ref() != Some(&value) => {
            return Err(ApiError::fault(Code::InvalidRequest, format!("/{field}"), "differs from the path"));
        }
        _ => fields.insert(field.to_owned(), raw),
    };
    decode(&serde_json::to_vec(&fields).map_err(|e| ApiError::internal(&e))?)
}

/// `{"jobId": …}`, or the bare id as text.
///
/// # Errors
/// `invalid_request` for ids that are none.
pub fn parse_by_id<T: DeserializeOwned + JsonSchema + From<JobId>>(body: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(body).unwrap_or_default().trim();
    if text.starts_with('{') || text.is_empty() {
        return parse(body);
    }
    parse_id(text.trim_matches('"')).map(T::from)
}

/// A job id: a UUID of version 7 in lower case with hyphens, as we gave it out.
///
/// # Errors
/// `invalid_request`.
pub fn parse_id(text: &str) -> Result<JobId, ApiError> {
    strict_id(text).ok_or_else(|| ApiError::fault(Code::InvalidRequest, "/jobId", NOT_AN_ID))
}

const NOT_AN_ID: &str = "a job id is a UUID of version 7 as enqueue answered it, for instance \
    0198c5a4-5d5c-7000-8000-000000000000";

fn strict_id(text: &str) -> Option<JobId> {
    let id = JobId::try_parse(text).ok()?;
    let as_given_out = id.hyphenated().encode_lower(&mut [0; 36]) == text;
    (as_given_out && id.get_version_num() == 7).then_some(id)
}

/// A job id in a request; other spellings of UUIDs are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdText(pub JobId);

impl<'de> Deserialize<'de> for IdText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        strict_id(&text).map(IdText).ok_or_else(|| serde::de::Error::custom(NOT_AN_ID))
    }
}

impl JsonSchema for IdText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "JobId".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({"type": "string", "format": "uuid", "description": "UUID v7"})
    }
}

/// A span of time in a request: `"30s"`, `"250ms"`, `"1h 30m"`, or a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct SpanVisitor;
        impl Visitor<'_> for SpanVisitor {
            type Value = Span;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a span of time like \"30s\", \"250ms\" or \"1h\", or a number of seconds")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                humantime::parse_duration(text).map(Span).map_err(|_| {
                    E::custom(format!("{} is no span of time; write \"30s\", \"250ms\" or \"1h\"", quoted(text)))
                })
            }

            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Span, E> {
                Ok(Span(Duration::from_secs(seconds)))
            }

            fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<Span, E> {
                u64::try_from(seconds)
                    .map(|s| Span(Duration::from_secs(s)))
                    .map_err(|_| E::custom("a span of time can't be negative"))
            }

            fn visit_f64<E: serde::de::Error>(self, seconds: f64) -> Result<Span, E> {
                Duration::try_from_secs_f64(seconds)
                    .map(Span)
                    .map_err(|_| E::custom("a span of time must be a number of seconds from 0 on"))
            }
        }
        from.deserialize_any(SpanVisitor)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "\"30s\", \"250ms\", \"1h 30m\", or a number of seconds",
            "anyOf": [{"type": "string"}, {"type": "number", "minimum": 0}],
        })
    }
}
