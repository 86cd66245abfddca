//! What a handler's result becomes. It is cleaned rather than refused: it must never keep an outcome from being recorded.

use serde_json::value::RawValue;

use super::AnyHandler;
use crate::job::{Failure, Outcome, kept::keep};

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
    match keep(result) {
        Ok(kept) => Outcome::Done(kept),
        Err(fault) => Outcome::Failed(Failure::permanent(format!("the result can't be kept: {fault}"))),
    }
}
