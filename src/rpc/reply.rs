//! Answers: JSON for success; for a refusal the problem, and the two headers that make it an error (ADR-32).

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue, Subject};
use bytes::Bytes;

use crate::{
    broker::Broker,
    flow::Together,
    ops::{ApiError, Code},
};

/// A client whose connection is gone takes nothing more; the caller will ask again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Kept free below the broker's limit for the headers of an answer.
const FRAME: usize = 1024;

/// Largest answer, in bytes.
pub(super) fn answer_max(broker: &Broker) -> usize {
    broker.rpc.max_payload().saturating_sub(FRAME)
}

/// Answers on their way, of all requests of this process.
pub(super) struct Replies {
    broker: Broker,
    ready: Together<Reply>,
}

struct Reply {
    to: Subject,
    /// Empty: none on the wire.
    headers: HeaderMap,
    body: Bytes,
}

impl Replies {
    pub fn new(broker: &Broker) -> Self {
        Self { broker: broker.clone(), ready: Together::default() }
    }

    /// Sends an answer, if anybody wants one; or leaves it to who sends those that were ready before it.
    ///
    /// Jobs that were written together are answered at the same moment, and the client writes to its connection as soon as it has
    /// anything: each answer by itself would be a packet, and cost both ends a system call.
    pub async fn send(&self, to: Option<Subject>, answer: Result<Vec<u8>, ApiError>) {
        let Some(to) = to else { return };
        let ready = self.ready.bring(self.reply(to, answer)).await;
        if ready.is_empty() {
            return;
        }
        let all = async {
            for Reply { to, headers, body } in ready {
                if let Err(e) = self.broker.rpc.publish_with_headers(to, headers, body).await {
                    tracing::debug!("an answer could not be sent: {e}");
                }
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::debug!("answers could not be sent in time");
        }
    }

    fn reply(&self, to: Subject, answer: Result<Vec<u8>, ApiError>) -> Reply {
        let limit = answer_max(&self.broker);
        let answer = match answer {
            // The client would refuse to send it, and the caller would wait for nothing.
            Ok(body) if body.len() > limit => Err(too_large(body.len(), limit)),
            answer => answer,
        };
        match answer {
            Ok(body) => Reply { to, headers: HeaderMap::new(), body: body.into() },
            Err(error) => Reply { to, headers: headers(&error), body: refusal(&error, limit) },
        }
    }
}

fn refusal(error: &ApiError, limit: usize) -> Bytes {
    let mut problem = error.problem();
    let mut body = serde_json::to_vec(&problem).unwrap_or_default();
    // The job that a wait was for: it can be asked for by itself.
    if body.len() > limit {
        problem.job = None;
        body = serde_json::to_vec(&problem).unwrap_or_default();
    }
    body.into()
}

fn headers(error: &ApiError) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut add = |name: &str, text: String| {
        // A header is one line; the client panics on others.
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
        if let Ok(value) = line.parse::<HeaderValue>() {
            headers.insert(name, value);
        }
    };
    add("Nats-Service-Error", format!("{}: {}", error.code.as_str(), error.detail));
    add("Nats-Service-Error-Code", error.code.status().to_string());
    headers
}

fn too_large(size: usize, limit: usize) -> ApiError {
    let detail = format!(
        "the answer has {size} bytes, the broker takes {limit}; ask for less (fewer jobs, no include), or over HTTP"
    );
    ApiError::new(Code::PayloadTooLarge, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_with_line_breaks_becomes_one_header_line() {
        let headers = headers(&ApiError::new(Code::InvalidJson, "bad\r\nX-Evil: 1\0 ü"));
        let text = headers.get("Nats-Service-Error").unwrap().as_str();
        assert_eq!(text, "invalid_json: bad  X-Evil: 1  ü");
        assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "400");
    }
}
