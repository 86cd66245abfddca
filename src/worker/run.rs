//! The life of one prompt: claim, run, settle, record, answer.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{
    sync::SemaphorePermit,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Shared,
    eager::{Prompt, Won},
    record::record,
    running::{InHand, Run, StopCause},
    slots::{Place, Slot},
    unanswered::Unanswered,
};
use crate::{
    broker::{
        Broker,
        pull::{AckHandle, Delivery},
    },
    faults::crash_point,
    handlers::{Ended, RunContext, context::Notes, result},
    job::{
        End, EndKind, Failure, FailureKind, Outcome, Verdict, Work, json::failure_of_payload, model::JobId, settle,
        span::rounded,
    },
    store::{
        claim::{Claim, Claimed, Refused},
        finish::WakeUp,
    },
    supervise::{said, spawn_silent},
    types::Known,
};

/// A delay beyond this is kept in the outbox, not in the broker.
const LONGEST_NAK: Duration = Duration::from_secs(3600);
/// When a message comes again whose row can't be looked at, or whose type is paused.
const LATER: Duration = Duration::from_secs(1);
/// When a suspect comes again while another one is in hand.
const NEXT_SUSPECT: Duration = Duration::from_millis(500);

/// Longest time that a handler has to stop by itself when the service stops: its outcome has to be written, too.
const AT_STOP: Duration = Duration::from_secs(5);

/// How long a claimed job waits for a slot.
const TURN: Duration = Duration::from_secs(1);

/// Carries out what a prompt asks for. Returns when it is answered, or when it must not be.
pub(crate) async fn carry_out(
    shared: Arc<Shared>,
    known: Arc<Known>,
    unanswered: Arc<Unanswered>,
    prompt: Prompt,
    place: Place,
) {
    let (in_hand, job, _turn) = match prompt {
        Prompt::Won(won) if shared.deps.supervisor.is_stopping() => return won.hand_back().await,
        Prompt::Won(Won { in_hand, job }) => (in_hand, job, None),
        Prompt::Message(delivery) => {
            let Some(in_hand) = take(&shared, delivery).await else { return };
            let Some((job, turn)) = claim(&shared, &in_hand.run).await else { return };
            (in_hand, job, turn)
        }
    };
    carry_out_won(&shared, &known, &unanswered, &in_hand.run, job, place).await;
}

async fn take(shared: &Arc<Shared>, delivery: Delivery) -> Option<InHand> {
    let (wake_up, message) = delivery.split();
    let Ok(wake_up) = wake_up else {
        tracing::warn!("removed a message on a job subject that is no wake-up");
        message.term(&shared.deps.broker, "not a wake-up").await;
        return None;
    };
    let in_hand = InHand::new(shared, Run::new(wake_up.id, wake_up.job_type, Some(message)));
    if shared.deps.supervisor.is_stopping() {
        in_hand.run.let_go();
        in_hand.run.nak(&shared.deps.broker, Duration::ZERO).await;
        return None;
    }
    Some(in_hand)
}

/// Wins the job, with what is to be held to the end of its run; or answers its message.
async fn claim<'a>(shared: &'a Shared, run: &Arc<Run>) -> Option<(Box<Claimed>, Option<SemaphorePermit<'a>>)> {
    let mut claim = shared.claims.submit(run.clone()).await.unwrap_or_default();
    let mut turn = None;
    if let Some(Claim::Refused(Refused::Suspect)) = claim
        && let Ok(free) = shared.suspect.try_acquire()
    {
        turn = Some(free);
        // Boxed, like all that is rare here: a task is as large as the largest thing that it may ever wait for.
        let claimed = Box::pin(super::claims::claim_alone(shared, run)).await;
        claim = claimed.inspect_err(|e| e.tell("could not claim")).unwrap_or_default();
    }
    if let Some(Claim::Won(job)) = claim {
        return Some((job, turn));
    }
    run.let_go();
    let broker = &shared.deps.broker;
    if let (Some(Claim::Refused(refused)), Some(message)) = (claim, &run.message) {
        Box::pin(put_off(broker, message, run.id, refused, shared.deps.config.worker.lease)).await;
    } else {
        run.nak(broker, LATER).await;
    }
    None
}

async fn carry_out_won(
    shared: &Shared,
    known: &Known,
    unanswered: &Unanswered,
    run: &Arc<Run>,
    job: Box<Claimed>,
    place: Place,
) {
    let (outcome, _unrecorded) = match slot_for(shared, run, place).await {
        Ok(slot) => {
            crash_point("before_handler");
            run.begin();
            let outcome = match run_handler(shared, known, run, &job).await {
                Over::Settled(outcome) => outcome,
                Over::Crashed => return,
                Over::Outside { left } => return Box::pin(leave_outside(shared, known, run, &job, left)).await,
            };
            (outcome, Some(slot.ended()))
        }
        Err(outcome) => (outcome, None),
    };
    run.note_end();
    crash_point("after_effect");
    // What the handler said last belongs to the record as well.
    super::running::write_notes_of(shared, run).await;
    let attempt = job.attempt as u16;
    let end = end_for_row(known.handler.work, &outcome, run.said.get());
    let verdict = settle(attempt, job.max_attempts as u16, &known.settings.retry, outcome, rand::random());
    let in_outbox = |delay: Duration| {
        run.message.is_none() || delay > LONGEST_NAK || !delay.is_zero() && unanswered.runs_short(job.lane())
    };
    let wake_up = match &verdict {
        Verdict::Retry { delay, .. } | Verdict::HandBack { delay } if in_outbox(*delay) => WakeUp::Outbox,
        Verdict::Retry { .. } | Verdict::HandBack { .. } => {
            // Now and not when it is recorded: those that are recorded together would not know of one another.
            unanswered.note(job.lane());
            WakeUp::NotNeeded
        }
        // It goes back after all when nobody has asked for the cancellation.
        Verdict::Cancel if run.message.is_none() => WakeUp::Outbox,
        Verdict::Complete { .. } | Verdict::DeadLetter { .. } | Verdict::Cancel => WakeUp::NotNeeded,
    };
    record(shared, run, &job, verdict, wake_up, end).await;
}

/// How a run ended for its row, where a program outside did it.
fn end_for_row(work: Work, outcome: &Outcome, said: Option<&End>) -> Option<End> {
    match work {
        Work::Nats | Work::Http => {}
        Work::Builtin | Work::Embedded | Work::Pull => return None,
    }
    Some(match (outcome, said) {
        (Outcome::Cancelled, _) => End::unsaid(EndKind::Cancel),
        (Outcome::Interrupted { .. }, Some(said)) if said.kind == EndKind::Release => *said,
        (Outcome::Interrupted { .. }, _) => End::unsaid(EndKind::Release),
        (Outcome::Done(_) | Outcome::Failed(_), Some(said)) => *said,
        (Outcome::Failed(failure), None) => End::failure(failure),
        (Outcome::Done(result), None) => End::result(result),
    })
}

/// The turn of a claimed job; or what becomes of it when it is stopped before, or its turn does not come: others may have
/// a slot for it.
async fn slot_for(shared: &Shared, run: &Run, place: Place) -> Result<Slot, Outcome> {
    tokio::select! {
        biased;
        slot = place.slot() => match shared.lease.is_current() {
            true => Ok(slot),
            // This process stood still, or the database is away: others may have the job by now.
            false => Err(Outcome::Interrupted { delay: Duration::ZERO }),
        },
        _ = run.token.cancelled() => Err(by_cause(Some(CUT_OFF), run.cause()).unwrap_or(CUT_OFF)),
        _ = sleep(TURN) => Err(Outcome::Interrupted { delay: Duration::ZERO }),
    }
}

/// Answers a message whose claim was refused. `lease`: how long the holder of a job may be silent.
pub(crate) async fn put_off(broker: &Broker, ack: &AckHandle, id: JobId, refused: Refused, lease: Duration) {
    match refused {
        Refused::Over => ack.ack(broker).await,
        // Half a millisecond on top, so that rounding never makes it early a second time.
        Refused::NotDue(remaining) if remaining <= LONGEST_NAK => {
            ack.nak(broker, remaining + Duration::from_micros(500)).await;
        }
        Refused::NotDue(_) => ack.nak(broker, LONGEST_NAK).await,
        Refused::Paused => ack.nak(broker, LATER).await,
        // Not claimed, so that it loses no attempt if the one in hand kills this worker, too.
        Refused::Suspect => ack.nak(broker, NEXT_SUSPECT).await,
        // Kept as a hint for the case that the holder dies: by then its lease is over.
        Refused::Held => ack.nak(broker, lease).await,
        // It was noted what the database says of it; somebody has to look after it first.
        Refused::Harmed => ack.nak(broker, lease).await,
        Refused::Mismatch => {
            tracing::warn!(job.id = %id, "removed a message whose type is not its job's");
            ack.term(broker, "type differs from the job's").await;
        }
    }
}

async fn run_handler(shared: &Shared, known: &Known, run: &Run, job: &Claimed) -> Over {
    // One that starts where it was asked for was looked at there.
    if run.message.is_some()
        && let Some(failure) = failure_of_payload(job.payload.0.get())
    {
        return Over::Settled(Outcome::Failed(failure));
    }
    let timeout = job.timeout_ms.map_or(known.settings.timeout, |ms| Duration::from_millis(ms.unsigned_abs()));
    let notes = Arc::new(Notes::with_checkpoint(job.checkpoint.as_ref().map(|c| c.0.clone())));
    *run.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes.clone();
    let ctx = RunContext {
        job_id: job.id,
        job_type: known.handler.job_type.clone(),
        attempt: job.attempt as u16,
        max_attempts: job.max_attempts as u16,
        run: job.run,
        trace: job.trace(),
        deadline: Instant::now() + timeout,
        cancel: run.token.clone(),
        notes,
    };
    let (handler, payload, deadline) = (known.handler.clone(), job.payload.0.clone(), ctx.deadline);
    // A task of its own: a handler that panics or blocks its thread must not take the bookkeeping along.
    let mut task = AbortOnDrop(spawn_silent(Box::pin(async move { handler.run(&ctx, &payload).await })));
    tokio::select! {
        biased;
        // Also when the handler obeyed so promptly that its end is seen first.
        ended = &mut task.0 => end_of(by_cause(judge(shared, known, run, ended), run.cause()), deadline),
        _ = run.token.cancelled() => match run.cause() {
            // Whoever does it need not hear of a deploy.
            Some(StopCause::Drain) if known.handler.work == Work::Nats => end_of(None, deadline),
            Some(StopCause::Crash) => Over::Crashed,
            _ => end_of(Box::pin(stopped(shared, known, run, &mut task)).await, deadline),
        },
        _ = sleep_until(deadline) => {
            let message = format!("the attempt took longer than its timeout of {}", rounded(timeout));
            Over::Settled(Outcome::Failed(Failure::new(FailureKind::Timeout, message)))
        }
    }
}

/// Gives the handler a moment to end by itself; its own result counts if it has one.
async fn stopped(shared: &Shared, known: &Known, run: &Run, task: &mut AbortOnDrop) -> Option<Outcome> {
    let grace = shared.deps.config.worker.cancel_grace;
    let grace = if run.cause() == Some(StopCause::Drain) { grace.min(AT_STOP) } else { grace };
    let by_itself = tokio::select! {
        ended = &mut task.0 => judge(shared, known, run, ended)?,
        _ = sleep(grace) => CUT_OFF,
    };
    // Without a cause nobody could have cancelled the token.
    by_cause(Some(by_itself), run.cause().or(Some(StopCause::Cancel)))
}

/// Had to be stopped: whatever it would have said.
const CUT_OFF: Outcome = Outcome::Cancelled;

/// What a run that was asked to stop says of itself is no failure of the job; a result counts all the same. `None`: it goes
/// on outside.
fn by_cause(by_itself: Option<Outcome>, cause: Option<StopCause>) -> Option<Outcome> {
    Some(match (by_itself?, cause) {
        (done @ Outcome::Done(_), _) => done,
        (ended, None) => ended,
        (_, Some(StopCause::Drain | StopCause::Crash)) => Outcome::Interrupted { delay: Duration::ZERO },
        (_, Some(StopCause::Cancel)) => Outcome::Cancelled,
    })
}

/// How a run ended for this worker.
enum Over {
    Settled(Outcome),
    /// Nobody here may say anything more of it.
    Crashed,
    /// A program outside goes on with it, for so long at most.
    Outside {
        left: Duration,
    },
}

fn end_of(outcome: Option<Outcome>, deadline: Instant) -> Over {
    match outcome {
        Some(outcome) => Over::Settled(outcome),
        None => Over::Outside { left: deadline.saturating_duration_since(Instant::now()) },
    }
}

/// Lets a program outside go on alone. Its message has done its work: should the lease end, the sweep finds the job.
async fn leave_outside(shared: &Shared, known: &Known, run: &Arc<Run>, job: &Claimed, left: Duration) {
    super::running::write_notes_of(shared, run).await;
    let mut pause = Duration::from_millis(50);
    // Not before that is written: the job would be nobody's for as long as this worker lives.
    let ours = loop {
        match shared.deps.store.leave_outside(job.id, job.run, left, known.heartbeat, Duration::ZERO).await {
            Ok(ours) => break ours,
            // Its holder repeats what it has to say, and this worker's lease ends.
            Err(_) if shared.tasks.is_cut_off() => return,
            // Its lease is this worker's, which ends.
            Err(_) if run.cause() == Some(StopCause::Crash) => return,
            Err(e) => {
                e.tell("could not leave a run outside, trying again");
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    };
    run.settle();
    run.let_go();
    // Else it is over already, or somebody else's, and the message with it.
    if ours {
        run.ack(&shared.deps.broker).await;
    }
}

/// `None`: it goes on outside.
fn judge(shared: &Shared, known: &Known, run: &Run, ended: Result<Ended, tokio::task::JoinError>) -> Option<Outcome> {
    let of_outside = matches!(known.handler.work, Work::Nats | Work::Http);
    if let (true, Ok(ended)) = (of_outside, &ended)
        && let Some(end) = ended.end()
    {
        // Of what was said, and not of what becomes of it.
        let _ = run.said.set(end);
    }
    Some(match ended {
        Ok(Ended::Done(result)) => result::accept(&known.handler, result, shared.deps.config.limits.result.as_u64()),
        Ok(Ended::Failed(failure)) => Outcome::Failed(failure),
        Ok(Ended::Released(delay)) => Outcome::Interrupted { delay },
        Ok(Ended::Outside) => return None,
        Err(e) => {
            let panic = e.try_into_panic().ok();
            let said = panic.as_ref().map_or("no message", |panic| said(&**panic));
            tracing::error!(job.id = %run.id, "the handler of job {} panicked: {said}", run.id);
            let message = format!("the handler panicked: {said}");
            Outcome::Failed(Failure::new(FailureKind::Panic, message))
        }
    })
}

struct AbortOnDrop(JoinHandle<Ended>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_run_is_small_since_there_are_thousands_and_each_is_copied_when_it_starts() {
        let size = size_of_future(carry_out);
        assert!(size <= 2048, "{size} bytes: box what a run seldom waits for");
    }
}
