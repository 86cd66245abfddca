//! The end of a service in time: by when each of its steps has to be over, and what was left behind.

use std::time::Duration;

use tokio::time::Instant;

use crate::worker::Unfinished;

/// Longest wait for a start that is under way. It is asked to give up, and waits for nothing then.
pub const START: Duration = Duration::from_secs(1);

/// What a stop may take after the drain. One span for all steps: each has what those before it have left. The docs and the
/// compose file say the same number.
const AFTER_DRAIN: Duration = Duration::from_secs(10);

/// By when each step has to be over.
pub struct Deadlines {
    /// Runs are stopped, their outcomes are written, and the worker has said goodbye.
    pub runs: Instant,
    /// Requests that were taken are answered.
    pub doors: Instant,
    pub intake: Instant,
    pub duties: Instant,
    /// What is still to be sent has gone out.
    pub connections: Instant,
}

impl Deadlines {
    /// When running jobs have had their time, at `drained`.
    pub fn from(drained: Instant) -> Self {
        let end = drained + AFTER_DRAIN;
        let before = |millis| end - Duration::from_millis(millis);
        Self {
            // A handler may take 5 s to stop.
            runs: before(4000),
            doors: before(1800),
            intake: before(1700),
            duties: before(1500),
            // What is left is for [`START`], and the end of the process.
            connections: before(1200),
        }
    }
}

/// What a stop had to leave behind.
#[derive(Default)]
pub struct Left {
    pub worker: Unfinished,
    /// Requests over NATS without an answer.
    pub answers: usize,
}

impl Left {
    pub fn tell(&self, took: Duration) {
        let Unfinished { runs, outcomes } = self.worker;
        let (answers, seconds) = (self.answers, took.as_secs_f64());
        if runs + outcomes + answers == 0 {
            return tracing::info!("stopped after {seconds:.1} s, and left nothing behind");
        }
        tracing::warn!(
            "stopped after {seconds:.1} s, and left behind: {runs} runs that did not end, {outcomes} outcomes that were not \
             written, {answers} requests that were not answered; such jobs run again when the lease of this worker is over"
        );
    }
}
