//! What to hand in: a job's type and payload, and whatever is not to be as usual.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::handlers::Handler;

/// A job to hand in. Limits are those of the wire contract, and the service names each one that is not kept.
///
/// # Examples
/// ```
/// use queue_service::Enqueue;
/// use std::time::Duration;
///
/// let payload = serde_json::json!({"to": "ada@example.org", "subject": "Hi", "body": "…"});
/// let job = Enqueue::new("send-email", &payload)?.key("order-7").delay(Duration::from_secs(60));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Enqueue {
    r#type: String,
    payload: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
}

impl Enqueue {
    /// A job of a type that is known by its name.
    ///
    /// # Errors
    /// The payload can't be written as JSON.
    pub fn new(job_type: impl Into<String>, payload: &impl Serialize) -> serde_json::Result<Self> {
        Ok(Self {
            r#type: job_type.into(),
            payload: serde_json::value::to_raw_value(payload)?,
            priority: None,
            max_attempts: None,
            delay: None,
            run_at: None,
            idempotency_key: None,
            tags: Vec::new(),
            timeout: None,
        })
    }

    /// A job for a handler of this program or of one that shares its code.
    ///
    /// # Errors
    /// As [`Enqueue::new`].
    pub fn of<H: Handler<Payload: Serialize>>(payload: &H::Payload) -> serde_json::Result<Self> {
        Self::new(H::TYPE, payload)
    }

    /// From -9 to 9, higher runs sooner; 0 unless given.
    pub fn priority(mut self, priority: i8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// From 1 to 100; the type's own setting unless given.
    pub fn max_attempts(mut self, attempts: u16) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// Not before this much time has passed; takes the place of [`Enqueue::run_at`].
    pub fn delay(mut self, delay: Duration) -> Self {
        (self.delay, self.run_at) = (Some(span(delay)), None);
        self
    }

    /// Not before this time, at most 10 years ahead; takes the place of [`Enqueue::delay`].
    pub fn run_at(mut self, at: DateTime<Utc>) -> Self {
        (self.delay, self.run_at) = (None, Some(at.to_rfc3339_opts(SecondsFormat::Micros, true)));
        self
    }

    /// At most 255 characters. A repeated key names the job that it made first, so a request with one may be repeated.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// One more tag, of at most 20 of at most 64 characters.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Longest run of one attempt, 100 ms to 24 h.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(span(timeout));
        self
    }
}

fn span(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_sent_and_a_time_takes_the_place_of_a_delay() {
        let plain = Enqueue::new("a", &1).unwrap();
        assert_eq!(serde_json::to_value(&plain).unwrap(), serde_json::json!({"type": "a", "payload": 1}));
        let all = plain
            .priority(-1)
            .max_attempts(2)
            .delay(Duration::from_millis(1500))
            .run_at(DateTime::UNIX_EPOCH)
            .key("k")
            .tag("t")
            .timeout(Duration::from_secs(90));
        let sent = serde_json::json!({
            "type": "a", "payload": 1, "priority": -1, "maxAttempts": 2, "runAt": "1970-01-01T00:00:00.000000Z",
            "idempotencyKey": "k", "tags": ["t"], "timeout": "1m 30s",
        });
        assert_eq!(serde_json::to_value(&all).unwrap(), sent);
    }
}
