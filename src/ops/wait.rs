//! `waitJob`: tells when a job is over.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::{
    Ops, Scope,
    error::{ApiError, Code},
    wire::{Job, WaitRequest},
};
use crate::job::{Status, model::JobId};

const DEFAULT_WAIT: i64 = 30_000;
pub(super) const MAX_WAIT: i64 = 300_000;
/// Events are hints: the row is looked at this often even if none comes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Ops {
    /// # Errors
    /// `wait_timeout` with the job as it is then; `job_not_found`.
    pub async fn wait_job(&self, scope: Scope<'_>, request: WaitRequest) -> Result<Job, ApiError> {
        let ms = request.timeout_ms.unwrap_or(DEFAULT_WAIT);
        if !(0..=MAX_WAIT).contains(&ms) {
            let message = format!("must be 0 to {MAX_WAIT}");
            return Err(ApiError::fault(Code::InvalidRequest, "/timeoutMs", message));
        }
        let waiting = self.wait_until_over(scope, request.job_id.0, Duration::from_millis(ms.unsigned_abs()));
        let job = tokio::select! {
            job = waiting => job?,
            // Whoever asks again finds another instance, or this one when it is back.
            () = self.supervisor.stopping().cancelled() => return Err(ApiError::stopping()),
        };
        if job.status.is_final() {
            return Ok(job);
        }
        let detail = format!("job {} is still {} after {ms} ms; ask again or look later", job.id, job.status);
        Err(ApiError { job: serde_json::to_value(&job).ok(), ..ApiError::new(Code::WaitTimeout, detail) })
    }

    /// The job when it is over, or as it is when `patience` ends.
    ///
    /// # Errors
    /// `job_not_found`, `overloaded` when too many wait, `unavailable`.
    pub(crate) async fn wait_until_over(
        &self,
        scope: Scope<'_>,
        id: JobId,
        patience: Duration,
    ) -> Result<Job, ApiError> {
        let deadline = Instant::now() + patience;
        let Ok(_turn) = self.waits.try_acquire() else {
            return Err(ApiError::overloaded("too many callers wait for jobs"));
        };
        // Subscribed before the first look, so that an end between the two is not missed.
        let mut events = self.broker.jetstream.subscribe(self.broker.subjects.events_of(id)).await.ok();
        // Of all that is told of it, its end alone is a reason to look.
        let ends = [Status::Completed, Status::Failed, Status::Cancelled].map(|status| format!(".{status}.{id}"));
        loop {
            let job = self.job(scope, id).await?;
            if job.status.is_final() || Instant::now() >= deadline {
                return Ok(job);
            }
            let next_look = deadline.min(Instant::now() + LOOK_AGAIN);
            let over = async {
                while let Some(subscribed) = &mut events {
                    match subscribed.next().await {
                        Some(event) if ends.iter().any(|end| event.subject.ends_with(end.as_str())) => return,
                        Some(_) => {}
                        // It tells nothing any more, and would tell that at once, again and again.
                        None => events = None,
                    }
                }
                std::future::pending().await
            };
            let _ = tokio::time::timeout_at(next_look, over).await;
        }
    }
}
