//! `cancelJob`.

use std::time::Duration;

use super::{
    Ops, Scope,
    error::{ApiError, Code},
    wire::{CancelRequest, Job},
};
use crate::{
    broker::events::{Event, EventState},
    store::cancel::Cancel,
};

pub(super) const MAX_REASON_CHARS: usize = 500;
/// How long the reply waits for a running job to stop.
const WAIT: Duration = Duration::from_millis(1500);

impl Ops {
    /// Ends a waiting job at once; tells a running one to stop and waits briefly for it.
    ///
    /// # Errors
    /// `already_finished`, `job_not_found`.
    pub async fn cancel_job(&self, scope: Scope<'_>, request: CancelRequest) -> Result<Job, ApiError> {
        let id = request.job_id.0;
        let reason = request.reason.as_deref();
        if reason.is_some_and(|text| text.chars().count() > MAX_REASON_CHARS) {
            let message = format!("must have at most {MAX_REASON_CHARS} characters");
            return Err(ApiError::fault(Code::InvalidRequest, "/reason", message));
        }
        match self.store.cancel(id, reason, scope.map(|scope| scope.as_str())).await? {
            Cancel::Ended => {
                let job = self.job(scope, id).await?;
                let event = Event::new(id, &job.r#type, EventState::Cancelled, job.attempts as u16, None);
                self.broker.emit(&[event]).await;
                Ok(job)
            }
            Cancel::Asked => {
                let job = self.job(scope, id).await?;
                self.broker.signal_cancel(&job.r#type, id, reason).await;
                self.wait_until_over(scope, id, WAIT).await
            }
            Cancel::NotLive => {
                let job = self.job(scope, id).await?;
                let detail = format!("job {id} is {} already", job.status);
                Err(ApiError::new(Code::AlreadyFinished, detail))
            }
        }
    }
}
