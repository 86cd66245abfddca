//! `getJob`.

use super::{
    Ops, Scope,
    error::ApiError,
    input,
    wire::{Job, JobRequest},
};
use crate::job::model::JobId;

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
        let mut job = Job::from(row.ok_or_else(|| ApiError::job_not_found(id))?);
        // In the full view of a job an absent list is an empty one.
        if job.errors.is_none() {
            job.errors = serde_json::value::RawValue::from_string("[]".into()).ok();
        }
        Ok(job)
    }
}
