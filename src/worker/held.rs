//! Keeps the database's account of what this worker has in hand short: claims whose jobs have ended are removed behind
//! them. Nobody waits for it. What this worker has forgotten stays on record until [`super::reconcile`] has looked after it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use crate::{job::model::JobId, ops::error::chain, store::Error};

/// How long claims whose jobs have ended gather before they are removed together. A list of what runs looks at each.
const GATHER: Duration = Duration::from_millis(200);

/// The claims of this worker that are on record.
#[derive(Default)]
pub(crate) struct Held {
    claims: Mutex<HashMap<Uuid, Vec<JobId>>>,
    noted: Notify,
}

/// What is to be done about the record.
#[derive(Debug, Default, PartialEq)]
struct Behind {
    over: Vec<Uuid>,
    /// Less than half of them is in hand: one long job must not keep hundreds of others on record.
    long: Vec<Uuid>,
}

impl Held {
    pub fn note(&self, claim: Uuid, jobs: Vec<JobId>) {
        self.lock().insert(claim, jobs);
        self.noted.notify_one();
    }

    /// Takes over a claim that is on record and may not be known here, since its answer got lost.
    pub fn adopt(&self, claim: Uuid, jobs: impl FnOnce() -> Vec<JobId>) {
        self.lock().entry(claim).or_insert_with(jobs);
        self.noted.notify_one();
    }

    fn behind(&self, in_hand: &HashSet<JobId>) -> Behind {
        let mut behind = Behind::default();
        for (claim, jobs) in self.lock().iter() {
            match jobs.iter().filter(|id| in_hand.contains(*id)).count() {
                0 => behind.over.push(*claim),
                left if left * 2 < jobs.len() => behind.long.push(*claim),
                _ => {}
            }
        }
        behind
    }

    async fn catch_up(&self, shared: &Shared) -> Result<(), Error> {
        let in_hand = shared.running.ids();
        let Behind { over, long } = self.behind(&in_hand);
        let store = &shared.deps.store;
        if !over.is_empty() {
            store.remove_held(&over).await?;
            self.lock().retain(|claim, _| !over.contains(claim));
        }
        if !long.is_empty() {
            let ids: Vec<JobId> = in_hand.iter().copied().collect();
            store.shorten_held(&long, &ids).await?;
            let mut claims = self.lock();
            for jobs in claims.iter_mut().filter(|(claim, _)| long.contains(claim)).map(|(_, jobs)| jobs) {
                jobs.retain(|id| in_hand.contains(id));
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Vec<JobId>>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes claims behind the runs, until the last run has ended.
pub(crate) async fn follow(shared: Arc<Shared>, stop: CancellationToken) {
    let held = &shared.held;
    let ended = async {
        stop.cancelled().await;
        shared.running.wait_empty().await;
    };
    tokio::pin!(ended);
    loop {
        let any = !held.lock().is_empty();
        let over = tokio::select! {
            _ = held.noted.notified(), if !any => false,
            _ = tokio::time::sleep(GATHER), if any => false,
            _ = &mut ended => true,
        };
        if let Err(e) = held.catch_up(&shared).await {
            tracing::debug!("claims that are over stay on record for now: {}", chain(&e));
        }
        if over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_over_with_its_last_job_and_too_long_when_most_have_ended() {
        let held = Held::default();
        let jobs: Vec<JobId> = (0..12).map(|_| Uuid::now_v7()).collect();
        let [over, long, current] = [0, 1, 2].map(|n| {
            let claim = Uuid::now_v7();
            held.note(claim, jobs[4 * n..4 * n + 4].to_vec());
            claim
        });
        let in_hand = HashSet::from([jobs[4], jobs[8], jobs[9]]);
        assert_eq!(held.behind(&in_hand), Behind { over: vec![over], long: vec![long] });
        assert_eq!(held.behind(&HashSet::new()).over.len(), 3);
        assert!(held.lock().contains_key(&current));
    }
}
