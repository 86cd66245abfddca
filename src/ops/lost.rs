//! Ends runs whose holder vanished or whose time is up, and tells what became of their jobs: the holder can't do so itself.

use std::time::Duration;

use tokio::sync::Notify;

use crate::{
    broker::{
        Broker,
        events::{Event, EventState},
    },
    job::{End, EndKind, Failure, FailureKind, Outcome, Status, Verdict, model::JobId, settle, span::rounded},
    ops::news::{About, News},
    store::{
        Error, Store,
        finish::{Recorded, Retried, Settlement},
        sweep::{Freed, Over, SLICE, WakeUp},
    },
    types::Types,
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

/// Who ends runs outside that are over by the clock.
pub(crate) struct Ender<'a> {
    pub store: &'a Store,
    pub broker: &'a Broker,
    pub relay: &'a Notify,
    pub types: &'a Types,
}

impl Ender<'_> {
    /// Ends those whose lease is over, which go to somebody else, those whose time is up, and those that did not stop within
    /// `grace` though their job is cancelled.
    pub async fn end_all(&self, grace: Duration) -> Result<(), Error> {
        loop {
            let over = self.store.ended_outside(SLICE, grace).await?;
            // Asked after the look, which may be the first after an outage.
            if !self.store.may_end_outside() {
                return Ok(());
            }
            // None that could be ended: these would be found for ever.
            if self.end(&over).await? == 0 || over.len() < SLICE as usize {
                return Ok(());
            }
        }
    }

    /// Ends those whose time is up.
    pub async fn end_too_late(&self) -> Result<(), Error> {
        loop {
            let over = self.store.too_late_outside(SLICE).await?;
            if !self.store.may_end_outside() {
                return Ok(());
            }
            // None that could be ended: these would be found for ever.
            if self.end(&over).await? == 0 || over.len() < SLICE as usize {
                return Ok(());
            }
        }
    }

    /// Returns how many were ended by this.
    async fn end(&self, over: &[Over]) -> Result<usize, Error> {
        let lost: Vec<JobId> =
            over.iter().filter(|over| !over.cancelled && !over.too_late).map(|over| over.run.id).collect();
        let freed = free(self.store, self.broker, self.relay, &lost).await?;
        if freed > 0 {
            tracing::warn!("freed {freed} jobs that programs outside have not finished in time");
        }
        let ended: Vec<&Over> = over.iter().filter(|over| over.cancelled || over.too_late).collect();
        if ended.is_empty() {
            return Ok(freed);
        }
        let settlements: Vec<Settlement> = ended.iter().map(|over| self.settle(over)).collect();
        let news: Vec<News> = settlements.iter().map(|settlement| News::of(&settlement.verdict)).collect();
        let recorded = self.store.finish_each(&settlements, Retried::No).await?;
        let mut n = freed;
        for ((Over { run, .. }, news), recorded) in ended.into_iter().zip(news).zip(recorded) {
            // Else somebody was quicker, or it can't be ended.
            if let Some(Recorded::As(status)) = recorded {
                n += 1;
                let about =
                    About { id: run.id, job_type: &run.r#type, attempt: run.attempt as u16, worker_id: &run.worker_id };
                news.tell(self.broker, &about, status).await;
            }
        }
        self.relay.notify_one();
        Ok(n)
    }

    fn settle(&self, Over { run, timeout_ms, cancelled, .. }: &Over) -> Settlement {
        let (kind, verdict) = if *cancelled {
            (EndKind::Cancel, Verdict::Cancel)
        } else {
            let types = self.types.now();
            let settings = types.get(&run.r#type).map(|known| &known.settings);
            let of_job = timeout_ms.map(|ms| Duration::from_millis(ms.unsigned_abs()));
            let outcome = Outcome::Failed(too_late(of_job.or(settings.map(|settings| settings.timeout))));
            let policy = settings.map(|settings| settings.retry.clone()).unwrap_or_default();
            (EndKind::Timeout, settle(run.attempt as u16, run.max_attempts as u16, &policy, outcome, rand::random()))
        };
        let end = Some(End::unsaid(kind));
        Settlement { id: run.id, run: run.run, verdict, wake_up: WakeUp::Outbox, end }
    }
}

/// The failure of a run whose time is up.
fn too_late(timeout: Option<Duration>) -> Failure {
    let of = timeout.map(|span| format!(" of {}", rounded(span))).unwrap_or_default();
    Failure::new(FailureKind::Timeout, format!("the attempt took longer than its timeout{of}"))
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
