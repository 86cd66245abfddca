//! Compares what the database says this worker holds with what it has in memory, every third of its lease.
//!
//! A run that two looks in a row miss is forgotten: a panic outside of its handler dropped it, or the answer to its claim
//! got lost. Nobody else would end it, since this worker lives. If its handler has not started, the job is handed back
//! and no attempt is spent; else the run is ended as lost. Touches [`super::running`], [`super::held`] and the store.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Shared,
    running::{Forgotten, Running},
};
use crate::{
    job::model::JobId,
    ops::{error::chain, lost},
    store::{
        Error,
        held::HeldRun,
        sweep::{LostRun, SLICE, WakeUp},
    },
};

/// Looks in each lease.
const IN_A_LEASE: u32 = 3;
/// Looks that must have missed a run.
const LOOKS: u32 = 2;
/// Looks that a run rests which the database has refused to give back.
const REFUSED: u32 = 10;
/// Pause between looks while a claim may have been carried out whose answer got lost.
const SOON: Duration = Duration::from_millis(500);
/// How long the database may go on with a statement whose client has gone: its `statement_timeout`, and some more.
const ECHO: Duration = Duration::from_secs(7);

/// Looks until the last run has ended, and once more then: what stays behind would be held to be lost with this worker,
/// and spend an attempt.
pub(super) async fn work(shared: Arc<Shared>, stop: CancellationToken) {
    let period = shared.deps.config.worker.lease / IN_A_LEASE;
    let ended = async {
        stop.cancelled().await;
        shared.running.wait_empty().await;
    };
    tokio::pin!(ended);
    let (mut looked, mut doubtful_until) = (Instant::now(), Instant::now());
    loop {
        let pause = if looked < doubtful_until { period.min(SOON) } else { period };
        let over = tokio::select! {
            _ = sleep_until(looked + pause) => false,
            _ = shared.doubt.notified() => {
                doubtful_until = Instant::now() + ECHO;
                continue;
            }
            _ = &mut ended => true,
        };
        looked = Instant::now();
        let enough = if over { 1 } else { LOOKS };
        if let Err(e) = look(&shared, enough).await {
            tracing::debug!("could not compare what is held: {}", chain(&e));
        }
        if over {
            return;
        }
    }
}

/// Looks once, and gives back what `enough` looks in a row have missed.
async fn look(shared: &Shared, enough: u32) -> Result<(), Error> {
    let began = Instant::now();
    let in_hand = shared.running.claimed();
    let on_record = shared.deps.store.held_besides(&shared.id, &in_hand).await?;
    let missed = shared.running.compare(&on_record, began, enough);
    let mut claims: HashMap<Uuid, Vec<JobId>> = HashMap::new();
    for row in &on_record {
        claims.entry(row.claim).or_default().push(row.run.id);
    }
    for (claim, jobs) in claims {
        shared.held.adopt(claim, || jobs);
    }
    let (begun, never): (Vec<_>, Vec<_>) = missed.into_iter().partition(|(_, begun)| *begun);
    for runs in never.chunks(SLICE as usize) {
        hand_back(shared, runs.iter().map(|(run, _)| run.clone()).collect()).await?;
    }
    for runs in begun.chunks(SLICE as usize) {
        end(shared, runs.iter().map(|(run, _)| run.clone()).collect()).await?;
    }
    Ok(())
}

async fn hand_back(shared: &Shared, runs: Vec<LostRun>) -> Result<(), Error> {
    tracing::warn!("handing back {} jobs that this worker holds and has not started", runs.len());
    shared.deps.store.hand_back(&runs).await?;
    shared.deps.relay.notify_one();
    forget(shared, &runs);
    Ok(())
}

async fn end(shared: &Shared, runs: Vec<LostRun>) -> Result<(), Error> {
    let message =
        |row: &LostRun| format!("the worker {} lost attempt {} by a fault of its own", row.worker_id, row.attempt);
    let deps = &shared.deps;
    let freed = deps.store.end_lost(runs.clone(), message, WakeUp::Outbox).await?;
    tracing::warn!("ended {} runs that this worker had started and lost by a fault of its own", freed.len());
    lost::tell(&deps.broker, &deps.relay, &freed).await;
    forget(shared, &runs);
    Ok(())
}

/// Those that the database has refused to write are tried again later.
fn forget(shared: &Shared, runs: &[LostRun]) {
    let harmed = shared.deps.store.harmed();
    let (refused, ended): (Vec<_>, Vec<_>) = runs.iter().partition(|run| harmed.of(run.id).is_some());
    let mut running = shared.running.lock();
    for run in ended {
        running.forgotten.remove(&(run.id, run.run));
    }
    for run in refused {
        if let Some(forgotten) = running.forgotten.get_mut(&(run.id, run.run)) {
            forgotten.missed = 0;
            forgotten.rest = REFUSED;
        }
    }
}

impl Running {
    /// The jobs that this worker surely holds.
    fn claimed(&self) -> Vec<JobId> {
        self.lock().in_hand.values().filter(|run| run.claimed().0 > 0).map(|run| run.id).collect()
    }

    /// Counts the look for what is on record and not in hand. Returns what that many looks have missed, and whether its
    /// handler had started. `began`: before the record was read.
    fn compare(&self, on_record: &[HeldRun], began: Instant, enough: u32) -> Vec<(LostRun, bool)> {
        let mut runs = self.lock();
        // Read after the record: what has been claimed meanwhile is in hand by now. While a claim of the same job is under
        // way, nobody knows whether it is what the record shows.
        let claimed: HashMap<JobId, i64> = runs.in_hand.values().fold(HashMap::new(), |mut numbers, run| {
            let number = numbers.entry(run.id).or_default();
            *number = run.claimed().0.max(*number);
            numbers
        });
        let known = |id: &JobId| claimed.get(id).is_some_and(|number| *number > 0);
        let listed: HashMap<(JobId, i64), &LostRun> =
            on_record.iter().map(|row| ((row.run.id, row.run.run), &row.run)).collect();
        runs.forgotten.retain(|run, forgotten| {
            // Of jobs that are in hand the record was not asked.
            let elsewhere = known(&run.0) && claimed.get(&run.0) != Some(&run.1);
            forgotten.since > began || listed.contains_key(run) || elsewhere
        });
        let mut missed = Vec::new();
        for (key, row) in listed {
            if known(&key.0) {
                continue;
            }
            let first = Forgotten { begun: false, since: began, missed: 0, rest: 0 };
            let forgotten = runs.forgotten.entry(key).or_insert(first);
            if claimed.contains_key(&key.0) {
                continue;
            }
            if forgotten.rest > 0 {
                forgotten.rest -= 1;
                continue;
            }
            forgotten.missed += 1;
            if forgotten.missed >= enough {
                missed.push((row.clone(), forgotten.begun));
            }
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::running::Run;

    fn on_record(id: JobId, run: i64) -> HeldRun {
        let run = LostRun { id, r#type: "probe".into(), run, attempt: 1, max_attempts: 3, worker_id: "w".into() };
        HeldRun { claim: Uuid::now_v7(), run }
    }

    fn compare(running: &Running, record: &[HeldRun]) -> Vec<(JobId, bool)> {
        let missed = running.compare(record, Instant::now(), LOOKS);
        missed.into_iter().map(|(run, begun)| (run.id, begun)).collect()
    }

    #[test]
    fn what_two_looks_in_a_row_miss_is_forgotten_and_not_what_is_in_hand_or_being_claimed() {
        let running = Running::default();
        let [lost, held, asked, ended] = [0; 4].map(|_| Uuid::now_v7());
        let run = |id, number| {
            let run = Arc::new(Run::new(id, "probe".into(), None));
            run.note_claim(number, 1);
            run
        };
        running.add(run(held, 1));
        let under_way = running.add(run(asked, 0));
        let record = [on_record(lost, 2), on_record(held, 1), on_record(asked, 4), on_record(ended, 1)];
        assert_eq!(compare(&running, &record), []);
        assert_eq!(compare(&running, &record[..3]), [(lost, false)], "its claim got no answer");
        // The claim has failed.
        running.remove(under_way, &run(asked, 0));
        assert_eq!(compare(&running, &record[2..]), [], "the first look that misses them in a row");
        assert!(running.ids().contains(&asked), "it stays on record until then");
        assert_eq!(compare(&running, &record[2..3]), [(asked, false)]);
    }

    #[test]
    fn a_run_that_was_dropped_is_known_by_whether_its_handler_had_started() {
        let running = Running::default();
        let [begun, never, over] = [0; 3].map(|_| {
            let run = Arc::new(Run::new(Uuid::now_v7(), "probe".into(), None));
            run.note_claim(1, 1);
            (running.add(run.clone()), run)
        });
        begun.1.begin();
        over.1.begin();
        over.1.settle();
        for (key, run) in [&begun, &never, &over] {
            running.remove(*key, run);
        }
        let [begun, never, over] = [begun.1.id, never.1.id, over.1.id];
        assert!(!running.ids().contains(&over));
        let record = [on_record(begun, 1), on_record(never, 1)];
        assert_eq!(compare(&running, &record), []);
        let missed = compare(&running, &record);
        assert!(missed.len() == 2 && missed.contains(&(begun, true)) && missed.contains(&(never, false)), "{missed:?}");
        // Others have ended them meanwhile.
        assert_eq!(compare(&running, &[]), []);
        assert!(running.ids().is_empty());
    }
}
