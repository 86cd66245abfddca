//! What the service answers. Read leniently: unknown fields are passed over and missing ones are empty, so that this
//! program and a service of another version understand each other.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

/// A job as the service shows it. Absent facts are `None`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Job {
    pub id: String,
    pub r#type: String,
    /// `pending`, `processing`, `completed`, `failed` or `cancelled`.
    pub status: String,
    pub payload: Option<Box<RawValue>>,
    pub priority: i64,
    pub attempts: u64,
    pub max_attempts: u64,
    pub result: Option<Box<RawValue>>,
    /// The last failure, or why it was cancelled.
    pub error: Option<String>,
    pub errors: Option<Vec<AttemptError>>,
    pub progress: Option<Progress>,
    pub tags: Vec<String>,
    pub idempotency_key: Option<String>,
    pub worker_id: Option<String>,
    /// Why it waits, where that is not the job's own affair.
    pub note: Option<String>,
    pub created_at: Option<DateTime<Utc>>,
    pub run_at: Option<DateTime<Utc>>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// Why an attempt did not succeed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AttemptError {
    pub attempt: u64,
    pub at: Option<DateTime<Utc>>,
    pub message: String,
    pub kind: String,
}

/// How far a run has come.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub percent: f64,
    pub message: Option<String>,
}

/// A page of a list, newest first.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Page<J> {
    pub jobs: Vec<J>,
    /// Give it as `cursor` to see older jobs.
    pub next_cursor: Option<String>,
}

/// Numbers of jobs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stats {
    pub total: u64,
    #[serde(flatten)]
    pub all: Counts,
    pub completion_rate: String,
    pub failure_rate: String,
    pub by_type: BTreeMap<String, Counts>,
    pub oldest_pending_seconds: Option<f64>,
    pub oldest_paused_seconds: Option<f64>,
    pub unattended: Vec<String>,
    pub paused: Vec<String>,
}

/// Numbers of jobs by status.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub pending: u64,
    pub processing: u64,
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
}

/// All types.
#[derive(Clone, Debug, Deserialize)]
pub struct Types<T> {
    pub types: Vec<T>,
}

/// A job type and what is in force for it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TypeInfo {
    pub r#type: String,
    pub description: String,
    pub handler: String,
    pub origin: String,
    pub attended: Option<bool>,
    pub url: Option<String>,
    pub paused: bool,
    pub timeout: String,
    pub heartbeat: Option<String>,
    pub concurrency: u64,
    pub max_attempts: u64,
    pub retry_delays: Vec<String>,
    /// From an older service: `schema`.
    pub payload_schema: Option<Box<RawValue>>,
    pub schema: Option<Box<RawValue>>,
    pub result_schema: Option<Box<RawValue>>,
}

impl Job {
    pub fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "cancelled")
    }

    /// The result of a completed job; a failed or cancelled one gives its error.
    ///
    /// # Errors
    /// [`NoResult`]
    pub fn output<T: DeserializeOwned>(&self) -> Result<T, NoResult> {
        match self.status.as_str() {
            "completed" => {
                let json = self.result.as_ref().map_or("null", |raw| raw.get());
                serde_json::from_str(json).map_err(NoResult::Form)
            }
            "failed" | "cancelled" => {
                Err(NoResult::Ended { status: self.status.clone(), error: self.error.clone().unwrap_or_default() })
            }
            _ => Err(NoResult::NotOver),
        }
    }
}

/// Why a job has no result of the wanted form.
#[derive(Debug, thiserror::Error)]
pub enum NoResult {
    #[error("the job is not over yet")]
    NotOver,
    #[error("the job is {status}: {error}")]
    Ended { status: String, error: String },
    #[error("the result has another form")]
    Form(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(json: &str) -> Job {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_job_of_another_version_is_understood() {
        let job = job(r#"{"id":"1","status":"completed","payload":null,"errors":null,"tags":[],"news":{}}"#);
        assert!(job.is_over() && job.payload.is_none());
    }

    #[test]
    fn a_result_is_there_once_the_job_is_completed() {
        let of = |json: &str| job(json).output::<u32>();
        assert_eq!(of(r#"{"status":"completed","result":7}"#).unwrap(), 7);
        assert!(matches!(of(r#"{"status":"processing"}"#), Err(NoResult::NotOver)));
        assert!(matches!(of(r#"{"status":"completed","result":"x"}"#), Err(NoResult::Form(_))));
        let ended = of(r#"{"status":"failed","error":"no such host"}"#).unwrap_err();
        assert_eq!(ended.to_string(), "the job is failed: no such host");
    }
}
