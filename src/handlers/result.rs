//! What a handler's result becomes. It is cleaned rather than refused: it must never keep an outcome from being recorded.

use serde_json::{Value, value::RawValue};

use super::AnyHandler;
use crate::job::{Failure, Outcome, json};

/// What a result of `size` bytes means where `max` are allowed; `None`: it is not too large.
pub(crate) fn too_large(size: usize, max: u64) -> Option<Failure> {
    let message = || format!("result_too_large: the result has {size} bytes, the limit is {max} bytes");
    (size as u64 > max).then(|| Failure::permanent(message()))
}

/// The outcome of a run that ended with this result. `max`: largest result, in bytes.
pub(crate) fn accept(handler: &AnyHandler, result: Box<RawValue>, max: u64) -> Outcome {
    if let Some(failure) = too_large(result.get().len(), max) {
        return Outcome::Failed(failure);
    }
    let faults = handler.check_result(&result);
    if let Some((pointer, fault)) = faults.0.first() {
        let message = format!("the result breaks the result schema of '{}': {pointer} {fault}", handler.job_type);
        return Outcome::Failed(Failure::permanent(message));
    }
    if json::check_value(result.get().as_bytes()).is_ok() {
        return Outcome::Done(result);
    }
    let cleaned = serde_json::from_str(result.get()).map(without_nul).and_then(|v| serde_json::value::to_raw_value(&v));
    match cleaned {
        Ok(raw) if json::check_value(raw.get().as_bytes()).is_ok() => Outcome::Done(raw),
        Ok(_) | Err(_) => Outcome::Failed(Failure::permanent("the result is no JSON that can be stored")),
    }
}

fn without_nul(value: Value) -> Value {
    let clean = |text: String| if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
    match value {
        Value::String(text) => Value::String(clean(text)),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nul).collect()),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (clean(k), without_nul(v))).collect()),
        other => other,
    }
}
