//! Grace for runs outside: nobody could renew their leases while nobody was there to take a sign of life.
//!
//! After an outage every such lease is given its own length once more, by one process for all. Until that is done, or is
//! known to be needless, a process ends no lease that is over. See docs/adr/0028.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{Error, Store};

/// In `duties`: when leases were extended last.
const DUTY: &str = "grace";
/// Beats in a third of a lease are two, so whoever is silent for so long is not there.
const SILENT: u32 = 3;

/// A shorter silence of the database ends no lease.
const STUCK: Duration = Duration::from_secs(1);

/// `$1`: the lease of a worker, and `$2` how long this process has been there, both in ms. `$3`: whether there was an outage
/// whatever others say. `$4`: extended at most once in so many ms.
///
/// A witness was there before this process and is there still, so there was no outage. What others have locked is being
/// renewed or ended. A run whose time was up while nobody listened has as long as a worker's lease to be ended.
const EXTEND: &str = r#"
WITH witness AS MATERIALIZED (
    SELECT FROM workers
    WHERE expires_at > clock_timestamp() AND started_at < clock_timestamp() - $2 * interval '1 millisecond'
      AND coalesce(beat_at, expires_at - $1 * interval '1 millisecond') > clock_timestamp() - $5 * interval '1 millisecond'
), turn AS (
    INSERT INTO duties AS d (name, next_at)
    SELECT $6, clock_timestamp() WHERE $3 OR NOT EXISTS (SELECT FROM witness)
    ON CONFLICT (name) DO UPDATE SET next_at = excluded.next_at
    WHERE d.next_at < clock_timestamp() - $4 * interval '1 millisecond'
    RETURNING name
), held AS MATERIALIZED (
    SELECT id, CASE WHEN deadline < clock_timestamp() THEN clock_timestamp() + $1 * interval '1 millisecond'
                    ELSE deadline END AS deadline
    FROM jobs
    WHERE lease_until IS NOT NULL AND status = 'processing' AND EXISTS (SELECT FROM turn)
    FOR UPDATE SKIP LOCKED
), extended AS (
    UPDATE jobs j
    SET deadline = h.deadline,
        lease_until = greatest(j.lease_until, least(clock_timestamp() + j.lease_ms * interval '1 millisecond', h.deadline))
    FROM held h WHERE j.id = h.id
    RETURNING j.id
)
SELECT (SELECT count(*) FROM witness), (SELECT count(*) FROM turn), (SELECT count(*) FROM extended)"#;

/// Since when this process can't be sure that signs of life arrive. Cheap to clone.
#[derive(Clone)]
pub struct Reach(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    lost: Notify,
    born: Instant,
    /// When a statement was answered last, in ms since then.
    answered: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Whether anybody looks after outages.
    is_watched: bool,
    away_since: Option<Instant>,
}

impl Default for Reach {
    fn default() -> Self {
        let (born, answered) = (Instant::now(), AtomicU64::new(0));
        Self(Arc::new(Inner { state: Mutex::default(), lost: Notify::new(), born, answered }))
    }
}

impl Reach {
    /// From now on somebody looks after outages; this is the first one.
    pub fn watch(&self) {
        *self.lock() = State { is_watched: true, away_since: Some(Instant::now()) };
    }

    /// Something that signs of life need does not answer.
    pub fn lose(&self) {
        self.lose_since(Instant::now());
    }

    /// A statement was answered. If it has waited for long, and no other one was answered meanwhile, the database stood still.
    pub(super) fn note_answer(&self, asked: Instant) {
        let (Inner { born, answered, .. }, now) = (&*self.0, Instant::now());
        let millis = |at: Instant| at.saturating_duration_since(*born).as_millis() as u64;
        let before = Duration::from_millis(answered.swap(millis(now), Ordering::Relaxed));
        let silent_since = *born + before;
        if now - asked > STUCK && now.saturating_duration_since(silent_since) > STUCK {
            self.lose_since(silent_since.max(asked));
        }
    }

    /// As [`Reach::lose`], by a statement that was begun then.
    pub(super) fn lose_since(&self, since: Instant) {
        let mut state = self.lock();
        if state.is_watched && state.away_since.is_none() {
            state.away_since = Some(since);
            drop(state);
            self.0.lost.notify_one();
        }
    }

    /// Everything answers, and leases were extended where that was needed.
    pub fn regain(&self) {
        self.lock().away_since = None;
    }

    /// Since when something does not answer.
    pub fn away_since(&self) -> Option<Instant> {
        self.lock().away_since
    }

    /// Returns when something does not answer any more.
    pub async fn lost(&self) {
        self.0.lost.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of an outage.
#[derive(Clone, Copy, Debug)]
pub enum Outage {
    /// This process has begun so long ago; there was one if nobody was there before.
    Maybe { up: Duration },
    /// This process has seen that for so long nothing arrived.
    Seen { lasted: Duration },
}

/// What became of leases after an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    /// So many were extended.
    Given(i64),
    /// Another process has extended them.
    Done,
    /// A worker that was there before has reported a moment ago.
    Witnessed,
}

impl Store {
    /// Whether runs outside may be ended whose lease is over.
    pub fn may_end_outside(&self) -> bool {
        self.reach.away_since().is_none()
    }

    /// Extends the leases of all runs outside by their own length, if there was an outage and nobody has done so. `lease`: of
    /// this process's worker.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn extend_outside(&self, outage: Outage, lease: Duration) -> Result<Grace, Error> {
        let beat = lease / 6;
        let (up, seen, once_in) = match outage {
            Outage::Maybe { up } => (up, false, up + beat),
            // Not by somebody before the outage, which may have begun a moment after it; all notice its end at about one time.
            Outage::Seen { lasted } => (Duration::ZERO, true, lasted.min(beat) / 2),
        };
        let query = sqlx::query_as(EXTEND)
            .bind(lease.as_millis() as i64)
            .bind(up.as_millis() as i64)
            .bind(seen)
            .bind(once_in.as_millis() as i64)
            .bind((lease / SILENT).as_millis() as i64)
            .bind(DUTY);
        let rows: Vec<(i64, i64, i64)> = self.hot_all("extend leases", query).await?;
        Ok(match rows.first() {
            Some((_, taken, extended)) if *taken > 0 => Grace::Given(*extended),
            Some((witnesses, ..)) if *witnesses > 0 && !seen => Grace::Witnessed,
            _ => Grace::Done,
        })
    }
}

/// How long after its begin a process knows for sure whether anybody was there before: by then whoever had died is silent.
pub fn certain_after(lease: Duration) -> Duration {
    lease / SILENT
}
