//! The service that is measured: as `serve`, with one more type whose jobs do nothing.

use std::time::Duration;

use serde_json::Value;

use crate::{
    config::Config,
    handlers::{Handler, RunContext},
    job::Failure,
    service::{Service, Signals},
};

pub(super) const TYPE: &str = "bench";

struct Noop;

impl Handler for Noop {
    const TYPE: &'static str = TYPE;
    const ABOUT: &'static str = "Does nothing, or takes `ms` for it.";
    type Payload = Value;
    type Output = ();

    async fn run(&self, _: &RunContext, payload: Value) -> Result<(), Failure> {
        if let Some(ms) = payload["ms"].as_u64() {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        Ok(())
    }
}

/// Runs until SIGTERM.
///
/// # Errors
/// As [`crate::service::run`].
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let add = |registry: crate::handlers::Registry| Ok(registry.with(Noop)?);
    let service = Service::start_with(config, axum::Router::new(), add).await?;
    signals.next().await;
    service.stop(signals.hurry()).await?;
    Ok(())
}
