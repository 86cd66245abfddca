//! The outbox relay: publishes committed rows that are due, and removes them when the broker has acknowledged them.
//!
//! A row may be published twice (its message id and the claim absorb it), never zero times: publish, await the
//! acknowledgement, then delete. Every replica runs one; a row that is taken is hidden from the others for a while.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Deps, Error, dead_letters, report};
use crate::{
    broker::{findings::Stream, publish::Outgoing},
    faults::{self, Mutant, crash_point},
    store::outbox::{Kind, Row},
};

/// Rows taken at once; of those that SQL's `enqueue` writes, each has one job.
const ROWS: i64 = 1000;
/// No further row is taken once those that were have so many jobs. A row has up to a thousand.
const JOBS: i64 = 15_000;
/// How long a taken row is hidden from other relays, in graces: longer than publishing [`JOBS`] and one more row can take.
/// A minute by default.
pub(super) const HOLD: u32 = 12;
/// When a row is tried again that the broker has not acknowledged in full.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// The duty; see the module.
pub struct Relay(Deps);

/// What one round took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Every row that was due, as far as other relays left them.
    All,
    /// As much as one round takes: there may be more.
    Full,
}

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    let (period, bell) = (deps.config.background.relay, deps.relay.clone());
    let relay = Relay::new(deps);
    let mut failing = false;
    loop {
        let rung = bell.notified();
        let pause = match stop.run_until_cancelled(relay.run_once()).await {
            None => return,
            Some(Ok(Taken::Full)) => continue,
            Some(Ok(Taken::All)) => {
                failing = false;
                relay.pause(period).await
            }
            Some(Err(e)) => {
                report("the outbox relay", &e, &mut failing);
                super::AFTER_FAILURE
            }
        };
        tokio::select! {
            _ = stop.cancelled() => return,
            _ = rung => {}
            _ = tokio::time::sleep(pause) => {}
        }
    }
}

impl Relay {
    pub fn new(deps: Deps) -> Self {
        Self(deps)
    }

    /// Publishes rows that are due. What the broker did not acknowledge comes again later.
    ///
    /// # Errors
    /// The database is away; rows that were published already are published once more then.
    pub async fn run_once(&self) -> Result<Taken, Error> {
        let deps = &self.0;
        if !deps.broker.is_connected() {
            return Ok(Taken::All);
        }
        let Some(only) = self.publishable() else { return Ok(Taken::All) };
        // While acknowledgements are missing one row is enough to see whether they come again.
        let limit = if deps.publisher.trouble().is_some() { 1 } else { ROWS };
        let rows = deps.store.take_outbox(limit, JOBS, deps.config.background.publish_grace * HOLD, only).await?;
        let jobs: usize = rows.iter().map(|row| row.job_ids.len()).sum();
        let is_full = rows.len() as i64 == ROWS || jobs as i64 >= JOBS;
        let (dead_letters, wake_ups): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.is(Kind::DeadLetter));
        self.publish_wake_ups(wake_ups).await?;
        // One that can't be read comes again after its hold, and holds up no other.
        let mut all = Ok(());
        for row in dead_letters {
            let mut acked = match dead_letters::publish(deps, &row).await {
                Ok(acked) => acked,
                Err(Error::Store(e)) if e.may_be_about_one() => {
                    row.job_ids.iter().for_each(|id| deps.store.harmed().note(*id, &e));
                    all = all.and(Err(e));
                    continue;
                }
                Err(e) => return Err(e),
            };
            crash_point("after_relay_publish");
            if faults::has(Mutant::DeadLetterUnconfirmed) {
                acked.fill(true);
            }
            self.settle(&[row], acked.into_iter()).await?;
        }
        all?;
        Ok(if is_full { Taken::Full } else { Taken::All })
    }

    /// What there is a stream for: all, or one kind alone. `None`: nothing. The others' rows wait until it is there.
    fn publishable(&self) -> Option<Option<Kind>> {
        let broker = &self.0.broker;
        match (broker.is_refused(Stream::WakeUps), broker.is_refused(Stream::DeadLetters)) {
            (false, false) => Some(None),
            (false, true) => Some(Some(Kind::WakeUp)),
            (true, false) => Some(Some(Kind::DeadLetter)),
            (true, true) => None,
        }
    }

    async fn publish_wake_ups(&self, rows: Vec<Row>) -> Result<(), Error> {
        let messages = rows.iter().flat_map(|row| {
            let places = row.job_ids.iter().zip(&row.targets).enumerate();
            places.map(move |(place, (id, target))| {
                let message_id = Some(format!("{}.{place}", row.id));
                Outgoing::wake_up(&self.0.broker.subjects, *id, target, message_id)
            })
        });
        let acked = self.0.publisher.publish(messages.collect()).await;
        crash_point("after_relay_publish");
        self.settle(&rows, acked.into_iter()).await
    }

    /// Removes what was acknowledged. `acked` says so of each message, row after row.
    async fn settle(&self, rows: &[Row], mut acked: impl Iterator<Item = bool>) -> Result<(), Error> {
        let mut done = Vec::new();
        for row in rows {
            let unacked: Vec<usize> = (0..row.job_ids.len()).filter(|_| !acked.next().unwrap_or_default()).collect();
            if unacked.is_empty() {
                done.push(row.id);
            } else {
                self.0.store.shrink_outbox(row, &unacked, TRY_AGAIN).await?;
            }
        }
        if !done.is_empty() {
            self.0.store.clear_outbox(done).await?;
        }
        Ok(())
    }

    /// Until the next row is due, but not longer than `period`, since other replicas write rows as well.
    async fn pause(&self, period: Duration) -> Duration {
        // Nothing was taken, however much is due.
        let Some(only) = self.publishable().filter(|_| self.0.broker.is_connected()) else { return period };
        // When the database is away the next round says so.
        let next = self.0.store.next_outbox(only).await.unwrap_or_default();
        // Not at once: a due row that is there now can't be published, or another relay has it.
        next.unwrap_or(period).clamp(Duration::from_millis(5), period.max(Duration::from_millis(5)))
    }
}
