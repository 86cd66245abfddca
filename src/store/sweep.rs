//! Repairing what crashes and a forgetful broker left behind.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use super::finish::WakeUp;
use super::{
    Error, Store,
    finish::{Recorded, Retried, Settlement},
};
use crate::faults::{self, Mutant};
use crate::job::{End, EndKind, Failure, FailureKind, Status, Verdict};

/// Jobs freed or put back into the outbox per statement, so that no statement holds locks for long.
pub const SLICE: i64 = 1000;

/// Jobs of dead workers; a worker's death is its lease's end by the database's clock. Not those whose time is up as well:
/// they end as too late ([`Store::ended_outside`]).
const LOST: &str = r#"
SELECT j.id, j.type, j.run, j.attempt, j.max_attempts, j.worker_id
FROM jobs j LEFT JOIN workers w ON w.id = j.worker_id
WHERE j.id = ANY($1) AND j.status = 'processing' AND (j.lease_until IS NULL OR $2)
  AND coalesce(j.lease_until, w.expires_at, '-infinity') < clock_timestamp()
  AND (j.deadline IS NULL OR j.deadline > clock_timestamp())"#;

const HELD_BY_DEAD: &str = r#"
SELECT j.id FROM jobs j WHERE j.status = 'processing' AND j.lease_until IS NULL
   AND j.worker_id IN (SELECT id FROM workers WHERE expires_at < clock_timestamp()) LIMIT $1"#;

macro_rules! over {
    ($when:literal) => {
        concat!(
            "SELECT id, type, run, attempt, max_attempts, worker_id, timeout_ms, cancel_requested_at IS NOT NULL AS cancelled,
                    deadline <= clock_timestamp() IS TRUE AS too_late
             FROM jobs WHERE lease_until IS NOT NULL AND status = 'processing' AND ",
            $when,
            " LIMIT $1"
        )
    };
}

/// Runs outside whose lease is over, or which did not stop though their job was cancelled `$2` ms ago.
const ENDED_OUTSIDE: &str = over!(
    "(lease_until < clock_timestamp() OR cancel_requested_at < clock_timestamp() - $2 * interval '1 millisecond')"
);

/// Runs outside whose time is up. By the time of the statement's begin: only that is looked up in the index.
const TOO_LATE: &str = over!("lease_until < now() AND deadline <= now()");

/// A run outside that is over by the clock.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Over {
    #[sqlx(flatten)]
    pub run: LostRun,
    pub timeout_ms: Option<i64>,
    /// Its job is cancelled.
    pub cancelled: bool,
    /// Its deadline has passed, and not only its lease.
    pub too_late: bool,
}

/// A run whose holder is not going to end it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct LostRun {
    pub id: Uuid,
    pub r#type: String,
    pub run: i64,
    pub attempt: i16,
    pub max_attempts: i16,
    pub worker_id: String,
}

/// A job whose run was lost, and which was taken from its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed {
    pub id: Uuid,
    pub job_type: String,
    /// The attempt that was lost, and who held it.
    pub attempt: u16,
    pub worker_id: String,
    /// What is recorded as its error.
    pub message: String,
    /// Where the job stands now.
    pub status: Status,
}

impl Store {
    /// Frees those of `ids` whose holder is dead: the lost run is recorded as an error, and the job goes back to
    /// pending, or to its end when that was its last attempt. Returns those that were freed, to be told.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn release_lost(&self, ids: &[Uuid], wake_up: WakeUp) -> Result<Vec<Freed>, Error> {
        let expired = "AND coalesce(j.lease_until, w.expires_at, '-infinity') < clock_timestamp()";
        let find = faults::statement(Mutant::LeaseIgnored, LOST, expired, "");
        let find = sqlx::query_as(find).bind(ids).bind(self.may_end_outside());
        let lost: Vec<LostRun> = self.hot_all("find lost runs", find).await?;
        let message = |row: &LostRun| format!("the worker {} vanished during attempt {}", row.worker_id, row.attempt);
        self.end_lost(lost, message, wake_up).await
    }

    /// Ends runs as lost: each becomes an error with that message, and its job goes back to pending, or to its end when that
    /// was its last attempt. Returns those that were still held, to be told.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn end_lost(
        &self,
        mut lost: Vec<LostRun>,
        message: impl Fn(&LostRun) -> String,
        wake_up: WakeUp,
    ) -> Result<Vec<Freed>, Error> {
        lost.sort_by_key(|row| row.id);
        let settle = |row: &LostRun| {
            let failure = Failure::new(FailureKind::Lost, message(row));
            let verdict = if row.attempt < row.max_attempts {
                Verdict::Retry { failure, delay: Duration::ZERO }
            } else {
                Verdict::DeadLetter { failure }
            };
            let end = Some(End::unsaid(EndKind::Lost));
            Settlement { id: row.id, run: row.run, verdict, wake_up, end }
        };
        let settlements: Vec<_> = lost.iter().map(settle).collect();
        let recorded = self.finish_each(&settlements, Retried::No).await?;
        let freed = |(row, recorded): (LostRun, Option<Recorded>)| match recorded {
            Some(Recorded::As(status)) => Some(Freed {
                id: row.id,
                message: message(&row),
                job_type: row.r#type,
                attempt: row.attempt as u16,
                worker_id: row.worker_id,
                status,
            }),
            // Somebody else was quicker, or it can't be ended.
            Some(Recorded::LeaseLost) | None => None,
        };
        Ok(lost.into_iter().zip(recorded).filter_map(freed).collect())
    }

    /// Sends runs that never began back to pending; their attempts are not spent.
    ///
    /// # Errors
    /// As for every statement; to be repeated then.
    pub async fn hand_back(&self, runs: &[LostRun]) -> Result<(), Error> {
        let back = |row: &LostRun| Settlement {
            id: row.id,
            run: row.run,
            verdict: Verdict::HandBack { delay: Duration::ZERO },
            // The message may have been lost together with the answer, and who was started when written had none.
            wake_up: WakeUp::Outbox,
            end: None,
        };
        let settlements: Vec<_> = runs.iter().map(back).collect();
        self.finish_each(&settlements, Retried::No).await.map(|_| ())
    }

    /// Up to `limit` jobs whose worker has a lease that ran out.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn held_by_dead_workers(&self, limit: i64) -> Result<Vec<Uuid>, Error> {
        if faults::has(Mutant::NoTakeOver) {
            return Ok(Vec::new());
        }
        let find = faults::statement(Mutant::LeaseIgnored, HELD_BY_DEAD, "WHERE expires_at < clock_timestamp()", "");
        let rows: Vec<(Uuid,)> = self.read_all("find jobs of dead workers", sqlx::query_as(find).bind(limit)).await?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// Up to `limit` runs outside that are over by the clock. A cancelled one may take `grace` to stop by itself.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn ended_outside(&self, limit: i64, grace: Duration) -> Result<Vec<Over>, Error> {
        let query = sqlx::query_as(ENDED_OUTSIDE).bind(limit).bind(grace.as_millis() as i64);
        self.read_all("find runs outside that are over", query).await
    }

    /// Up to `limit` runs outside whose time is up.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn too_late_outside(&self, limit: i64) -> Result<Vec<Over>, Error> {
        self.read_all("find runs outside whose time is up", sqlx::query_as(TOO_LATE).bind(limit)).await
    }

    /// Whether any worker's lease has run out; the cheap question before [`Store::held_by_dead_workers`].
    ///
    /// # Errors
    /// As for every statement.
    pub async fn has_dead_workers(&self) -> Result<bool, Error> {
        let any = "SELECT EXISTS (SELECT FROM workers WHERE expires_at < clock_timestamp())";
        let any = faults::statement(Mutant::LeaseIgnored, any, "WHERE expires_at < clock_timestamp()", "");
        let rows: Vec<(bool,)> = self.read_all("find dead workers", sqlx::query_as(any)).await?;
        Ok(rows.first().is_some_and(|row| row.0))
    }

    /// Removes workers that died long ago and hold nothing.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn forget_dead_workers(&self) -> Result<(), Error> {
        let forget = "DELETE FROM workers w WHERE expires_at < clock_timestamp() - interval '10 minutes'
                      AND NOT EXISTS (SELECT FROM jobs j WHERE j.worker_id = w.id) RETURNING id";
        self.read_all::<(String,)>("forget dead workers", sqlx::query_as(forget)).await.map(|_| ())
    }

    /// The database's time, the only one that decides anything.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn now(&self) -> Result<DateTime<Utc>, Error> {
        let now: Vec<(DateTime<Utc>,)> =
            self.read_all("read the clock", sqlx::query_as("SELECT clock_timestamp()")).await?;
        Ok(now.first().map_or(DateTime::UNIX_EPOCH, |row| row.0))
    }

    /// Types that have live jobs.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn live_types(&self) -> Result<Vec<String>, Error> {
        let types = "SELECT type FROM (SELECT type, status, n FROM job_counts UNION ALL
                     SELECT type, status, n FROM job_count_deltas) c
                     WHERE status = 'pending' GROUP BY type HAVING sum(n) > 0";
        let rows: Vec<(String,)> = self.read_all("list live types", sqlx::query_as(types)).await?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }
}
