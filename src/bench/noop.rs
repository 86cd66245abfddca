//! The service that is measured: as `serve`, with two more types whose jobs do nothing.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    config::Config,
    handlers::{AnyHandler, Registry, RunContext},
    job::Failure,
    service::{Service, Signals},
};

pub(super) const TYPE: &str = "bench";

/// Another type of the same kind, for loads that are to stay apart.
pub(super) const OTHER: &str = "bench-other";

/// What a job of these types does.
#[derive(Deserialize, JsonSchema)]
struct Task {
    /// Takes so long for it.
    ms: Option<u64>,
    /// Fails so many times, to be tried again.
    failures: Option<u16>,
    /// Says as its result when it began, in microseconds since 1970.
    #[serde(default)]
    when: bool,
}

async fn noop(ctx: RunContext, (): (), task: Task) -> Result<Option<i64>, Failure> {
    let began = task.when.then(|| chrono::Utc::now().timestamp_micros());
    if let Some(ms) = task.ms {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(ms)) => {}
            () = ctx.cancelled() => return Err(Failure::retry("stopped")),
        }
    }
    match task.failures {
        Some(failures) if ctx.attempt <= failures => Err(Failure::retry("as asked")),
        _ => Ok(began),
    }
}

/// Runs until SIGTERM.
///
/// # Errors
/// As [`crate::service::run`].
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let add = |registry: Registry| {
        [TYPE, OTHER].into_iter().try_fold(registry, |registry, name| {
            Ok(registry.with_any(AnyHandler::function(name, "Does nothing, or as its payload says.", (), noop)?)?)
        })
    };
    let service = Service::start_with(config, axum::Router::new(), add).await?;
    signals.next().await;
    service.stop(signals.hurry()).await?;
    Ok(())
}
