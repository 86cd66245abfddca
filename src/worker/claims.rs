//! Claiming in batches: all messages of all types that wait go into one statement.
//!
//! A claim whose answer got lost may have been carried out all the same: [`super::reconcile`] finds what it won.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{Deps, Shared, held::Held, running::Run};
use crate::{
    broker::events::{Event, EventState},
    faults::crash_point,
    flow::{Batcher, batcher::Size},
    ops::lost,
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

/// Carries out claims.
struct Claimer {
    deps: Deps,
    worker_id: String,
    held: Arc<Held>,
    doubt: Arc<Notify>,
}

pub(crate) fn start(deps: &Deps, worker_id: &str, held: &Arc<Held>, doubt: &Arc<Notify>, tasks: &Tasks) -> Claims {
    // One at a time: two share what waits, and so cost Postgres twice the statements. See docs/laboratory.md.
    let size = Size { weight: FULL, lanes: 1, enough: 1, waiting: 4096 };
    let claimer =
        Claimer { deps: deps.clone(), worker_id: worker_id.to_owned(), held: held.clone(), doubt: doubt.clone() };
    let claimer = Arc::new(claimer);
    Batcher::start(
        "claims",
        size,
        |_| 1,
        tasks,
        move |runs: Vec<Arc<Run>>| {
            let claimer = claimer.clone();
            async move { claimer.claim(&runs).await }
        },
    )
}

impl Claimer {
    async fn claim(&self, runs: &[Arc<Run>]) -> Vec<Option<Claim>> {
        let wanted: Vec<_> = runs.iter().map(|run| (run.id, run.job_type.clone())).collect();
        crash_point("before_claim");
        match self.deps.store.claim(&wanted, &self.worker_id).await {
            Ok(round) => {
                crash_point("after_claim");
                let claims = announce(&self.deps, &self.worker_id, &self.held, runs, round).await;
                claims.into_iter().map(Some).collect()
            }
            Err(e) => {
                self.doubt.notify_one();
                e.tell("could not claim");
                tokio::time::sleep(PAUSE).await;
                runs.iter().map(|_| None).collect()
            }
        }
    }
}

/// Claims one job that may be what killed its workers. By itself: such jobs are rare.
pub(crate) async fn claim_alone(shared: &Shared, run: &Arc<Run>) -> Result<Option<Claim>, Error> {
    let wanted = (run.id, run.job_type.clone());
    let claimed = shared.deps.store.claim_alone(wanted, &shared.id).await;
    let round = claimed.inspect_err(|_| shared.doubt.notify_one())?;
    Ok(announce(&shared.deps, &shared.id, &shared.held, std::slice::from_ref(run), round).await.pop())
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
