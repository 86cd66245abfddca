//! Ends runs whose holder vanished, and tells what became of their jobs: it can't do so itself.

use std::time::Duration;

use tokio::sync::Notify;

use crate::{
    broker::{
        Broker,
        events::{Event, EventState},
    },
    job::{End, EndKind, Status, Verdict, model::JobId},
    store::{
        Error, Store,
        finish::{Recorded, Retried, Settlement},
        sweep::{Freed, SLICE, WakeUp},
    },
};

/// Publishes the end of each lost run, and rings the relay for their wake-ups and dead letters. To be called before the next
/// run of the same job is told.
pub(crate) async fn tell(broker: &Broker, relay: &Notify, freed: &[Freed]) {
    if freed.is_empty() {
        return;
    }
    let events: Vec<Event> = freed.iter().map(event).collect();
    broker.emit(&events).await;
    relay.notify_one();
}

/// Takes those of `ids` whose holder is dead from it, and tells. Returns how many.
pub(crate) async fn free(store: &Store, broker: &Broker, relay: &Notify, ids: &[JobId]) -> Result<usize, Error> {
    let freed = if ids.is_empty() { Vec::new() } else { store.release_lost(ids, WakeUp::Outbox).await? };
    tell(broker, relay, &freed).await;
    Ok(freed.len())
}

/// Ends runs outside that are over by the clock: those whose lease is over go to somebody else, and those that did not stop
/// within `grace` though their job is cancelled are held to be stopped.
pub(crate) async fn end_outside(store: &Store, broker: &Broker, relay: &Notify, grace: Duration) -> Result<(), Error> {
    loop {
        let ended = store.ended_outside(SLICE, grace).await?;
        // Asked after the look, which may be the first after an outage.
        if !store.may_end_outside() {
            return Ok(());
        }
        let of = |cancelled: bool| ended.iter().filter(move |row| row.2 == cancelled);
        let lost: Vec<JobId> = of(false).map(|row| row.0).collect();
        let freed = free(store, broker, relay, &lost).await?;
        for (id, run, _) in of(true) {
            end_cancelled(store, broker, *id, *run).await?;
        }
        if freed > 0 {
            tracing::warn!("freed {freed} jobs that programs outside have not finished in time");
        }
        if ended.len() < SLICE as usize {
            return Ok(());
        }
    }
}

async fn end_cancelled(store: &Store, broker: &Broker, id: JobId, run: i64) -> Result<(), Error> {
    let end = Some(End::unsaid(EndKind::Cancel));
    let settlement = Settlement { id, run, verdict: Verdict::Cancel, wake_up: WakeUp::Outbox, end };
    let recorded = store.finish(&[settlement], Retried::No).await?;
    if recorded == [Recorded::As(Status::Cancelled)]
        && let Some(job) = store.job(id).await?
    {
        let worker = job.worker_id.as_deref();
        broker.emit(&[Event::new(id, &job.r#type, EventState::Cancelled, job.attempt as u16, worker)]).await;
    }
    Ok(())
}

fn event(job: &Freed) -> Event<'_> {
    let (state, delay_seconds) = match job.status {
        Status::Pending | Status::Processing => (EventState::Retrying, Some(0.0)),
        Status::Completed => (EventState::Completed, None),
        Status::Failed => (EventState::Failed, None),
        Status::Cancelled => (EventState::Cancelled, None),
    };
    let event = Event::new(job.id, &job.job_type, state, job.attempt, Some(&job.worker_id));
    Event { error: Some(&job.message), delay_seconds, ..event }
}
