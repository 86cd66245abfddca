//! `retryJob`.

use super::{
    Ops, Scope,
    error::{ApiError, Code},
    wire::{Job, JobRequest},
};
use crate::{
    broker::{
        events::{Event, EventState},
        publish::Outgoing,
    },
    job::Status,
};

impl Ops {
    /// Puts a failed or cancelled job back to pending, with a fresh budget of attempts.
    ///
    /// # Errors
    /// `not_retryable` in every other state, `job_not_found`.
    pub async fn retry_job(&self, scope: Scope<'_>, request: JobRequest) -> Result<Job, ApiError> {
        let id = request.job_id.0;
        let scope_name = scope.map(|scope| scope.as_str());
        let Some((outbox_id, target)) = self.store.retry(id, scope_name, self.config.background.publish_grace).await?
        else {
            let job = self.job(scope, id).await?;
            let advice = match job.status {
                Status::Pending => "is waiting already; there is nothing to retry".to_owned(),
                Status::Processing => {
                    format!("is running (attempt {}); cancel it first or wait until it ends", job.attempts)
                }
                Status::Completed => "is completed; enqueue a new job to do the work again".to_owned(),
                Status::Failed | Status::Cancelled => "was changed at the same moment; look again".to_owned(),
            };
            return Err(ApiError::new(Code::NotRetryable, format!("job {id} {advice}")));
        };
        let job = self.job(scope, id).await?;
        self.broker.emit(&[Event::new(id, &job.r#type, EventState::Enqueued, 0, None)]).await;
        let wake_up = Outgoing::wake_up(&self.broker.subjects, id, &target, Some(format!("{outbox_id}.0")));
        // What is not acknowledged stays in the outbox, and the relay does it.
        if self.publisher.publish(vec![wake_up]).await == [true] {
            let _ = self.store.clear_outbox(vec![outbox_id]).await;
        }
        Ok(job)
    }
}
