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

/// By the index on run_at: the first due rows are the oldest, and only as many of them as run now are not pending.
const OLDEST: &str = r#"
SELECT extract(epoch FROM clock_timestamp() - run_at)::float8 FROM jobs
WHERE run_at <= clock_timestamp() AND status = 'pending' AND ($1::text IS NULL OR type = $1) ORDER BY run_at LIMIT 1"#;

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

    /// For how many seconds the oldest due job (of a type, when one is given) has waited; `None` when none waits.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn oldest_pending_seconds(&self, job_type: Option<&str>) -> Result<Option<f64>, Error> {
        let query = sqlx::query_as(OLDEST).bind(job_type);
        let rows: Vec<(f64,)> = self.read_answer("age of the oldest waiting job", query).await?;
        Ok(rows.first().map(|row| row.0.max(0.0)))
    }
}
