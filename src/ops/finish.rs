//! `finish`: how a run outside ended, told by the program that did it. `work` has the same for those who fetch.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{
    Ops, Scope,
    error::{ApiError, Code},
    news::{About, News},
    wire::{FinishReply, FinishRequest},
};
use crate::{
    handlers::result,
    job::{Failure, FailureKind, Outcome, Status, model::JobId, settle},
    store::{
        ANSWER,
        entity::job::Model,
        finish::{Recorded, Settlement, WakeUp},
    },
};

/// How a run ended, as the program outside says.
pub(crate) enum Said {
    Done(Option<Box<RawValue>>),
    Failed {
        message: String,
        retry: bool,
        retry_after: Option<Duration>,
    },
    /// Not done, and nobody's fault.
    Released {
        delay: Duration,
    },
}

impl Ops {
    /// Records the end of a run outside. Repeating it is harmless.
    ///
    /// # Errors
    /// `lease_lost` when the run is over, `job_not_found`, `unavailable`.
    pub async fn finish(&self, scope: Scope<'_>, request: FinishRequest) -> Result<FinishReply, ApiError> {
        let FinishRequest { job_id, run, result, error, release, delay } = request;
        let said = match (result, error, release.unwrap_or_default()) {
            (result, None, false) if delay.is_none() => Said::Done(result),
            (None, Some(error), false) if delay.is_none() => Said::Failed {
                message: error.message,
                retry: error.retry.unwrap_or(true),
                retry_after: error.retry_after.map(|span| span.0),
            },
            (None, None, true) => Said::Released { delay: delay.map_or(Duration::ZERO, |span| span.0) },
            _ => {
                let detail = "give one of result, error and release; delay goes with release";
                return Err(ApiError::fault(Code::InvalidRequest, "", detail));
            }
        };
        self.end_run(scope, job_id.0, run, said).await
    }

    /// The one way in which a run outside ends, whoever tells it.
    pub(crate) async fn end_run(
        &self,
        scope: Scope<'_>,
        id: JobId,
        run: i64,
        said: Said,
    ) -> Result<FinishReply, ApiError> {
        let row = self.row(scope, id).await?;
        if !holds(&row, run) {
            return over(&row, run, &said);
        }
        let types = self.types.now();
        let Some(known) = types.get(&row.r#type) else {
            return Err(ApiError::unavailable("the type of this job is not known here yet"));
        };
        let outcome = match &said {
            Said::Done(result) => {
                let null = || RawValue::from_string("null".into()).ok();
                let Some(result) = result.clone().or_else(null) else { return Err(ApiError::unavailable("no result")) };
                result::accept(&known.handler, result, self.config.limits.result.as_u64())
            }
            Said::Failed { message, retry, retry_after } => {
                let kind = if *retry { FailureKind::Error } else { FailureKind::Permanent };
                Outcome::Failed(Failure::new(kind, message.clone()).after(*retry_after))
            }
            Said::Released { delay } => Outcome::Interrupted { delay: *delay },
        };
        let attempt = row.attempt as u16;
        let verdict = settle(attempt, row.max_attempts as u16, &known.settings.retry, outcome, rand::random());
        let news = News::of(&verdict);
        let settlement = Settlement { id, run, verdict, wake_up: WakeUp::Outbox };
        // What has not been answered by then may be recorded all the same; to ask again is harmless.
        let recorded = tokio::time::timeout(ANSWER, self.outcomes.submit(settlement)).await;
        match recorded.map_err(|_| ApiError::unavailable("the database can't be reached or is too slow"))?? {
            Recorded::As(status) => {
                let worker_id = row.worker_id.as_deref().unwrap_or_default();
                let about = About { id, job_type: &row.r#type, attempt, worker_id };
                news.tell(&self.broker, &about, status).await;
                self.relay.notify_one();
                // Whoever waits for the handler's answer need wait no longer.
                self.broker.tell_recorded(worker_id, &row.r#type, id, run).await;
                Ok(FinishReply { job_id: id, status })
            }
            Recorded::LeaseLost => over(&self.row(scope, id).await?, run, &said),
        }
    }

    async fn row(&self, scope: Scope<'_>, id: JobId) -> Result<Model, ApiError> {
        let row = self.store.job(id).await?;
        let row = row.filter(|row| scope.is_none_or(|job_type| job_type.as_str() == row.r#type));
        row.ok_or_else(|| ApiError::job_not_found(id))
    }
}

fn holds(row: &Model, run: i64) -> bool {
    row.run == run && row.status == Status::Processing.as_str()
}

/// The answer to a run that is over: the same as before where it was this outcome that ended it.
fn over(row: &Model, run: i64, said: &Said) -> Result<FinishReply, ApiError> {
    let status = row.status.parse().unwrap_or(Status::Pending);
    let by_this = matches!(
        (said, status),
        (Said::Done(_), Status::Completed | Status::Failed)
            | (Said::Failed { .. }, Status::Failed | Status::Pending)
            | (Said::Released { .. }, Status::Pending)
            | (_, Status::Cancelled)
    );
    if row.run == run && by_this && repeats(row, said) {
        return Ok(FinishReply { job_id: row.id, status });
    }
    Err(lease_lost(row.id, run, status))
}

/// Whether the record is what this would have made of it. A failed run that was to go on is told by its message.
fn repeats(row: &Model, said: &Said) -> bool {
    match said {
        Said::Done(_) | Said::Released { .. } => true,
        Said::Failed { message, .. } => row.error.as_deref() == Some(Failure::retry(message.clone()).message.as_str()),
    }
}

pub(super) fn lease_lost(id: JobId, run: i64, status: Status) -> ApiError {
    let detail = format!("run {run} of job {id} is over, and the job is {status}: stop, its result is not wanted");
    ApiError::new(Code::LeaseLost, detail)
}
