//! Statistics at a cost that does not grow with the number of jobs.

use super::{Error, Store};
use crate::job::Status;

/// Folds the deltas into the counts; one process at a time, the others skip.
const FOLD: &str = r#"
WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(hashtextextended(current_schema() || '.fold', 0)) AS mine),
taken AS (
    DELETE FROM job_count_deltas WHERE (SELECT mine FROM turn) RETURNING type, status, day, n
), summed AS (
    SELECT type, status, day, sum(n)::int8 AS n FROM taken GROUP BY type, status, day HAVING sum(n) <> 0
), folded AS (
    INSERT INTO job_counts AS c (type, status, day, n) SELECT * FROM summed
    ON CONFLICT (type, status, day) DO UPDATE SET n = c.n + excluded.n
)
SELECT count(*) FROM taken"#;

const COUNTS: &str = r#"
SELECT type, status, sum(n)::int8 FROM (
    SELECT type, status, n FROM job_counts UNION ALL SELECT type, status, n FROM job_count_deltas
) AS c GROUP BY type, status HAVING sum(n) <> 0 ORDER BY type, status"#;

/// By the index on run_at: the first due rows are the oldest, and only as many of them as run now are not pending. Of one
/// type all due rows of others are passed by, so this is for types that have many jobs themselves.
const OLDEST: &str = r#"
SELECT extract(epoch FROM clock_timestamp() - run_at)::float8 FROM jobs
WHERE run_at <= clock_timestamp() AND status = 'pending' AND ($1::text IS NULL OR type = $1) ORDER BY run_at LIMIT 1"#;

/// By the index of types, all jobs of one: a maximum over a volatile expression, which can't be had in the order of run_at.
const OLDEST_OF_FEW: &str = r#"
SELECT extract(epoch FROM max(clock_timestamp() - run_at))::float8 FROM jobs
WHERE type = $1 AND run_at <= clock_timestamp() AND status = 'pending'"#;

/// Jobs of a type, waiting and running, that are looked at one by one: about a millisecond.
const FEW: i64 = 2_000;

/// Among which jobs the oldest is looked for.
#[derive(Clone, Copy, Debug)]
pub enum Among<'a> {
    All,
    /// Those of one type, which has about so many that wait or run.
    Type(&'a str, i64),
}

impl Store {
    /// Folds what has gathered. Returns how many deltas there were.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn fold_counts(&self) -> Result<i64, Error> {
        let rows: Vec<(i64,)> = self.hot_all("fold counts", sqlx::query_as(FOLD)).await?;
        Ok(rows.first().map_or(0, |row| row.0))
    }

    /// The number of jobs per type and status, exact at the moment of the statement.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn counts(&self) -> Result<Vec<(String, Status, i64)>, Error> {
        let rows: Vec<(String, String, i64)> = self.read_answer("read counts", sqlx::query_as(COUNTS)).await?;
        Ok(rows.into_iter().filter_map(|(name, status, n)| Some((name, status.parse().ok()?, n))).collect())
    }

    /// For how many seconds the oldest due job has waited; `None` when none waits.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn oldest_pending_seconds(&self, among: Among<'_>) -> Result<Option<f64>, Error> {
        let query = match among {
            Among::All => sqlx::query_as(OLDEST).bind(None::<&str>),
            Among::Type(name, live) if live > FEW => sqlx::query_as(OLDEST).bind(name),
            Among::Type(name, _) => sqlx::query_as(OLDEST_OF_FEW).bind(name),
        };
        let rows: Vec<(Option<f64>,)> = self.read_answer("age of the oldest waiting job", query).await?;
        Ok(rows.first().and_then(|row| row.0).map(|seconds| seconds.max(0.0)))
    }
}
