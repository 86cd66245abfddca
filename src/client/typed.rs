//! A method per verb.

use std::time::{Duration, Instant};

use async_nats::Subscriber;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    CallError, Client, Enqueue, Refusal,
    answers::{Job, Page, Stats, TypeInfo, Types},
    read,
};
use crate::{
    job::model::JobId,
    ops::{Verb, wire::EnqueueReply},
};

/// Longest wait of one request; longer ones are made of several. Source: wire contract, `queue.waitJob`.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// Pause before a wait is asked for again that the service could not go on with.
const PAUSE: Duration = Duration::from_secs(1);

/// Which jobs to list. The default: the newest 50 of all.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListJobs {
    /// `pending`, `scheduled`, `retrying`, `processing`, `completed`, `failed`, `cancelled`; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// 1 to 1000; 50 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The cursor that came with the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Which of `payload`, `result` and `errors` to give.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
}

/// Something that happened to a job, read leniently as all answers are.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobEvent {
    pub job_id: String,
    pub r#type: String,
    /// `enqueued`, `started`, `progress`, `retrying`, `completed`, `failed` or `cancelled`.
    pub state: String,
    pub attempt: u64,
    pub at: Option<DateTime<Utc>>,
    pub worker_id: Option<String>,
    pub error: Option<String>,
    pub delay_seconds: Option<f64>,
    pub percent: Option<f64>,
    pub message: Option<String>,
}

/// Events as they come.
pub struct JobEvents(Subscriber);

impl JobEvents {
    /// The next one; `None` once the client is closed. What is no event is passed over.
    pub async fn next(&mut self) -> Option<JobEvent> {
        loop {
            let message = self.0.next().await?;
            if let Ok(event) = serde_json::from_slice(&message.payload) {
                return Some(event);
            }
        }
    }
}

impl Client {
    /// Hands in a job. Once this returns, the job is safe. With a [key](Enqueue::key) it may be repeated after any error
    /// that [is passing](CallError::is_passing).
    ///
    /// # Errors
    /// The service's refusal with every fault of the job, or why there is no answer.
    pub async fn enqueue(&self, job: &Enqueue) -> Result<EnqueueReply, CallError> {
        self.ask(Verb::Enqueue, job).await
    }

    /// Hands in up to 1,000 jobs at once. Each is judged by itself: good ones are kept when others are refused. The
    /// answers come in the order of the jobs.
    ///
    /// # Errors
    /// As [`Client::enqueue`], where it holds for all of them.
    pub async fn enqueue_many(&self, jobs: &[Enqueue]) -> Result<Vec<Result<EnqueueReply, Box<Refusal>>>, CallError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum One {
            Accepted(EnqueueReply),
            Refused { error: Box<Refusal> },
        }
        #[derive(Deserialize)]
        struct Many {
            results: Vec<One>,
        }
        let many: Many = self.ask(Verb::EnqueueMany, &json!({"jobs": jobs})).await?;
        let told = |one| match one {
            One::Accepted(reply) => Ok(reply),
            One::Refused { error } => Err(error),
        };
        Ok(many.results.into_iter().map(told).collect())
    }

    /// # Errors
    /// `job_not_found`, or why there is no answer.
    pub async fn job(&self, id: JobId) -> Result<Job, CallError> {
        self.ask(Verb::GetJob, &json!({"jobId": id})).await
    }

    /// Waits until a job is over, also while the service is replaced. `None`: it is not over after `limit`.
    ///
    /// # Errors
    /// As [`Client::job`].
    pub async fn wait(&self, id: JobId, limit: Duration) -> Result<Option<Job>, CallError> {
        let end = Instant::now() + limit;
        let mut known = false;
        loop {
            let left = end.saturating_duration_since(Instant::now()).min(WAIT_MAX);
            let request = json!({"jobId": id, "timeoutMs": left.as_millis() as u64});
            match self.call_within(Verb::WaitJob, &request, left).await {
                Ok(answer) => return read(Verb::WaitJob, &answer).map(Some),
                Err(CallError::Refused(refusal)) if refusal.code == "wait_timeout" => {
                    if Instant::now() >= end {
                        return Ok(None);
                    }
                    known = true;
                }
                Err(e) if is_known(known, &e) && Instant::now() + PAUSE < end => {
                    known = true;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// A page of jobs, newest first.
    ///
    /// # Errors
    /// The service's refusal, or why there is no answer.
    pub async fn list(&self, wanted: &ListJobs) -> Result<Page<Job>, CallError> {
        self.ask(Verb::ListJobs, wanted).await
    }

    /// Stops a job; one that runs is asked to.
    ///
    /// # Errors
    /// `job_not_found`, `already_finished`, or why there is no answer.
    pub async fn cancel(&self, id: JobId, reason: Option<&str>) -> Result<Job, CallError> {
        self.ask(Verb::CancelJob, &json!({"jobId": id, "reason": reason})).await
    }

    /// Gives a failed or cancelled job a fresh start.
    ///
    /// # Errors
    /// `job_not_found`, `not_retryable`, or why there is no answer.
    pub async fn retry(&self, id: JobId) -> Result<Job, CallError> {
        self.ask(Verb::RetryJob, &json!({"jobId": id})).await
    }

    /// # Errors
    /// Why there is no answer.
    pub async fn stats(&self) -> Result<Stats, CallError> {
        self.ask(Verb::GetStats, &json!({})).await
    }

    /// # Errors
    /// Why there is no answer.
    pub async fn types(&self) -> Result<Vec<TypeInfo>, CallError> {
        let types: Types<TypeInfo> = self.ask(Verb::ListTypes, &json!({})).await?;
        Ok(types.types)
    }

    /// Makes a type whose work is done outside, or replaces its definition, which docs/protocol.md describes.
    ///
    /// # Errors
    /// The service's refusal with every fault, or why there is no answer.
    pub async fn register_type(&self, definition: &Value) -> Result<TypeInfo, CallError> {
        self.ask(Verb::RegisterType, definition).await
    }

    /// Pauses or resumes a type, for all replicas and across restarts.
    ///
    /// # Errors
    /// `unknown_type`, or why there is no answer.
    pub async fn set_paused(&self, job_type: &str, paused: bool) -> Result<TypeInfo, CallError> {
        let verb = if paused { Verb::PauseType } else { Verb::ResumeType };
        self.ask(verb, &json!({"type": job_type})).await
    }

    /// What happens to a job from now on, or with `None` to all jobs.
    ///
    /// # Errors
    /// No connection.
    pub async fn follow(&self, id: Option<JobId>) -> Result<JobEvents, CallError> {
        let id = id.map_or_else(|| "*".to_owned(), |id| id.to_string());
        self.events("*", "*", &id).await.map(JobEvents)
    }
}

/// Whether a wait that failed is worth asking for again: somebody was there, and will be there again. A service that stops
/// says that it is `unavailable`.
fn is_known(before: bool, error: &CallError) -> bool {
    let told = matches!(error, CallError::Refused(refusal) if refusal.code == "unavailable");
    told || before && error.is_passing()
}
