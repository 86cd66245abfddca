//! What is said of runs that were fetched: signs of life, and their ends.

use std::{collections::HashMap, time::Duration};

use super::{MAX_RUNS, check_worker};
use crate::{
    job::{Failure, model::JobId},
    ops::{
        Ops, Scope,
        error::{ApiError, Code, Fault},
        finish::Said,
        signs::{self, Signs},
        wire::{
            Beat, CompleteRequest, FailRequest, FinishReply, HeartbeatReply, HeartbeatRequest, ReleaseRequest, RunState,
        },
    },
    store::outside::{Sign, State},
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
        let (mut signs, mut refused) = (Signs::default(), Vec::with_capacity(n));
        for (place, beat) in request.runs.iter().enumerate() {
            let (update, faults) = signs::judge(beat.percent, beat.message.clone(), beat.checkpoint.as_deref());
            let job_type = scope.map(|scope| scope.to_string());
            signs.add(Sign { id: beat.job_id.0, run: beat.run, job_type, update });
            let fault = |(field, message)| Fault { path: format!("/runs/{place}/{field}"), message };
            refused.push(faults.into_iter().map(fault).collect());
        }
        let renewed = self.store.renew(&signs.take()).await?;
        signs::tell(&self.broker, &renewed).await;
        let states: HashMap<(JobId, i64), State> = renewed
            .iter()
            .map(|held| ((held.id, held.run), if held.cancelled { State::Cancel } else { State::Held }))
            .collect();
        let answer = |(beat, errors): (&Beat, Vec<Fault>)| {
            let state = states.get(&(beat.job_id.0, beat.run)).copied().unwrap_or(State::Lost);
            // Of a run that is lost nothing is kept anyway.
            let errors = if state == State::Lost { Vec::new() } else { errors };
            RunState { job_id: beat.job_id.0, run: beat.run, state, errors }
        };
        Ok(HeartbeatReply { runs: request.runs.iter().zip(refused).map(answer).collect() })
    }

    /// # Errors
    /// As [`Ops::finish`].
    pub async fn complete(&self, scope: Scope<'_>, request: CompleteRequest) -> Result<FinishReply, ApiError> {
        self.end_run(scope, request.job_id.0, request.run, Said::done(request.result)).await
    }

    /// # Errors
    /// As [`Ops::finish`].
    pub async fn fail(&self, scope: Scope<'_>, request: FailRequest) -> Result<FinishReply, ApiError> {
        let retry_after = request.retry_after.map(|span| span.0);
        let said = Said::failed(request.message, request.retry.unwrap_or(true), retry_after);
        self.end_run(scope, request.job_id.0, request.run, said).await
    }

    /// # Errors
    /// As [`Ops::finish`].
    pub async fn release(&self, scope: Scope<'_>, request: ReleaseRequest) -> Result<FinishReply, ApiError> {
        let delay = request.delay.map(|span| span.0).unwrap_or_default();
        self.end_run(scope, request.job_id.0, request.run, Said::Released { delay }).await
    }

    /// Gives back a run that could not be handed out after all, to be tried again after `delay`.
    pub(super) async fn give_back(&self, id: JobId, run: i64, delay: Duration) {
        self.end_unseen(id, run, Said::Released { delay }).await;
    }

    /// Ends a run that must not be handed out.
    pub(super) async fn refuse(&self, id: JobId, run: i64, failure: Failure) {
        let said = Said::failed(failure.message, false, None);
        self.end_unseen(id, run, said).await;
    }

    async fn end_unseen(&self, id: JobId, run: i64, said: Said) {
        if let Err(e) = self.end_run(None, id, run, said).await {
            tracing::debug!(job.id = %id, "job {id} comes again when its lease is over: {}", e.detail);
        }
    }
}
