//! Which types this worker pulls, as they come and go while it runs.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Shared, puller::Puller};
use crate::{
    job::{JobType, Work},
    ops::error::chain,
    supervise::{Name, Tasks},
    types::Known,
};

pub(crate) struct Lineup {
    shared: Arc<Shared>,
    pullers: Tasks,
    stop: CancellationToken,
    pulled: HashMap<JobType, Pulled>,
}

/// A type with a puller, and what ends that.
struct Pulled {
    known: Arc<Known>,
    stop: CancellationToken,
}

impl Lineup {
    pub fn new(shared: Arc<Shared>, pullers: Tasks, stop: CancellationToken) -> Self {
        Self { shared, pullers, stop, pulled: HashMap::new() }
    }

    /// Ends the pullers of types that are gone or have changed, and starts those that are missing.
    ///
    /// # Errors
    /// The client is closed.
    pub async fn update(&mut self) -> Result<(), async_nats::SubscribeError> {
        let types = self.shared.deps.types.now();
        self.pulled.retain(|name, pulled| {
            let same = types.get(name.as_str()).is_some_and(|known| Arc::ptr_eq(known, &pulled.known));
            if !same {
                pulled.stop.cancel();
            }
            same
        });
        for known in types.iter() {
            let name = &known.handler.job_type;
            if !self.runs(known) || self.pulled.contains_key(name) {
                continue;
            }
            let stop = self.stop.child_token();
            let first = Puller::open(self.shared.clone(), known.clone(), stop.clone()).await?;
            self.keep(first, known.clone(), stop.clone());
            self.pulled.insert(name.clone(), Pulled { known: known.clone(), stop });
        }
        Ok(())
    }

    /// Keeps a puller working; one that failed is made anew.
    fn keep(&self, first: Puller, known: Arc<Known>, stop: CancellationToken) {
        let (shared, mut first, stopped) = (self.shared.clone(), Some(first), stop.clone());
        self.pullers.keep(Name::of("puller", known.name()), &stop, move || {
            let (first, shared, known, stop) = (first.take(), shared.clone(), known.clone(), stopped.clone());
            async move {
                let puller = match first {
                    Some(first) => Ok(first),
                    None => Puller::open(shared, known, stop).await,
                };
                match puller {
                    Ok(puller) => puller.work().await,
                    Err(e) => tracing::debug!("a puller can't begin: {}", chain(&e)),
                }
            }
        });
    }

    fn runs(&self, known: &Known) -> bool {
        let wanted = &self.shared.deps.config.worker.types;
        let named = wanted.is_empty() || wanted.iter().any(|name| name == known.name());
        named && !matches!(known.handler.work, Work::Pull | Work::Embedded)
    }
}

/// Keeps to the live list of types until the worker stops.
pub(crate) async fn follow(lineup: Arc<Mutex<Lineup>>) {
    let mut lineup = lineup.lock().await;
    let (mut changes, stop) = (lineup.shared.deps.types.changes(), lineup.stop.clone());
    // Whatever has changed since the first look.
    changes.mark_changed();
    while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
        if let Err(e) = lineup.update().await {
            return tracing::debug!("no further types are pulled: {}", chain(&e));
        }
    }
}
