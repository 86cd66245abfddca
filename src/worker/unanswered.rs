//! How many messages of each lane the broker waits for an answer to: it gives out no more than a fixed number.
//!
//! A failed job usually keeps its message, put off until its next attempt is due. When that takes up half of what the broker
//! allows, further ones go by way of the outbox instead, so that however many wait for a retry, new jobs come through.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{broker::Broker, job::Lane};

/// Of one type.
pub(crate) struct Unanswered {
    /// As the settings and the broker have it.
    limit: AtomicU64,
    lanes: [Count; 3],
}

#[derive(Default)]
struct Count {
    /// As the broker said last, of all processes.
    seen: AtomicU64,
    /// Put off by this process since then.
    since: AtomicU64,
}

impl Unanswered {
    /// `limit`: what the broker allows per lane.
    pub fn new(limit: usize) -> Self {
        Self { limit: AtomicU64::new(limit as u64), lanes: Default::default() }
    }

    /// Whether no further message of the lane should be kept for later.
    pub fn runs_short(&self, lane: Lane) -> bool {
        let count = self.of(lane);
        (count.seen.load(Relaxed) + count.since.load(Relaxed)) * 2 >= self.limit.load(Relaxed)
    }

    /// One more is going to be put off.
    pub fn note(&self, lane: Lane) {
        self.of(lane).since.fetch_add(1, Relaxed);
    }

    /// Asks the broker, where that can matter.
    pub async fn look(&self, broker: &Broker, job_type: &str) {
        self.limit.store(broker.max_unanswered() as u64, Relaxed);
        for lane in Lane::ALL {
            let count = self.of(lane);
            let since = count.since.load(Relaxed);
            if since == 0 && count.seen.load(Relaxed) == 0 {
                continue;
            }
            if let Ok(Some(backlog)) = broker.backlog(job_type, lane).await {
                count.seen.store(backlog.unacknowledged, Relaxed);
                // What was put off while the broker was asked may be in its answer or not: it is counted twice rather
                // than not at all.
                count.since.fetch_sub(since, Relaxed);
            }
        }
    }

    fn of(&self, lane: Lane) -> &Count {
        &self.lanes[lane as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_runs_short_at_half_of_what_the_broker_allows_and_others_do_not() {
        let unanswered = Unanswered::new(10);
        for _ in 0..4 {
            unanswered.note(Lane::Normal);
        }
        assert!(!unanswered.runs_short(Lane::Normal));
        unanswered.note(Lane::Normal);
        assert!(unanswered.runs_short(Lane::Normal) && !unanswered.runs_short(Lane::High));
    }
}
