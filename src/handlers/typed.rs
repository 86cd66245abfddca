//! From typed handlers to ones that can be kept in a list: decoding, validation and encoding, written once.

use std::{future::Future, pin::Pin, sync::Arc};

use schemars::{Schema, generate::SchemaSettings};
use serde_json::value::RawValue;

use super::{Handler, RunContext};
use crate::{
    config::{Config, TypeSettings},
    job::{BadType, Failure, JobType},
};

/// What is wrong with a payload: JSON pointers and sentences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults(pub Vec<(String, String)>);

impl Faults {
    /// Notes a fault; `pointer` is relative to the payload, `/to/0` for instance.
    pub fn add(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.0.push((pointer.into(), message.into()));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

type Run<'a> = Pin<Box<dyn Future<Output = Result<Box<RawValue>, Failure>> + Send + 'a>>;

/// A handler whose payload and result are JSON texts.
pub struct AnyHandler {
    pub job_type: JobType,
    pub about: &'static str,
    /// JSON Schema (2020-12) of the payload.
    pub schema: Schema,
    /// See [`Handler::concurrency`].
    pub concurrency: Option<usize>,
    validator: jsonschema::Validator,
    inner: Arc<dyn Erased>,
}

trait Erased: Send + Sync {
    fn check(&self, payload: &RawValue) -> Result<Faults, serde_path_to_error::Error<serde_json::Error>>;
    fn run<'a>(&'a self, ctx: &'a RunContext, payload: &'a RawValue) -> Run<'a>;
}

/// Why a handler can't be registered: a mistake in the program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    BadType(#[from] BadType),
    #[error("the payload schema of '{job_type}' is not usable: {message}")]
    BadSchema { job_type: String, message: String },
    #[error("two handlers have the type '{0}'")]
    Twice(JobType),
}

impl AnyHandler {
    /// # Errors
    /// A bad type name, or a schema that does not compile.
    pub fn new<H: Handler>(handler: H) -> Result<Self, Error> {
        let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<H::Payload>();
        let validator = jsonschema::validator_for(schema.as_value())
            .map_err(|e| Error::BadSchema { job_type: H::TYPE.into(), message: e.to_string() })?;
        Ok(Self {
            job_type: JobType::new(H::TYPE)?,
            about: H::ABOUT,
            schema,
            concurrency: handler.concurrency(),
            validator,
            inner: Arc::new(Typed(handler)),
        })
    }

    /// Checks a payload that has passed the general input rules. Empty: it is good.
    ///
    /// The typed decoder judges first, since it is fast. For a payload that it refuses the schema is asked, to name every
    /// fault and not just the first; and for one that it could have read in another way than the schema says.
    pub fn check(&self, payload: &RawValue) -> Faults {
        let refusal = match self.inner.check(payload) {
            Ok(faults) if !faults.is_empty() || is_flat(payload.get()) => return faults,
            Ok(_) => None,
            Err(refusal) => Some(refusal),
        };
        let mut faults = Faults::default();
        if let Ok(value) = serde_json::from_str(payload.get()) {
            for error in self.validator.iter_errors(&value).take(20) {
                faults.add(error.instance_path().to_string(), shorten(error.to_string()));
            }
        }
        if let Some(refusal) = refusal.filter(|_| faults.is_empty()) {
            faults.add(pointer(refusal.path()), shorten(without_place(refusal.inner())));
        }
        faults
    }

    /// What is in force for this type.
    ///
    /// # Errors
    /// As [`Config::type_settings`].
    pub fn settings(&self, config: &Config) -> Result<TypeSettings, String> {
        let mut settings = config.type_settings(self.job_type.as_str())?;
        let chosen = config.types.get(self.job_type.as_str()).and_then(|overrides| overrides.concurrency);
        if let (None, Some(own)) = (chosen, self.concurrency) {
            settings.concurrency = settings.concurrency.min(own);
        }
        Ok(settings)
    }

    /// Runs the handler; its result is JSON.
    pub fn run<'a>(&'a self, ctx: &'a RunContext, payload: &'a RawValue) -> Run<'a> {
        self.inner.run(ctx, payload)
    }
}

/// The decoder takes an array for an object, by the order of the fields, and an object for a word, by its only key. An
/// object of plain values leaves it no such choice.
fn is_flat(payload: &str) -> bool {
    payload.strip_prefix('{').is_some_and(|inside| !inside.contains(['{', '[']))
}

/// What the decoder says, without the place in the text: a pointer tells it better.
pub fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    message.strip_suffix(&place).map(str::to_owned).unwrap_or(message)
}

/// Messages repeat the value that they complain of; half a megabyte of it helps nobody.
fn shorten(mut message: String) -> String {
    const MAX: usize = 300;
    if message.len() > MAX {
        message.truncate(message.floor_char_boundary(MAX));
        message.push('…');
    }
    message
}

/// serde's path as a JSON pointer.
pub fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => crate::job::json::push_pointer(&mut pointer, &index.to_string()),
            Segment::Map { key } => crate::job::json::push_pointer(&mut pointer, key),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    pointer
}

struct Typed<H>(H);

impl<H: Handler> Erased for Typed<H> {
    fn check(&self, payload: &RawValue) -> Result<Faults, serde_path_to_error::Error<serde_json::Error>> {
        let payload = decode::<H::Payload>(payload)?;
        let mut faults = Faults::default();
        self.0.check(&payload, &mut faults);
        Ok(faults)
    }

    fn run<'a>(&'a self, ctx: &'a RunContext, payload: &'a RawValue) -> Run<'a> {
        Box::pin(async move {
            // Checked at enqueue; it can still fail here when the type's rules were made narrower since.
            let payload = decode::<H::Payload>(payload).map_err(|e| {
                Failure::permanent(format!("the payload does not fit the type '{}' any more: {e}", H::TYPE))
            })?;
            let output = self.0.run(ctx, payload).await?;
            serde_json::value::to_raw_value(&output)
                .map_err(|e| Failure::permanent(format!("the result can't be written as JSON: {e}")))
        })
    }
}

fn decode<T: serde::de::DeserializeOwned>(raw: &RawValue) -> Result<T, serde_path_to_error::Error<serde_json::Error>> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
}
