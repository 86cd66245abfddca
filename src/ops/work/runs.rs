//! What is said of runs that were fetched: signs of life, and their ends.

use std::collections::HashMap;

use super::{MAX_RUNS, check_worker};
use crate::{
    job::model::JobId,
    ops::{
        Ops, Scope,
        error::{ApiError, Code},
        finish::Said,
        signs,
        wire::{CompleteRequest, FailRequest, FinishReply, HeartbeatReply, HeartbeatRequest, ReleaseRequest, RunState},
    },
    store::outside::State,
};

impl Ops {
    /// Renews the leases of runs, and says which of them are to stop.
    ///
    /// # Errors
    /// `invalid_request`, `unavailable`.
    pub async fn heartbeat(&self, scope: Scope<'_>, request: HeartbeatRequest) -> Result<HeartbeatReply, ApiError> {
        check_worker(&request.worker_id)?;
        let n = request.runs.len();
        if n > MAX_RUNS {
            let message = format!("{n} runs; at most {MAX_RUNS} are taken at once");
            return Err(ApiError::fault(Code::InvalidRequest, "/runs", message));
        }
        // Of one job that is named twice the newest run counts: a statement must not touch a row twice.
        let mut newest: HashMap<JobId, usize> = HashMap::new();
        for (place, run) in request.runs.iter().enumerate() {
            let known = newest.entry(run.job_id.0).or_insert(place);
            if request.runs[*known].run < run.run {
                *known = place;
            }
        }
        let beats: Vec<_> = newest
            .values()
            .map(|place| &request.runs[*place])
            .map(|run| signs::of(run.job_id.0, run.run, run.percent, run.message.clone(), run.checkpoint.as_deref()))
            .collect();
        let renewed = self.store.renew(&beats, scope.map(|scope| scope.as_str())).await?;
        signs::tell(&self.broker, &beats, &renewed).await;
        let state = |place: usize| {
            let run = &request.runs[place];
            let held = renewed.iter().find(|held| held.id == run.job_id.0 && newest.get(&held.id) == Some(&place));
            let state = match held {
                Some(held) if held.cancelled => State::Cancel,
                Some(_) => State::Held,
                None => State::Lost,
            };
            RunState { job_id: run.job_id.0, run: run.run, state }
        };
        Ok(HeartbeatReply { runs: (0..n).map(state).collect() })
    }

    /// # Errors
    /// As [`Ops::finish`].
    pub async fn complete(&self, scope: Scope<'_>, request: CompleteRequest) -> Result<FinishReply, ApiError> {
        self.end_run(scope, request.job_id.0, request.run, Said::Done(request.result)).await
    }

    /// # Errors
    /// As [`Ops::finish`].
    pub async fn fail(&self, scope: Scope<'_>, request: FailRequest) -> Result<FinishReply, ApiError> {
        let said = Said::Failed {
            message: request.message,
            retry: request.retry.unwrap_or(true),
            retry_after: request.retry_after.map(|span| span.0),
        };
        self.end_run(scope, request.job_id.0, request.run, said).await
    }

    /// # Errors
    /// As [`Ops::finish`].
    pub async fn release(&self, scope: Scope<'_>, request: ReleaseRequest) -> Result<FinishReply, ApiError> {
        let delay = request.delay.map(|span| span.0).unwrap_or_default();
        self.end_run(scope, request.job_id.0, request.run, Said::Released { delay }).await
    }

    /// Gives back a run that could not be handed out after all.
    pub(super) async fn give_back(&self, id: JobId, run: i64) {
        let said = Said::Released { delay: std::time::Duration::ZERO };
        if let Err(e) = self.end_run(None, id, run, said).await {
            tracing::debug!(job.id = %id, "job {id} comes again when its lease is over: {}", e.detail);
        }
    }
}
