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

    /// The id in a cancel subject.
    pub fn cancelled_id(subject: &str) -> Option<Uuid> {
        subject.rsplit('.').next()?.parse().ok()
    }

    async fn signal(&self, subject: String, body: String) {
        if self.is_connected() {
            let sent = self.jetstream.publish(subject, Bytes::from(body));
            let _ = tokio::time::timeout(Duration::from_millis(500), sent).await;
        }
    }
}
