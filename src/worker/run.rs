//! The life of one delivered message: claim, run, settle, record, answer.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use serde_json::value::RawValue;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Shared,
    running::{Run, StopCause},
    slots::{Place, Slot},
};
use crate::{
    broker::{
        events::{Event, EventState},
        pull::Delivery,
    },
    faults::crash_point,
    handlers::{AnyHandler, Ended, RunContext, context::Notes},
    job::{Failure, FailureKind, Outcome, Status, Verdict, json, settle},
    ops::error::chain,
    store::{
        claim::{Claim, Claimed, Refused},
        finish::{Recorded, Settlement, WakeUp},
    },
    types::Known,
};

/// A delay beyond this is kept in the outbox, not in the broker.
const LONGEST_NAK: Duration = Duration::from_secs(3600);
/// When a message comes again whose row can't be looked at, or whose type is paused.
const LATER: Duration = Duration::from_secs(1);
/// When a suspect comes again while another one is in hand.
const NEXT_SUSPECT: Duration = Duration::from_millis(500);

/// How long a claimed job waits for a slot.
const TURN: Duration = Duration::from_secs(1);

/// Carries out what a message asks for. Returns when it is answered, or when it must not be.
pub(crate) async fn carry_out(shared: Arc<Shared>, known: Arc<Known>, delivery: Delivery, place: Place) {
    let broker = &shared.deps.broker;
    let (wake_up, ack) = delivery.split();
    let Ok(wake_up) = wake_up else {
        tracing::warn!("removed a message on a job subject that is no wake-up");
        return ack.term(broker, "not a wake-up").await;
    };
    let run = Arc::new(Run::new(wake_up.id, wake_up.job_type.clone(), ack));
    let key = shared.running.add(run.clone());
    carry_out_tracked(&shared, &known, &run, place).await;
    run.let_go();
    shared.running.remove(key);
}

async fn carry_out_tracked(shared: &Arc<Shared>, known: &Known, run: &Arc<Run>, place: Place) {
    let broker = &shared.deps.broker;
    if shared.draining.load(Ordering::SeqCst) {
        run.let_go();
        return run.ack.nak(broker, Duration::ZERO).await;
    }
    let mut claim = shared.claims.submit(run.clone()).await.unwrap_or_default();
    // Held to the end of the run.
    let mut _turn = None;
    if let Some(Claim::Refused(Refused::Suspect)) = claim
        && let Ok(turn) = shared.suspect.try_acquire()
    {
        _turn = Some(turn);
        let claimed = shared.unheard.claim_alone(&shared.deps, &shared.id, run).await;
        claim = claimed.inspect_err(|e| tracing::warn!("could not claim: {}", chain(e))).unwrap_or_default();
    }
    let job = match claim {
        Some(Claim::Won(job)) => job,
        Some(Claim::Refused(refused)) => return refuse(shared, run, refused).await,
        None => {
            run.let_go();
            return run.ack.nak(broker, LATER).await;
        }
    };
    shared.watermarks.raise(&job);
    let attempt = job.attempt as u16;
    broker.emit(&[Event::new(job.id, &job.r#type, EventState::Started, attempt, Some(&shared.id))]).await;

    let (outcome, _unrecorded) = match slot_for(run, place).await {
        Ok(slot) => {
            let outcome = run_handler(shared, known, run, &job).await;
            (outcome, Some(slot.ended()))
        }
        Err(outcome) => (outcome, None),
    };
    crash_point("after_effect");
    // What the handler said last belongs to the record as well.
    super::running::write_notes_of(shared, run).await;
    let verdict = settle(attempt, job.max_attempts as u16, &known.settings.retry, outcome, rand::random());
    let told = News::of(&verdict);
    let (wake_up, delay) = match &verdict {
        Verdict::Retry { delay, .. } | Verdict::HandBack { delay } if *delay > LONGEST_NAK => (WakeUp::Outbox, *delay),
        Verdict::Retry { delay, .. } | Verdict::HandBack { delay } => (WakeUp::NotNeeded, *delay),
        Verdict::Complete { .. } | Verdict::DeadLetter { .. } | Verdict::Cancel => (WakeUp::NotNeeded, Duration::ZERO),
    };
    let settlement = Settlement { id: job.id, run: job.run, verdict, wake_up };
    let recorded = shared.outcomes.submit(settlement).await;
    crash_point("after_finish_commit");
    run.let_go();
    match recorded {
        Ok(Recorded::As(status)) => {
            told.tell(shared, &job, status).await;
            if status == Status::Failed {
                shared.deps.relay.notify_one();
            }
            if status == Status::Pending && wake_up == WakeUp::NotNeeded {
                run.ack.nak(broker, delay).await;
            } else {
                run.ack.ack(broker).await;
            }
        }
        // Somebody else holds the job and its message: neither ack nor nak is ours to give.
        Ok(Recorded::LeaseLost) => {
            tracing::warn!(job.id = %job.id, job.run = job.run, "lost the lease of job {}; its outcome was dropped", job.id);
        }
        Err(_) => {}
    }
}

/// The turn of a claimed job; or what becomes of it when it is stopped before, or its turn does not come: others may have
/// a slot for it.
async fn slot_for(run: &Run, place: Place) -> Result<Slot, Outcome> {
    tokio::select! {
        biased;
        slot = place.slot() => Ok(slot),
        _ = run.token.cancelled() => Err(by_cause(None, run.cause())),
        _ = sleep(TURN) => Err(Outcome::Interrupted { delay: Duration::ZERO }),
    }
}

async fn refuse(shared: &Shared, run: &Run, refused: Refused) {
    let broker = &shared.deps.broker;
    run.let_go();
    match refused {
        Refused::Over => run.ack.ack(broker).await,
        // Half a millisecond on top, so that rounding never makes it early a second time.
        Refused::NotDue(remaining) if remaining <= LONGEST_NAK => {
            run.ack.nak(broker, remaining + Duration::from_micros(500)).await;
        }
        Refused::NotDue(_) => run.ack.nak(broker, LONGEST_NAK).await,
        Refused::Paused => run.ack.nak(broker, LATER).await,
        // Not claimed, so that it loses no attempt if the one in hand kills this worker, too.
        Refused::Suspect => run.ack.nak(broker, NEXT_SUSPECT).await,
        // Kept as a hint for the case that the holder dies: by then its lease is over.
        Refused::Held => run.ack.nak(broker, shared.deps.config.worker.lease).await,
        Refused::Mismatch => {
            tracing::warn!(job.id = %run.id, "removed a message whose type is not its job's");
            run.ack.term(broker, "type differs from the job's").await;
        }
    }
}

async fn run_handler(shared: &Shared, known: &Known, run: &Run, job: &Claimed) -> Outcome {
    let timeout = job.timeout_ms.map_or(known.settings.timeout, |ms| Duration::from_millis(ms.unsigned_abs()));
    let notes = Arc::new(Notes::with_checkpoint(job.checkpoint.as_ref().map(|c| c.0.clone())));
    *run.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes.clone();
    let ctx = RunContext {
        job_id: job.id,
        job_type: known.handler.job_type.clone(),
        attempt: job.attempt as u16,
        max_attempts: job.max_attempts as u16,
        run: job.run,
        deadline: Instant::now() + timeout,
        cancel: run.token.clone(),
        notes,
    };
    let (handler, payload, deadline) = (known.handler.clone(), job.payload.0.clone(), ctx.deadline);
    // A task of its own: a handler that panics or blocks its thread must not take the bookkeeping along.
    let mut task = AbortOnDrop(tokio::spawn(Box::pin(async move { handler.run(&ctx, &payload).await })));
    tokio::select! {
        biased;
        // Also when the handler obeyed so promptly that its end is seen first.
        ended = &mut task.0 => by_cause(Some(judge(shared, known, run, ended)), run.cause()),
        _ = run.token.cancelled() => stopped(shared, known, run, &mut task).await,
        _ = sleep_until(deadline) => {
            let message = format!("the attempt took longer than its timeout of {}", humantime::format_duration(timeout));
            Outcome::Failed(Failure::new(FailureKind::Timeout, message))
        }
    }
}

/// Gives the handler a moment to end by itself; its own result counts if it has one.
async fn stopped(shared: &Shared, known: &Known, run: &Run, task: &mut AbortOnDrop) -> Outcome {
    let by_itself = tokio::select! {
        ended = &mut task.0 => Some(judge(shared, known, run, ended)),
        _ = sleep(shared.deps.config.worker.cancel_grace) => None,
    };
    // Without a cause nobody could have cancelled the token.
    by_cause(by_itself, run.cause().or(Some(StopCause::Cancel)))
}

/// What a run that was asked to stop says of itself is no failure of the job; a result counts all the same. `None`: it
/// had to be cut off.
fn by_cause(by_itself: Option<Outcome>, cause: Option<StopCause>) -> Outcome {
    match (by_itself, cause) {
        (Some(done @ Outcome::Done(_)), _) => done,
        (Some(ended), None) => ended,
        (_, Some(StopCause::Drain)) => Outcome::Interrupted { delay: Duration::ZERO },
        (_, Some(StopCause::Cancel) | None) => Outcome::Cancelled,
    }
}

fn judge(shared: &Shared, known: &Known, run: &Run, ended: Result<Ended, tokio::task::JoinError>) -> Outcome {
    match ended {
        Ok(Ended::Done(result)) => check_result(&known.handler, result, shared.deps.config.limits.result.as_u64()),
        Ok(Ended::Failed(failure)) => Outcome::Failed(failure),
        Ok(Ended::Released(delay)) => Outcome::Interrupted { delay },
        Ok(Ended::Outside) => Outcome::Interrupted { delay: Duration::ZERO },
        Err(e) => {
            let panic = e.try_into_panic().ok();
            let said = panic.as_ref().and_then(|p| {
                p.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| p.downcast_ref::<String>().cloned())
            });
            tracing::error!(job.id = %run.id, "the handler of job {} panicked: {}", run.id, said.as_deref().unwrap_or("?"));
            let message = format!("the handler panicked: {}", said.as_deref().unwrap_or("no message"));
            Outcome::Failed(Failure::new(FailureKind::Panic, message))
        }
    }
}

/// What handlers return is cleaned rather than refused: it must never keep an outcome from being recorded.
fn check_result(handler: &AnyHandler, result: Box<RawValue>, max: u64) -> Outcome {
    let faults = handler.check_result(&result);
    if let Some((pointer, fault)) = faults.0.first() {
        let message = format!("the result breaks the result schema of '{}': {pointer} {fault}", handler.job_type);
        return Outcome::Failed(Failure::permanent(message));
    }
    if result.get().len() as u64 > max {
        let message =
            format!("result_too_large: the result has {} bytes, the limit is {max} bytes", result.get().len());
        return Outcome::Failed(Failure::permanent(message));
    }
    if json::check_value(result.get().as_bytes()).is_ok() {
        return Outcome::Done(result);
    }
    let cleaned = serde_json::from_str(result.get()).map(without_nul).and_then(|v| serde_json::value::to_raw_value(&v));
    match cleaned {
        Ok(raw) if json::check_value(raw.get().as_bytes()).is_ok() => Outcome::Done(raw),
        Ok(_) | Err(_) => Outcome::Failed(Failure::permanent("the result is no JSON that can be stored")),
    }
}

fn without_nul(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    let clean = |text: String| if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
    match value {
        Value::String(text) => Value::String(clean(text)),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nul).collect()),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (clean(k), without_nul(v))).collect()),
        other => other,
    }
}

struct AbortOnDrop(JoinHandle<Ended>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is told after the commit, kept from the verdict that goes into it.
struct News {
    error: Option<String>,
    delay: Option<Duration>,
}

impl News {
    fn of(verdict: &Verdict) -> Self {
        let (failure, delay) = match verdict {
            Verdict::Retry { failure, delay } => (Some(failure), Some(*delay)),
            Verdict::DeadLetter { failure } => (Some(failure), None),
            Verdict::Complete { .. } | Verdict::Cancel | Verdict::HandBack { .. } => (None, None),
        };
        Self { error: failure.map(|f| f.message.clone()), delay }
    }

    async fn tell(&self, shared: &Shared, job: &Claimed, status: Status) {
        let state = match status {
            Status::Completed => EventState::Completed,
            Status::Failed => EventState::Failed,
            Status::Cancelled => EventState::Cancelled,
            Status::Pending if self.delay.is_some() => EventState::Retrying,
            // Handed back: nothing happened that anyone would want to know.
            Status::Pending | Status::Processing => return,
        };
        let mut event = Event::new(job.id, &job.r#type, state, job.attempt as u16, Some(&shared.id));
        event.error = self.error.as_deref();
        event.delay_seconds = self.delay.map(|d| d.as_secs_f64());
        shared.deps.broker.emit(&[event]).await;
    }
}
