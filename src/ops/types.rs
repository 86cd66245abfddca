//! `listTypes`, `registerType`, `unregisterType`, `pauseType` and `resumeType`.

use std::{sync::Arc, time::Duration};

use super::{
    Ops, Scope,
    error::{ApiError, Code, Fault, quoted},
    input,
    wire::{BackoffInfo, TypeInfo, TypeRemoved, TypeRequest, TypesReply},
};
use crate::{
    job::{JobType, Work, json},
    types::{Definition, Known, Snapshot},
};

impl Ops {
    /// # Errors
    /// `unavailable` when the database is away.
    pub async fn list_types(&self, scope: Scope<'_>) -> Result<TypesReply, ApiError> {
        let now = self.refresh_types().await?;
        let seen = now.iter().filter(|known| scope.is_none_or(|scope| *scope == known.handler.job_type));
        Ok(TypesReply { types: seen.map(|known| type_info(known, &now)).collect() })
    }

    /// Pauses or resumes a type; it holds across restarts and for all replicas.
    ///
    /// # Errors
    /// `unknown_type`.
    pub async fn set_paused(&self, scope: Scope<'_>, request: TypeRequest, paused: bool) -> Result<TypeInfo, ApiError> {
        let known = self.known(scope, request.r#type.as_deref())?;
        self.store.set_paused(known.name(), paused).await?;
        self.broker.signal_types_changed(known.name()).await;
        Ok(type_info(&known, &*self.refresh_types().await?))
    }

    /// Makes a type whose work is done outside, or replaces its definition. Repeating it is harmless.
    ///
    /// # Errors
    /// `invalid_request` with every fault; `type_conflict` for the types of the program and the configuration.
    pub async fn register_type(&self, scope: Scope<'_>, body: &[u8]) -> Result<TypeInfo, ApiError> {
        json::check_object(body).map_err(input::broken_rule)?;
        let definition: Definition = input::decode(body)?;
        let name = name_of(scope, definition.r#type.as_deref())?.to_owned();
        self.must_be_free(&name)?;
        self.check_definition(&name, &definition)?;
        let text = String::from_utf8_lossy(body);
        self.store.define_type(&name, &text, false).await?;
        let now = self.refresh_types().await?;
        // So that its first job need not wait for them. A broker that is away gets them with the next look at the streams.
        if let Err(e) = self.broker.ensure_consumers(&name).await {
            tracing::debug!("the consumers of '{name}' come later: {e}");
        }
        self.broker.signal_types_changed(&name).await;
        let known =
            now.get(&name).ok_or_else(|| ApiError::unavailable("somebody removed the type at the same time"))?;
        Ok(type_info(known, &now))
    }

    /// Tells the other processes of types that this one has built in, so that their doors take jobs of them. A type of the
    /// same name that was registered before gives way.
    ///
    /// # Errors
    /// `invalid_request` for a type that can't be told: a description or a schema above its limit.
    pub async fn announce_types(&self, names: &[String]) -> Result<(), ApiError> {
        for known in names.iter().filter_map(|name| self.types.fixed(name)) {
            let (name, settings) = (known.name(), &known.settings);
            let text = serde_json::json!({
                "type": name, "handler": Work::Embedded, "description": known.handler.about,
                "payloadSchema": known.handler.schema, "maxAttempts": settings.retry.max_attempts,
                "timeout": humantime::format_duration(settings.timeout).to_string(),
            })
            .to_string();
            self.check_definition(name, &input::decode(text.as_bytes())?)?;
            self.store.define_type(name, &text, false).await?;
            self.broker.signal_types_changed(name).await;
        }
        Ok(())
    }

    fn check_definition(&self, name: &str, definition: &Definition) -> Result<(), ApiError> {
        let checked = self.types.check(name, definition);
        checked.map(|_| ()).map_err(|faults| {
            let fault = |(path, message)| Fault { path, message };
            ApiError::faults(Code::InvalidRequest, faults.0.into_iter().map(fault).collect())
        })
    }

    /// Forgets a type that was registered or discovered.
    ///
    /// # Errors
    /// `unknown_type`, `type_conflict`, and `type_in_use` while it has unfinished jobs.
    pub async fn unregister_type(&self, scope: Scope<'_>, request: TypeRequest) -> Result<TypeRemoved, ApiError> {
        let name = name_of(scope, request.r#type.as_deref())?;
        self.must_be_free(name)?;
        match self.store.undefine_type(name).await? {
            None => return Err(self.unknown_type(name)),
            Some(0) => {}
            Some(n) => {
                let detail = format!("'{name}' has {n} unfinished jobs; let them end, or cancel them first");
                return Err(ApiError::new(Code::TypeInUse, detail));
            }
        }
        self.refresh_types().await?;
        self.broker.signal_types_changed(name).await;
        Ok(TypeRemoved { r#type: name.to_owned(), removed: true })
    }

    /// The type of a request: from the body, from the subject, or from both when they agree.
    pub(super) fn known(&self, scope: Scope<'_>, named: Option<&str>) -> Result<Arc<Known>, ApiError> {
        let name = name_of(scope, named)?;
        self.types.now().get(name).cloned().ok_or_else(|| self.unknown_type(name))
    }

    /// The name of a type, as a subject or a path has it. Whether there is such a type is looked up later.
    pub(crate) fn type_named(&self, token: &str) -> Result<JobType, ApiError> {
        JobType::new(token).map_err(|_| self.unknown_type(token))
    }

    pub(crate) fn unknown_type(&self, name: &str) -> ApiError {
        let now = self.types.now();
        let known: Vec<&str> = now.iter().map(|known| known.name()).take(MAX_NAMED).collect();
        let problem = match JobType::new(name) {
            Ok(_) => format!("there is no type '{name}'"),
            Err(rule) => format!("{} is no type name ({rule})", quoted(name)),
        };
        let more = if now.iter().nth(MAX_NAMED).is_some() { ", …" } else { "" };
        ApiError::new(Code::UnknownType, format!("{problem}; known are {}{more}", known.join(", ")))
    }

    /// The list as the database has it at this moment.
    async fn refresh_types(&self) -> Result<Arc<Snapshot>, ApiError> {
        self.types.replace(self.store.types().await?);
        Ok(self.types.now())
    }

    fn must_be_free(&self, name: &str) -> Result<(), ApiError> {
        match self.types.fixed(name) {
            None => Ok(()),
            Some(_) => {
                let detail = format!("'{name}' belongs to the program or its configuration; choose another name");
                Err(ApiError::new(Code::TypeConflict, detail))
            }
        }
    }
}

/// Most types that a refusal lists.
const MAX_NAMED: usize = 100;

fn name_of<'a>(scope: Scope<'a>, named: Option<&'a str>) -> Result<&'a str, ApiError> {
    match (scope, named) {
        (Some(scope), Some(named)) if scope.as_str() != named => {
            let message = format!("the subject says '{scope}'; leave the type out or make both agree");
            Err(ApiError::fault(Code::InvalidRequest, "/type", message))
        }
        (Some(scope), _) => Ok(scope.as_str()),
        (None, Some(named)) => Ok(named),
        (None, None) => Err(ApiError::fault(Code::InvalidRequest, "/type", "a type is needed")),
    }
}

fn type_info(known: &Known, now: &Snapshot) -> TypeInfo {
    let (handler, settings) = (&known.handler, &known.settings);
    // Factors make fractions of a nanosecond, which nobody reads.
    let whole = |span: Duration| Duration::from_millis(span.as_millis() as u64);
    let delays = (1..settings.retry.max_attempts).take(10).map(|n| whole(settings.retry.delay(n, 0.5)));
    let text = |span| humantime::format_duration(span).to_string();
    TypeInfo {
        r#type: known.name().to_owned(),
        description: handler.about.clone(),
        handler: handler.work,
        origin: known.origin,
        attended: now.attended(known),
        url: known.url.clone(),
        paused: now.paused.contains(known.name()),
        timeout: text(settings.timeout),
        heartbeat: known.heartbeat.map(text),
        concurrency: settings.concurrency,
        max_attempts: settings.retry.max_attempts,
        backoff: BackoffInfo {
            base: text(settings.retry.base),
            factor: settings.retry.factor,
            max: text(settings.retry.max),
            jitter: settings.retry.jitter,
            delays: settings.retry.schedule.iter().copied().map(text).collect(),
        },
        retry_delays: delays.map(text).collect(),
        payload_schema: handler.schema.clone(),
        schema: handler.schema.clone(),
        result_schema: handler.result_schema.clone(),
    }
}
