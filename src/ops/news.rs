//! What is told of a run's end, after its commit.

use std::time::Duration;

use crate::{
    broker::{
        Broker,
        events::{Event, EventState},
    },
    job::{Status, Verdict, model::JobId},
};

/// Kept from the verdict, which goes into the commit.
pub(crate) struct News {
    error: Option<String>,
    delay: Option<Duration>,
}

/// The run that is told about.
pub(crate) struct About<'a> {
    pub id: JobId,
    pub job_type: &'a str,
    pub attempt: u16,
    pub worker_id: &'a str,
}

impl News {
    pub fn of(verdict: &Verdict) -> Self {
        let (failure, delay) = match verdict {
            Verdict::Retry { failure, delay } => (Some(failure), Some(*delay)),
            Verdict::DeadLetter { failure } => (Some(failure), None),
            Verdict::Complete { .. } | Verdict::Cancel | Verdict::HandBack { .. } => (None, None),
        };
        Self { error: failure.map(|f| f.message.clone()), delay }
    }

    pub async fn tell(&self, broker: &Broker, about: &About<'_>, status: Status) {
        let state = match status {
            Status::Completed => EventState::Completed,
            Status::Failed => EventState::Failed,
            Status::Cancelled => EventState::Cancelled,
            Status::Pending if self.delay.is_some() => EventState::Retrying,
            // Handed back: nothing happened that anyone would want to know.
            Status::Pending | Status::Processing => return,
        };
        let mut event = Event::new(about.id, about.job_type, state, about.attempt, Some(about.worker_id));
        event.error = self.error.as_deref();
        event.delay_seconds = self.delay.map(|d| d.as_secs_f64());
        broker.emit(&[event]).await;
    }
}
