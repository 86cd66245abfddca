//! Why there is no answer, or not the one that was hoped for.

use std::time::Duration;

use async_nats::ConnectErrorKind;
use bytes::Bytes;
use serde::Deserialize;

use crate::{broker, ops::error::Fault};

/// A refusal by the service, read leniently: it may be of another version than this program.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub title: String,
    pub detail: String,
    pub errors: Vec<Fault>,
    pub retry_after_seconds: Option<u64>,
    pub job: Option<Box<serde_json::value::RawValue>>,
    /// As it was received.
    #[serde(skip)]
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("{0}")]
    Refused(Box<Refusal>),
    #[error(
        "nobody answers on {subject} at {url}: is the service running? start it with `queue-service serve` or `queue-service dev`"
    )]
    NoResponders { subject: String, url: String },
    #[error("no answer on {subject} within {} s; it may have been carried out all the same", .after.as_secs())]
    TimedOut { subject: String, after: Duration },
    #[error("the request has {size} bytes, the broker at {url} takes at most {max} (max_payload)")]
    TooLarge { size: usize, max: usize, url: String },
    #[error(
        "the broker forbids it: {what}\n  where one type only is allowed, name it with --scope\n  where each user has an inbox of his own, set nats.inbox_prefix"
    )]
    Forbidden { what: String },
    #[error("the answer on {subject} is not understood; is something else answering there?")]
    Answer {
        subject: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("could not listen on {subject}: no connection to NATS at {url}")]
    NotListening { subject: String, url: String },
    #[error("could not ask on {subject}")]
    Request {
        subject: String,
        #[source]
        source: async_nats::RequestError,
    },
}

impl CallError {
    /// Whether the service was certainly never reached.
    pub fn was_not_heard(&self) -> bool {
        matches!(self, CallError::NoResponders { .. })
    }

    /// Whether it may work in a moment: a replica stops, the connection is made again.
    pub fn is_passing(&self) -> bool {
        match self {
            CallError::NoResponders { .. } | CallError::TimedOut { .. } | CallError::Request { .. } => true,
            CallError::Refused(refusal) => matches!(refusal.status, 429 | 503),
            CallError::NotListening { .. } => true,
            CallError::TooLarge { .. } | CallError::Forbidden { .. } | CallError::Answer { .. } => false,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} {})", self.title, self.status, self.code)?;
        let told = |fault: &Fault| match fault.path.as_str() {
            "" => fault.message.clone(),
            path => format!("{path}: {}", fault.message),
        };
        // The detail repeats the first fault for those who read nothing else.
        let repeats = self.errors.first().is_some_and(|fault| self.detail.starts_with(&told(fault)));
        if !repeats && !self.detail.is_empty() {
            write!(f, "\n  {}", self.detail)?;
        }
        for fault in &self.errors {
            write!(f, "\n  {}", told(fault))?;
        }
        if let Some(seconds) = self.retry_after_seconds {
            write!(f, "\n  worth trying again in {seconds} s")?;
        }
        Ok(())
    }
}

impl Refusal {
    /// From an answer with the headers of a micro-service error.
    pub(super) fn read(status: &str, text: &str, body: Bytes) -> Self {
        let status = status.trim().parse().unwrap_or(500);
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) if !refusal.title.is_empty() => Self { status, body, ..refusal },
            _ => Self { status, code: "error".to_owned(), title: text.to_owned(), body, ..Self::default() },
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Setting(#[from] broker::Error),
    #[error("{advice}")]
    Refused {
        advice: String,
        #[source]
        source: async_nats::ConnectError,
    },
    #[error("{}", advice(ConnectErrorKind::TimedOut, .url))]
    TimedOut { url: String },
}

impl ConnectError {
    pub(super) fn refused(source: async_nats::ConnectError, url: &str) -> Self {
        // The client takes what goes wrong with TLS for an error of reading and writing.
        let kind = match source.kind() {
            ConnectErrorKind::Io if is_about_tls(&source.to_string()) => ConnectErrorKind::Tls,
            kind => kind,
        };
        Self::Refused { advice: advice(kind, url), source }
    }
}

fn is_about_tls(text: &str) -> bool {
    let text = text.to_lowercase();
    ["certificate", "tls", "handshake", "alert"].iter().any(|word| text.contains(word))
}

/// Says what to do about it.
fn advice(kind: ConnectErrorKind, url: &str) -> String {
    use ConnectErrorKind::{Authentication, AuthorizationViolation, Tls};
    match kind {
        Authentication | AuthorizationViolation => {
            format!("NATS at {url} does not let us in: check user and password in nats.url, nats.token or nats.creds")
        }
        Tls => format!("no secure connection to NATS at {url}: check nats.tls_ca, nats.tls_cert and nats.tls_key"),
        _ => format!("can't connect to NATS at {url}: is it running? `queue-service dev` starts everything"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &'static str) -> Refusal {
        Refusal::read("400", "text", Bytes::from_static(json.as_bytes()))
    }

    #[test]
    fn a_refusal_names_every_fault_once() {
        let one = refusal(
            r#"{"title":"No","code":"invalid_payload","status":400,"detail":"/payload/to: missing","errors":[{"path":"/payload/to","message":"missing"}],"new":1}"#,
        );
        assert_eq!(one.to_string(), "No (400 invalid_payload)\n  /payload/to: missing");
        let other = refusal(r#"{"title":"Wait","code":"overloaded","detail":"too much","retryAfterSeconds":2}"#);
        assert_eq!(other.to_string(), "Wait (400 overloaded)\n  too much\n  worth trying again in 2 s");
    }

    #[test]
    fn a_refusal_without_a_problem_has_the_text_of_the_header() {
        for body in ["", "nonsense", "{}"] {
            assert_eq!(refusal(body).to_string(), "text (400 error)");
        }
    }
}
