//! Partitions of finished jobs: made ahead, dropped when their day is past its retention.

use std::time::Duration;

use chrono::NaiveDate;
use sqlx::AssertSqlSafe;

use super::{Error, Store};
use crate::job::Status;

/// Days for which partitions are made ahead.
const AHEAD: i32 = 7;

/// The children are looked up apart: else the planner may read a day from the name of any table that there is.
const EXPIRED: &str = r#"
WITH children AS MATERIALIZED (
    SELECT child.relname::text AS name, i.inhdetachpending AS detaching
    FROM pg_inherits i JOIN pg_class child ON child.oid = i.inhrelid
    WHERE i.inhparent = ('finished_' || $1)::regclass
)
SELECT name, to_date(right(name, 8), 'YYYYMMDD'), detaching FROM children
WHERE to_date(right(name, 8), 'YYYYMMDD') < (now() AT TIME ZONE 'UTC')::date - $2 ORDER BY 2"#;

impl Store {
    /// Makes the partitions of today and the coming days.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn make_partitions(&self) -> Result<(), Error> {
        let make = "SELECT make_finished_partitions((now() AT TIME ZONE 'UTC')::date + d)::text FROM generate_series(0, $1) AS d";
        self.read_all::<(String,)>("make partitions", sqlx::query_as(make).bind(AHEAD)).await.map(|_| ())
    }

    /// Drops the days of `status` that are older than `keep`, and takes them off the counts. Returns the days dropped.
    ///
    /// # Errors
    /// As for every statement, once all days were tried; what was dropped stays dropped.
    pub async fn drop_expired(&self, status: Status, keep: Duration) -> Result<Vec<NaiveDate>, Error> {
        let days = i32::try_from(keep.as_secs().div_ceil(24 * 3600)).unwrap_or(i32::MAX / 2);
        let query = sqlx::query_as(EXPIRED).bind(status.as_str()).bind(days);
        let expired: Vec<(String, NaiveDate, bool)> = self.read_all("find expired days", query).await?;
        let (mut dropped, mut all) = (Vec::new(), Ok(()));
        for (child, day, half_done) in expired {
            match self.drop_day(status, &child, day, half_done).await {
                Ok(()) => dropped.push(day),
                Err(e) => all = all.and(Err(e)),
            }
        }
        all.map(|()| dropped)
    }

    async fn drop_day(&self, status: Status, child: &str, day: NaiveDate, half_done: bool) -> Result<(), Error> {
        let parent = format!("finished_{status}");
        // CONCURRENTLY, so that nobody who reads or finishes jobs waits; a crash in between leaves it pending.
        let how = if half_done { "FINALIZE" } else { "CONCURRENTLY" };
        self.admin(format!("ALTER TABLE {parent} DETACH PARTITION \"{child}\" {how}")).await?;
        let take_off = "WITH a AS (DELETE FROM job_counts WHERE status = $1 AND day = $2 RETURNING 1),
                        b AS (DELETE FROM job_count_deltas WHERE status = $1 AND day = $2 RETURNING 1)
                        SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b)";
        self.read_all::<(i64,)>("take a day off the counts", sqlx::query_as(take_off).bind(status.as_str()).bind(day))
            .await?;
        self.admin(format!("DROP TABLE \"{child}\"")).await
    }

    /// Removes idempotency keys whose job is past its retention. Returns how many; call again while it is `slice`.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn forget_keys(&self, older_than: Duration, slice: i64) -> Result<usize, Error> {
        let forget = "DELETE FROM job_keys WHERE key IN (
                          SELECT key FROM job_keys k WHERE created_at < now() - $1 * interval '1 second'
                          AND NOT EXISTS (SELECT FROM all_jobs j WHERE j.id = k.job_id) ORDER BY created_at LIMIT $2)
                      RETURNING job_id";
        let query = sqlx::query_as(forget).bind(older_than.as_secs() as i64).bind(slice);
        Ok(self.read_all::<(uuid::Uuid,)>("forget old keys", query).await?.len())
    }

    async fn admin(&self, sql: String) -> Result<(), Error> {
        let failed = |e| Error::of("retention", e);
        let mut connection = self.reads().acquire().await.map_err(failed)?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await.map(|_| ()).map_err(failed)
    }
}
