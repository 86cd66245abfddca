//! Recording outcomes in batches. A finished result is kept until the database has it, however long that takes.

use std::time::Duration;

use crate::{
    flow::{Batcher, batcher::Size},
    job::{Failure, Verdict},
    ops::error::chain,
    store::{
        Error, Store,
        finish::{Recorded, Retried, Settlement},
    },
    supervise::Tasks,
};

pub(crate) type Outcomes = Batcher<Settlement, Result<Recorded, Box<Settlement>>>;

/// Outcomes and bytes of results in one statement, whichever comes first (see [`weigh`]).
const FULL: usize = 500;

/// `name`: of its task.
pub(crate) fn start(name: &'static str, store: &Store, tasks: &Tasks) -> Outcomes {
    // One at a time: two share what waits, and so cost Postgres twice the statements. See docs/laboratory.md.
    let size = Size { weight: FULL, lanes: 1, enough: 1, waiting: 4096 };
    let store = store.clone();
    Batcher::start(name, size, weigh, tasks, move |batch: Vec<Settlement>| {
        let store = store.clone();
        async move { record(&store, batch).await }
    })
}

/// One for the outcome itself, and one for each 16 KiB of its result, so that a batch stays below about 8 MiB.
fn weigh(settlement: &Settlement) -> usize {
    match &settlement.verdict {
        Verdict::Complete { result } => 1 + result.get().len() / (16 * 1024),
        _ => 1,
    }
}

/// Never gives up on a database that is away: the messages are kept alive meanwhile, and if the lease runs out, the
/// fence decides. What the database refuses for good is given back, so that it holds up no other.
async fn record(store: &Store, mut batch: Vec<Settlement>) -> Vec<Result<Recorded, Box<Settlement>>> {
    let mut retried = Retried::No;
    let mut refused = None;
    let mut pause = Duration::from_millis(50);
    let mut partitions_made = false;
    loop {
        match store.finish(&batch, retried).await {
            Ok(recorded) => return recorded.into_iter().map(Ok).collect(),
            Err(e) if batch.len() == 1 && !e.is_transient() => {
                let is_refused = matches!(e, Error::Rejected { .. });
                // A partition of today may be missing when the service slept over several midnights.
                if is_refused && !partitions_made && store.make_partitions().await.is_ok() {
                    partitions_made = true;
                    continue;
                }
                store.harmed().note(batch[0].id, &e);
                if !is_refused || matches!(batch[0].verdict, Verdict::DeadLetter { .. }) {
                    // It is not the result that can't be stored: it may be, once somebody has looked after the tables.
                    if let Some(verdict) = refused {
                        batch[0].verdict = verdict;
                    }
                    return batch.into_iter().map(|settlement| Err(Box::new(settlement))).collect();
                }
                let failure = Failure::permanent("the outcome of the run can't be stored");
                refused = Some(std::mem::replace(&mut batch[0].verdict, Verdict::DeadLetter { failure }));
            }
            // One outcome that can't be stored must not hold up its neighbours.
            Err(Error::Rejected { .. }) => {
                let right = batch.split_off(batch.len() / 2);
                let mut recorded = Box::pin(record(store, batch)).await;
                recorded.extend(Box::pin(record(store, right)).await);
                return recorded;
            }
            // A statement that does not fit: it may be due to one of them, and else it helps nobody to wait here.
            Err(e) if !e.is_transient() => match Box::pin(store.finish_each(&batch, retried)).await {
                Ok(recorded) => {
                    let answers = batch.into_iter().zip(recorded);
                    return answers.map(|(settlement, recorded)| recorded.ok_or(Box::new(settlement))).collect();
                }
                Err(e) if e.is_transient() => retried = Retried::Yes,
                Err(e) => {
                    tracing::error!("could not record {} outcomes: {}", batch.len(), chain(&e));
                    return batch.into_iter().map(|settlement| Err(Box::new(settlement))).collect();
                }
            },
            Err(e) => {
                e.tell("could not record outcomes, trying again");
                retried = Retried::Yes;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}
