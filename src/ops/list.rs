//! `listJobs`.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    Ops, Scope,
    error::{ApiError, Code, Fault, quoted},
    wire::{Job, ListReply, ListRequest},
};
use crate::{
    job::{JobType, model::JobId},
    store::query::{Filter, Include, Wanted},
};

const DEFAULT_LIMIT: i64 = 50;
pub(super) const MAX_LIMIT: i64 = 1000;
pub(super) const MAX_OFFSET: i64 = 100_000;
/// Largest page, below the broker's usual `max_payload` of 1 MiB.
pub(super) const PAGE_BYTES: usize = 768 * 1024;
/// What an answer has beside its jobs, in bytes.
const PAGE_FRAME: usize = 256;
/// First byte of a cursor, so that its form can change.
const CURSOR_VERSION: u8 = 1;

impl Ops {
    /// # Errors
    /// `invalid_request` with every fault.
    pub async fn list_jobs(&self, scope: Scope<'_>, request: ListRequest) -> Result<ListReply, ApiError> {
        self.list_jobs_within(scope, request, None).await
    }

    /// As [`Ops::list_jobs`]. `most`: largest answer, in bytes; a page that would pass it ends early, after one job at least.
    ///
    /// # Errors
    /// As [`Ops::list_jobs`].
    pub(super) async fn list_jobs_within(
        &self,
        scope: Scope<'_>,
        request: ListRequest,
        most: Option<usize>,
    ) -> Result<ListReply, ApiError> {
        let mut faults = Vec::new();
        let mut fault = |path: &str, message: String| faults.push(Fault { path: path.into(), message });
        let limit = request.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            fault("/limit", format!("must be 1 to {MAX_LIMIT}"));
        }
        let offset = request.offset.unwrap_or(0);
        if !(0..=MAX_OFFSET).contains(&offset) {
            fault("/offset", format!("must be 0 to {MAX_OFFSET}; use cursor to go further"));
        }
        let mut states = Vec::new();
        for (path, name) in request.status.iter().flat_map(|names| names.at("/status")) {
            match wanted(name) {
                // A condition for each of ten thousand repetitions would be nested deeper than the stack is.
                Some(state) if states.contains(&state) => {}
                Some(state) => states.push(state),
                None => fault(
                    &path,
                    format!(
                        "{} is no status; there are pending, scheduled, retrying, processing, completed, failed, cancelled",
                        quoted(name)
                    ),
                ),
            }
        }
        let mut include = Include::default();
        for (path, name) in request.include.iter().flat_map(|names| names.at("/include")) {
            match name {
                "payload" => include.payload = true,
                "result" => include.result = true,
                "errors" => include.errors = true,
                _ => fault(&path, format!("{} can't be included; payload, result and errors can", quoted(name))),
            }
        }
        if request.r#type.as_ref().is_some_and(|name| JobType::new(name.as_str()).is_err()) {
            fault("/type", crate::job::BadType.to_string());
        }
        let before = request.cursor.as_deref().map(|text| {
            from_cursor(text).unwrap_or_else(|| {
                fault("/cursor", "is none of ours; give nextCursor of the page before, unchanged".into());
                JobId::nil()
            })
        });
        if !faults.is_empty() {
            return Err(ApiError::faults(Code::InvalidRequest, faults));
        }
        // Seen from a scope, jobs of other types are not there.
        if scope.is_some_and(|scope| request.r#type.as_deref().is_some_and(|name| name != scope.as_str())) {
            return Ok(ListReply { jobs: Vec::new(), limit: limit as u64, offset: offset as u64, next_cursor: None });
        }
        let job_type = scope.map(|scope| scope.as_str().to_owned()).or(request.r#type);
        let filter = Filter { states, job_type, tag: request.tag, before };
        let budget = most.map_or(PAGE_BYTES, |most| most.min(PAGE_BYTES));
        let page = self.store.list(&filter, limit as u64, offset as u64, include, budget).await?;
        let mut jobs: Vec<Job> = page.rows.into_iter().map(|row| self.noted(Job::from(row))).collect();
        // The database counts what is large; the rest of a job has its size as well.
        let fit = most.map_or(jobs.len(), |most| fitting(&jobs, most.saturating_sub(PAGE_FRAME)));
        let has_more = page.more || fit < jobs.len();
        jobs.truncate(fit);
        let last = jobs.last().map(|job| job.id).filter(|_| has_more);
        Ok(ListReply { jobs, limit: limit as u64, offset: offset as u64, next_cursor: last.map(to_cursor) })
    }
}

/// How many of them fit into so many bytes; the first one in any case.
fn fitting(jobs: &[Job], most: usize) -> usize {
    let mut size = 0;
    let fits = |job: &&Job| {
        size += serde_json::to_vec(job).map_or(0, |text| text.len() + 1);
        size <= most
    };
    jobs.iter().take_while(fits).count().max(1).min(jobs.len())
}

fn wanted(name: &str) -> Option<Wanted> {
    match name {
        "scheduled" => Some(Wanted::Scheduled),
        "retrying" => Some(Wanted::Retrying),
        status => status.parse().ok().map(Wanted::Status),
    }
}

/// The cursor of the page that begins after this job.
pub(crate) fn to_cursor(last: JobId) -> String {
    let mut bytes = vec![CURSOR_VERSION];
    bytes.extend(last.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn from_cursor(text: &str) -> Option<JobId> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    match bytes.split_first() {
        Some((&CURSOR_VERSION, id)) => JobId::from_slice(id).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_was_and_forged_ones_are_refused() {
        let id = JobId::now_v7();
        assert_eq!(from_cursor(&to_cursor(id)), Some(id));
        for forged in ["", "x", "AAAA", &"A".repeat(10_000), "' or 1=1", &id.to_string()] {
            assert_eq!(from_cursor(forged), None, "{forged:.40}");
        }
    }
}
