//! What the outside may ask for: a file per verb. Doors translate to and from these and decide nothing.

pub mod error;
pub mod input;
pub mod wire;

mod cancel;
mod enqueue;
mod get;
mod health;
mod intake;
mod list;
pub(crate) mod lost;
mod retry;
mod schema;
mod stats;
mod types;
mod wait;

use std::{collections::HashMap, sync::Arc};

use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::{
    broker::{Broker, Publisher},
    config::{Config, TypeSettings},
    handlers::{AnyHandler, Registry},
    job::JobType,
    store::Store,
};
pub use enqueue::EnqueueOptions;
pub use error::{ApiError, Code};
pub use health::{Check, Health, HealthStatus};
pub use schema::{VERBS, Verb};

/// Everything that can be asked, in one handle. Cheap to clone.
#[derive(Clone)]
pub struct Ops {
    pub(crate) store: Store,
    pub(crate) broker: Broker,
    pub(crate) publisher: Publisher,
    pub(crate) config: Arc<Config>,
    pub(crate) registry: Registry,
    /// What is in force for each type, made once: a request must not pay for it.
    settings: Arc<HashMap<JobType, TypeSettings>>,
    intake: intake::Intake,
    waits: Arc<tokio::sync::Semaphore>,
}

/// Which types a caller may see and touch: all, or the one in the subject that he was allowed to use.
pub type Scope<'a> = Option<&'a JobType>;

/// Waits that may be open at the same time in one process.
const MAX_WAITS: usize = 10_000;

impl Ops {
    /// `relay` is rung when something was written that the relay should see at once; `tasks` holds what must be
    /// finished before the process ends.
    pub fn new(
        store: Store,
        broker: Broker,
        publisher: Publisher,
        config: Arc<Config>,
        registry: Registry,
        relay: Arc<Notify>,
        tasks: &TaskTracker,
    ) -> Self {
        let intake = intake::Intake::start(&store, &broker, &publisher, &config, relay, tasks);
        let waits = Arc::new(tokio::sync::Semaphore::new(MAX_WAITS));
        let settings = registry.iter().filter_map(|h| Some((h.job_type.clone(), h.settings(&config).ok()?)));
        let settings = Arc::new(settings.collect());
        Self { store, broker, publisher, config, registry, settings, intake, waits }
    }

    /// What is in force for a type.
    ///
    /// # Errors
    /// `unavailable` for settings that don't fit, which keep a service from starting a worker as well.
    fn settings(&self, handler: &AnyHandler) -> Result<&TypeSettings, ApiError> {
        self.settings.get(&handler.job_type).ok_or_else(|| {
            ApiError::new(Code::Unavailable, format!("the settings of '{}' can't be used", handler.job_type))
        })
    }

    /// Carries out a verb whose request and reply are JSON texts, as RPC has them.
    ///
    /// # Errors
    /// The refusal, for the caller.
    pub async fn call(&self, verb: Verb, scope: Scope<'_>, body: &[u8]) -> Result<Vec<u8>, ApiError> {
        match verb {
            Verb::Enqueue => json(&self.enqueue(scope, body, EnqueueOptions::default()).await?),
            Verb::EnqueueMany => json(&self.enqueue_many(scope, body).await?),
            Verb::GetJob => json(&self.get_job(scope, body).await?),
            Verb::ListJobs => json(&self.list_jobs(scope, input::parse(body)?).await?),
            Verb::RetryJob => json(&self.retry_job(scope, input::parse_by_id(body)?).await?),
            Verb::CancelJob => json(&self.cancel_job(scope, input::parse_by_id(body)?).await?),
            Verb::GetStats => {
                let wire::Empty {} = input::parse(body)?;
                json(&self.get_stats(scope).await?)
            }
            Verb::WaitJob => json(&self.wait_job(scope, input::parse_by_id(body)?).await?),
            Verb::ListTypes => {
                let wire::Empty {} = input::parse(body)?;
                json(&self.list_types(scope).await?)
            }
            Verb::PauseType => json(&self.set_paused(scope, input::parse(body)?, true).await?),
            Verb::ResumeType => json(&self.set_paused(scope, input::parse(body)?, false).await?),
            Verb::GetSchema => json(&schema::of_verb(input::parse(body)?)?),
        }
    }
}

fn json(reply: &impl Serialize) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(reply).map_err(|e| ApiError::internal(&e))
}
