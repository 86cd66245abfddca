//! `work.fetch`, `work.heartbeat`, `work.complete`, `work.fail` and `work.release`: for programs that come and fetch their
//! work, and can't be called.

mod desk;
mod runs;

pub(crate) use desk::Desk;

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Ops, Scope,
    error::{ApiError, Code},
    wire::{FetchReply, FetchRequest, FetchedJob, Job},
};
use crate::{
    job::{Work, json::failure_of_payload},
    ops::error::quoted,
};

pub(super) const MAX_TYPES: usize = 20;
pub(super) const MAX_JOBS: i64 = 100;
pub(super) const MAX_WAIT_MS: i64 = 30_000;
pub(super) const MAX_RUNS: usize = 1000;
/// Bounds of a lease. Source: docs/protocol.md.
pub(super) const LEASE_MS: std::ops::RangeInclusive<i64> = 1000..=3_600_000;
const DEFAULT_LEASE_MS: i64 = 30_000;
/// Bytes of jobs in one answer, so that it fits into a message.
pub(super) const BUDGET: usize = 768 * 1024;
/// What an answer has beside its jobs, in bytes.
const ANSWER_FRAME: usize = 64;
/// How long a job that fits into no message is not looked at again.
pub(crate) const TOO_LARGE: Duration = Duration::from_secs(30);

impl Ops {
    /// Gives jobs to a program outside, each with a lease of its own; waits for them if there are none. `most`: largest
    /// answer, in bytes; what does not fit is given back without an attempt.
    ///
    /// # Errors
    /// `invalid_request`, `unknown_type`, `overloaded`, `unavailable`.
    pub async fn fetch(
        &self,
        scope: Scope<'_>,
        request: FetchRequest,
        most: Option<usize>,
    ) -> Result<FetchReply, ApiError> {
        let Bounds { max, wait, lease } = check(&request)?;
        let types = self.fetched_types(scope, request.types)?;
        let _turn = self.waits.try_acquire().map_err(|_| ApiError::overloaded("too many fetches are waiting"))?;
        let end = Instant::now() + wait;
        loop {
            let wait = end.saturating_duration_since(Instant::now());
            let worker_id = request.worker_id.clone();
            let wish = desk::Wish { types: types.clone(), max, wait, worker_id, lease };
            let claimed = self.desk.fetch(self, wish).await?;
            let is_over = claimed.is_empty() || Instant::now() >= end;
            let jobs = self.hand_out(claimed, lease, most).await?;
            if !jobs.is_empty() || is_over {
                return Ok(FetchReply { jobs });
            }
        }
    }

    /// What fits into one answer; the rest goes back.
    async fn hand_out(
        &self,
        claimed: Vec<desk::Fetched>,
        lease: Duration,
        most: Option<usize>,
    ) -> Result<Vec<FetchedJob>, ApiError> {
        let rows = match claimed.is_empty() {
            true => Vec::new(),
            false => self.store.jobs(&claimed.iter().map(|job| job.id).collect::<Vec<_>>()).await?,
        };
        let most = most.map(|most| most.saturating_sub(ANSWER_FRAME));
        let budget = most.map_or(BUDGET, |most| most.min(BUDGET));
        let mut jobs = Vec::with_capacity(claimed.len());
        let mut size = 0;
        for job in claimed {
            let Some(row) = rows.iter().find(|row| row.id == job.id && row.run == job.run) else { continue };
            if let Some(failure) = row.payload.as_deref().and_then(failure_of_payload) {
                self.refuse(job.id, job.run, failure).await;
                continue;
            }
            let fetched = FetchedJob {
                job: Job::whole(row.clone()),
                run: job.run,
                checkpoint: job.checkpoint,
                deadline: job.deadline,
                timeout_ms: job.ends.saturating_duration_since(Instant::now()).as_millis() as u64,
                traceparent: job.trace.to_string(),
                lease_ms: lease.as_millis() as i64,
            };
            let own = serde_json::to_vec(&fetched).map_or(0, |text| text.len() + 1);
            if most.is_some_and(|most| own > most) {
                // Not at once: those that do fit come first.
                self.give_back(job.id, job.run, TOO_LARGE).await;
            } else if size + own > budget && !jobs.is_empty() {
                self.give_back(job.id, job.run, Duration::ZERO).await;
            } else {
                size += own;
                jobs.push(fetched);
            }
        }
        Ok(jobs)
    }

    /// The types that are asked for, each of which has to be one that is fetched.
    fn fetched_types(&self, scope: Scope<'_>, named: Option<Vec<String>>) -> Result<Vec<String>, ApiError> {
        let fault = |message: String| ApiError::fault(Code::InvalidRequest, "/types", message);
        let mut types = match (scope, named) {
            (Some(scope), None) => vec![scope.to_string()],
            (_, Some(types)) => types,
            (None, None) => Vec::new(),
        };
        types.sort();
        types.dedup();
        if types.is_empty() || types.len() > MAX_TYPES {
            return Err(fault(format!("1 to {MAX_TYPES} types are needed")));
        }
        if let Some(other) = types.iter().find(|name| scope.is_some_and(|scope| scope.as_str() != *name)) {
            return Err(fault(format!("{} is not the type of the subject", quoted(other))));
        }
        self.check_fetched(&types)?;
        Ok(types)
    }

    /// # Errors
    /// `unknown_type`, or `invalid_request` where others than those who fetch do the work of one.
    fn check_fetched(&self, types: &[String]) -> Result<(), ApiError> {
        let now = self.types.now();
        for name in types {
            let known = now.get(name).ok_or_else(|| self.unknown_type(name))?;
            if known.handler.work != Work::Pull {
                let work = known.handler.work.as_str();
                let message = format!("'{name}' is not fetched: its handler is {work}; register it as pull");
                return Err(ApiError::fault(Code::InvalidRequest, "/types", message));
            }
        }
        Ok(())
    }
}

/// What a request for work says within its bounds.
pub(crate) struct Bounds {
    pub max: usize,
    pub wait: Duration,
    pub lease: Duration,
}

/// Checks what does not depend on the types that there are.
///
/// # Errors
/// `invalid_request`.
pub(crate) fn check(request: &FetchRequest) -> Result<Bounds, ApiError> {
    let bounded = |path: &str, value: Option<i64>, default: i64, range: std::ops::RangeInclusive<i64>| {
        let value = value.unwrap_or(default);
        let message = || format!("must be {} to {}", range.start(), range.end());
        match range.contains(&value) {
            true => Ok(value.unsigned_abs()),
            false => Err(ApiError::fault(Code::InvalidRequest, path, message())),
        }
    };
    let max = bounded("/max", request.max, 1, 1..=MAX_JOBS)? as usize;
    let wait = bounded("/waitMs", request.wait_ms, 0, 0..=MAX_WAIT_MS)?;
    let lease = bounded("/leaseMs", request.lease_ms, DEFAULT_LEASE_MS, LEASE_MS)?;
    check_worker(&request.worker_id)?;
    Ok(Bounds { max, wait: Duration::from_millis(wait), lease: Duration::from_millis(lease) })
}

fn check_worker(id: &str) -> Result<(), ApiError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=100).contains(&id.len()) && id.chars().all(legal) {
        return Ok(());
    }
    let message = "must be 1 to 100 letters, digits, '-', '_' or '.'";
    Err(ApiError::fault(Code::InvalidRequest, "/workerId", message))
}
