//! From typed handlers to ones that can be kept in a list: decoding, validation and encoding, written once.

use std::{future::Future, marker::PhantomData, pin::Pin, sync::Arc, time::Duration};

use jsonschema::Validator;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use super::{
    Handler, RunContext,
    function::Function,
    layer::{Layer, Layered},
    schema_faults,
};
use crate::{
    config::{Config, TypeSettings},
    job::{BadType, End, Failure, JobType, Work, integer::in_plain_digits},
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

/// How a run ended, as its handler says.
#[derive(Clone, Debug)]
pub enum Ended {
    /// With this result.
    Done(Box<RawValue>),
    Failed(Failure),
    /// Not now: costs no attempt, and the job is offered again after this time.
    Released(Duration),
    /// Somebody outside goes on with it, and tells later how it ended.
    Outside,
}

impl Ended {
    /// What a program outside has said, as its run's row keeps it; `None`: it goes on.
    pub(crate) fn end(&self) -> Option<End> {
        match self {
            Ended::Done(result) => Some(End::result(result)),
            Ended::Failed(failure) => Some(End::failure(failure)),
            Ended::Released(delay) => Some(End::release(*delay)),
            Ended::Outside => None,
        }
    }

    /// Checked at enqueue; it can still happen at a run, when the type's rules were made narrower since.
    pub(super) fn does_not_fit(job_type: &str, e: &serde_path_to_error::Error<serde_json::Error>) -> Self {
        Ended::Failed(Failure::permanent(format!("the payload does not fit the type '{job_type}' any more: {e}")))
    }
}

#[cfg(test)]
impl Ended {
    /// What a handler of the program returned.
    pub(crate) fn result(self) -> Result<Box<RawValue>, Failure> {
        match self {
            Ended::Done(result) => Ok(result),
            Ended::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) type Run<'a> = Pin<Box<dyn Future<Output = Ended> + Send + 'a>>;

/// A handler whose payload and result are JSON texts.
pub struct AnyHandler {
    pub job_type: JobType,
    pub about: String,
    pub work: Work,
    /// JSON Schema (2020-12) of the payload.
    pub schema: Value,
    /// JSON Schema (2020-12) of the result, where there is a rule for it.
    pub result_schema: Option<Value>,
    /// See [`Handler::concurrency`].
    pub concurrency: Option<usize>,
    payload_rules: Validator,
    result_rules: Option<Validator>,
    inner: Arc<dyn Erased>,
}

/// A handler without its types.
pub(crate) trait Erased: Send + Sync {
    /// What the schema can't say; see [`AnyHandler::check`].
    fn check(&self, _payload: &RawValue) -> Result<Faults, serde_path_to_error::Error<serde_json::Error>> {
        Ok(Faults::default())
    }

    fn run<'a>(&'a self, ctx: &'a RunContext, payload: &'a RawValue) -> Run<'a>;

    /// See [`AnyHandler::room`].
    fn room(&self) -> usize {
        usize::MAX
    }

    /// See [`AnyHandler::seen`].
    fn seen(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// A type that is known since somebody said so, and not by a Rust type.
pub(crate) struct Described {
    pub job_type: JobType,
    pub about: String,
    pub work: Work,
    pub schema: Option<Value>,
    pub result_schema: Option<Value>,
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
        let concurrency = handler.concurrency();
        let made = Self::builtin::<H::Payload>(H::TYPE, H::ABOUT, Arc::new(Typed(handler)))?;
        Ok(Self { concurrency, ..made })
    }

    /// A handler that is a function: it is given the run, a clone of `state`, and the payload.
    ///
    /// # Errors
    /// As [`AnyHandler::new`].
    pub fn function<S, P, O, F, Fut>(job_type: &str, about: &str, state: S, work: F) -> Result<Self, Error>
    where
        S: Clone + Send + Sync + 'static,
        P: DeserializeOwned + JsonSchema + Send + 'static,
        O: Serialize + Send + 'static,
        F: Fn(RunContext, S, P) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, Failure>> + Send + 'static,
    {
        let inner = Function { job_type: job_type.to_owned(), state, work, payload: PhantomData::<fn(P)> };
        Self::builtin::<P>(job_type, about, Arc::new(inner))
    }

    fn builtin<P: JsonSchema>(job_type: &str, about: &str, inner: Arc<dyn Erased>) -> Result<Self, Error> {
        let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<P>();
        let payload_rules = jsonschema::validator_for(schema.as_value())
            .map_err(|e| Error::BadSchema { job_type: job_type.into(), message: e.to_string() })?;
        Ok(Self {
            job_type: JobType::new(job_type)?,
            about: about.to_owned(),
            work: Work::Builtin,
            schema: schema.to_value(),
            result_schema: None,
            concurrency: None,
            payload_rules,
            result_rules: None,
            inner,
        })
    }

    /// The same with something around each run.
    pub(crate) fn in_layer(mut self, layer: Arc<dyn Layer>) -> Self {
        self.inner = Arc::new(Layered { inner: self.inner, layer });
        self
    }

    /// A handler whose rules are data.
    ///
    /// # Errors
    /// The schemas that can't be used, by the names of their fields.
    pub(crate) fn described(described: Described, inner: Arc<dyn Erased>) -> Result<Self, Faults> {
        let Described { job_type, about, work, schema, result_schema } = described;
        let mut faults = Faults::default();
        let schema = schema.unwrap_or(Value::Bool(true));
        let payload_rules = rules(&schema).map_err(|fault| faults.add("/payloadSchema", fault)).ok();
        let mut read = |schema| rules(schema).map_err(|fault| faults.add("/resultSchema", fault)).ok();
        let result_rules = result_schema.as_ref().and_then(&mut read);
        let Some(payload_rules) = payload_rules.filter(|_| faults.is_empty()) else { return Err(faults) };
        let concurrency = None;
        Ok(Self { job_type, about, work, schema, result_schema, concurrency, payload_rules, result_rules, inner })
    }

    /// Checks a payload that has passed the general input rules. Empty: it is good.
    ///
    /// The typed decoder judges first, since it is fast. For a payload that it refuses the schema is asked, to name every
    /// fault and not just the first; and for one that it could have read in another way than the schema says.
    pub fn check(&self, payload: &RawValue) -> Faults {
        let refusal = match self.inner.check(payload) {
            Ok(faults) if !faults.is_empty() => return faults,
            Ok(faults) if self.work == Work::Builtin && is_flat(payload.get()) => return faults,
            Ok(_) if self.schema == Value::Bool(true) => return Faults::default(),
            Ok(_) => None,
            Err(refusal) => Some(refusal),
        };
        let mut faults = faults_of(&self.payload_rules, payload);
        if let Some(refusal) = refusal.filter(|_| faults.is_empty()) {
            faults.add(pointer(refusal.path()), shorten(without_place(refusal.inner())));
        }
        faults
    }

    /// Checks a result that has passed the general rules. Empty: it is good.
    pub fn check_result(&self, result: &RawValue) -> Faults {
        self.result_rules.as_ref().map(|rules| faults_of(rules, result)).unwrap_or_default()
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

    /// How many more jobs it is worth beginning, where nobody may be there to do them.
    pub fn room(&self) -> usize {
        self.inner.room()
    }

    /// Somebody who does the work has shown himself.
    pub(crate) async fn seen(&self) {
        self.inner.seen().await;
    }

    /// Runs the handler; its result is JSON.
    pub fn run<'a>(&'a self, ctx: &'a RunContext, payload: &'a RawValue) -> Run<'a> {
        self.inner.run(ctx, payload)
    }
}

/// Most faults of one text that are named.
const FAULTS_MAX: usize = 20;

fn faults_of(rules: &Validator, text: &RawValue) -> Faults {
    let mut faults = Faults::default();
    if let Ok(value) = serde_json::from_str(text.get()) {
        for (path, message) in
            rules.iter_errors(&value).flat_map(|error| schema_faults::of(&error, &value)).take(FAULTS_MAX)
        {
            faults.add(path, shorten(message));
        }
    }
    faults
}

/// The rules that a foreign schema makes. Its patterns are matched in linear time, since both they and what they are
/// matched with come from outside; and it may refer to nothing but itself: nothing is fetched.
fn rules(schema: &Value) -> Result<Validator, String> {
    let patterns = jsonschema::PatternOptions::regex().size_limit(1 << 20);
    let options = jsonschema::draft202012::options().with_pattern_options(patterns);
    options.build(schema).map_err(|e| shorten(format!("is no usable JSON Schema (2020-12): {e}")))
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
            match decode::<H::Payload>(payload) {
                Ok(payload) => ended(self.0.run(ctx, payload).await),
                Err(e) => Ended::does_not_fit(H::TYPE, &e),
            }
        })
    }
}

/// What became of the work of a Rust function.
pub(super) fn ended<O: Serialize>(outcome: Result<O, Failure>) -> Ended {
    match outcome.map(|output| serde_json::value::to_raw_value(&output)) {
        Ok(Ok(result)) => Ended::Done(result),
        Ok(Err(e)) => Ended::Failed(Failure::permanent(format!("the result can't be written as JSON: {e}"))),
        Err(failure) => Ended::Failed(failure),
    }
}

pub(super) fn decode<T: serde::de::DeserializeOwned>(
    raw: &RawValue,
) -> Result<T, serde_path_to_error::Error<serde_json::Error>> {
    let read = |text: &str| serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text));
    // The decoder takes no integer that is written 1.0, while the schema does.
    read(raw.get()).or_else(|refusal| match in_plain_digits(raw.get()) {
        Some(plain) => read(&plain).map_err(|_| refusal),
        None => Err(refusal),
    })
}
