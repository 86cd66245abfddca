//! Claiming in batches: all messages of all types that wait go into one statement.
//!
//! A claim whose answer got lost may have been carried out all the same. Nobody would run that job then, and nobody
//! take it over, since its holder is alive; so it is handed back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, RwLock};
use tokio_util::sync::CancellationToken;

use super::{Deps, Shared, held::Held, running::Run};
use crate::{
    broker::events::{Event, EventState},
    faults::crash_point,
    flow::{Batcher, batcher::Size},
    job::model::JobId,
    ops::{error::chain, lost},
    store::{
        Error,
        claim::{Claim, Round},
    },
    supervise::Tasks,
};

/// A message in hand → what became of its claim; `None`: the database can't be used right now.
pub(crate) type Claims = Batcher<Arc<Run>, Option<Claim>>;

/// Most claims in one statement.
const FULL: usize = 500;
/// Pause after a claim that the database did not answer, so that an outage is no hot loop.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the database may go on with a statement whose client has gone: its `statement_timeout`, and some more.
const ECHO: Duration = Duration::from_secs(7);

/// Jobs whose claim had no answer, and since when.
#[derive(Default)]
pub(crate) struct Unheard {
    ids: Mutex<HashMap<JobId, Instant>>,
    noted: Notify,
    /// Shared by claims that are under way: what they win is known only once they have been answered.
    under_way: RwLock<()>,
}

pub(crate) fn start(deps: &Deps, worker_id: &str, unheard: &Arc<Unheard>, held: &Arc<Held>, tasks: &Tasks) -> Claims {
    // One at a time: two share what waits, and so cost Postgres twice the statements. See docs/performance.md.
    let size = Size { weight: FULL, lanes: 1, enough: 1, waiting: 4096 };
    let (deps, worker_id, unheard, held) = (deps.clone(), worker_id.to_owned(), unheard.clone(), held.clone());
    Batcher::start(
        "claims",
        size,
        |_| 1,
        tasks,
        move |runs: Vec<Arc<Run>>| {
            let (deps, worker_id, unheard, held) = (deps.clone(), worker_id.clone(), unheard.clone(), held.clone());
            async move {
                let claimed = unheard.claim(&deps, &worker_id, &held, &runs).await;
                match claimed {
                    Ok(claims) => claims.into_iter().map(Some).collect(),
                    Err(e) => {
                        tracing::warn!("could not claim: {}", chain(&e));
                        tokio::time::sleep(PAUSE).await;
                        runs.iter().map(|_| None).collect()
                    }
                }
            }
        },
    )
}

impl Unheard {
    async fn claim(&self, deps: &Deps, worker_id: &str, held: &Held, runs: &[Arc<Run>]) -> Result<Vec<Claim>, Error> {
        let _under_way = self.under_way.read().await;
        let wanted: Vec<_> = runs.iter().map(|run| (run.id, run.job_type.clone())).collect();
        crash_point("before_claim");
        let round =
            deps.store.claim(&wanted, worker_id).await.inspect_err(|_| self.note(wanted.iter().map(|(id, _)| *id)))?;
        crash_point("after_claim");
        Ok(announce(deps, worker_id, held, runs, round).await)
    }

    /// Claims one job that may be what killed its workers. By itself: such jobs are rare.
    pub async fn claim_alone(&self, shared: &Shared, run: &Arc<Run>) -> Result<Option<Claim>, Error> {
        let _under_way = self.under_way.read().await;
        let wanted = (run.id, run.job_type.clone());
        let claimed = shared.deps.store.claim_alone(wanted, &shared.id).await;
        let round = claimed.inspect_err(|_| self.note([run.id]))?;
        Ok(announce(&shared.deps, &shared.id, &shared.held, std::slice::from_ref(run), round).await.pop())
    }

    /// Nobody knows whether these were won.
    pub fn note(&self, wanted: impl IntoIterator<Item = JobId>) {
        let now = Instant::now();
        self.lock().extend(wanted.into_iter().map(|id| (id, now)));
        self.noted.notify_one();
    }

    /// Hands back what this worker holds by the database's account and not by its own.
    async fn hand_back(&self, shared: &Shared) -> Result<(), Error> {
        let began = Instant::now();
        let ids: Vec<JobId> = self.lock().keys().copied().collect();
        let store = &shared.deps.store;
        let _alone = self.under_way.write().await;
        let mut held = store.held_by(&shared.id, &ids).await?;
        held.retain(|(id, run)| !shared.running.holds(*id, *run));
        if !held.is_empty() {
            tracing::warn!("handing back {} jobs whose claim had no answer", held.len());
            store.hand_back(&held).await?;
            shared.deps.relay.notify_one();
        }
        self.lock().retain(|_, noted| *noted + ECHO > began);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Instant>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes and tells what was won, and what was taken from dead workers for it.
async fn announce(deps: &Deps, worker_id: &str, held: &Held, runs: &[Arc<Run>], round: Round) -> Vec<Claim> {
    let (claims, freed) = (round.claims, round.freed);
    lost::tell(&deps.broker, &deps.relay, &freed).await;
    let (mut started, mut won) = (Vec::with_capacity(claims.len()), Vec::with_capacity(claims.len()));
    for (run, claim) in runs.iter().zip(&claims) {
        if let Claim::Won(job) = claim {
            run.note_claim(job.run, job.attempt as u16);
            won.push(job.id);
            started.push(Event::new(job.id, &job.r#type, EventState::Started, job.attempt as u16, Some(worker_id)));
        }
    }
    if !won.is_empty() {
        held.note(round.id, won);
    }
    deps.broker.emit(&started).await;
    drop(started);
    claims
}

/// Looks after claims that had no answer, until the last run has ended.
pub(crate) async fn hand_back_unheard(shared: Arc<Shared>, stop: CancellationToken) {
    let unheard = &shared.unheard;
    let ended = async {
        stop.cancelled().await;
        shared.running.wait_empty().await;
    };
    tokio::pin!(ended);
    loop {
        // Once more at the end: what stays behind would be held to be lost, and spend an attempt.
        let over = tokio::select! {
            _ = unheard.noted.notified() => false,
            _ = tokio::time::sleep(PAUSE), if !unheard.lock().is_empty() => false,
            _ = &mut ended => true,
        };
        if !unheard.lock().is_empty()
            && let Err(e) = unheard.hand_back(&shared).await
        {
            tracing::debug!("could not hand back jobs whose claim had no answer: {}", chain(&e));
        }
        if over {
            return;
        }
    }
}
