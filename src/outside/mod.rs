//! Handlers outside the service: asked over NATS or HTTP for one run at a time.
//!
//! What they are told is made in `request`, what their answers mean is decided in `reply`; both are pure. `over_nats` and
//! `over_http` carry the one there and the other back. The run path knows none of this: to it, they are handlers.

pub(crate) mod late;
mod over_http;
pub(crate) mod over_nats;
mod presence;
pub(crate) mod replies;
pub(crate) mod reply;
mod request;

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;

use crate::{
    broker::Broker,
    config::Config,
    handlers::{
        AnyHandler, Ended, Faults, RunContext,
        clients::fetch::{Fetcher, SetupError},
        typed::{Described, Erased, Run},
    },
    job::{JobType, Work},
    ops::wire::Job,
    store::Store,
    types::Definition,
};
pub use replies::Replies;

const USER_AGENT: &str = concat!("queue-service/", env!("CARGO_PKG_VERSION"));

/// Those who ask handlers outside. Cheap to clone.
#[derive(Clone)]
pub struct Callers {
    store: Store,
    broker: Broker,
    replies: Replies,
    fetcher: Fetcher,
    /// Largest result, in bytes.
    max_result: usize,
    /// How long this process's own lease lasts.
    lease: Duration,
}

impl Callers {
    /// `worker_id` names this process in the subjects that handlers answer to.
    ///
    /// # Errors
    /// The HTTP client can't be set up.
    pub fn new(store: &Store, broker: &Broker, config: &Config, worker_id: &str) -> Result<Self, SetupError> {
        Ok(Self {
            store: store.clone(),
            broker: broker.clone(),
            replies: Replies::new(broker.clone(), worker_id),
            fetcher: Fetcher::new(USER_AGENT, &config.handlers.allow_private)?,
            max_result: config.limits.result.as_u64() as usize,
            lease: config.worker.lease,
        })
    }

    /// The answers that handlers give over NATS.
    pub fn replies(&self) -> &Replies {
        &self.replies
    }

    /// What a handler is told of a run; `None`: the job can't be read right now.
    async fn body(&self, ctx: &RunContext) -> Option<Vec<u8>> {
        let row = match self.store.job(ctx.job_id).await {
            Ok(row) => row?,
            Err(e) => {
                tracing::debug!(job.id = %ctx.job_id, "could not read a job for its handler: {e}");
                return None;
            }
        };
        let checkpoint: Option<Box<RawValue>> = ctx.last_checkpoint();
        request::body(&Job::whole(row), checkpoint.as_deref()).ok()
    }

    /// The handler of a definition that has passed the rules for its fields.
    ///
    /// # Errors
    /// Schemas, an address or a secret that can't be used.
    pub(crate) fn handler(
        &self,
        job_type: JobType,
        definition: &Definition,
        heartbeat: Option<Duration>,
    ) -> Result<AnyHandler, Faults> {
        let inner: Arc<dyn Erased> = match definition.handler {
            Work::Nats => Arc::new(over_nats::OverNats::new(self.clone(), job_type.clone(), heartbeat)),
            Work::Http => Arc::new(over_http::OverHttp::new(self.clone(), job_type.clone(), definition)?),
            Work::Pull | Work::Embedded | Work::Builtin => Arc::new(NotHere),
        };
        let described = Described {
            job_type,
            about: definition.description.clone().unwrap_or_default(),
            work: definition.handler,
            schema: definition.payload_schema.clone(),
            result_schema: definition.result_schema.clone(),
        };
        AnyHandler::described(described, inner)
    }
}

/// The work is done by programs that fetch it, or by other workers, and so never begun here.
struct NotHere;

impl Erased for NotHere {
    fn run<'a>(&'a self, _: &'a RunContext, _: &'a RawValue) -> Run<'a> {
        Box::pin(std::future::ready(Ended::Released(Duration::from_secs(1))))
    }
}
