//! What a worker is made of: settings, handlers, and what is around them.

use std::{future::Future, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use super::{Error, Worker};
use crate::{
    config::Config,
    handlers::{AnyHandler, Handler, Layer, Registry, RunContext, clients::install_crypto, registry},
    job::Failure,
    service::Service,
};

/// Puts a [`Worker`] together. Mistakes in it are told by [`Builder::start`].
pub struct Builder<S = ()> {
    config: Config,
    state: S,
    handlers: Vec<AnyHandler>,
    layers: Vec<Arc<dyn Layer>>,
    doors: bool,
    mistake: Option<Error>,
}

impl Builder<()> {
    pub(super) fn new() -> Self {
        let (handlers, layers) = (Vec::new(), Vec::new());
        Self { config: Config::default(), state: (), handlers, layers, doors: false, mistake: None }
    }
}

impl<S: Clone + Send + Sync + 'static> Builder<S> {
    /// NATS servers, separated by commas; `nats://127.0.0.1:4222` unless given.
    pub fn nats(mut self, url: impl Into<String>) -> Self {
        self.config.nats.url = url.into();
        self
    }

    /// The service's Postgres, for instance `postgres://user:password@host/queue`.
    pub fn database(mut self, url: impl Into<String>) -> Self {
        self.config.database.url = url.into();
        self
    }

    /// All settings at once, as [`crate::config::load`] reads them from `queue.toml` and the environment.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Jobs that run at the same time, for each type that does not say another number; 100 unless given.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.config.worker.concurrency = jobs;
        self
    }

    /// How long running jobs may go on at the end before they are handed back; 30 s unless given.
    pub fn drain(mut self, span: Duration) -> Self {
        self.config.worker.drain = span;
        self
    }

    /// What the functions that are added after this are given with each job: a pool, a client, in an `Arc` if it is not cheap
    /// to clone. Handlers that are types of their own keep their state in their fields.
    pub fn state<T: Clone + Send + Sync + 'static>(self, state: T) -> Builder<T> {
        let Self { config, handlers, layers, doors, mistake, .. } = self;
        Builder { config, state, handlers, layers, doors, mistake }
    }

    /// Adds a type.
    pub fn handler<H: Handler>(mut self, handler: H) -> Self {
        let made = AnyHandler::new(handler).map_err(Error::from);
        self.add(made);
        self
    }

    /// Adds a type whose work is a function of the run, the state and the payload.
    pub fn function<P, O, F, Fut>(mut self, job_type: &str, about: &str, work: F) -> Self
    where
        P: DeserializeOwned + JsonSchema + Send + 'static,
        O: Serialize + Send + 'static,
        F: Fn(RunContext, S, P) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, Failure>> + Send + 'static,
    {
        let made = AnyHandler::function(job_type, about, self.state.clone(), work).map_err(Error::from);
        self.add(made);
        self
    }

    /// Puts something around every run of every type of this worker; the first layer is the outermost.
    pub fn layer(mut self, layer: impl Layer) -> Self {
        self.layers.push(Arc::new(layer));
        self
    }

    /// Also answers requests, over RPC and HTTP as the settings say: the whole service in one program.
    pub fn with_doors(mut self) -> Self {
        self.doors = true;
        self
    }

    /// Starts, and returns when jobs are run. A database or broker that is away is waited for.
    ///
    /// # Errors
    /// A mistake in what was put together, or settings that can't be used.
    pub async fn start(mut self) -> Result<Worker, Error> {
        if let Some(mistake) = self.mistake.take() {
            return Err(mistake);
        }
        if self.handlers.is_empty() {
            return Err(Error::NoHandlers);
        }
        // One TLS implementation for everything; does nothing where the program has chosen one already.
        install_crypto();
        let names: Vec<String> = self.handlers.iter().map(|handler| handler.job_type.to_string()).collect();
        if !self.doors {
            (self.config.http.enabled, self.config.rpc.enabled) = (false, false);
            // The types that come with the service are done by those who have their settings.
            self.config.worker.types = names.clone();
        }
        self.config.check().map_err(|faults| Error::Settings(faults.join("; ")))?;
        let Self { config, handlers, layers, .. } = self;
        let add = |registry: Registry| {
            handlers.into_iter().try_fold(registry, |registry, handler| {
                let around = |handler: AnyHandler, layer: &Arc<dyn Layer>| handler.in_layer(layer.clone());
                Ok::<_, registry::Error>(registry.with_any(layers.iter().rev().fold(handler, around))?)
            })
        };
        let service = Service::start_with(config, axum::Router::new(), add).await?;
        Worker::start(service, &names).await
    }

    /// Starts, works until SIGTERM or Ctrl-C, and stops in good order.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn run(self) -> Result<(), Error> {
        self.start().await?.run_until_told().await
    }

    /// For the test kit: changes the settings.
    pub(super) fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Keeps the first mistake.
    fn add(&mut self, made: Result<AnyHandler, Error>) {
        match made {
            Ok(handler) => self.handlers.push(handler),
            Err(mistake) => self.mistake = self.mistake.take().or(Some(mistake)),
        }
    }
}
