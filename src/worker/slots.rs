//! How many jobs of a type may be in hand here, and how far ahead of its handlers a worker may claim.
//!
//! A slot is held while a handler runs, and no longer: claiming and recording go on beside it, in large batches. What is
//! claimed ahead has to wait for a slot, so it is no more than what the handlers are going to start within [`AHEAD`], by
//! the pace they have shown: for handlers that take seconds that is nothing, and other workers can have the jobs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// How long a claimed job is expected to wait for a slot, at most.
const AHEAD: Duration = Duration::from_millis(10);
/// Most jobs that are claimed ahead, whatever the pace: a few of the largest statements.
const MOST_AHEAD: usize = 1000;
/// How long a job that was written as started here may be expected to wait for its place.
const IN_LINE: Duration = Duration::from_millis(50);
/// Most jobs that wait so, whatever the pace.
const MOST_IN_LINE: usize = 4000;
/// Outcomes of one type that may wait to be recorded before no further job is begun.
const MOST_UNRECORDED: usize = 4000;
/// Until handlers have shown their pace they are taken to be slow.
const UNKNOWN_PACE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(crate) struct Slots(Arc<Inner>);

struct Inner {
    size: usize,
    free: Arc<Semaphore>,
    /// In hand and not running yet.
    ahead: AtomicUsize,
    /// Run, and not recorded yet.
    unrecorded: AtomicUsize,
    /// How long a handler runs: a moving average, in nanoseconds.
    pace: AtomicU64,
    changed: Notify,
}

/// A job in hand that does not run yet.
pub(crate) struct Place(Arc<Inner>);

/// A job whose handler runs.
pub(crate) struct Slot {
    inner: Arc<Inner>,
    permit: Option<OwnedSemaphorePermit>,
    since: Instant,
}

/// A job whose handler has ended.
pub(crate) struct Unrecorded(Arc<Inner>);

impl Slots {
    pub fn new(size: usize) -> Self {
        Self(Arc::new(Inner {
            size,
            free: Arc::new(Semaphore::new(size)),
            ahead: AtomicUsize::new(0),
            unrecorded: AtomicUsize::new(0),
            pace: AtomicU64::new(UNKNOWN_PACE.as_nanos() as u64),
            changed: Notify::new(),
        }))
    }

    /// A place for one more job; `None` when there is enough in hand. Places are given by one task alone.
    pub fn try_take(&self) -> Option<Place> {
        (self.room() > 0).then(|| {
            self.0.ahead.fetch_add(1, Relaxed);
            Place(self.0.clone())
        })
    }

    /// How many more jobs may be taken in hand.
    pub fn room(&self) -> usize {
        let inner = &self.0;
        if inner.unrecorded.load(Relaxed) >= MOST_UNRECORDED {
            return 0;
        }
        (inner.free.available_permits() + inner.may_be_ahead()).saturating_sub(inner.ahead.load(Relaxed))
    }

    /// How many jobs may wait here for a place.
    pub fn line(&self) -> usize {
        started_within(IN_LINE, self.0.size, self.0.pace()).min(MOST_IN_LINE)
    }

    /// Jobs that it is worth asking the broker for at once, so that a busy worker does not ask for each freed slot.
    pub fn worth_asking(&self) -> usize {
        (self.0.size + self.0.may_be_ahead()) / 4
    }

    /// Returns when there may be more room than at the last call.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

impl Inner {
    fn may_be_ahead(&self) -> usize {
        ahead(self.size, self.pace())
    }

    fn pace(&self) -> Duration {
        Duration::from_nanos(self.pace.load(Relaxed))
    }
}

/// Jobs that may be claimed ahead of `size` handlers of this pace.
fn ahead(size: usize, pace: Duration) -> usize {
    started_within(AHEAD, size, pace).min(MOST_AHEAD)
}

/// Jobs that `size` handlers of this pace start within `span`.
fn started_within(span: Duration, size: usize, pace: Duration) -> usize {
    (size as f64 * span.as_secs_f64() / pace.as_secs_f64().max(1e-6)) as usize
}

impl Place {
    /// Waits for the turn of this job.
    pub async fn slot(self) -> Slot {
        let permit = self.0.free.clone().acquire_owned().await.ok();
        Slot { inner: self.0.clone(), permit, since: Instant::now() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.ahead.fetch_sub(1, Relaxed);
        self.0.changed.notify_one();
    }
}

impl Slot {
    /// The handler has ended.
    pub fn ended(self) -> Unrecorded {
        let ran = self.since.elapsed().as_nanos() as u64;
        // An eighth of the new and the rest of the old; a lost update between two handlers does not matter.
        let pace = self.inner.pace.load(Relaxed);
        self.inner.pace.store(pace - pace / 8 + ran / 8, Relaxed);
        self.inner.unrecorded.fetch_add(1, Relaxed);
        Unrecorded(self.inner.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Back first, so that whoever is woken finds it.
        drop(self.permit.take());
        self.inner.changed.notify_one();
    }
}

impl Drop for Unrecorded {
    fn drop(&mut self) {
        self.0.unrecorded.fetch_sub(1, Relaxed);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_handlers_have_nothing_claimed_ahead_and_quick_ones_a_batch() {
        for (pace, expected) in
            [(Duration::from_secs(10), 0), (Duration::from_secs(1), 1), (Duration::from_millis(10), 100)]
        {
            assert_eq!(ahead(100, pace), expected, "{pace:?}");
        }
        assert_eq!(ahead(100, Duration::from_micros(5)), MOST_AHEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_stands_in_line_for_slow_handlers_and_no_more_than_a_few_statements_for_quick_ones() {
        let slots = Slots::new(10);
        assert_eq!(slots.line(), 0);
        for _ in 0..200 {
            let Some(place) = slots.try_take() else { panic!("a place was lost") };
            let _ = place.slot().await.ended();
        }
        assert_eq!(slots.line(), MOST_IN_LINE);
    }

    #[tokio::test]
    async fn places_are_as_many_as_slots_until_handlers_prove_to_be_quick() {
        let slots = Slots::new(2);
        let places: Vec<_> = std::iter::from_fn(|| slots.try_take()).collect();
        assert_eq!(places.len(), 2);
        for place in places {
            let _ = place.slot().await.ended();
        }
        for _ in 0..200 {
            let Some(place) = slots.try_take() else { panic!("a place was lost") };
            let _ = place.slot().await.ended();
        }
        assert!(slots.room() > 100, "{}", slots.room());
    }

    #[tokio::test]
    async fn a_slot_is_free_again_when_its_handler_has_ended_though_the_outcome_is_not_recorded() {
        let slots = Slots::new(1);
        let first = slots.try_take().unwrap().slot().await;
        assert!(slots.try_take().is_none());
        let unrecorded = first.ended();
        assert!(slots.try_take().is_some());
        drop(unrecorded);
    }
}
