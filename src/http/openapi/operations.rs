//! The routes as a table: what each takes, gives and refuses.

use crate::ops::{Code, Verb};

/// One method of one route.
pub struct Operation {
    pub method: &'static str,
    pub path: &'static str,
    /// The verb's name where there is one.
    pub id: &'static str,
    pub group: &'static str,
    pub summary: &'static str,
    pub parameters: &'static [Parameter],
    pub takes: Takes,
    pub gives: Gives,
    pub good: &'static [(u16, &'static str)],
    /// Besides those of [`ANYWHERE`].
    pub refusals: &'static [Code],
    /// Whether it needs no token, and has no refusals of its own.
    pub open: bool,
}

/// Where the request comes from.
#[derive(Clone, Copy)]
pub enum Takes {
    Nothing,
    /// The verb's request is the body; with an example.
    Body(Verb, &'static str),
    /// The verb's request is the query string.
    Query(Verb),
}

/// What a good answer holds.
#[derive(Clone, Copy)]
pub enum Gives {
    Reply(Verb),
    Health,
    Check,
    /// Of one verb, and of all.
    Schema,
    Verbs,
    Json,
    Text(&'static str),
}

pub struct Parameter {
    pub name: &'static str,
    pub place: Place,
    pub about: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Path,
    Query,
    Header,
}

/// Refusals that every route may give.
pub const ANYWHERE: &[Code] = &[
    Code::InvalidRequest,
    Code::Unauthenticated,
    Code::Forbidden,
    Code::Overloaded,
    Code::Internal,
    Code::Unavailable,
];

const ID: Parameter = Parameter { name: "id", place: Place::Path, about: "The job's id, as enqueue answered it." };
const TYPE: Parameter = Parameter { name: "type", place: Place::Path, about: "The name of a job type." };
const OK: &[(u16, &str)] = &[(200, "OK")];
const OK_OR_NOT: &[(u16, &str)] = &[(200, "Jobs are taken"), (503, "Jobs can't be taken now")];

/// What most have; the table says what differs.
const BASE: Operation = Operation {
    method: "get",
    path: "",
    id: "",
    group: "Jobs",
    summary: "",
    parameters: &[],
    takes: Takes::Nothing,
    gives: Gives::Json,
    good: OK,
    refusals: &[],
    open: false,
};

pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: "post",
        path: "/jobs",
        id: "enqueue",
        summary: "Enqueue a job",
        parameters: &[Parameter {
            name: "Idempotency-Key",
            place: Place::Header,
            about: "The same as `idempotencyKey` in the body: a repeated key names the job that it made first.",
        }],
        takes: Takes::Body(
            Verb::Enqueue,
            r#"{"type": "send-email", "payload": {"to": "ada@example.org", "subject": "Hello", "body": "It works."}}"#,
        ),
        gives: Gives::Reply(Verb::Enqueue),
        good: &[(201, "Kept; it will run. `Location` names the job"), (200, "The key named a job that was there")],
        refusals: &[
            Code::InvalidJson,
            Code::InvalidPayload,
            Code::UnknownType,
            Code::IdempotencyConflict,
            Code::PayloadTooLarge,
        ],
        ..BASE
    },
    Operation {
        method: "post",
        path: "/jobs/batch",
        id: "enqueueMany",
        summary: "Enqueue up to a thousand jobs, each judged by itself",
        takes: Takes::Body(
            Verb::EnqueueMany,
            r#"{"jobs": [{"type": "generate-embedding", "payload": {"text": "first"}},
                {"type": "generate-embedding", "payload": {"text": "second"}, "priority": 5}]}"#,
        ),
        gives: Gives::Reply(Verb::EnqueueMany),
        refusals: &[Code::InvalidJson, Code::PayloadTooLarge],
        ..BASE
    },
    Operation {
        path: "/jobs",
        id: "listJobs",
        summary: "List jobs, newest first",
        takes: Takes::Query(Verb::ListJobs),
        gives: Gives::Reply(Verb::ListJobs),
        ..BASE
    },
    Operation {
        path: "/jobs/{id}",
        id: "getJob",
        summary: "Show a job, or wait until it is over (`waitJob`)",
        parameters: &[
            ID,
            Parameter {
                name: "wait",
                place: Place::Query,
                about: "Answer when the job is over, or with 408 after this time: `30s`, at most `5m`.",
            },
        ],
        gives: Gives::Reply(Verb::GetJob),
        refusals: &[Code::JobNotFound, Code::WaitTimeout],
        ..BASE
    },
    Operation {
        method: "delete",
        path: "/jobs/{id}",
        id: "cancelJob",
        summary: "Cancel a job; a running one is told to stop",
        parameters: &[
            ID,
            Parameter { name: "reason", place: Place::Query, about: "For people, at most 500 characters." },
        ],
        gives: Gives::Reply(Verb::CancelJob),
        refusals: &[Code::JobNotFound, Code::AlreadyFinished],
        ..BASE
    },
    Operation {
        method: "post",
        path: "/jobs/{id}/retry",
        id: "retryJob",
        summary: "Put a failed or cancelled job back to pending",
        parameters: &[ID],
        gives: Gives::Reply(Verb::RetryJob),
        refusals: &[Code::JobNotFound, Code::NotRetryable],
        ..BASE
    },
    Operation {
        method: "post",
        path: "/jobs/{id}/finish",
        id: "finish",
        group: "Work",
        summary: "Tell how a run outside ended",
        parameters: &[ID],
        takes: Takes::Body(Verb::Finish, r#"{"run": 1, "result": {"pages": 3}}"#),
        gives: Gives::Reply(Verb::Finish),
        refusals: &[Code::InvalidJson, Code::JobNotFound, Code::LeaseLost, Code::PayloadTooLarge],
        ..BASE
    },
    Operation {
        method: "post",
        path: "/work/fetch",
        id: "work.fetch",
        group: "Work",
        summary: "Fetch jobs of types whose handler is `pull`, and wait for some",
        takes: Takes::Body(
            Verb::Fetch,
            r#"{"types": ["thumbnail"], "max": 5, "waitMs": 10000, "workerId": "gpu-box-1", "leaseMs": 30000}"#,
        ),
        gives: Gives::Reply(Verb::Fetch),
        refusals: &[Code::InvalidJson, Code::UnknownType],
        ..BASE
    },
    Operation {
        method: "post",
        path: "/work/heartbeat",
        id: "work.heartbeat",
        group: "Work",
        summary: "Give signs of life of runs, with progress and checkpoints",
        takes: Takes::Body(
            Verb::Heartbeat,
            r#"{"workerId": "gpu-box-1", "runs": [{"jobId": "0198c5a4-5d5c-7000-8000-000000000000", "run": 1, "percent": 40}]}"#,
        ),
        gives: Gives::Reply(Verb::Heartbeat),
        refusals: &[Code::InvalidJson, Code::PayloadTooLarge],
        ..BASE
    },
    Operation {
        method: "post",
        path: "/work/complete",
        id: "work.complete",
        group: "Work",
        summary: "Tell that a fetched job is done",
        takes: Takes::Body(
            Verb::Complete,
            r#"{"jobId": "0198c5a4-5d5c-7000-8000-000000000000", "run": 1, "result": {"url": "s3://out/1.png"}}"#,
        ),
        gives: Gives::Reply(Verb::Complete),
        refusals: &[Code::InvalidJson, Code::JobNotFound, Code::LeaseLost, Code::PayloadTooLarge],
        ..BASE
    },
    Operation {
        method: "post",
        path: "/work/fail",
        id: "work.fail",
        group: "Work",
        summary: "Tell that a fetched job has failed",
        takes: Takes::Body(
            Verb::Fail,
            r#"{"jobId": "0198c5a4-5d5c-7000-8000-000000000000", "run": 1, "message": "no such image", "retry": false}"#,
        ),
        gives: Gives::Reply(Verb::Fail),
        refusals: &[Code::InvalidJson, Code::JobNotFound, Code::LeaseLost, Code::PayloadTooLarge],
        ..BASE
    },
    Operation {
        method: "post",
        path: "/work/release",
        id: "work.release",
        group: "Work",
        summary: "Give a fetched job back without spending its attempt",
        takes: Takes::Body(
            Verb::Release,
            r#"{"jobId": "0198c5a4-5d5c-7000-8000-000000000000", "run": 1, "delay": "5s"}"#,
        ),
        gives: Gives::Reply(Verb::Release),
        refusals: &[Code::InvalidJson, Code::JobNotFound, Code::LeaseLost],
        ..BASE
    },
    Operation {
        path: "/types",
        id: "listTypes",
        group: "Types",
        summary: "List the job types, their settings and the schemas of their payloads",
        gives: Gives::Reply(Verb::ListTypes),
        ..BASE
    },
    Operation {
        path: "/types/{type}",
        id: "getType",
        group: "Types",
        summary: "Show a job type",
        parameters: &[TYPE],
        gives: Gives::Reply(Verb::PauseType),
        refusals: &[Code::UnknownType],
        ..BASE
    },
    Operation {
        method: "put",
        path: "/types/{type}",
        id: "registerType",
        group: "Types",
        summary: "Make a type whose work is done outside, or replace its definition",
        parameters: &[TYPE],
        takes: Takes::Body(
            Verb::RegisterType,
            r#"{"handler": "nats", "description": "Makes thumbnails.", "timeout": "2m",
                "payloadSchema": {"type": "object", "required": ["image"], "properties": {"image": {"type": "string"}}}}"#,
        ),
        gives: Gives::Reply(Verb::RegisterType),
        refusals: &[Code::InvalidJson, Code::UnknownType, Code::TypeConflict, Code::PayloadTooLarge],
        ..BASE
    },
    Operation {
        method: "delete",
        path: "/types/{type}",
        id: "unregisterType",
        group: "Types",
        summary: "Forget a type that was registered or discovered",
        parameters: &[TYPE],
        gives: Gives::Reply(Verb::UnregisterType),
        refusals: &[Code::UnknownType, Code::TypeConflict, Code::TypeInUse],
        ..BASE
    },
    Operation {
        method: "post",
        path: "/types/{type}/pause",
        id: "pauseType",
        group: "Types",
        summary: "Start no more jobs of a type, on any replica; they are still taken",
        parameters: &[TYPE],
        gives: Gives::Reply(Verb::PauseType),
        refusals: &[Code::UnknownType],
        ..BASE
    },
    Operation {
        method: "post",
        path: "/types/{type}/resume",
        id: "resumeType",
        group: "Types",
        summary: "Start jobs of a type again",
        parameters: &[TYPE],
        gives: Gives::Reply(Verb::ResumeType),
        refusals: &[Code::UnknownType],
        ..BASE
    },
    Operation {
        path: "/stats",
        id: "getStats",
        group: "Service",
        summary: "Count jobs by status and type",
        gives: Gives::Reply(Verb::GetStats),
        ..BASE
    },
    Operation {
        path: "/health",
        id: "health",
        group: "Service",
        summary: "Tell how the service and what it needs are",
        gives: Gives::Health,
        good: OK_OR_NOT,
        open: true,
        ..BASE
    },
    Operation {
        path: "/health/live",
        id: "live",
        group: "Service",
        summary: "Tell that the process runs (probe)",
        open: true,
        ..BASE
    },
    Operation {
        path: "/health/ready",
        id: "ready",
        group: "Service",
        summary: "Tell whether jobs can be taken here (probe)",
        gives: Gives::Check,
        good: OK_OR_NOT,
        open: true,
        ..BASE
    },
    Operation {
        path: "/metrics",
        id: "metrics",
        group: "Service",
        summary: "The numbers for Prometheus",
        gives: Gives::Text("text/plain"),
        ..BASE
    },
    Operation {
        path: "/schemas/{verb}",
        id: "getSchema",
        group: "Service",
        summary: "JSON Schemas of the request and the reply of a verb",
        parameters: &[Parameter {
            name: "verb",
            place: Place::Path,
            about: "`enqueue`, `enqueueMany`, `getJob` and so on: the operation ids here.",
        }],
        gives: Gives::Schema,
        ..BASE
    },
    Operation {
        path: "/schemas",
        id: "getSchemas",
        group: "Service",
        summary: "The verbs, the fields of their requests, and the version of the contract",
        gives: Gives::Verbs,
        ..BASE
    },
    Operation { path: "/openapi.json", id: "openapi", group: "Service", summary: "This description", ..BASE },
];
