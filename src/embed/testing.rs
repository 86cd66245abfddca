//! A test kit for programs with job types of their own: a handler by itself, or the whole way through real servers.

use std::time::Duration;

use anyhow::Context;
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use super::{Builder, Worker};
use crate::{
    client::{Client, Enqueue, Job},
    dev::{Servers, folder::Folder, nats::PortChoice, postgres::Durability},
    handlers::{AnyHandler, Ended, Faults, Handler, RunContext},
    job::Failure,
    supervise,
};

/// Longest wait of [`Harness::run`]. Generous: machines are busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a handler by itself gave no result.
#[derive(Debug, thiserror::Error)]
pub enum Inline {
    #[error("the payload is refused: {}", told(.0))]
    Refused(Faults),
    #[error("the run failed: {}", .0.message)]
    Failed(Failure),
    #[error("the test itself is wrong")]
    Test(#[source] anyhow::Error),
}

fn told(faults: &Faults) -> String {
    let all: Vec<String> = faults.0.iter().map(|(pointer, message)| format!("{pointer} {message}")).collect();
    all.join("; ")
}

/// Runs a handler once, without any server, as the service would: the payload goes through JSON and the type's rules, and
/// so does the result.
///
/// # Errors
/// What the service would have done with the job.
pub async fn run_inline<H: Handler, T: DeserializeOwned>(handler: H, payload: &impl Serialize) -> Result<T, Inline> {
    let test = |e: anyhow::Error| Inline::Test(e);
    let handler = AnyHandler::new(handler).map_err(|e| test(e.into()))?;
    let payload = serde_json::value::to_raw_value(payload).map_err(|e| test(e.into()))?;
    let faults = handler.check(&payload);
    if !faults.is_empty() {
        return Err(Inline::Refused(faults));
    }
    let ctx = RunContext::detached(handler.job_type.clone(), PATIENCE);
    match handler.run(&ctx, &payload).await {
        Ended::Done(result) => serde_json::from_str(result.get()).map_err(|e| test(e.into())),
        Ended::Failed(failure) => Err(Inline::Failed(failure)),
        Ended::Released(_) | Ended::Outside => Err(Inline::Test(anyhow::anyhow!("the run was handed back"))),
    }
}

/// A worker with a Postgres and a nats-server of its own, in a folder that is removed at the end. It takes requests, too.
/// Retries come after 100 ms instead of a minute; everything else is as in production.
pub struct Harness {
    worker: Worker,
    client: Client,
    servers: Servers,
    /// Removed last.
    _folder: Folder,
}

impl Harness {
    /// Starts the servers that are on this machine (Postgres and nats-server) and the worker that `builder` describes.
    ///
    /// # Errors
    /// A server is missing, or the worker does not start.
    pub async fn start<S: Clone + Send + Sync + 'static>(builder: Builder<S>) -> anyhow::Result<Self> {
        let folder = Folder::throw_away()?;
        let servers = Servers::start(folder.path(), Durability::ThrowAway, PortChoice::Any).await?;
        let (nats, database) = (servers.nats.url(), servers.postgres.url("queue"));
        let builder = builder.with_doors().configure(|config| {
            (config.nats.url, config.database.url) = (nats.clone(), database);
            config.http.enabled = false;
            config.retry.base = Duration::from_millis(100);
        });
        let worker = builder.start().await?;
        let client = Client::connect(&nats).await?;
        Ok(Self { worker, client, servers, _folder: folder })
    }

    /// A client of it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Hands in a job and waits until it is over.
    ///
    /// # Errors
    /// The job is refused, or not over within a minute.
    pub async fn run(&self, job: &Enqueue) -> anyhow::Result<Job> {
        let id = self.client.enqueue(job).await?.job_id;
        let job = self.client.wait(id, PATIENCE).await?;
        job.with_context(|| format!("job {id} is not over after {} s", PATIENCE.as_secs()))
    }

    /// Stops everything.
    ///
    /// # Errors
    /// As [`Worker::stop`].
    pub async fn stop(self) -> anyhow::Result<()> {
        let Self { worker, servers, .. } = self;
        worker.stop(CancellationToken::new()).await?;
        supervise::blocking(move || servers.stop()).await?;
        Ok(())
    }
}
