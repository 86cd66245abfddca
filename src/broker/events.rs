//! Lifecycle events: what happened, told after its commit. No payload and no result is ever in them.

use std::time::Duration;

use async_nats::client::PublishErrorKind;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::Broker;

/// What happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventState {
    Enqueued,
    Started,
    Progress,
    Retrying,
    Completed,
    Failed,
    Cancelled,
}

impl EventState {
    pub fn as_str(self) -> &'static str {
        match self {
            EventState::Enqueued => "enqueued",
            EventState::Started => "started",
            EventState::Progress => "progress",
            EventState::Retrying => "retrying",
            EventState::Completed => "completed",
            EventState::Failed => "failed",
            EventState::Cancelled => "cancelled",
        }
    }

    /// Whether nothing follows by itself.
    pub fn is_final(self) -> bool {
        matches!(self, EventState::Completed | EventState::Failed | EventState::Cancelled)
    }
}

/// One event, as it is published.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event<'a> {
    pub job_id: Uuid,
    pub r#type: &'a str,
    pub state: EventState,
    pub attempt: u16,
    #[serde(serialize_with = "millis")]
    pub at: DateTime<Utc>,
    pub worker_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'a str>,
}

impl<'a> Event<'a> {
    pub fn new(job_id: Uuid, job_type: &'a str, state: EventState, attempt: u16, worker_id: Option<&'a str>) -> Self {
        Self {
            job_id,
            r#type: job_type,
            state,
            attempt,
            at: Utc::now(),
            worker_id,
            error: None,
            delay_seconds: None,
            percent: None,
            message: None,
        }
    }
}

fn millis<S: Serializer>(at: &DateTime<Utc>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

impl Broker {
    /// Publishes events in order. Dropped when the broker is away: they are news, not the record.
    pub async fn emit(&self, events: &[Event<'_>]) {
        if !self.is_connected() {
            return;
        }
        let all = async {
            for event in events {
                let subject = self.subjects.event(event.r#type, event.state.as_str(), event.job_id);
                let Ok(body) = serde_json::to_vec(event) else { continue };
                match self.jetstream.publish(subject, Bytes::from(body)).await.map_err(|e| e.kind()) {
                    // It alone is too large for the broker.
                    Ok(()) | Err(PublishErrorKind::MaxPayloadExceeded) => {}
                    Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), all).await;
    }
}
