//! What a finished run means for the job.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::RetryPolicy;

/// Longest error message that is kept, in bytes; the rest is cut off with a mark.
pub const MESSAGE_MAX: usize = 2048;

/// Why an attempt did not succeed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub kind: FailureKind,
    /// For people; cleaned of NUL and capped at [`MESSAGE_MAX`] bytes.
    pub message: String,
    /// The other side's wish (`Retry-After`), which goes before the type's own schedule.
    pub retry_after: Option<Duration>,
}

/// What sort of failure it was; shown as `kind` in a job's `errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// It may go better next time.
    Error,
    /// It can never succeed as it stands: no retry.
    Permanent,
    /// The handler outlived the job's timeout.
    Timeout,
    /// The handler panicked.
    Panic,
    /// The worker vanished while it held the job.
    Lost,
}

impl FailureKind {
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::Error => "error",
            FailureKind::Permanent => "permanent",
            FailureKind::Timeout => "timeout",
            FailureKind::Panic => "panic",
            FailureKind::Lost => "lost",
        }
    }
}

impl Failure {
    /// A failure that another attempt may cure.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Error, message)
    }

    /// A failure that no further attempt can cure.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Permanent, message)
    }

    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: clean(message.into()), retry_after: None }
    }

    /// The other side asked to wait this long before the next attempt.
    pub fn after(mut self, delay: Option<Duration>) -> Self {
        self.retry_after = delay;
        self
    }
}

/// Makes a text of unknown origin fit for Postgres (no NUL) and for people (bounded).
pub fn clean(mut text: String) -> String {
    if text.contains('\0') {
        text = text.replace('\0', "\u{fffd}");
    }
    if text.len() > MESSAGE_MAX {
        let cut = text.floor_char_boundary(MESSAGE_MAX);
        text.truncate(cut);
        text.push_str(" … (cut)");
    }
    text
}

/// How a run ended, as the worker saw it.
#[derive(Debug)]
pub enum Outcome {
    /// The handler returned this result.
    Done(Box<RawValue>),
    Failed(Failure),
    /// The run was told to stop because somebody cancelled the job.
    Cancelled,
    /// The run was cut off by a drain, or nobody was there to do it: not the job's fault.
    Interrupted {
        delay: Duration,
    },
}

/// What `store` shall do with the job.
#[derive(Debug)]
pub enum Verdict {
    Complete {
        result: Box<RawValue>,
    },
    Retry {
        failure: Failure,
        delay: Duration,
    },
    DeadLetter {
        failure: Failure,
    },
    Cancel,
    /// Back to pending with its attempt returned.
    HandBack {
        delay: Duration,
    },
}

/// Decides what a finished run means. `attempt` counts from 1 and includes the run that just ended; `dice` is a random
/// number in 0..1 for the jitter.
pub fn settle(attempt: u16, max_attempts: u16, policy: &RetryPolicy, outcome: Outcome, dice: f64) -> Verdict {
    match outcome {
        Outcome::Done(result) => Verdict::Complete { result },
        Outcome::Cancelled => Verdict::Cancel,
        // A deploy is not a failure: the attempt is not spent.
        Outcome::Interrupted { delay } => Verdict::HandBack { delay },
        Outcome::Failed(failure) if failure.kind == FailureKind::Permanent || attempt >= max_attempts => {
            Verdict::DeadLetter { failure }
        }
        Outcome::Failed(failure) => {
            // A peer may ask for any delay; beyond a day it is held to be a mistake or malice.
            let asked = failure.retry_after.map(|wish| wish.min(Duration::from_secs(24 * 3600)));
            Verdict::Retry { delay: asked.unwrap_or_else(|| policy.delay(attempt, dice)), failure }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(attempt: u16, outcome: Outcome) -> Verdict {
        settle(attempt, 3, &RetryPolicy::default(), outcome, 0.5)
    }

    #[test]
    fn a_failure_is_retried_on_the_schedule_until_the_last_attempt() {
        for (attempt, seconds) in [(1, 60), (2, 120)] {
            match verdict(attempt, Outcome::Failed(Failure::retry("no"))) {
                Verdict::Retry { delay, .. } => assert_eq!(delay.as_secs(), seconds),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(verdict(3, Outcome::Failed(Failure::retry("no"))), Verdict::DeadLetter { .. }));
    }

    #[test]
    fn a_permanent_failure_is_a_dead_letter_at_once() {
        assert!(matches!(verdict(1, Outcome::Failed(Failure::permanent("no"))), Verdict::DeadLetter { .. }));
    }

    #[test]
    fn the_other_sides_retry_after_goes_before_the_schedule_up_to_a_day() {
        for (asked, used) in [(5, 5), (7200, 7200), (1_000_000, 86_400)] {
            let failure = Failure::retry("busy").after(Some(Duration::from_secs(asked)));
            match verdict(1, Outcome::Failed(failure)) {
                Verdict::Retry { delay, .. } => assert_eq!(delay.as_secs(), used),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn messages_lose_nul_characters_and_are_capped() {
        assert_eq!(Failure::retry("a\0b").message, "a\u{fffd}b");
        let long = Failure::retry("é".repeat(5000)).message;
        assert!(long.len() < MESSAGE_MAX + 20 && long.ends_with("(cut)"));
    }
}
