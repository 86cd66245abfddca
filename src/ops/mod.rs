//! What the outside may ask for: a file per verb. Doors translate to and from these and decide nothing.

pub mod error;
pub mod input;
pub mod limits;
pub mod wire;

mod cancel;
mod enqueue;
pub(crate) mod finish;
mod get;
mod health;
mod intake;
mod list;
pub(crate) mod lost;
pub(crate) mod news;
mod retry;
mod schema;
pub(crate) mod signs;
mod stats;
mod types;
mod wait;
pub(crate) mod work;

use std::{pin::Pin, sync::Arc};

use serde::Serialize;
use tokio::sync::Notify;

use crate::{
    broker::{Broker, Publisher},
    config::Config,
    job::JobType,
    store::Store,
    supervise::{Supervisor, Tasks},
    types::Types,
    worker::{
        eager::Eager,
        outcomes::{self, Outcomes},
    },
};
pub use enqueue::EnqueueOptions;
pub use error::{ApiError, Code};
pub use health::{Check, Health, HealthStatus};
pub(crate) use list::to_cursor as cursor_of;
pub use schema::{API_VERSION, VERBS, Verb};

/// Everything that can be asked, in one handle. Cheap to clone.
#[derive(Clone)]
pub struct Ops {
    pub(crate) store: Store,
    pub(crate) broker: Broker,
    pub(crate) publisher: Publisher,
    pub(crate) config: Arc<Config>,
    pub(crate) types: Types,
    intake: intake::Intake,
    outcomes: Outcomes,
    /// Rung when something was written that the relay should see at once.
    relay: Arc<Notify>,
    desk: Arc<work::Desk>,
    pub(crate) supervisor: Supervisor,
    waits: Arc<tokio::sync::Semaphore>,
}

/// What verbs and duties need of the rest of the service.
#[derive(Clone)]
pub struct Deps {
    pub store: Store,
    pub broker: Broker,
    pub publisher: Publisher,
    pub config: Arc<Config>,
    pub types: Types,
    /// Rung when something was written that the relay should see at once.
    pub relay: Arc<Notify>,
}

/// Which types a caller may see and touch: all, or the one in the subject that he was allowed to use.
pub type Scope<'a> = Option<&'a JobType>;

/// Waits that may be open at the same time in one process.
const MAX_WAITS: usize = 10_000;

impl Ops {
    /// `eager` takes what may start in this process at once; `tasks` holds what must be finished before the process ends.
    pub fn new(deps: Deps, eager: Eager, tasks: &Tasks) -> Self {
        let intake = intake::Intake::start(&deps, eager, tasks);
        let outcomes = outcomes::start("ends-outside", &deps.store, tasks);
        let grace = deps.config.worker.cancel_grace;
        let Deps { store, broker, publisher, config, types, relay } = deps;
        let desk = Arc::new(work::Desk::new(store.clone(), broker.clone(), relay.clone(), types.clone(), grace, tasks));
        let waits = Arc::new(tokio::sync::Semaphore::new(MAX_WAITS));
        let supervisor = tasks.supervisor().clone();
        Self { store, broker, publisher, config, types, intake, outcomes, relay, desk, supervisor, waits }
    }

    /// Carries out a verb whose request and reply are JSON texts, as RPC has them. `options`: for the verbs that enqueue.
    ///
    /// # Errors
    /// The refusal, for the caller.
    pub async fn call(
        &self,
        verb: Verb,
        scope: Scope<'_>,
        body: &[u8],
        options: EnqueueOptions<'_>,
    ) -> Result<Vec<u8>, ApiError> {
        // Boxed: else every request would be as large as the largest of these, and each is copied when it begins.
        let other = match verb {
            Verb::Enqueue => return json(&self.enqueue(scope, body, options).await?),
            Verb::EnqueueMany => boxed(self.enqueue_many(scope, body, options)),
            Verb::GetJob => boxed(self.get_job(scope, body)),
            Verb::ListJobs => boxed(self.list_jobs_within(scope, input::parse(body)?, options.answer_max)),
            Verb::RetryJob => boxed(self.retry_job(scope, input::parse_by_id(body)?)),
            Verb::CancelJob => boxed(self.cancel_job(scope, input::parse_by_id(body)?)),
            Verb::GetStats => {
                let wire::Empty {} = input::parse(body)?;
                boxed(self.get_stats(scope))
            }
            Verb::WaitJob => boxed(self.wait_job(scope, input::parse_by_id(body)?)),
            Verb::ListTypes => {
                let wire::Empty {} = input::parse(body)?;
                boxed(self.list_types(scope))
            }
            Verb::PauseType => boxed(self.set_paused(scope, input::parse(body)?, true)),
            Verb::ResumeType => boxed(self.set_paused(scope, input::parse(body)?, false)),
            Verb::RegisterType => boxed(self.register_type(scope, body)),
            Verb::UnregisterType => boxed(self.unregister_type(scope, input::parse(body)?)),
            Verb::Finish => boxed(self.finish(scope, input::parse_of_run(body)?)),
            Verb::Fetch => boxed(self.fetch(scope, input::parse(body)?, options.answer_max)),
            Verb::Heartbeat => boxed(self.heartbeat(scope, input::parse_of_run(body)?)),
            Verb::Complete => boxed(self.complete(scope, input::parse_of_run(body)?)),
            Verb::Fail => boxed(self.fail(scope, input::parse(body)?)),
            Verb::Release => boxed(self.release(scope, input::parse(body)?)),
            Verb::GetSchema => return json(&schema::asked(input::parse(body)?)?),
        };
        other.await
    }
}

/// What is being done, and its reply as JSON.
fn boxed<'a, T: Serialize>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'a,
) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, ApiError>> + Send + 'a>> {
    Box::pin(async move { json(&work.await?) })
}

fn json(reply: &impl Serialize) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(reply).map_err(|e| ApiError::internal(&e))
}
