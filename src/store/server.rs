//! Whether the database can be reached, and what is told of it: which server, and why not, once and then at a falling rate.
//!
//! A pool says only that it "timed out", and each part that needs the database would say so. So whoever gets no answer has
//! one connection tried here, and the reason is told for all.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{Connection, PgPool};

use super::{connect::Connector, error};
use crate::{job::span::rounded, supervise, telemetry::Seldom};

/// Longest try.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Server(Arc<Shared>);

struct Shared {
    connector: Connector,
    /// That follow when another server is found.
    pools: Vec<PgPool>,
    is_trying: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    said: Seldom,
    down: Option<(Instant, String)>,
}

impl Server {
    pub fn new(connector: Connector, pools: Vec<PgPool>) -> Self {
        Self(Arc::new(Shared { connector, pools, is_trying: AtomicBool::default(), state: Mutex::default() }))
    }

    /// Somebody got no answer: the reason is looked for.
    pub fn suspect(&self) {
        if self.0.is_trying.swap(true, Ordering::SeqCst) {
            return;
        }
        let server = self.clone();
        supervise::spawn("database server", async move {
            while server.is_away().await && server.0.pools.iter().any(|pool| !pool.is_closed()) {
                tokio::time::sleep(PAUSE).await;
            }
            server.0.is_trying.store(false, Ordering::SeqCst);
        });
    }

    /// Which server can't be used and why; `None`: none is known to be away.
    pub fn trouble(&self) -> Option<String> {
        self.lock().down.as_ref().map(|(_, why)| why.clone())
    }

    /// It was found otherwise that it can't be used.
    pub fn failed(&self, why: &str) {
        let (why, now) = (format!("Postgres at {}: {why}", self.0.connector.shown()), Instant::now());
        let mut state = self.lock();
        if state.said.is_due(&why, now) {
            tracing::warn!("the database can't be used, trying again: {why}");
        } else {
            tracing::debug!("the database can't be used: {why}");
        }
        let since = state.down.as_ref().map_or(now, |(since, _)| *since);
        state.down = Some((since, why));
    }

    /// It answers.
    pub fn answers(&self) {
        let mut state = self.lock();
        if let Some((since, _)) = state.down.take() {
            state.said.clear();
            drop(state);
            tracing::info!("the database answers again after {}", rounded(since.elapsed()));
        }
    }

    async fn is_away(&self) -> bool {
        let Shared { connector, pools, .. } = &*self.0;
        match tokio::time::timeout(PATIENCE, connector.connect()).await {
            Ok(Ok(connection)) => {
                let _ = tokio::time::timeout(PAUSE, connection.close()).await;
                if connector.has_several() {
                    pools.iter().for_each(|pool| pool.set_connect_options(connector.server()));
                }
                self.answers();
                false
            }
            Ok(Err(e)) => {
                self.failed(&error::plain(&e));
                true
            }
            Err(_) => {
                self.failed(&format!("no answer within {}", rounded(PATIENCE)));
                true
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
