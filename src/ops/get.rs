//! `getJob`.

use super::{
    Ops, Scope,
    error::ApiError,
    input,
    wire::{Job, JobRequest},
};
use crate::job::{Status, Work, model::JobId};

/// What a message has beside the job, in bytes: headers, the lease, the trace.
const FRAME: usize = 768;

impl Ops {
    /// # Errors
    /// `job_not_found`, also for jobs outside the scope.
    pub async fn get_job(&self, scope: Scope<'_>, body: &[u8]) -> Result<Job, ApiError> {
        let request: JobRequest = input::parse_by_id(body)?;
        self.job(scope, request.job_id.0).await
    }

    /// One job by id.
    ///
    /// # Errors
    /// As [`Ops::get_job`].
    pub async fn job(&self, scope: Scope<'_>, id: JobId) -> Result<Job, ApiError> {
        let row = self.store.job(id).await?;
        let row = row.filter(|row| scope.is_none_or(|job_type| job_type.as_str() == row.r#type));
        Ok(self.noted(Job::whole(row.ok_or_else(|| ApiError::job_not_found(id))?)))
    }

    /// The job with why it waits, beside what its row says.
    pub(super) fn noted(&self, mut job: Job) -> Job {
        let note = self.note(&job).or_else(|| self.too_large(&job));
        job.note = note.or(job.note.take());
        job
    }

    /// That no message of the broker can carry it, where that is why it waits.
    fn too_large(&self, job: &Job) -> Option<String> {
        if job.status != Status::Pending {
            return None;
        }
        let max = self.broker.max_payload()?;
        let size = serde_json::to_vec(job).map_or(0, |text| text.len()) + FRAME;
        if size <= max {
            return None;
        }
        let instead = match self.types.now().get(&job.r#type)?.handler.work {
            Work::Nats => "raise max_payload, or cancel it",
            Work::Pull => "fetch it over HTTP, or raise max_payload",
            Work::Http | Work::Embedded | Work::Builtin => return None,
        };
        let numbers =
            format!("with its headers the message has about {size} bytes, the NATS server takes {max} (max_payload)");
        Some(format!("{numbers}: {instead}; waiting spends no attempt and holds up no other"))
    }

    /// Why a job waits that could run.
    fn note(&self, job: &Job) -> Option<String> {
        if let Some(said) = self.store.harmed().of(job.id) {
            return Some(format!("somebody has to look after this job's row: {said}"));
        }
        let types = self.types.now();
        match job.status {
            Status::Pending if types.paused.contains(&job.r#type) => {
                Some(format!("the type '{}' is paused", job.r#type))
            }
            Status::Pending if types.unattended.contains(&job.r#type) => {
                Some(format!("'{}' has no handler at the moment; waiting spends no attempt", job.r#type))
            }
            Status::Pending if types.get(&job.r#type).is_none() => {
                Some(format!("there is no type '{}' any more; register it again, or cancel the job", job.r#type))
            }
            _ => None,
        }
    }
}
