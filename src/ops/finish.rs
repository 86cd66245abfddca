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
    job::{End, Failure, FailureKind, Outcome, Status, Work, model::JobId, settle},
    store::{
        ANSWER,
        ends::Standing,
        finish::{Recorded, Settlement, WakeUp},
    },
};

/// How a run ended, as the program outside says.
pub(crate) enum Said {
    Done(Box<RawValue>),
    Failed(Failure),
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
            (result, None, false) if delay.is_none() => Said::done(result),
            (None, Some(error), false) if delay.is_none() => {
                Said::failed(error.message, error.retry.unwrap_or(true), error.retry_after.map(|span| span.0))
            }
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
        let row = self.standing(scope, id).await?;
        // Before it is known whether there was an outage, nobody is too late.
        let end = if self.store.may_end_outside() { said.end().in_time() } else { said.end() };
        if !holds(&row, run) {
            return over(id, &row, run, &end);
        }
        let types = self.types.now();
        let Some(known) = types.get(&row.r#type) else {
            return Err(ApiError::unavailable("the type of this job is not known here yet"));
        };
        if !row.leased && !matches!(known.handler.work, Work::Nats | Work::Http) {
            let detail = format!("run {run} of job {id} is done by a worker of the service, which ends it itself");
            return Err(ApiError::new(Code::LeaseLost, detail));
        }
        let outcome = match said {
            Said::Done(result) => result::accept(&known.handler, result, self.config.limits.result.as_u64()),
            Said::Failed(failure) => Outcome::Failed(failure),
            Said::Released { delay } => Outcome::Interrupted { delay },
        };
        let attempt = row.attempt as u16;
        let verdict = settle(attempt, row.max_attempts as u16, &known.settings.retry, outcome, rand::random());
        let news = News::of(&verdict);
        let settlement = Settlement { id, run, verdict, wake_up: WakeUp::Outbox, end: Some(end) };
        // What has not been answered by then may be recorded all the same; to ask again is harmless.
        let recorded = tokio::time::timeout(ANSWER, self.outcomes.submit(settlement)).await;
        let recorded =
            recorded.map_err(|_| ApiError::unavailable("the database can't be reached or is too slow"))??;
        match recorded
            .map_err(|_| ApiError::new(Code::Internal, "the end of this run can't be stored; the log says why"))?
        {
            Recorded::As(status) => {
                let about = About { id, job_type: &row.r#type, attempt, worker_id: &row.worker_id };
                news.tell(&self.broker, &about, status).await;
                self.relay.notify_one();
                // Whoever waits for the handler's answer need wait no longer.
                self.broker.tell_recorded(&row.worker_id, &row.r#type, id, run).await;
                Ok(FinishReply { job_id: id, status })
            }
            Recorded::LeaseLost => over(id, &self.standing(scope, id).await?, run, &end),
        }
    }

    async fn standing(&self, scope: Scope<'_>, id: JobId) -> Result<Standing, ApiError> {
        let row = self.store.standing(id).await?;
        let row = row.filter(|row| scope.is_none_or(|job_type| job_type.as_str() == row.r#type));
        row.ok_or_else(|| ApiError::job_not_found(id))
    }
}

impl Said {
    pub(crate) fn failed(message: String, retry: bool, retry_after: Option<Duration>) -> Self {
        let kind = if retry { FailureKind::Error } else { FailureKind::Permanent };
        Said::Failed(Failure::new(kind, message).after(retry_after))
    }

    /// `null` unless given.
    pub(crate) fn done(result: Option<Box<RawValue>>) -> Self {
        Said::Done(result.unwrap_or_else(|| RawValue::NULL.to_owned()))
    }

    fn end(&self) -> End {
        match self {
            Said::Done(result) => End::result(result),
            Said::Failed(failure) => End::failure(failure),
            Said::Released { delay } => End::release(*delay),
        }
    }
}

fn holds(row: &Standing, run: i64) -> bool {
    row.run == run && row.status == Status::Processing.as_str()
}

/// The answer to a run that is over: the same as before where it was this end that ended it.
fn over(id: JobId, row: &Standing, run: i64, end: &End) -> Result<FinishReply, ApiError> {
    match row.after(run, end) {
        Some(status) => Ok(FinishReply { job_id: id, status }),
        None => Err(lease_lost(id, run, row.run, row.status.parse().unwrap_or(Status::Pending))),
    }
}

fn lease_lost(id: JobId, run: i64, current: i64, status: Status) -> ApiError {
    let why = match status {
        // Its time is up, and that is to be recorded in a moment.
        Status::Processing if run == current => "its time is up".to_owned(),
        Status::Processing => format!("run {current} has begun"),
        Status::Pending | Status::Completed | Status::Failed | Status::Cancelled => format!("the job is {status}"),
    };
    let detail = format!("run {run} of job {id} is over, {why}: stop, its result is not wanted");
    ApiError::new(Code::LeaseLost, detail)
}
