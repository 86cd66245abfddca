//! Requests and replies as they are on the wire (wire contract, v1). A change here is a change for users.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    error::Problem,
    input::{IdText, Span},
};
use crate::{
    job::{
        Status, Work,
        integer::{integer, optional_integer},
        json::failure_of_payload,
        model::JobId,
    },
    store::entity::job::Model,
    types::Origin,
};

/// A request to run a job.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnqueueRequest {
    /// One of the types of `listTypes`. May be left out where the subject names it.
    #[serde(default)]
    pub r#type: Option<String>,
    /// What the type asks for, at most `limits.payload` (512 KiB) of JSON.
    #[schemars(with = "serde_json::Value")]
    pub payload: Box<RawValue>,
    /// From -9 to 9, higher runs sooner; 0 unless given.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schemars(range(min = -9, max = 9))]
    pub priority: Option<i64>,
    /// From 1 to 100; the type's own setting unless given.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: Option<i64>,
    /// Not before this much time has passed; not together with `runAt`.
    #[serde(default)]
    pub delay: Option<Span>,
    /// Not before this time, RFC 3339 with zone, at most 10 years ahead; a past time means now.
    #[serde(default)]
    #[schemars(with = "Option<DateTime<Utc>>")]
    pub run_at: Option<String>,
    /// At most 255 characters. A repeated key names the job that it made first.
    #[serde(default)]
    #[schemars(length(min = 1, max = 255))]
    pub idempotency_key: Option<String>,
    /// At most 20 of at most 64 characters.
    #[serde(default)]
    pub tags: Option<Vec<String>>,
    /// Longest run of one attempt, 100 ms to 24 h.
    #[serde(default)]
    pub timeout: Option<Span>,
}

/// Answer to an enqueue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnqueueReply {
    pub job_id: Uuid,
    pub status: Status,
    /// Whether the idempotency key named a job that was there already.
    pub duplicate: bool,
}

/// Up to a thousand requests at once. Each is judged by itself.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnqueueManyRequest {
    #[schemars(with = "Vec<EnqueueRequest>", length(min = 1, max = 1000))]
    pub jobs: Vec<Box<RawValue>>,
}

/// Answers in the order of the requests.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EnqueueManyReply {
    pub results: Vec<EnqueueResult>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum EnqueueResult {
    Accepted(EnqueueReply),
    Refused { error: Box<Problem> },
}

/// Names one job; the bare id as text does too.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobRequest {
    pub job_id: IdText,
}

impl From<JobId> for JobRequest {
    fn from(id: JobId) -> Self {
        Self { job_id: IdText(id) }
    }
}

/// Names the job to cancel; the bare id as text does too.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CancelRequest {
    pub job_id: IdText,
    /// For people, at most 500 characters; kept with the job.
    #[serde(default)]
    #[schemars(length(max = 500))]
    pub reason: Option<String>,
}

impl From<JobId> for CancelRequest {
    fn from(id: JobId) -> Self {
        Self { job_id: IdText(id), reason: None }
    }
}

/// Names the job to wait for; the bare id as text waits 30 s.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WaitRequest {
    pub job_id: IdText,
    /// 0 to 300000; 30000 unless given.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schemars(range(min = 0, max = 300_000))]
    pub timeout_ms: Option<i64>,
}

impl From<JobId> for WaitRequest {
    fn from(id: JobId) -> Self {
        Self { job_id: IdText(id), timeout_ms: None }
    }
}

/// Which jobs to list, newest first.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListRequest {
    /// A status or a list of them; `scheduled` and `retrying` are kinds of pending.
    #[serde(default)]
    pub status: Option<OneOrMany>,
    /// Only jobs of this type.
    #[serde(default)]
    pub r#type: Option<String>,
    /// Only jobs with this tag.
    #[serde(default)]
    pub tag: Option<String>,
    /// 1 to 1000; 50 unless given. A page that would pass 768 KiB ends early.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<i64>,
    /// 0 to 100000. For more use `cursor`, which costs the same on every page.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schemars(range(min = 0, max = 100_000))]
    pub offset: Option<i64>,
    /// `nextCursor` of the page before.
    #[serde(default)]
    pub cursor: Option<String>,
    /// Which of `payload`, `result` and `errors` to show.
    #[serde(default)]
    pub include: Option<OneOrMany>,
}

/// `"a"` or `["a", "b"]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    /// Each text with the JSON pointer to it, when `path` is that of the whole.
    pub fn at(&self, path: &str) -> Vec<(String, &str)> {
        match self {
            OneOrMany::One(text) => vec![(path.to_owned(), text)],
            OneOrMany::Many(texts) => {
                texts.iter().enumerate().map(|(i, text)| (format!("{path}/{i}"), &**text)).collect()
            }
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListReply {
    pub jobs: Vec<Job>,
    pub limit: u64,
    pub offset: u64,
    /// Give it as `cursor` to see older jobs; null when there are none.
    pub next_cursor: Option<String>,
}

/// A job as everybody sees it. Absent facts are null, never missing.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    pub id: Uuid,
    pub r#type: String,
    pub status: Status,
    #[schemars(with = "Option<serde_json::Value>")]
    pub payload: Option<Box<RawValue>>,
    pub priority: i16,
    /// Attempts spent since the job was made or last retried by hand.
    pub attempts: i16,
    pub max_attempts: i16,
    #[schemars(with = "Option<serde_json::Value>")]
    pub result: Option<Box<RawValue>>,
    /// The last failure, or why it was cancelled.
    pub error: Option<String>,
    /// One entry per failed attempt, oldest first: `{attempt, at, message, kind}`.
    #[schemars(with = "Option<Vec<AttemptError>>")]
    pub errors: Option<Box<RawValue>>,
    #[schemars(with = "Option<crate::handlers::Progress>")]
    pub progress: Option<Box<RawValue>>,
    pub tags: Vec<String>,
    pub idempotency_key: Option<String>,
    pub worker_id: Option<String>,
    /// Why it waits, where that is not the job's own affair: its type is paused, or has no handler.
    pub note: Option<String>,
    #[serde(serialize_with = "time")]
    pub created_at: DateTime<Utc>,
    #[serde(serialize_with = "time")]
    pub run_at: DateTime<Utc>,
    #[serde(serialize_with = "optional_time")]
    pub started_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "optional_time")]
    pub finished_at: Option<DateTime<Utc>>,
}

/// An entry of `errors`.
#[derive(JsonSchema)]
#[allow(dead_code)] // Only its schema is used: entries go through as the database has them.
pub struct AttemptError {
    attempt: u16,
    at: DateTime<Utc>,
    message: String,
    kind: crate::job::FailureKind,
}

const PAYLOAD_NOT_SHOWN: &str = "the payload breaks a rule of the input and is not shown; the database has it";

const STOPPING: &str = "somebody has cancelled it, and its run was told to stop";

impl From<Model> for Job {
    fn from(row: Model) -> Self {
        let raw = |text: Option<String>| text.and_then(|text| RawValue::from_string(text).ok());
        let status: Status = row.status.parse().unwrap_or(Status::Pending);
        // It could make the whole answer unreadable for the caller.
        let unfit = row.payload.as_deref().and_then(failure_of_payload);
        let is_stopping = status == Status::Processing && row.cancel_reason.is_some();
        let note = unfit.as_ref().map(|_| PAYLOAD_NOT_SHOWN).or(is_stopping.then_some(STOPPING));
        let error = match status {
            Status::Completed => None,
            Status::Cancelled => row.cancel_reason.filter(|reason| !reason.is_empty()).or(row.error),
            Status::Pending | Status::Processing | Status::Failed => row.error,
        };
        Self {
            id: row.id,
            r#type: row.r#type,
            status,
            payload: raw(row.payload.filter(|_| unfit.is_none())),
            priority: row.priority,
            attempts: row.attempt,
            max_attempts: row.max_attempts,
            result: raw(row.result),
            error,
            errors: raw(row.errors),
            progress: raw(row.progress),
            tags: row.tags.unwrap_or_default(),
            // Those that the service made for itself are nobody's business.
            idempotency_key: row.idempotency_key.filter(|key| !key.starts_with(super::enqueue::INTERNAL_KEY)),
            worker_id: row.worker_id,
            note: note.map(str::to_owned),
            created_at: row.created_at,
            run_at: row.run_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        }
    }
}

impl Job {
    /// A job with all its parts: an absent list of errors is an empty one then.
    pub fn whole(row: Model) -> Self {
        let mut job = Self::from(row);
        if job.errors.is_none() {
            job.errors = RawValue::from_string("[]".into()).ok();
        }
        job
    }
}

fn time<S: Serializer>(at: &DateTime<Utc>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&at.to_rfc3339_opts(SecondsFormat::Micros, true))
}

fn optional_time<S: Serializer>(at: &Option<DateTime<Utc>>, to: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => time(at, to),
        None => to.serialize_none(),
    }
}

/// Numbers of jobs. Exact at the moment of the answer.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    pub total: i64,
    #[serde(flatten)]
    pub all: StatusCounts,
    /// Completed jobs as a share of `total`, for instance `"80.00%"`.
    pub completion_rate: String,
    /// Failed jobs as a share of `total`.
    pub failure_rate: String,
    pub by_type: BTreeMap<String, StatusCounts>,
    /// For how long the oldest due job has waited, also for a handler; null when none waits. Jobs of paused types don't count.
    pub oldest_pending_seconds: Option<f64>,
    /// The same among the jobs of paused types.
    pub oldest_paused_seconds: Option<f64>,
    /// Types that nobody answers for: their jobs wait.
    pub unattended: Vec<String>,
    /// Types that are paused: their jobs wait until somebody resumes them.
    pub paused: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatusCounts {
    pub pending: i64,
    pub processing: i64,
    pub completed: i64,
    pub failed: i64,
    pub cancelled: i64,
}

/// Names a type.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TypeRequest {
    #[serde(default)]
    pub r#type: Option<String>,
}

/// No request.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

#[derive(Debug, Serialize, JsonSchema)]
pub struct TypesReply {
    pub types: Vec<TypeInfo>,
}

/// A job type and what is set for it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TypeInfo {
    pub r#type: String,
    pub description: String,
    /// Who does its work: `builtin` (the service itself), `nats`, `http` or `pull`.
    pub handler: Work,
    /// Who said that there is such a type.
    pub origin: Origin,
    /// Whether somebody answers for it; null for `pull`, whose workers come by themselves.
    pub attended: Option<bool>,
    /// Where an `http` handler is asked.
    pub url: Option<String>,
    /// Paused types take jobs, but start none.
    pub paused: bool,
    pub timeout: String,
    /// A run outside that is silent for so long is taken to be lost; null: its timeout decides.
    pub heartbeat: Option<String>,
    pub concurrency: usize,
    pub max_attempts: u16,
    /// How long failed attempts wait, in the words of a definition.
    pub backoff: BackoffInfo,
    /// Delays after the failed attempts, the last one repeats. What `backoff` amounts to; gone with version 2.
    #[schemars(extend("deprecated" = true))]
    pub retry_delays: Vec<String>,
    /// JSON Schema of the payload.
    pub payload_schema: serde_json::Value,
    /// The same as `payloadSchema`; gone with version 2.
    #[schemars(extend("deprecated" = true))]
    pub schema: serde_json::Value,
    /// JSON Schema of the result; null: there is no rule for it.
    pub result_schema: Option<serde_json::Value>,
}

/// How long failed attempts wait: what is in force, with the fields of `backoff` of a definition.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct BackoffInfo {
    pub base: String,
    pub factor: f64,
    pub max: String,
    pub jitter: f64,
    /// Explicit delays instead of base and factor; the last one repeats.
    pub delays: Vec<String>,
}

/// A type that is no more.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TypeRemoved {
    pub r#type: String,
    pub removed: bool,
}

/// How a run outside ended: one of `result` (null unless given), `error` and `release`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FinishRequest {
    pub job_id: IdText,
    /// The number of the run, as it was given with the job.
    #[serde(deserialize_with = "integer")]
    pub run: i64,
    /// Any JSON of at most `limits.result` (256 KiB).
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Value>")]
    pub result: Option<Box<RawValue>>,
    #[serde(default)]
    pub error: Option<FinishError>,
    /// Not done, and nobody's fault: the attempt is not spent.
    #[serde(default)]
    pub release: Option<bool>,
    /// When a released job is offered again; at once unless given.
    #[serde(default)]
    pub delay: Option<Span>,
}

/// Why a run failed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FinishError {
    /// For people; the first 2 KiB are kept.
    pub message: String,
    /// Whether another attempt may cure it; true unless given.
    #[serde(default)]
    pub retry: Option<bool>,
    /// When it is worth trying again, at most 24 h; by the type's back-off unless given.
    #[serde(default)]
    pub retry_after: Option<Span>,
}

/// Where the job stands now that the end of its run is recorded.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FinishReply {
    pub job_id: Uuid,
    pub status: Status,
}

/// Asks for work.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FetchRequest {
    /// 1 to 20 types whose handler is `pull`; may be left out where the subject names one.
    #[serde(default)]
    pub types: Option<Vec<String>>,
    /// Most jobs to give, 1 to 100; 1 unless given.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schemars(range(min = 1, max = 100))]
    pub max: Option<i64>,
    /// How long to wait for a first one, 0 to 30000; 0 unless given.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schemars(range(min = 0, max = 30_000))]
    pub wait_ms: Option<i64>,
    /// Names the program for people: 1 to 100 letters, digits, `-`, `_` or `.`.
    pub worker_id: String,
    /// How long the program may be silent before its jobs are given to others, 1000 to 3600000; 30000 unless given.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schemars(range(min = 1000, max = 3_600_000))]
    pub lease_ms: Option<i64>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FetchReply {
    pub jobs: Vec<FetchedJob>,
}

/// A job that is the caller's to do now.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FetchedJob {
    #[serde(flatten)]
    pub job: Job,
    /// The number of this run; to be named with everything that is said of it.
    pub run: i64,
    /// What an earlier run has kept.
    #[schemars(with = "Option<serde_json::Value>")]
    pub checkpoint: Option<Box<RawValue>>,
    /// When the run is over whatever its holder does.
    #[serde(serialize_with = "time")]
    pub deadline: DateTime<Utc>,
    /// The time that is left until then, in milliseconds, when this was sent: clocks may differ.
    pub timeout_ms: u64,
    pub lease_ms: i64,
    /// The W3C trace of whoever asked for the job, or the job's own, with a span for this run.
    pub traceparent: String,
}

/// Signs of life.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeartbeatRequest {
    pub worker_id: String,
    /// At most 1000.
    #[schemars(length(max = 1000))]
    pub runs: Vec<Beat>,
}

/// A sign of life of one run.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Beat {
    pub job_id: IdText,
    #[serde(deserialize_with = "integer")]
    pub run: i64,
    /// 0 to 100.
    #[serde(default)]
    pub percent: Option<f64>,
    /// The first 2 KiB are kept.
    #[serde(default)]
    pub message: Option<String>,
    /// For the next run, should this one be cut off: JSON of at most 256 KiB.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Value>")]
    pub checkpoint: Option<Box<RawValue>>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct HeartbeatReply {
    /// In the order of the request.
    pub runs: Vec<RunState>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunState {
    pub job_id: Uuid,
    pub run: i64,
    /// `held`: it has its whole lease again; `cancel`: stop; `lost`: nothing it says is wanted any more.
    pub state: crate::store::outside::State,
    /// What of this sign was not kept, and why; the rest of it was. Missing when all of it was kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<super::error::Fault>,
}

/// A run is done.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CompleteRequest {
    pub job_id: IdText,
    #[serde(deserialize_with = "integer")]
    pub run: i64,
    /// Any JSON of at most `limits.result` (256 KiB); null unless given.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Value>")]
    pub result: Option<Box<RawValue>>,
}

/// A run has failed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailRequest {
    pub job_id: IdText,
    #[serde(deserialize_with = "integer")]
    pub run: i64,
    /// For people; the first 2 KiB are kept.
    pub message: String,
    /// Whether another attempt may cure it; true unless given.
    #[serde(default)]
    pub retry: Option<bool>,
    /// When it is worth trying again, at most 24 h; by the type's back-off unless given.
    #[serde(default)]
    pub retry_after: Option<Span>,
}

/// A run is given back: nobody's fault, and the attempt is not spent.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReleaseRequest {
    pub job_id: IdText,
    #[serde(deserialize_with = "integer")]
    pub run: i64,
    /// When the job is offered again; at once unless given.
    #[serde(default)]
    pub delay: Option<Span>,
}

/// Names a verb; without one, all are listed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SchemaRequest {
    #[serde(default)]
    pub verb: Option<String>,
}

/// What there is to know of one verb, or of all.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum SchemaAnswer {
    One(SchemaReply),
    All(VerbsReply),
}

/// What can be asked here.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerbsReply {
    /// The version of the contract. Within one version verbs, fields and codes are only added.
    pub api_version: String,
    pub verbs: Vec<VerbInfo>,
}

/// A verb, and what its request may have.
#[derive(Debug, Serialize, JsonSchema)]
pub struct VerbInfo {
    pub verb: String,
    /// Fields of the request; others are refused.
    pub fields: Vec<String>,
    /// Those of them that can't be left out.
    pub required: Vec<String>,
}

/// JSON Schemas (2020-12) of a verb.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SchemaReply {
    pub verb: String,
    pub request: serde_json::Value,
    pub reply: serde_json::Value,
}
