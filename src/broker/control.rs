//! Signals between processes: stop this job, look at the types again. Hints over core NATS; the rows are the record.

use std::time::Duration;

use async_nats::{SubscribeError, Subscriber};
use bytes::Bytes;
use serde_json::json;
use uuid::Uuid;

use super::Broker;

impl Broker {
    /// Tells whoever runs the job to stop.
    pub async fn signal_cancel(&self, job_type: &str, id: Uuid, reason: Option<&str>) {
        let body = json!({"jobId": id, "reason": reason});
        self.signal(self.subjects.cancel(job_type, id), body.to_string()).await;
    }

    /// Tells the process that waits for a handler's answer that the run's end is recorded already.
    pub async fn tell_recorded(&self, worker_id: &str, job_type: &str, id: Uuid, run: i64) {
        // Ids that programs outside have given themselves need not be fit for a subject.
        let token = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if worker_id.is_empty() || !worker_id.chars().all(token) || !self.is_connected() {
            return;
        }
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Job-Accepted", "true");
        let subject = self.subjects.reply(worker_id, job_type, id, run);
        let sent = self.jetstream.publish_with_headers(subject, headers, Bytes::new());
        let _ = tokio::time::timeout(Duration::from_millis(500), sent).await;
    }

    /// Tells all workers that a type was paused or resumed.
    pub async fn signal_types_changed(&self, job_type: &str) {
        self.signal(self.subjects.types_changed(), json!({"type": job_type}).to_string()).await;
    }

    /// # Errors
    /// The client is closed.
    pub async fn cancels(&self) -> Result<Subscriber, SubscribeError> {
        self.jetstream.subscribe(self.subjects.all_cancels()).await
    }

    /// # Errors
    /// The client is closed.
    pub async fn types_changes(&self) -> Result<Subscriber, SubscribeError> {
        self.jetstream.subscribe(self.subjects.types_changed()).await
    }

    /// The type and the id in a cancel subject.
    pub fn cancelled(subject: &str) -> Option<(&str, Uuid)> {
        let mut tokens = subject.rsplit('.');
        let (id, job_type) = (tokens.next()?, tokens.next()?);
        Some((job_type, id.parse().ok()?))
    }

    pub(super) async fn signal(&self, subject: String, body: String) {
        if self.is_connected() {
            let sent = self.jetstream.publish(subject, Bytes::from(body));
            let _ = tokio::time::timeout(Duration::from_millis(500), sent).await;
        }
    }
}
