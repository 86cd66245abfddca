//! Whether anybody answers for a type, as this process has seen.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{broker::Broker, job::JobType, store::Store};

/// First and longest time until a job of a type without a handler is offered again. Source: docs/protocol.md.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15);

/// Kept per type. Nobody is there only once a request has found nobody.
pub(super) struct Presence {
    job_type: JobType,
    store: Store,
    broker: Broker,
    away: Mutex<Option<Away>>,
}

struct Away {
    since: Instant,
    /// When one more request may find out whether that still holds.
    look: Instant,
}

impl Presence {
    pub fn new(job_type: JobType, store: Store, broker: Broker) -> Self {
        Self { job_type, store, broker, away: Mutex::default() }
    }

    /// A request found nobody: how long its job waits for the next offer.
    pub async fn nobody(&self) -> Duration {
        let now = Instant::now();
        let (delay, news) = {
            let mut away = self.lock();
            let since = away.as_ref().map_or(now, |away| away.since);
            let delay = patience(now - since);
            let news = away.is_none();
            *away = Some(Away { since, look: now + delay });
            (delay, news)
        };
        if news {
            tracing::warn!("nobody answers for jobs of the type '{}'; they wait for a handler", self.job_type);
            self.note(true).await;
        }
        delay
    }

    /// A handler has shown itself.
    pub async fn somebody(&self) {
        if self.lock().take().is_some() {
            tracing::info!("jobs of the type '{}' have a handler again", self.job_type);
            self.note(false).await;
        }
    }

    /// How many more jobs it is worth beginning: all, one to see whether somebody is back, or none. To ask changes nothing:
    /// it is the request that finds nobody which puts the next look off.
    pub fn room(&self) -> usize {
        self.lock().as_ref().map_or(usize::MAX, |away| away.room(Instant::now()))
    }

    /// A request is sent: until it has its answer no other one need find out whether somebody is there.
    pub fn asked(&self) {
        if let Some(away) = &mut *self.lock() {
            away.asked(Instant::now());
        }
    }

    /// So that every replica can say so. If it can't be noted, the next request that finds nobody says it again.
    async fn note(&self, unattended: bool) {
        let name = self.job_type.as_str();
        match self.store.set_unattended(name, unattended).await {
            Ok(()) => self.broker.signal_types_changed(name).await,
            Err(e) => tracing::debug!("could not note who answers for '{name}': {e}"),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Away>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Away {
    fn room(&self, now: Instant) -> usize {
        usize::from(self.look <= now)
    }

    fn asked(&mut self, now: Instant) {
        self.look = now + patience(now - self.since);
    }
}

/// A second at first: the longer nobody is there the rarer it is tried.
fn patience(away: Duration) -> Duration {
    (away / 4).clamp(FIRST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_see_whether_there_is_room_takes_none_of_it() {
        let since = Instant::now();
        let mut away = Away { since, look: since + FIRST };
        assert_eq!(away.room(since), 0);
        for _ in 0..3 {
            assert_eq!(away.room(since + FIRST), 1);
        }
        away.asked(since + FIRST);
        assert_eq!((away.room(since + FIRST), away.room(since + FIRST * 2)), (0, 1));
    }

    #[test]
    fn the_longer_nobody_is_there_the_rarer_it_is_tried() {
        for (away, seconds) in [(0, 1), (4, 1), (40, 10), (600, 15)] {
            assert_eq!(patience(Duration::from_secs(away)).as_secs(), seconds);
        }
    }
}
