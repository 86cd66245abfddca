//! Tells what became of jobs whose worker vanished: it can't do so itself.

use crate::{
    broker::{
        Broker,
        events::{Event, EventState},
    },
    job::Status,
    store::sweep::Freed,
};

/// Publishes the end of each lost run. To be called before the next run of the same job is told.
pub(crate) async fn tell(broker: &Broker, freed: &[Freed]) {
    let events: Vec<Event> = freed.iter().map(event).collect();
    broker.emit(&events).await;
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
