//! The verbs, and `getSchema`: the list of them, and the JSON Schema of each request and reply, made from the types themselves.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use super::{
    error::{ApiError, Code, quoted},
    wire::{self, SchemaAnswer, SchemaReply, SchemaRequest, VerbInfo, VerbsReply},
};

/// What can be asked by RPC. The name is the subject's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Enqueue,
    EnqueueMany,
    GetJob,
    ListJobs,
    RetryJob,
    CancelJob,
    GetStats,
    WaitJob,
    ListTypes,
    PauseType,
    ResumeType,
    RegisterType,
    UnregisterType,
    Finish,
    Fetch,
    Heartbeat,
    Complete,
    Fail,
    Release,
    GetSchema,
}

pub const VERBS: [Verb; 20] = [
    Verb::Enqueue,
    Verb::EnqueueMany,
    Verb::GetJob,
    Verb::ListJobs,
    Verb::RetryJob,
    Verb::CancelJob,
    Verb::GetStats,
    Verb::WaitJob,
    Verb::ListTypes,
    Verb::PauseType,
    Verb::ResumeType,
    Verb::RegisterType,
    Verb::UnregisterType,
    Verb::Finish,
    Verb::Fetch,
    Verb::Heartbeat,
    Verb::Complete,
    Verb::Fail,
    Verb::Release,
    Verb::GetSchema,
];

impl Verb {
    /// Whether it may wait for long for something to happen.
    pub fn waits(self) -> bool {
        matches!(self, Verb::WaitJob | Verb::Fetch)
    }

    pub fn name(self) -> &'static str {
        match self {
            Verb::Enqueue => "enqueue",
            Verb::EnqueueMany => "enqueueMany",
            Verb::GetJob => "getJob",
            Verb::ListJobs => "listJobs",
            Verb::RetryJob => "retryJob",
            Verb::CancelJob => "cancelJob",
            Verb::GetStats => "getStats",
            Verb::WaitJob => "waitJob",
            Verb::ListTypes => "listTypes",
            Verb::PauseType => "pauseType",
            Verb::ResumeType => "resumeType",
            Verb::RegisterType => "registerType",
            Verb::UnregisterType => "unregisterType",
            Verb::Finish => "finish",
            Verb::Fetch => "work.fetch",
            Verb::Heartbeat => "work.heartbeat",
            Verb::Complete => "work.complete",
            Verb::Fail => "work.fail",
            Verb::Release => "work.release",
            Verb::GetSchema => "getSchema",
        }
    }

    /// JSON Schemas of request and reply.
    pub fn schemas(self) -> (Value, Value) {
        match self {
            Verb::Enqueue => pair::<wire::EnqueueRequest, wire::EnqueueReply>(),
            Verb::EnqueueMany => pair::<wire::EnqueueManyRequest, wire::EnqueueManyReply>(),
            Verb::GetJob | Verb::RetryJob => pair::<wire::JobRequest, wire::Job>(),
            Verb::ListJobs => pair::<wire::ListRequest, wire::ListReply>(),
            Verb::CancelJob => pair::<wire::CancelRequest, wire::Job>(),
            Verb::GetStats => pair::<wire::Empty, wire::Stats>(),
            Verb::WaitJob => pair::<wire::WaitRequest, wire::Job>(),
            Verb::ListTypes => pair::<wire::Empty, wire::TypesReply>(),
            Verb::PauseType | Verb::ResumeType => pair::<wire::TypeRequest, wire::TypeInfo>(),
            Verb::RegisterType => pair::<crate::types::Definition, wire::TypeInfo>(),
            Verb::UnregisterType => pair::<wire::TypeRequest, wire::TypeRemoved>(),
            Verb::Finish => pair::<wire::FinishRequest, wire::FinishReply>(),
            Verb::Fetch => pair::<wire::FetchRequest, wire::FetchReply>(),
            Verb::Heartbeat => pair::<wire::HeartbeatRequest, wire::HeartbeatReply>(),
            Verb::Complete => pair::<wire::CompleteRequest, wire::FinishReply>(),
            Verb::Fail => pair::<wire::FailRequest, wire::FinishReply>(),
            Verb::Release => pair::<wire::ReleaseRequest, wire::FinishReply>(),
            Verb::GetSchema => pair::<wire::SchemaRequest, wire::SchemaAnswer>(),
        }
    }
}

/// Requests as they are read, replies as they are written: what may be left out of the one is never missing in the other.
fn pair<Request: JsonSchema, Reply: JsonSchema>() -> (Value, Value) {
    let read = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let written = SchemaSettings::draft2020_12().for_serialize().into_generator();
    (read.into_root_schema_for::<Request>().to_value(), written.into_root_schema_for::<Reply>().to_value())
}

/// The version of the contract, which stands in `$SRV.INFO` as well.
pub const API_VERSION: &str = "v1";

/// # Errors
/// `invalid_request` for verbs that there are not.
pub fn asked(request: SchemaRequest) -> Result<SchemaAnswer, ApiError> {
    let Some(name) = request.verb else { return Ok(SchemaAnswer::All(all())) };
    let Some(verb) = VERBS.into_iter().find(|verb| verb.name() == name) else {
        let known: Vec<&str> = VERBS.into_iter().map(Verb::name).collect();
        let message = format!("{} is no verb; there are {}", quoted(&name), known.join(", "));
        return Err(ApiError::fault(Code::InvalidRequest, "/verb", message));
    };
    let (request, reply) = verb.schemas();
    Ok(SchemaAnswer::One(SchemaReply { verb: name, request, reply }))
}

/// All verbs, with what may be asked of them: what a client needs to know before it uses a field that came later.
fn all() -> VerbsReply {
    let info = |verb: Verb| {
        let (request, _) = verb.schemas();
        let fields = request["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone());
        let required = request["required"].as_array().into_iter().flatten();
        VerbInfo {
            verb: verb.name().to_owned(),
            fields: fields.collect(),
            required: required.filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        }
    };
    VerbsReply { api_version: API_VERSION.to_owned(), verbs: VERBS.into_iter().map(info).collect() }
}
