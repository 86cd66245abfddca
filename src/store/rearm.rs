//! Jobs that may have lost their wake-up, and putting those back into the outbox that have.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Error, Store, marks::Mark};
use crate::job::{Lane, model::JobId};

/// Rows read per statement.
pub const READ: usize = 5_000;
/// A job's id has the time of the clock of whoever made it, which may differ from the database's by so much. Where it
/// differs more, a lost wake-up is found later, when its lane has nothing left.
const CLOCKS: Duration = Duration::from_secs(60);

/// A live job that is due.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Due {
    pub id: JobId,
    #[sqlx(rename = "type")]
    pub job_type: String,
    pub priority: i16,
    #[sqlx(try_from = "super::row::At")]
    pub run_at: DateTime<Utc>,
    /// The transaction that wrote this version of it: each claim and each return writes another.
    pub written_by: i64,
    pub pending: bool,
}

impl Due {
    pub fn lane(&self) -> Lane {
        Lane::of(self.priority)
    }
}

/// `xmin` has the lower half of the number of a transaction; all that is visible is older than the next one.
macro_rules! written_by {
    ($xmin:literal) => {
        concat!(
            "((SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8)
              - (((SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8) - ",
            $xmin,
            "::text::int8) & 4294967295))"
        )
    };
}

/// In the order of an index, and not more than are read. Those that run count as well.
const DUE: &str = concat!(
    "SELECT id, type, priority, run_at, status = 'pending' AS pending, ",
    written_by!("j.xmin"),
    " AS written_by FROM jobs j WHERE run_at < $1 ORDER BY run_at LIMIT $2"
);

/// Live jobs of a type after an id and up to another; `pending` are those that are due before `$4` as well.
const OF_TYPE: &str = concat!(
    "SELECT id, type, priority, run_at, status = 'pending' AND run_at < $4 AS pending, ",
    written_by!("j.xmin"),
    " AS written_by FROM jobs j WHERE type = $1 AND uuid_send(id) > $2 AND uuid_send(id) <= $3
      ORDER BY uuid_send(id) LIMIT $5"
);

/// The row of the lane is locked first: of two sweeps at once the second sees that its mark is too old. `$3` and `$4` are of
/// the mark; a row that was written since then has been woken up otherwise.
const REARM: &str = concat!(
    r#"
WITH lost AS MATERIALIZED (
    SELECT id FROM jobs j WHERE id = ANY ($5) AND status = 'pending' AND run_at <= $4 AND "#,
    written_by!("j.xmin"),
    r#" < $3
), turn AS (
    INSERT INTO rearmed_lanes AS r (lane, sweep, written_by)
    SELECT $1, $2, pg_current_xact_id()::text::int8 WHERE EXISTS (SELECT FROM lost)
    ON CONFLICT (lane) DO UPDATE SET sweep = excluded.sweep, written_by = excluded.written_by
    WHERE r.sweep = excluded.sweep OR r.written_by < $3
    RETURNING lane
), written AS (
    INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
    SELECT gen_random_uuid(), 'wake-up', now(), array_agg(lost.id), array_agg(turn.lane) FROM lost CROSS JOIN turn
    HAVING count(*) > 0
    RETURNING cardinality(job_ids) AS n
)
SELECT coalesce(max(n), 0)::int8 FROM written"#
);

impl Store {
    /// The jobs that have been due since before `before`, the oldest first, up to `limit` of them.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn due_before(&self, before: DateTime<Utc>, limit: usize) -> Result<Vec<Due>, Error> {
        self.hot_all("find due jobs", sqlx::query_as(DUE).bind(before).bind(limit as i64)).await
    }

    /// Up to [`READ`] live jobs of a type by their ids, after one of them, that were created `upto` a time or before.
    /// Pending are only those that have been due since before `before`.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn live_of_type(
        &self,
        job_type: &str,
        after: JobId,
        upto: DateTime<Utc>,
        before: DateTime<Utc>,
    ) -> Result<Vec<Due>, Error> {
        let last = (upto + CLOCKS).timestamp_millis().max(0) as u128;
        let last = Uuid::from_u128((last << 80) | ((1 << 80) - 1));
        let query = sqlx::query_as(OF_TYPE)
            .bind(job_type)
            .bind(after.as_bytes().as_slice())
            .bind(last.as_bytes().as_slice())
            .bind(before)
            .bind(READ as i64);
        self.hot_all("find due jobs of a type", query).await
    }

    /// Puts those of `ids` back into the outbox that are as they were at the `mark`, unless the `lane` (`<type>.<lane>`)
    /// was re-armed since then by another `sweep`. Returns how many.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn rearm(&self, lane: &str, sweep: Uuid, mark: &Mark, ids: &[JobId]) -> Result<i64, Error> {
        let query = sqlx::query_as(REARM).bind(lane).bind(sweep).bind(mark.horizon).bind(mark.at).bind(ids);
        let rows: Vec<(i64,)> = self.hot_all("re-arm jobs", query).await?;
        Ok(rows.first().map_or(0, |row| row.0))
    }
}
