//! The nouns: a job's type, status, priority and lane.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Identity of a job: UUID v7, so that the order of ids is the order of acceptance.
pub type JobId = Uuid;

/// Where a job stands. Written by `store` alone; on the wire and in the database in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Waits to be claimed: for a free worker, for its `runAt`, or for the delay of a retry. Every job starts here.
    Pending,
    /// Claimed by a worker whose lease is current or has just run out.
    Processing,
    /// A run succeeded; its result is stored. Final.
    Completed,
    /// The last attempt failed, or a failure was permanent; a dead letter was published. Final unless retried by hand.
    Failed,
    /// Somebody cancelled it. Final unless retried by hand.
    Cancelled,
}

impl Status {
    pub const ALL: [Status; 5] =
        [Status::Pending, Status::Processing, Status::Completed, Status::Failed, Status::Cancelled];

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Processing => "processing",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens to the job by itself.
    pub fn is_final(self) -> bool {
        match self {
            Status::Pending | Status::Processing => false,
            Status::Completed | Status::Failed | Status::Cancelled => true,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Status::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no status; there are pending, processing, completed, failed and cancelled")]
pub struct UnknownStatus(pub String);

/// The kind of a job, `send-email` for instance. It is a token of NATS subjects and part of consumer names, hence the
/// narrow alphabet: `^[a-z][a-z0-9-]{0,62}$` (wire contract).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct JobType(String);

impl JobType {
    pub const MAX_LEN: usize = 63;

    pub fn new(text: impl Into<String>) -> Result<Self, BadType> {
        let text = text.into();
        let bytes = text.as_bytes();
        let legal = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let fits = (1..=Self::MAX_LEN).contains(&bytes.len());
        if fits && bytes[0].is_ascii_lowercase() && bytes.iter().all(legal) { Ok(Self(text)) } else { Err(BadType) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for JobType {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job type is 1 to 63 characters of a-z, 0-9 and '-', and begins with a letter")]
pub struct BadType;

/// Who does the work of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Work {
    /// The service itself.
    #[serde(skip_deserializing)]
    Builtin,
    /// A program that is asked over NATS, on `queue.handlers.<type>`.
    Nats,
    /// A program that is asked over HTTP.
    Http,
    /// Programs that come and fetch it.
    Pull,
    /// Worker processes that have it built in, and this one has not.
    Embedded,
}

impl Work {
    pub fn as_str(self) -> &'static str {
        match self {
            Work::Builtin => "builtin",
            Work::Nats => "nats",
            Work::Http => "http",
            Work::Pull => "pull",
            Work::Embedded => "embedded",
        }
    }
}

/// From -9 to 9, 0 unless given; higher runs sooner, by way of the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Priority(i16);

impl Priority {
    pub const MIN: i64 = -9;
    pub const MAX: i64 = 9;

    pub fn new(value: i64) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&value).then_some(Self(value as i16))
    }

    pub fn get(self) -> i16 {
        self.0
    }

    pub fn lane(self) -> Lane {
        Lane::of(self.0)
    }
}

/// One of the three queues of a type. Strictly in this order, apart from a small share kept for the lower ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    High,
    Normal,
    Low,
}

impl Lane {
    pub const ALL: [Lane; 3] = [Lane::High, Lane::Normal, Lane::Low];

    pub fn of(priority: i16) -> Self {
        match priority.signum() {
            1 => Lane::High,
            0 => Lane::Normal,
            _ => Lane::Low,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Lane::High => "high",
            Lane::Normal => "normal",
            Lane::Low => "low",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_names_that_would_be_subject_tokens_or_too_long_are_refused() {
        for bad in
            ["", ".", "*", ">", "a.b", "a b", "a\r\nb", "Ａ", "A", "1a", "-a", "..", "$SYS", "a*", &"a".repeat(64)]
        {
            assert_eq!(JobType::new(bad), Err(BadType), "{bad:?}");
        }
        for good in ["a", "send-email", "x9", &"a".repeat(63)] {
            assert!(JobType::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn priorities_map_to_lanes_by_their_sign() {
        let lanes: Vec<_> = [9, 1, 0, -1, -9].map(|p| Priority::new(p).unwrap().lane()).into();
        assert_eq!(lanes, [Lane::High, Lane::High, Lane::Normal, Lane::Low, Lane::Low]);
        assert!(Priority::new(10).is_none() && Priority::new(-10).is_none() && Priority::new(i64::MAX).is_none());
    }
}
