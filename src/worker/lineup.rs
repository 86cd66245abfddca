//! Which types this worker pulls, as they come and go while it runs.

use std::{collections::HashMap, sync::Arc};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Shared, puller::Puller};
use crate::{
    job::{JobType, Work},
    types::Known,
};

pub(crate) struct Lineup {
    shared: Arc<Shared>,
    pullers: TaskTracker,
    stop: CancellationToken,
    pulled: HashMap<JobType, Pulled>,
}

/// A type with a puller, and what ends that.
struct Pulled {
    known: Arc<Known>,
    stop: CancellationToken,
}

impl Lineup {
    pub fn new(shared: Arc<Shared>, pullers: TaskTracker, stop: CancellationToken) -> Self {
        Self { shared, pullers, stop, pulled: HashMap::new() }
    }

    /// Keeps to the live list of types until the worker stops.
    pub async fn follow(mut self) {
        let mut changes = self.shared.deps.types.changes();
        // Whatever has changed since the first look.
        changes.mark_changed();
        while let Some(Ok(())) = self.stop.run_until_cancelled(changes.changed()).await {
            if self.update().await.is_err() {
                return;
            }
        }
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
            let puller = Puller::open(self.shared.clone(), known.clone(), stop.clone()).await?;
            self.pullers.spawn(puller.work());
            self.pulled.insert(name.clone(), Pulled { known: known.clone(), stop });
        }
        Ok(())
    }

    fn runs(&self, known: &Known) -> bool {
        let wanted = &self.shared.deps.config.worker.types;
        let named = wanted.is_empty() || wanted.iter().any(|name| name == known.name());
        named && !matches!(known.handler.work, Work::Pull | Work::Embedded)
    }
}
