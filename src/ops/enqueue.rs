//! `enqueue` and `enqueueMany`: is the request good, and which policy does it get?

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{
    Ops, Scope,
    error::{ApiError, Code, Fault, Problem},
    input,
    wire::{EnqueueManyReply, EnqueueManyRequest, EnqueueReply, EnqueueRequest, EnqueueResult},
};
use crate::{
    config::TIMEOUT_RANGE,
    job::{Priority, Status, Trace, Work, content::Asked, json, model::JobId},
    store::enqueue::{Due, Enqueued, Key, NewJob},
};

/// Most jobs in one bulk request. Source: wire contract, as the other limits here.
pub const MAX_BULK: usize = 1000;
/// Bytes that the refusals of one bulk request may take together.
const MAX_REFUSALS: usize = 512 * 1024;
/// Bytes of one result of a bulk request, at most, when a refusal is told in short.
const RESULT_MAX: usize = 400;
/// What a handler is told of a job beside its payload, tags and key, in bytes, and the headers.
const MESSAGE_FRAME: usize = 1024;
pub(super) const MAX_KEY_CHARS: usize = 255;
pub(super) const MAX_TAGS: usize = 20;
pub(super) const MAX_TAG_CHARS: usize = 64;
/// How far ahead a job may be planned: 10 years.
const MAX_AHEAD: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// What a door knows besides the body.
#[derive(Clone, Copy, Debug, Default)]
pub struct EnqueueOptions<'a> {
    /// From the header `Idempotency-Key`.
    pub idempotency_key: Option<&'a str>,
    /// Of a job that was handed in by publishing alone: it is one job per message id, unless it has a key of its own.
    pub(crate) message_id: Option<&'a str>,
    /// From the header `traceparent`, as it came.
    pub traceparent: Option<&'a str>,
    /// Largest answer that the door can give, in bytes; `None`: of any size.
    pub(crate) answer_max: Option<usize>,
}

impl Ops {
    /// Takes one job.
    ///
    /// # Errors
    /// The refusal; nothing was written then.
    pub async fn enqueue(
        &self,
        scope: Scope<'_>,
        body: &[u8],
        options: EnqueueOptions<'_>,
    ) -> Result<EnqueueReply, ApiError> {
        let job = match self.check(scope, body, options) {
            // Its handler may have started a moment ago.
            Err(refused) if refused.code == Code::UnknownType => {
                Box::pin(self.types.search()).await;
                self.check(scope, body, options)?
            }
            checked => checked?,
        };
        let id = job.id;
        let mut outcomes = self.intake.submit(vec![job]).await?;
        reply(id, outcomes.pop().unwrap_or_else(|| Err(ApiError::unavailable("the intake gave no answer")))?)
    }

    /// Takes up to [`MAX_BULK`] jobs, each judged by itself; the good ones are kept when others are bad.
    ///
    /// # Errors
    /// The refusal of the request as a whole.
    pub async fn enqueue_many(
        &self,
        scope: Scope<'_>,
        body: &[u8],
        options: EnqueueOptions<'_>,
    ) -> Result<EnqueueManyReply, ApiError> {
        let request: EnqueueManyRequest = input::decode(body)?;
        if !(1..=MAX_BULK).contains(&request.jobs.len()) {
            let message = format!("{} jobs; a request takes 1 to {MAX_BULK}", request.jobs.len());
            return Err(ApiError::fault(Code::InvalidRequest, "/jobs", message));
        }
        let most = options.answer_max.map_or(usize::MAX, |max| max / RESULT_MAX);
        if request.jobs.len() > most {
            // Before anything is written: nobody would be told the ids.
            let detail = format!(
                "the answer to {} jobs may have {} bytes, the broker takes {} (max_payload); send at most {most} jobs in one \
                 request, or over HTTP",
                request.jobs.len(),
                request.jobs.len() * RESULT_MAX,
                options.answer_max.unwrap_or_default()
            );
            return Err(ApiError::new(Code::PayloadTooLarge, detail));
        }
        let room = options.answer_max.map_or(MAX_REFUSALS, |max| max - request.jobs.len() * RESULT_MAX);
        let room = room.min(MAX_REFUSALS);
        let check = |raw: &RawValue| self.check(scope, raw.get().as_bytes(), options);
        let mut checked: Vec<Result<NewJob, ApiError>> = request.jobs.iter().map(|raw| check(raw)).collect();
        let is_unknown = |job: &Result<NewJob, ApiError>| matches!(job, Err(e) if e.code == Code::UnknownType);
        if checked.iter().any(is_unknown) {
            // As for a single one.
            self.types.search().await;
            for (job, raw) in checked.iter_mut().zip(&request.jobs).filter(|(job, _)| is_unknown(job)) {
                *job = check(raw);
            }
        }
        drop(request);
        let mut ids = Vec::new();
        let mut good = Vec::new();
        let mut results: Vec<Option<ApiError>> = Vec::new();
        for job in checked {
            match job {
                Ok(job) => {
                    ids.push(job.id);
                    good.push(job);
                    results.push(None);
                }
                Err(e) => results.push(Some(e)),
            }
        }
        let outcomes = if good.is_empty() { Vec::new() } else { self.intake.submit(good).await? };
        let mut kept = ids.into_iter().zip(outcomes);
        let mut told = 0;
        let result = |refused: Option<ApiError>| {
            let outcome = match refused {
                Some(e) => Err(e),
                None => match kept.next() {
                    Some((id, outcome)) => outcome.and_then(|outcome| reply(id, outcome)),
                    None => Err(ApiError::unavailable("the intake gave no answer")),
                },
            };
            match outcome {
                Ok(accepted) => EnqueueResult::Accepted(accepted),
                Err(e) => EnqueueResult::Refused { error: Box::new(in_short(e.problem(), room, &mut told)) },
            }
        };
        Ok(EnqueueManyReply { results: results.into_iter().map(result).collect() })
    }

    fn check(&self, scope: Scope<'_>, body: &[u8], options: EnqueueOptions<'_>) -> Result<NewJob, ApiError> {
        let limit = self.config.limits.payload.as_u64() as usize;
        json::check_object(body).map_err(input::broken_rule)?;
        let request: EnqueueRequest = input::decode(body)?;
        if request.payload.get().len() > limit {
            let size = request.payload.get().len();
            let detail = format!("the payload has {size} bytes; the limit is {limit} bytes (limits.payload)");
            return Err(ApiError::new(Code::PayloadTooLarge, detail));
        }
        let known = self.known(scope, request.r#type.as_deref())?;
        let handler = &known.handler;
        if handler.work == Work::Nats {
            self.must_fit(&request)?;
        }
        let mut faults = Vec::new();
        let job = parts(&request, options, &mut faults);
        if !faults.is_empty() {
            return Err(ApiError::faults(Code::InvalidRequest, faults));
        }
        let refused = handler.check(&request.payload);
        if !refused.is_empty() {
            let fault = |(pointer, message)| Fault { path: format!("/payload{pointer}"), message };
            return Err(ApiError::faults(Code::InvalidPayload, refused.0.into_iter().map(fault).collect()));
        }
        let max_attempts = match job.max_attempts {
            Some(n) => n,
            None => known.settings.retry.max_attempts,
        };
        let message = options.message_id.map(|id| format!("{INTERNAL_KEY}inbox:{id}"));
        let key = job.key.or(message);
        Ok(NewJob {
            id: uuid::Uuid::now_v7(),
            job_type: handler.job_type.clone(),
            priority: job.priority,
            max_attempts,
            timeout: job.timeout,
            due: job.due,
            key: key.map(|text| {
                let job_type = handler.job_type.as_str();
                let asked = Asked {
                    job_type,
                    payload: request.payload.get(),
                    priority: job.priority.get(),
                    max_attempts: job.max_attempts,
                    delay: request.delay.map(|span| span.0),
                    run_at: job.run_at,
                    tags: request.tags.as_deref().unwrap_or_default(),
                    timeout: job.timeout,
                };
                let (value_hash, content_hash) = (asked.hash(), older_hash(&request, job_type));
                Key { text, content_hash, value_hash, max_attempts: job.max_attempts }
            }),
            tags: request.tags.unwrap_or_default(),
            payload: request.payload,
            trace: options.traceparent.and_then(Trace::parse),
        })
    }
}

impl Ops {
    /// Whether the handler can be asked by one message of the broker.
    fn must_fit(&self, request: &EnqueueRequest) -> Result<(), ApiError> {
        let tags = request.tags.iter().flatten().map(|tag| tag.len() + 3).sum::<usize>();
        let key = request.idempotency_key.as_ref().map_or(0, String::len);
        let size = request.payload.get().len() + tags + key + MESSAGE_FRAME;
        match self.broker.max_payload() {
            Some(max) if size > max => {
                let detail = format!(
                    "the message to its handler has up to {size} bytes, the NATS server takes {max} (max_payload): raise that \
                     limit, or keep the data elsewhere and send its address"
                );
                Err(ApiError::new(Code::PayloadTooLarge, detail))
            }
            _ => Ok(()),
        }
    }
}

/// What keys begin with that are not the callers': theirs hold no control characters.
pub(crate) const INTERNAL_KEY: char = '\u{1}';

/// The parts of a request that have rules of their own.
struct Parts {
    priority: Priority,
    max_attempts: Option<u16>,
    timeout: Option<Duration>,
    due: Due,
    /// As it was asked for.
    run_at: Option<DateTime<Utc>>,
    key: Option<String>,
}

fn parts(request: &EnqueueRequest, options: EnqueueOptions<'_>, faults: &mut Vec<Fault>) -> Parts {
    let mut fault = |path: &str, message: String| faults.push(Fault { path: path.into(), message });
    let priority = Priority::new(request.priority.unwrap_or(0)).unwrap_or_else(|| {
        fault("/priority", format!("must be {} to {}", Priority::MIN, Priority::MAX));
        Priority::default()
    });
    let max_attempts = request.max_attempts.map(|n| {
        u16::try_from(n).ok().filter(|n| (1..=100).contains(n)).unwrap_or_else(|| {
            fault("/maxAttempts", "must be 1 to 100".into());
            1
        })
    });
    let timeout = request.timeout.map(|span| span.0);
    if timeout.is_some_and(|t| !TIMEOUT_RANGE.contains(&t)) {
        fault("/timeout", "must be 100ms to 24h".into());
    }
    let mut run_at = None;
    let due = match (request.delay, &request.run_at) {
        (Some(_), Some(_)) => {
            fault("/runAt", "give either delay or runAt, not both".into());
            Due::Now
        }
        (Some(span), None) if span.0 > MAX_AHEAD => {
            fault("/delay", "must be at most 10 years".into());
            Due::Now
        }
        (Some(span), None) if span.0.is_zero() => Due::Now,
        (Some(span), None) => Due::In(span.0),
        (None, Some(text)) => match DateTime::parse_from_rfc3339(text).inspect(|at| run_at = Some(at.to_utc())) {
            Ok(at) if at.to_utc() > Utc::now() + MAX_AHEAD => {
                fault("/runAt", "must be at most 10 years ahead".into());
                Due::Now
            }
            // Postgres has no year 0 or below; all of the past means now.
            Ok(at) if at.to_utc() <= DateTime::UNIX_EPOCH => Due::Now,
            Ok(at) => Due::At(at.to_utc()),
            Err(_) => {
                fault("/runAt", "must be a time like 2026-12-24T18:00:00Z (RFC 3339, with a zone)".into());
                Due::Now
            }
        },
        (None, None) => Due::Now,
    };
    let key = match (&request.idempotency_key, options.idempotency_key) {
        (Some(body), Some(header)) if body != header => {
            fault("/idempotencyKey", "differs from the header Idempotency-Key; give one of them".into());
            None
        }
        (Some(key), _) => Some(key.clone()),
        (None, header) => header.map(str::to_owned),
    };
    if key.as_ref().is_some_and(|key| key.is_empty() || key.chars().count() > MAX_KEY_CHARS) {
        fault("/idempotencyKey", format!("must have 1 to {MAX_KEY_CHARS} characters"));
    }
    if key.as_ref().is_some_and(|key| key.chars().any(char::is_control)) {
        fault("/idempotencyKey", "must not hold control characters".into());
    }
    let tags = request.tags.as_deref().unwrap_or_default();
    if tags.len() > MAX_TAGS {
        fault("/tags", format!("{} tags; at most {MAX_TAGS} are taken", tags.len()));
    }
    for (i, tag) in tags.iter().enumerate().take(MAX_TAGS) {
        if tag.is_empty() || tag.chars().count() > MAX_TAG_CHARS {
            fault(&format!("/tags/{i}"), format!("must have 1 to {MAX_TAG_CHARS} characters"));
        }
    }
    Parts { priority, max_attempts, timeout, due, run_at, key }
}

/// Hash of what was asked by the formula of versions before 0015 of the migrations, which may run beside this one: object keys in order, no white
/// space, numbers and times as they are spelled.
fn older_hash(request: &EnqueueRequest, job_type: &str) -> [u8; 32] {
    let payload = canonical(&request.payload);
    let rest = serde_json::json!([
        job_type,
        request.priority.unwrap_or(0),
        request.max_attempts,
        request.delay.map(|span| span.0.as_millis().to_string()),
        request.run_at,
        request.tags,
        request.timeout.map(|span| span.0.as_millis().to_string()),
    ]);
    Sha256::new().chain_update(rest.to_string()).chain_update(payload).finalize().into()
}

/// serde_json's map sorts its keys, as long as the feature `preserve_order` is off; a test holds it.
fn canonical(raw: &RawValue) -> String {
    serde_json::from_str::<serde_json::Value>(raw.get()).unwrap_or_default().to_string()
}

/// A refusal of a row as it is, as long as those before it have left room; then its code alone. So the answer fits into
/// a message of the broker, and nobody is left without the ids of the good rows.
fn in_short(problem: Problem, room: usize, told: &mut usize) -> Problem {
    *told += serde_json::to_vec(&problem).map_or(0, |text| text.len());
    if *told <= room {
        return problem;
    }
    let detail = format!("{}; ask for it alone to be told more", problem.title);
    Problem { detail, errors: Vec::new(), ..problem }
}

fn reply(id: JobId, outcome: Enqueued) -> Result<EnqueueReply, ApiError> {
    match outcome {
        Enqueued::Accepted => Ok(EnqueueReply { job_id: id, status: Status::Pending, duplicate: false }),
        Enqueued::Duplicate { id, status } => Ok(EnqueueReply { job_id: id, status, duplicate: true }),
        Enqueued::Held => Err(ApiError::unavailable("a transaction that has not ended holds this idempotency key")),
        Enqueued::Conflict { id } => Err(ApiError::new(
            Code::IdempotencyConflict,
            format!("the key belongs to job {id}, which was asked for with other content; use a new key"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_has_one_hash_whatever_its_spelling() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        assert_eq!(canonical(&raw(r#"{"b":1, "a":[ 2 ]}"#)), canonical(&raw(r#"{"a":[2],"b":1}"#)));
        assert_ne!(canonical(&raw(r#"{"a":1}"#)), canonical(&raw(r#"{"a":2}"#)));
    }
}
