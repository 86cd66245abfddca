//! How a run outside ended, as its row keeps it until the next run begins: whoever says the same again is told the same again,
//! and whoever says anything else is told that the run is over.

use std::time::Duration;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{Failure, FailureKind, content};

/// What ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndKind {
    Result,
    Error,
    Release,
    Cancel,
    Timeout,
    Lost,
}

impl EndKind {
    pub fn as_str(self) -> &'static str {
        match self {
            EndKind::Result => "result",
            EndKind::Error => "error",
            EndKind::Release => "release",
            EndKind::Cancel => "cancel",
            EndKind::Timeout => "timeout",
            EndKind::Lost => "lost",
        }
    }
}

/// The end of a run outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub kind: EndKind,
    /// Of what was said, the same for every spelling of it; `None`: nothing was, the run was ended for its holder.
    pub hash: Option<[u8; 32]>,
    /// It counts only before the deadline that the row has.
    pub in_time: bool,
}

impl End {
    /// The run was ended without a word of its holder.
    pub fn unsaid(kind: EndKind) -> Self {
        Self { kind, hash: None, in_time: false }
    }

    pub fn result(result: &RawValue) -> Self {
        Self::said(EndKind::Result, &content::lines_of(result.get()))
    }

    pub fn failure(failure: &Failure) -> Self {
        match failure.kind {
            FailureKind::Timeout => Self::unsaid(EndKind::Timeout),
            FailureKind::Lost => Self::unsaid(EndKind::Lost),
            FailureKind::Error | FailureKind::Permanent | FailureKind::Panic => {
                let wish = failure.retry_after.map(|wish| wish.as_millis().to_string());
                let said = serde_json::json!([failure.message, failure.kind == FailureKind::Permanent, wish]);
                Self::said(EndKind::Error, &said.to_string())
            }
        }
    }

    pub fn release(delay: Duration) -> Self {
        Self::said(EndKind::Release, &delay.as_millis().to_string())
    }

    /// Told by a program outside to whoever listens, and not to the process that waits for it.
    pub fn in_time(self) -> Self {
        Self { in_time: true, ..self }
    }

    fn said(kind: EndKind, value: &str) -> Self {
        Self { kind, hash: Some(Sha256::digest(value).into()), in_time: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(text: &str) -> End {
        End::result(&RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn equal_values_are_the_same_end_whatever_their_spelling() {
        assert_eq!(result(r#"{"b": [1.0, "é"], "a": -0.0}"#), result(r#"{"a":0,"b":[1,"\u00e9"]}"#));
        for other in [r#"{"a":0,"b":[2,"é"]}"#, r#"{"a":0}"#, "null", r#"{"a":0,"b":["é",1]}"#] {
            assert_ne!(result(r#"{"a":0,"b":[1,"é"]}"#), result(other));
        }
        assert_ne!(result("9007199254740993"), result("9007199254740992"));
        // Nothing that could be stored, and an end all the same.
        assert_eq!(result(r#""\ud800""#), result(r#""\ud800""#));
    }

    #[test]
    fn what_was_said_in_another_way_is_another_end() {
        let (again, for_good) = (Failure::retry("no"), Failure::permanent("no"));
        let later = Failure::retry("no").after(Some(Duration::from_secs(1)));
        assert_eq!(End::failure(&again), End::failure(&Failure::retry("no")));
        assert_ne!(End::failure(&again), End::failure(&for_good));
        assert_ne!(End::failure(&again), End::failure(&later));
        assert_ne!(End::release(Duration::ZERO), End::release(Duration::from_secs(1)));
    }

    #[test]
    fn what_nobody_has_said_has_no_hash() {
        let timeout = End::failure(&Failure::new(FailureKind::Timeout, "too slow"));
        assert_eq!(timeout, End::unsaid(EndKind::Timeout));
        assert_eq!(End::failure(&Failure::new(FailureKind::Lost, "gone")).hash, None);
    }
}
