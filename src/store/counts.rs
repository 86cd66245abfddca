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
WHERE run_at <= clock_timestamp() AND isfinite(run_at) AND status = 'pending' AND ($1::text IS NULL OR type = $1) ORDER BY run_at LIMIT 1"#;

/// By the index of types, all jobs of one: a maximum over a volatile expression, which can't be had in the order of run_at.
const OLDEST_OF_FEW: &str = r#"
SELECT extract(epoch FROM max(clock_timestamp() - run_at))::float8 FROM jobs
WHERE type = $1 AND run_at <= clock_timestamp() AND isfinite(run_at) AND status = 'pending'"#;

/// By the index on run_at, but not further than [`WALK`]: jobs of types that don't count may be many, and the oldest.
const OLDEST_BUT: &str = r#"
SELECT extract(epoch FROM max(clock_timestamp() - run_at) FILTER (WHERE isfinite(run_at) AND status = 'pending' AND type <> ALL ($1)))::float8,
       count(*) FROM (
    SELECT run_at, status, type FROM jobs WHERE run_at <= clock_timestamp() ORDER BY run_at LIMIT $2
) AS due"#;

/// Of each type the jobs that were made first. A job that was handed back because nobody answers for its type is put off by
/// seconds again and again, and has waited since that began, or since it was made or failed if that was later. It runs for the moment
/// of each offer.
const OLDEST_OF: &str = r#"
SELECT extract(epoch FROM max(clock_timestamp() - CASE WHEN back THEN greatest(since, created_at, failed_at) ELSE run_at END))::float8
FROM unnest($1::text[]) AS wanted (type)
LEFT JOIN job_types AS t ON t.type = wanted.type
CROSS JOIN LATERAL (
    SELECT CASE WHEN run_at = '-infinity' THEN clock_timestamp() ELSE run_at END AS run_at,
           CASE WHEN isfinite(created_at) THEN created_at ELSE clock_timestamp() END AS created_at, run, started_at, status, (errors -> -1 ->> 'at')::timestamptz AS failed_at
    FROM jobs AS j WHERE j.type = wanted.type ORDER BY uuid_send(j.id) LIMIT $2
) AS j
CROSS JOIN LATERAL (SELECT t.unattended_since AS since,
    t.unattended_since IS NOT NULL AND run > 0 AND (failed_at IS NULL OR failed_at < started_at) AS back) AS how
WHERE back AND (status = 'pending' OR started_at > clock_timestamp() - interval '2 s')
   OR status = 'pending' AND run_at <= clock_timestamp()"#;

/// Due jobs that are looked at, at most, where some don't count: a few milliseconds.
const WALK: i64 = 5_000;

/// Jobs of a type, waiting and running, that are looked at one by one: about a millisecond.
const FEW: i64 = 2_000;

/// Among which jobs the oldest is looked for.
#[derive(Clone, Copy, Debug)]
pub enum Among<'a> {
    All,
    /// Those of one type, which has about so many that wait or run.
    Type(&'a str, i64),
}

/// For how long the oldest of some jobs has waited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Oldest {
    Seconds(Option<f64>),
    Unknown,
}

/// Clocks that are read twice in one statement may differ by a hair.
fn age(seconds: Option<f64>) -> Option<f64> {
    seconds.map(|seconds| seconds.max(0.0))
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
        Ok(age(rows.first().and_then(|row| row.0)))
    }

    /// As [`Store::oldest_pending_seconds`] among all types but some. [`Oldest::Unknown`] where jobs of those are so many
    /// that no other was met.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn oldest_pending_seconds_but(&self, types: &[String]) -> Result<Oldest, Error> {
        let query = sqlx::query_as(OLDEST_BUT).bind(types).bind(WALK);
        let rows: Vec<(Option<f64>, i64)> = self.read_answer("age of the oldest waiting job", query).await?;
        Ok(match rows.first() {
            Some((None, seen)) if *seen >= WALK => Oldest::Unknown,
            Some((seconds, _)) => Oldest::Seconds(age(*seconds)),
            None => Oldest::Seconds(None),
        })
    }

    /// As [`Store::oldest_pending_seconds`] among some types, by the jobs of each that were made first: those that wait for a
    /// handler count from when that began, however often they were put off since.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn oldest_pending_seconds_of(&self, types: &[String]) -> Result<Option<f64>, Error> {
        let query = sqlx::query_as(OLDEST_OF).bind(types).bind(FEW);
        let rows: Vec<(Option<f64>,)> = self.read_answer("age of the oldest waiting job of types", query).await?;
        Ok(age(rows.first().and_then(|row| row.0)))
    }
}
