//! Query strings, read by the rules that hold for JSON requests: known names only, each once, clean texts.

use std::collections::BTreeMap;

use axum::extract::{FromRequestParts, Path, rejection::PathRejection};
use hyper::http::request::Parts;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use super::refusal::Refusal;
use crate::ops::{ApiError, Code, error::Fault, input};

/// How the text of a parameter becomes JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// An integer, else a text, so that the request's own rules name the fault.
    Number,
    /// May be repeated, and each may hold several with commas.
    List,
}

/// What a route takes.
pub type Parameters = &'static [(&'static str, Kind)];

/// Reads a query string into an object.
///
/// # Errors
/// `invalid_request` with every fault: unknown names, repetitions, broken escapes.
pub fn object(query: Option<&str>, parameters: Parameters) -> Result<Map<String, Value>, ApiError> {
    let mut object = Map::new();
    let mut lists = BTreeMap::new();
    let mut faults = Vec::new();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, text) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(name), Some(text)) = (unescape(name), unescape(text)) else {
            let message = "the query string holds a broken escape, or text that is not UTF-8".into();
            faults.push(Fault { path: String::new(), message });
            continue;
        };
        let path = || format!("/{name:.40}");
        let Some((_, kind)) = parameters.iter().find(|(known, _)| *known == name) else {
            let known = parameters.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
            let message = match known.as_str() {
                "" => "no parameters are taken here".to_owned(),
                known => format!("is no parameter; there are {known}"),
            };
            faults.push(Fault { path: path(), message });
            continue;
        };
        let value = match kind {
            Kind::Text => Value::String(text),
            Kind::Number => match (text.parse::<i64>(), serde_json::from_str::<Number>(&text)) {
                (Ok(n), _) => Value::from(n),
                // 1.0 is an integer as well.
                (Err(_), Ok(n)) => Value::Number(n),
                (Err(_), Err(_)) => Value::String(text),
            },
            Kind::List => {
                let list = lists.entry(name).or_insert_with(Vec::new);
                list.extend(text.split(',').map(Value::from));
                continue;
            }
        };
        if object.contains_key(&name) {
            faults.push(Fault { path: path(), message: "stands here twice".into() });
        }
        object.insert(name, value);
    }
    for (name, mut list) in lists {
        // One is itself and no list, so that a fault is told by the name of its parameter.
        let value = if list.len() == 1 { list.remove(0) } else { Value::Array(list) };
        object.insert(name, value);
    }
    if faults.is_empty() { Ok(object) } else { Err(ApiError::faults(Code::InvalidRequest, faults)) }
}

/// Decodes an object that was put together from parts of a URL, by the rules for bodies.
///
/// # Errors
/// As [`input::parse`].
pub fn decode<T: DeserializeOwned + JsonSchema>(object: Map<String, Value>) -> Result<T, ApiError> {
    input::parse(Value::Object(object).to_string().as_bytes())
}

/// Refuses parameters where there are none.
///
/// # Errors
/// As [`object`].
pub fn none(query: Option<&str>) -> Result<(), ApiError> {
    object(query, &[]).map(|_| ())
}

/// Resolves `%xx` and `+`; `None` for what is broken or no UTF-8.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok())
}

/// The one variable segment of a path, escapes resolved.
#[derive(Debug)]
pub struct Segment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let segment: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        match segment {
            Ok(Path(text)) => Ok(Self(text)),
            Err(_) => {
                let message = "the path holds a broken escape, or text that is not UTF-8";
                Err(ApiError::fault(Code::InvalidRequest, "", message).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::wire::ListRequest;

    const LIST: Parameters = &[("status", Kind::List), ("tag", Kind::Text), ("limit", Kind::Number)];

    fn read(query: &str) -> Result<Value, Vec<(String, String)>> {
        object(Some(query), LIST)
            .map(Value::Object)
            .map_err(|e| e.errors.into_iter().map(|fault| (fault.path, fault.message)).collect())
    }

    #[test]
    fn lists_may_be_repeated_or_have_commas_and_other_texts_keep_theirs() {
        let read = read("status=pending,failed&tag=a%2Cb+%C3%A4&status=completed&limit=5&").unwrap();
        let expected = serde_json::json!({"status": ["pending", "failed", "completed"], "tag": "a,b ä", "limit": 5});
        assert_eq!(read, expected);
        assert_eq!(object(None, LIST).unwrap().len(), 0);
    }

    #[test]
    fn every_fault_is_named() {
        let paths = |query: &str| read(query).unwrap_err().into_iter().map(|(path, _)| path).collect::<Vec<_>>();
        assert_eq!(paths("limt=1&limit=1&limit=2&tag=%zz"), ["/limt", "/limit", ""]);
        for broken in ["tag=%", "tag=%4", "tag=%ff", "%ff=1", "tag=%+1"] {
            assert_eq!(paths(broken), [""], "{broken}");
        }
        assert_eq!(none(Some("x=1")).unwrap_err().detail, "/x: no parameters are taken here");
    }

    #[test]
    fn the_rules_of_json_requests_hold_for_queries() {
        let fault = |query: &str| decode::<ListRequest>(object(Some(query), LIST).unwrap()).unwrap_err();
        assert_eq!(fault("tag=a%00").errors[0].path, "/tag");
        assert_eq!(fault("limit=ten").errors[0].path, "/limit");
        assert_eq!(fault("limit=").errors[0].path, "/limit");
        assert_eq!(fault("limit=99999999999999999999").code, Code::InvalidRequest);
    }
}
