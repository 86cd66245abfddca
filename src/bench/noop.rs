//! The service that is measured: as `serve`, with one more type whose jobs do nothing.

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
    const ABOUT: &'static str = "Does nothing.";
    type Payload = Value;
    type Output = ();

    async fn run(&self, _: &RunContext, _: Value) -> Result<(), Failure> {
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
