//! Claiming in batches: all messages of all types that wait go into one statement.

use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::Deps;
use crate::{
    flow::{Batcher, batcher::Size},
    job::model::JobId,
    store::{Error, claim::Claim},
};

/// (id, type) as a message says → what became of it; `None`: the database can't be used right now.
pub(crate) type Claims = Batcher<(JobId, String), Option<Claim>>;

/// Pause after a claim that the database did not answer, so that an outage is no hot loop.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn start(deps: &Deps, worker_id: &str, tasks: &TaskTracker) -> Claims {
    let size = Size { weight: deps.config.worker.batch, lanes: 2, waiting: 4096 };
    let (store, worker_id) = (deps.store.clone(), worker_id.to_owned());
    Batcher::start(
        size,
        |_| 1,
        tasks,
        move |wanted: Vec<(JobId, String)>| {
            let (store, worker_id) = (store.clone(), worker_id.clone());
            async move {
                match store.claim(&wanted, &worker_id).await {
                    Ok(claims) => claims.into_iter().map(Some).collect(),
                    Err(e) => {
                        log(&e);
                        tokio::time::sleep(PAUSE).await;
                        wanted.iter().map(|_| None).collect()
                    }
                }
            }
        },
    )
}

fn log(e: &Error) {
    use std::error::Error;
    match e.source() {
        Some(source) => tracing::warn!("could not claim: {e}: {source}"),
        None => tracing::warn!("could not claim: {e}"),
    }
}
