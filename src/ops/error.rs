//! The one error that leaves the service, for RPC and HTTP alike. Internals stay in the log.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{flow::Unanswered, job::model::JobId, store};

/// A refusal, with all that the caller may know.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    pub code: Code,
    /// Says what is wrong and what to do.
    pub detail: String,
    pub errors: Vec<Fault>,
    /// When it is worth trying again.
    pub retry_after: Option<Duration>,
    /// The job as it is now, for [`Code::WaitTimeout`].
    pub job: Option<Value>,
}

/// Most faults that are named in one answer.
pub const MAX_FAULTS: usize = 20;

/// One fault of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fault {
    /// JSON pointer into the request (RFC 6901).
    pub path: String,
    pub message: String,
}

/// Kinds of refusal. Source: wire contract, section HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    InvalidJson,
    InvalidRequest,
    InvalidPayload,
    UnknownType,
    Unauthenticated,
    Forbidden,
    NotFound,
    JobNotFound,
    MethodNotAllowed,
    WaitTimeout,
    NotRetryable,
    AlreadyFinished,
    IdempotencyConflict,
    LeaseLost,
    TypeConflict,
    TypeInUse,
    PayloadTooLarge,
    Overloaded,
    Unavailable,
    Internal,
}

impl Code {
    /// All of them, as docs/protocol.md lists them.
    pub const ALL: [Code; 20] = [
        Code::InvalidJson,
        Code::InvalidRequest,
        Code::InvalidPayload,
        Code::UnknownType,
        Code::Unauthenticated,
        Code::Forbidden,
        Code::NotFound,
        Code::JobNotFound,
        Code::MethodNotAllowed,
        Code::WaitTimeout,
        Code::NotRetryable,
        Code::AlreadyFinished,
        Code::IdempotencyConflict,
        Code::LeaseLost,
        Code::TypeConflict,
        Code::TypeInUse,
        Code::PayloadTooLarge,
        Code::Overloaded,
        Code::Unavailable,
        Code::Internal,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Code::InvalidJson => "invalid_json",
            Code::InvalidRequest => "invalid_request",
            Code::InvalidPayload => "invalid_payload",
            Code::UnknownType => "unknown_type",
            Code::Unauthenticated => "unauthenticated",
            Code::Forbidden => "forbidden",
            Code::NotFound => "not_found",
            Code::JobNotFound => "job_not_found",
            Code::MethodNotAllowed => "method_not_allowed",
            Code::WaitTimeout => "wait_timeout",
            Code::NotRetryable => "not_retryable",
            Code::AlreadyFinished => "already_finished",
            Code::IdempotencyConflict => "idempotency_conflict",
            Code::LeaseLost => "lease_lost",
            Code::TypeConflict => "type_conflict",
            Code::TypeInUse => "type_in_use",
            Code::PayloadTooLarge => "payload_too_large",
            Code::Overloaded => "overloaded",
            Code::Unavailable => "unavailable",
            Code::Internal => "internal",
        }
    }

    /// HTTP status, and `Nats-Service-Error-Code`.
    pub fn status(self) -> u16 {
        match self {
            Code::InvalidJson | Code::InvalidRequest | Code::InvalidPayload | Code::UnknownType => 400,
            Code::Unauthenticated => 401,
            Code::Forbidden => 403,
            Code::NotFound | Code::JobNotFound => 404,
            Code::MethodNotAllowed => 405,
            Code::WaitTimeout => 408,
            Code::NotRetryable
            | Code::AlreadyFinished
            | Code::IdempotencyConflict
            | Code::LeaseLost
            | Code::TypeConflict
            | Code::TypeInUse => 409,
            Code::PayloadTooLarge => 413,
            Code::Overloaded => 429,
            Code::Internal => 500,
            Code::Unavailable => 503,
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Code::InvalidJson => "The request is not valid JSON",
            Code::InvalidRequest => "The request is not valid",
            Code::InvalidPayload => "The payload does not fit its job type",
            Code::UnknownType => "There is no such job type",
            Code::Unauthenticated => "Authentication is needed",
            Code::Forbidden => "Not allowed",
            Code::NotFound => "There is nothing here",
            Code::JobNotFound => "There is no such job",
            Code::MethodNotAllowed => "The method is not allowed here",
            Code::WaitTimeout => "The job is not finished yet",
            Code::NotRetryable => "The job can't be retried",
            Code::AlreadyFinished => "The job is finished already",
            Code::IdempotencyConflict => "The idempotency key was used with other content",
            Code::LeaseLost => "The run is over",
            Code::TypeConflict => "The type belongs to the program or its configuration",
            Code::TypeInUse => "The type has unfinished jobs",
            Code::PayloadTooLarge => "The request is too large",
            Code::Overloaded => "Too many requests at once",
            Code::Unavailable => "The service can't do this right now",
            Code::Internal => "Something went wrong inside the service",
        }
    }
}

/// An error on the wire: RFC 9457 problem details, `application/problem+json`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    pub r#type: String,
    pub title: String,
    pub status: u16,
    pub code: Code,
    pub detail: String,
    pub errors: Vec<Fault>,
    /// Seconds after which it is worth trying again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// The job as it is now, when a wait ran out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Value>,
}

impl ApiError {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after: None, job: None }
    }

    /// Faults of a request; the detail counts them and tells the first. What repeats the request is shortened, so that
    /// no refusal is large.
    pub fn faults(code: Code, mut errors: Vec<Fault>) -> Self {
        for fault in errors.iter_mut().take(MAX_FAULTS) {
            shorten(&mut fault.path);
            shorten(&mut fault.message);
        }
        let detail = match errors.as_slice() {
            [] => code.title().to_owned(),
            [one] if one.path.is_empty() => one.message.clone(),
            [one] => format!("{}: {}", one.path, one.message),
            [first, rest @ ..] => format!("{}: {} (and {} more)", first.path, first.message, rest.len()),
        };
        errors.truncate(MAX_FAULTS);
        Self { errors, ..Self::new(code, detail) }
    }

    pub fn fault(code: Code, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::faults(code, vec![Fault { path: path.into(), message: message.into() }])
    }

    pub fn job_not_found(id: JobId) -> Self {
        Self::new(Code::JobNotFound, format!("no job {id}; it never was, or it is past its retention"))
    }

    pub fn overloaded(what: &str) -> Self {
        let detail = format!("{what}; try again in a second, with the same idempotency key if you use one");
        Self { retry_after: Some(Duration::from_secs(1)), ..Self::new(Code::Overloaded, detail) }
    }

    pub fn unavailable(what: &str) -> Self {
        let detail =
            format!("{what}; try again in a few seconds, with an idempotency key so that nothing is done twice");
        Self { retry_after: Some(Duration::from_secs(2)), ..Self::new(Code::Unavailable, detail) }
    }

    /// For those who wait for something when the service stops.
    pub fn stopping() -> Self {
        Self::unavailable("this instance is stopping")
    }

    /// A fault of ours: the log has the whole story under the id that the caller is given.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        let id = uuid::Uuid::now_v7();
        tracing::error!(error.id = %id, "{}", chain(error));
        Self::new(Code::Internal, format!("look for {id} in the service's log"))
    }

    pub fn problem(&self) -> Problem {
        Problem {
            r#type: format!("/problems/{}", self.code.as_str().replace('_', "-")),
            title: self.code.title().to_owned(),
            status: self.code.status(),
            code: self.code,
            detail: self.detail.clone(),
            errors: self.errors.clone(),
            retry_after_seconds: self.retry_after.map(|d| d.as_secs().max(1)),
            job: self.job.clone(),
        }
    }
}

/// A text from outside, for a message about it: on one line, in quotes, with its beginning only.
pub fn quoted(text: &str) -> String {
    const MAX: usize = 80;
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(MAX).collect();
    format!("{start:?}{}", if chars.next().is_some() { "…" } else { "" })
}

fn shorten(text: &mut String) {
    const MAX: usize = 300;
    if text.len() > MAX {
        text.truncate(text.floor_char_boundary(MAX));
        text.push('…');
    }
}

/// An error with all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        if error.is_transient() {
            error.tell("answered unavailable");
            return ApiError::unavailable("the database can't be reached or is too slow");
        }
        ApiError::internal(&error)
    }
}

impl From<Unanswered> for ApiError {
    fn from(error: Unanswered) -> Self {
        ApiError::unavailable(match error {
            Unanswered::Stopping => return ApiError::stopping(),
            Unanswered::Failed => "something went wrong inside the service, which its log tells",
        })
    }
}
