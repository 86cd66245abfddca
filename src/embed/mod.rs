//! The service's worker inside a program of one's own: job types in Rust, next to the program's other code.
//!
//! Such a program is a replica like any other: it claims from the same Postgres, pulls from the same JetStream and keeps
//! the same promises. It takes no requests unless told to, and tells the replicas that do which types it has.

mod builder;
pub mod testing;

use tokio_util::sync::CancellationToken;

use crate::{
    ops::ApiError,
    service::{self, Service, Signals},
    supervise::Supervisor,
};
pub use builder::Builder;

/// A worker that runs. Dropping it without [`Worker::stop`] is like a crash: its jobs are taken over when its lease ends.
pub struct Worker {
    service: Service,
}

/// Why a worker does not start or has ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a worker needs at least one handler: add one with Builder::handler or Builder::function")]
    NoHandlers,
    #[error(transparent)]
    Handler(#[from] crate::handlers::typed::Error),
    #[error("the settings can't be used: {0}")]
    Settings(String),
    #[error(transparent)]
    Service(#[from] service::Error),
    #[error("the types could not be made known to the other processes: {}", .0.detail)]
    Announce(ApiError),
    #[error("signals can't be listened to")]
    Signals(#[from] std::io::Error),
}

impl Worker {
    /// Begins with the defaults of `queue-service serve`, apart from the doors, which are closed.
    ///
    /// # Examples
    /// ```no_run
    /// # use queue_service::{Worker, handlers::RunContext, job::Failure};
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// #[serde(deny_unknown_fields)]
    /// struct Greet { name: String }
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// Worker::builder()
    ///     .nats("nats://127.0.0.1:4222")
    ///     .database("postgres://127.0.0.1/queue")
    ///     .state("Hello")
    ///     .function("greet", "Says hello.", async |_: RunContext, word: &'static str, job: Greet| {
    ///         Ok::<_, Failure>(format!("{word}, {}", job.name))
    ///     })
    ///     .run()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Stops: no new jobs; those that run may end for `worker.drain` (or until `hurry`), and the rest is handed back without
    /// spending its attempt.
    ///
    /// # Errors
    /// What kept the worker from starting.
    pub async fn stop(self, hurry: CancellationToken) -> Result<(), Error> {
        Ok(self.service.stop(hurry).await?)
    }

    /// Works until SIGTERM or Ctrl-C, and then stops; a second one cuts that short.
    ///
    /// # Errors
    /// As [`Worker::stop`].
    pub async fn run_until_told(self) -> Result<(), Error> {
        let mut signals = Signals::new()?;
        tokio::select! {
            _ = signals.next() => {}
            _ = self.service.failed() => {}
        }
        self.stop(signals.hurry()).await
    }

    /// Who keeps its tasks.
    pub fn supervisor(&self) -> &Supervisor {
        self.service.supervisor()
    }

    async fn start(service: Service, names: &[String]) -> Result<Self, Error> {
        if !service.ready().await {
            // It says why.
            service.stop(CancellationToken::new()).await?;
            return Err(Error::Settings("the worker has stopped while it started".into()));
        }
        if let Err(e) = service.ops().announce_types(names).await {
            service.stop(CancellationToken::new()).await?;
            return Err(Error::Announce(e));
        }
        Ok(Self { service })
    }
}
