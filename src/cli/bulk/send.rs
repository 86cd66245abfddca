//! Sends one batch until each of its lines has an answer, or it is clear that there will be none.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::batch::{Batch, Item};
use crate::{
    client::{CallError, Client, Refusal, read},
    ops::Verb,
};

/// How long a batch may be told to come back later.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What became of a line.
#[derive(Debug)]
pub enum Outcome {
    Accepted {
        duplicate: bool,
        reply: Box<RawValue>,
    },
    /// By the service, with its problem as received.
    Refused {
        refusal: Refusal,
        problem: Box<RawValue>,
    },
    /// It was not sent.
    Unfit(String),
}

/// The answers to a batch, in the order of its lines. `broken`: why some lines have none.
#[derive(Debug)]
pub struct Answered {
    pub lines: Vec<(u64, Option<Outcome>)>,
    pub broken: Option<CallError>,
}

/// How the whole goes, for batches that are on their way side by side.
#[derive(Debug, Default)]
pub struct Course {
    /// Somebody is there: an answer came. Before that, a service that is away is told at once.
    answered: AtomicBool,
    /// One batch got no answer: the others don't try again, and no more are sent.
    stopped: AtomicBool,
}

impl Course {
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Whether a batch that was certainly not taken may be sent again.
    fn may_repeat(&self, error: &CallError) -> bool {
        let harmless = is_full(error) || error.was_not_heard() && self.answered.load(Ordering::Relaxed);
        harmless && !self.is_stopped()
    }
}

/// Sends `batch`.
pub async fn send(batch: Batch, client: &Client, course: &Course) -> Answered {
    let mut answers: Vec<Option<Outcome>> = batch.items.iter().map(unfit).collect();
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut broken = None;
    while let Some(body) = batch.body(|i| answers[i].is_none()) {
        let answer = client.call_raw(Verb::EnqueueMany, body.into(), Duration::ZERO).await;
        let last_try = start.elapsed() > PATIENCE || course.is_stopped();
        match answer.and_then(|answer| read::<Reply>(Verb::EnqueueMany, &answer)) {
            Ok(reply) => {
                course.answered.store(true, Ordering::Relaxed);
                let sent: Vec<usize> = (0..answers.len()).filter(|i| answers[*i].is_none()).collect();
                for (i, result) in sent.into_iter().zip(reply.results) {
                    let keyed = batch.items[i].request.as_ref().is_ok_and(|request| request.keyed);
                    answers[i] = judge(result, keyed, last_try);
                    if answers[i].is_some() {
                        pause = FIRST_PAUSE;
                    }
                }
            }
            Err(e) => {
                if last_try || !course.may_repeat(&e) {
                    course.stop();
                    broken = Some(e);
                    break;
                }
            }
        }
        if answers.iter().any(Option::is_none) {
            tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
    Answered { lines: batch.items.iter().map(|item| item.line).zip(answers).collect(), broken }
}

#[derive(Deserialize)]
struct Reply {
    results: Vec<Box<RawValue>>,
}

fn unfit(item: &Item) -> Option<Outcome> {
    item.request.as_ref().err().cloned().map(Outcome::Unfit)
}

/// `overloaded` is said before anything is written, so the same may be sent again.
fn is_full(error: &CallError) -> bool {
    matches!(error, CallError::Refused(refusal) if refusal.status == 429)
}

/// `None`: to be sent again. A line without a key is sent again only where it is certain that it was not taken.
fn judge(result: Box<RawValue>, keyed: bool, last_try: bool) -> Option<Outcome> {
    #[derive(Deserialize)]
    struct Result {
        #[serde(default)]
        duplicate: bool,
        #[serde(default)]
        error: Option<Box<RawValue>>,
    }
    let unclear = |e: serde_json::Error| Outcome::Unfit(format!("the answer is not understood: {e}"));
    let decoded: Result = match serde_json::from_str(result.get()) {
        Ok(decoded) => decoded,
        Err(e) => return Some(unclear(e)),
    };
    let Some(problem) = decoded.error else {
        return Some(Outcome::Accepted { duplicate: decoded.duplicate, reply: result });
    };
    let refusal: Refusal = match serde_json::from_str(problem.get()) {
        Ok(refusal) => refusal,
        Err(e) => return Some(unclear(e)),
    };
    let again = refusal.status == 429 || refusal.status == 503 && keyed;
    (!again || last_try).then_some(Outcome::Refused { refusal, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(json: &str, keyed: bool) -> Option<Outcome> {
        judge(RawValue::from_string(json.to_owned()).unwrap(), keyed, false)
    }

    #[test]
    fn a_line_is_sent_again_only_where_that_makes_no_second_job() {
        let problem = |status: u16| format!(r#"{{"error":{{"title":"t","status":{status},"code":"c"}}}}"#);
        assert!(judged(&problem(429), false).is_none(), "overloaded: nothing was written");
        assert!(judged(&problem(503), true).is_none(), "unavailable with a key: the key finds the first one");
        assert!(matches!(judged(&problem(503), false), Some(Outcome::Refused { .. })));
        assert!(matches!(judged(&problem(400), true), Some(Outcome::Refused { .. })));
        let accepted = judged(r#"{"jobId":"x","status":"pending","duplicate":true}"#, false);
        assert!(matches!(accepted, Some(Outcome::Accepted { duplicate: true, .. })));
        assert!(matches!(judged("[1,2,3,4,5]", false), Some(Outcome::Unfit(_))));
    }
}
