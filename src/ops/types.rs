//! `listTypes`, `pauseType` and `resumeType`.

use super::{
    Ops, Scope,
    error::{ApiError, Code},
    wire::{TypeInfo, TypeRequest, TypesReply},
};
use crate::handlers::AnyHandler;

impl Ops {
    /// # Errors
    /// `unavailable` when the database is away.
    pub async fn list_types(&self, scope: Scope<'_>) -> Result<TypesReply, ApiError> {
        let paused = self.store.paused_types().await?;
        let seen = self.registry.iter().filter(|handler| scope.is_none_or(|scope| *scope == handler.job_type));
        let types = seen.map(|handler| self.type_info(handler, &paused)).collect::<Result<_, _>>()?;
        Ok(TypesReply { types })
    }

    /// Pauses or resumes a type; it holds across restarts and for all replicas.
    ///
    /// # Errors
    /// `unknown_type`.
    pub async fn set_paused(&self, scope: Scope<'_>, request: TypeRequest, paused: bool) -> Result<TypeInfo, ApiError> {
        let name = match (scope, &request.r#type) {
            (Some(scope), Some(name)) if scope.as_str() != name => {
                let message = format!("the subject says '{scope}'; leave the type out or make both agree");
                return Err(ApiError::fault(Code::InvalidRequest, "/type", message));
            }
            (Some(scope), _) => scope.as_str(),
            (None, Some(name)) => name,
            (None, None) => return Err(ApiError::fault(Code::InvalidRequest, "/type", "a type is needed")),
        };
        let Some(handler) = self.registry.get(name) else { return Err(self.unknown_type(name)) };
        self.store.set_paused(name, paused).await?;
        self.broker.signal_types_changed(name).await;
        let list = if paused { vec![name.to_owned()] } else { Vec::new() };
        self.type_info(handler, &list)
    }

    fn type_info(&self, handler: &AnyHandler, paused: &[String]) -> Result<TypeInfo, ApiError> {
        let name = handler.job_type.as_str();
        let settings = self.settings(handler)?;
        let delays = (1..settings.retry.max_attempts).take(10).map(|n| settings.retry.delay(n, 0.5));
        Ok(TypeInfo {
            r#type: name.to_owned(),
            description: handler.about.to_owned(),
            handler: "builtin".to_owned(),
            paused: paused.iter().any(|paused| paused == name),
            timeout: humantime::format_duration(settings.timeout).to_string(),
            concurrency: settings.concurrency,
            max_attempts: settings.retry.max_attempts,
            retry_delays: delays.map(|d| humantime::format_duration(d).to_string()).collect(),
            schema: handler.schema.as_value().clone(),
        })
    }
}
