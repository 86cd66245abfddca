//! Retrying by hand: a failed or cancelled job comes back with a fresh budget of attempts, with its history, its trace and what
//! its last run has kept.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{
    Error, Store,
    columns::{kept, last_end},
    places,
};

/// The run number is kept, so that a late write of an old run stays recognisable. `{place}` names the partition.
const RETRY: &str = concat!(
    r#"
WITH back AS (
    DELETE FROM finished_jobs WHERE id = $1 AND {place} AND ($4::text IS NULL OR type = $4) RETURNING *
), live AS (
    INSERT INTO jobs (errors, "#,
    concat!(kept!(), ", ", last_end!()),
    r#")
    SELECT errors, "#,
    concat!(kept!(), ", ", last_end!()),
    r#" FROM back
    RETURNING id, type || CASE sign(priority) WHEN 1 THEN '.high' WHEN 0 THEN '.normal' ELSE '.low' END AS target
), armed AS (
    INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
    SELECT $2, 'wake-up', now() + $3 * interval '1 millisecond', ARRAY[id], ARRAY[target] FROM live
), counted AS (
    INSERT INTO job_count_deltas (type, status, day, n)
    SELECT type, status, (finished_at AT TIME ZONE 'UTC')::date, -1 FROM back
    UNION ALL SELECT type, 'pending', 'epoch', 1 FROM back
)
SELECT target FROM live"#
);

impl Store {
    /// Puts a failed or cancelled job back to pending. Returns the outbox row of its wake-up and its target
    /// (`<type>.<lane>`), or `None` when there is no such job in one of these states (and of that type).
    ///
    /// # Errors
    /// As for every statement.
    pub async fn retry(
        &self,
        id: Uuid,
        job_type: Option<&str>,
        publish_grace: Duration,
    ) -> Result<Option<(Uuid, String)>, Error> {
        let place = self.places(&[id]).await?.pop();
        let Some(place) = place.filter(|place| ["failed", "cancelled"].contains(&place.status.as_str())) else {
            return Ok(None);
        };
        let outbox_id = Uuid::now_v7();
        let retry = RETRY.replace("{place}", &places::within(&place));
        let query = sqlx::query_as(AssertSqlSafe(retry))
            .persistent(false)
            .bind(id)
            .bind(outbox_id)
            .bind(publish_grace.as_millis() as i64)
            .bind(job_type);
        let rows: Vec<(String,)> = self.hot_answer("retry by hand", query).await?;
        Ok(rows.into_iter().next().map(|(target,)| (outbox_id, target)))
    }
}
