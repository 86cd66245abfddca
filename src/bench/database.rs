//! What is done past the service, in its database: writing millions of finished jobs, which would take an hour to run, and
//! looking at what no verb tells.

use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

/// Rows of one statement.
const SLICE: u64 = 50_000;
/// Statements at a time: one per core of a small machine.
const AT_ONCE: u64 = 2;

/// The types that the finished jobs are of.
pub(super) const TYPES: [&str; 4] = ["grow-a", "grow-b", "grow-c", "grow-d"];
/// A tag that one in ninety-seven has, of each type and status.
pub(super) const TAG: &str = "grow-rare";
/// How long ago they ended, in days: within every retention.
pub(super) const DAYS_AGO: i32 = 10;

/// Jobs `$1` to `$2` of `$3`, spread over one day by their times, as the service would have written them.
const FINISHED: &str = r#"
WITH job AS (
    SELECT n, CASE WHEN n % 50 = 0 THEN 'cancelled' WHEN n % 12 = 0 THEN 'failed' ELSE 'completed' END AS status,
           day + (n::float8 / $3) * interval '23 hours' AS at
    FROM generate_series($1::int8, $2::int8) AS n,
         (SELECT date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - $4 * interval '1 day' AS day) AS d
), made AS (
    INSERT INTO finished_jobs (id, type, status, priority, attempt, max_attempts, run, tags, payload, result, errors, worker_id,
                               created_at, run_at, started_at, finished_at)
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
               PLACING substring(int8send((extract(epoch FROM at) * 1000)::int8) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid,
           (ARRAY['grow-a', 'grow-b', 'grow-c', 'grow-d'])[1 + n % 4], status, 0, 1, 3, 1,
           CASE WHEN n % 97 = 0 THEN ARRAY['grow-rare'] END, '{"to": "someone@example.org", "subject": "A subject", "body": "A few words"}',
           CASE WHEN status = 'completed' THEN '{"messageId": "0123456789@example.org"}'::json END,
           CASE WHEN status = 'failed' THEN '[{"attempt": 1, "at": "2026-01-01T00:00:00.000000Z", "message": "no", "kind": "error"}]'::json END,
           'worker-1', at, at, at + interval '1 second', at + interval '2 seconds'
    FROM job
    RETURNING type, status, (finished_at AT TIME ZONE 'UTC')::date AS day
)
INSERT INTO job_count_deltas (type, status, day, n) SELECT type, status, day, count(*) FROM made GROUP BY type, status, day"#;

/// Writes `jobs` finished jobs, and does what autovacuum would do in a while.
///
/// # Errors
/// The database refuses or is away.
pub(super) async fn finished(url: &str, schema: &str, jobs: u64, bar: &ProgressBar) -> anyhow::Result<()> {
    let mut one = connect(url, schema).await?;
    let day = format!("SELECT make_finished_partitions((now() AT TIME ZONE 'UTC')::date - {DAYS_AGO})");
    sqlx::raw_sql(AssertSqlSafe(day)).execute(&mut one).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..AT_ONCE {
        let (url, schema, bar) = (url.to_owned(), schema.to_owned(), bar.clone());
        tasks.spawn(async move {
            let mut connection = connect(&url, &schema).await?;
            let mut first = 1 + lane * SLICE;
            while first <= jobs {
                let last = (first + SLICE - 1).min(jobs);
                let slice = sqlx::query(FINISHED).bind(first as i64).bind(last as i64).bind(jobs as f64).bind(DAYS_AGO);
                slice.execute(&mut connection).await.context("could not write finished jobs")?;
                bar.inc(last + 1 - first);
                first += AT_ONCE * SLICE;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    bar.set_message("vacuum");
    for command in ["VACUUM (ANALYZE) finished_jobs", "VACUUM (ANALYZE) jobs", "CHECKPOINT"] {
        sqlx::raw_sql(command).execute(&mut one).await?;
    }
    Ok(())
}

/// Ids of jobs of a table, spread over all of them.
///
/// # Errors
/// The database is away.
pub(super) async fn some_ids(url: &str, schema: &str, table: &str) -> anyhow::Result<Vec<uuid::Uuid>> {
    let mut one = connect(url, schema).await?;
    let sql = format!("SELECT id FROM {table} TABLESAMPLE SYSTEM (0.05) ORDER BY random() LIMIT 2000");
    let ids: Vec<(uuid::Uuid,)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut one).await?;
    Ok(ids.into_iter().map(|(id,)| id).collect())
}

/// When the handlers of jobs began, in microseconds since 1970, as they said in their results.
///
/// # Errors
/// The database is away.
pub(super) async fn began(url: &str, schema: &str, ids: &[uuid::Uuid]) -> anyhow::Result<Vec<(uuid::Uuid, i64)>> {
    let mut one = connect(url, schema).await?;
    let sql =
        "SELECT id, (result #>> '{}')::int8 FROM finished_jobs WHERE id = ANY ($1) AND json_typeof(result) = 'number'";
    Ok(sqlx::query_as(sql).bind(ids).fetch_all(&mut one).await?)
}

/// The moments at which a statement of a service waited for a lock.
pub(super) struct Waits {
    looks: u64,
    seen: u64,
    /// The first of them: what waited, for which kind of lock, and what it waited for.
    first: Option<String>,
}

impl std::fmt::Display for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "looks at locks: a statement waited in {} of {}", self.seen, self.looks)?;
        self.first.as_ref().map_or(Ok(()), |first| write!(f, " ({first})"))
    }
}

/// Watches until `stop`. Extending a file is no such wait.
pub(super) async fn watch_locks(url: String, stop: CancellationToken) -> anyhow::Result<Waits> {
    const LOOK: Duration = Duration::from_millis(20);
    let waiting = r"SELECT concat_ws(' ', left(regexp_replace(a.query, '\s+', ' ', 'g'), 60), 'for', a.wait_event, 'of',
                        (SELECT string_agg(left(regexp_replace(b.query, '\s+', ' ', 'g'), 60), '; ')
                         FROM pg_stat_activity b WHERE b.pid = ANY (pg_blocking_pids(a.pid))))
                    FROM pg_stat_activity a
                    WHERE application_name = 'queue-service' AND wait_event_type = 'Lock' AND wait_event <> 'extend'";
    let mut one = PgConnection::connect(&url).await?;
    let mut waits = Waits { looks: 0, seen: 0, first: None };
    while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        let found: Vec<(String,)> = sqlx::query_as(waiting).fetch_all(&mut one).await?;
        waits.looks += 1;
        waits.seen += u64::from(!found.is_empty());
        waits.first = waits.first.or_else(|| found.into_iter().next().map(|(what,)| what));
    }
    Ok(waits)
}

async fn connect(url: &str, schema: &str) -> anyhow::Result<PgConnection> {
    let options: sqlx::postgres::PgConnectOptions = url.parse()?;
    Ok(PgConnection::connect_with(&options.options([("search_path", schema)])).await?)
}
