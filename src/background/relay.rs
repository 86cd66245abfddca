//! The outbox relay: publishes committed rows that are due, and removes them when the broker has acknowledged them.
//!
//! A row may be published twice (its message id and the claim absorb it), never zero times: publish, await the
//! acknowledgement, then delete. Every replica runs one; a row that is taken is hidden from the others for a while.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Deps, Error, dead_letters, report};
use crate::{
    broker::publish::Outgoing,
    faults::{self, Mutant, crash_point},
    store::outbox::Row,
};

/// Rows taken at once, of up to a thousand wake-ups each.
const ROWS: i64 = 16;
/// How long a taken row is hidden from other relays, in graces: longer than publishing [`ROWS`] full ones can take. A
/// minute by default.
pub(super) const HOLD: u32 = 12;
/// When a row is tried again that the broker has not acknowledged in full.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// The duty; see the module.
pub struct Relay(Deps);

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    let (period, bell) = (deps.config.background.relay, deps.relay.clone());
    let relay = Relay::new(deps);
    let mut failing = false;
    loop {
        let rung = bell.notified();
        let pause = match stop.run_until_cancelled(relay.run_once()).await {
            None => return,
            // A full take means that there may be more.
            Some(Ok(taken)) if taken == ROWS as usize => continue,
            Some(Ok(_)) => {
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

    /// Publishes rows that are due. Returns how many it took; what the broker did not acknowledge comes again later.
    ///
    /// # Errors
    /// The database is away; rows that were published already are published once more then.
    pub async fn run_once(&self) -> Result<usize, Error> {
        let deps = &self.0;
        if !deps.broker.is_connected() {
            return Ok(0);
        }
        // While acknowledgements are missing one row is enough to see whether they come again.
        let limit = if deps.publisher.trouble().is_some() { 1 } else { ROWS };
        let rows = deps.store.take_outbox(limit, deps.config.background.publish_grace * HOLD).await?;
        let (dead_letters, wake_ups): (Vec<Row>, Vec<Row>) =
            rows.into_iter().partition(|row| row.kind == "dead-letter");
        let taken = dead_letters.len() + wake_ups.len();
        self.publish_wake_ups(wake_ups).await?;
        for row in dead_letters {
            let mut acked = dead_letters::publish(deps, &row).await?;
            crash_point("after_relay_publish");
            if faults::has(Mutant::DeadLetterUnconfirmed) {
                acked.fill(true);
            }
            self.settle(&[row], acked.into_iter()).await?;
        }
        Ok(taken)
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
        if !self.0.broker.is_connected() {
            return period;
        }
        // When the database is away the next round says so.
        let next = self.0.store.next_outbox().await.unwrap_or_default();
        // Not at once: a due row that is there now can't be published, or another relay has it.
        next.unwrap_or(period).clamp(Duration::from_millis(5), period.max(Duration::from_millis(5)))
    }
}
