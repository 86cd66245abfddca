//! `batch-import`: writes up to 10,000 items into `imported_items`, all or none.
//!
//! Invariant: a job's items are written once, however often it runs. The row in `imports` is the proof; it is inserted
//! first, so that two runs of the same job wait for each other, and committed with the items.
//!
//! Is given a pool, of which it leaves a connection to others, and knows nothing of the store; the tables are found by the
//! connection's `search_path`.

use std::{collections::HashMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::PgPool;
use tokio::{sync::Semaphore, time::Instant};
use uuid::Uuid;

use super::{Faults, Handler, RunContext, clients::answer_by};
use crate::job::{Failure, model::JobId};

/// Most items of one job. Source: wire contract.
const ITEMS_MAX: usize = 10_000;
const ID_MAX: usize = 255;
const NAMESPACE_MAX: usize = 100;
/// Faults that are told at once; a list of ten thousand helps nobody.
const FAULTS_MAX: usize = 20;
/// Kept of the run's time to say what went wrong.
const RESERVE: Duration = Duration::from_millis(250);
/// How long the proof of an import is kept: longer than any job can still be run again.
const PROOF_KEPT: Duration = Duration::from_secs(400 * 24 * 3600);

/// Imports items.
pub struct BatchImport {
    db: PgPool,
    /// Taken for each import: they may last, and must leave connections for those who only ask.
    turns: Semaphore,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "BatchImportPayload")]
pub struct Payload {
    /// 1 to 10,000 items, each id once.
    #[schemars(length(min = 1, max = 10_000))]
    items: Vec<Item>,
    /// Ids are unique within a namespace.
    #[serde(default = "default_namespace")]
    #[schemars(length(min = 1, max = 100))]
    namespace: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "BatchImportItem")]
struct Item {
    /// 1 to 255 characters, none of them a control character.
    #[schemars(length(min = 1, max = 255))]
    id: String,
    /// Any JSON value.
    data: Box<RawValue>,
}

fn default_namespace() -> String {
    "default".into()
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Output {
    namespace: String,
    inserted: i32,
    updated: i32,
}

impl BatchImport {
    /// All but one of the pool's connections may import at the same time.
    pub fn new(db: PgPool) -> Self {
        let at_once = db.options().get_max_connections().saturating_sub(1).max(1);
        Self { db, turns: Semaphore::new(at_once as usize) }
    }

    async fn import(&self, job: JobId, payload: &Payload, by: Instant) -> Result<(i32, i32), sqlx::Error> {
        let _turn = self.turns.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let mut tx = self.db.begin().await?;
        let time = by.saturating_duration_since(Instant::now());
        // Covers waiting for another import of the same items, too. The pool's own limit is meant for small statements.
        sqlx::query("SELECT set_config('statement_timeout', $1, true)")
            .bind(time.as_millis().max(1).to_string())
            .execute(&mut *tx)
            .await?;
        let first =
            sqlx::query("INSERT INTO imports (job_id, inserted, updated) VALUES ($1, 0, 0) ON CONFLICT DO NOTHING")
                .bind(job)
                .execute(&mut *tx)
                .await?;
        if first.rows_affected() == 0 {
            return sqlx::query_as("SELECT inserted, updated FROM imports WHERE job_id = $1")
                .bind(job)
                .fetch_one(&mut *tx)
                .await;
        }
        let counts: (i32, i32) = sqlx::query_as(UPSERT)
            .bind(&payload.namespace)
            .bind(job)
            .bind(payload.items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>())
            .bind(payload.items.iter().map(|item| item.data.get()).collect::<Vec<_>>())
            .fetch_one(&mut *tx)
            .await?;
        sqlx::query("UPDATE imports SET inserted = $2, updated = $3 WHERE job_id = $1")
            .bind(job)
            .bind(counts.0)
            .bind(counts.1)
            .execute(&mut *tx)
            .await?;
        // Each import takes a few old proofs along, so there is no duty for it. Job ids sort by their time.
        sqlx::query(FORGET).bind(oldest_kept(job)).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(counts)
    }
}

/// Writes all items in the order of their ids, so that two imports of the same items wait for each other instead of
/// deadlocking. `xmax` is 0 in a row that was just inserted, and this transaction's id in one that it locked to update.
const UPSERT: &str = r#"
WITH written AS (
    INSERT INTO imported_items AS i (namespace, id, data, job_id)
    SELECT $1, batch.id, batch.data::json, $2
    FROM unnest($3::text[], $4::text[]) AS batch (id, data)
    ORDER BY batch.id COLLATE "C"
    ON CONFLICT (namespace, id) DO UPDATE SET data = excluded.data, job_id = excluded.job_id, imported_at = now()
    RETURNING i.xmax = 0 AS inserted
)
SELECT count(*) FILTER (WHERE inserted)::int4, count(*) FILTER (WHERE NOT inserted)::int4 FROM written"#;

const FORGET: &str = r#"
DELETE FROM imports WHERE job_id IN (
    SELECT job_id FROM imports WHERE job_id < $1 ORDER BY job_id LIMIT 10 FOR UPDATE SKIP LOCKED
)"#;

/// The smallest id of the time that is [`PROOF_KEPT`] before this job was made.
fn oldest_kept(job: JobId) -> JobId {
    let millis = (job.as_u128() >> 80).saturating_sub(PROOF_KEPT.as_millis());
    Uuid::from_u128(millis << 80)
}

impl Handler for BatchImport {
    const TYPE: &'static str = "batch-import";
    const ABOUT: &'static str = "Writes items into the table imported_items, all of them or none.";
    type Payload = Payload;
    type Output = Output;

    fn check(&self, payload: &Payload, faults: &mut Faults) {
        if !(1..=ITEMS_MAX).contains(&payload.items.len()) {
            faults.add("/items", format!("{} items; a job takes 1 to {ITEMS_MAX}", payload.items.len()));
            return;
        }
        if let Err(message) = check_name(&payload.namespace, NAMESPACE_MAX) {
            faults.add("/namespace", message);
        }
        let mut first: HashMap<&str, usize> = HashMap::with_capacity(payload.items.len());
        for (i, item) in payload.items.iter().enumerate() {
            if faults.0.len() >= FAULTS_MAX {
                return;
            }
            if let Err(message) = check_name(&item.id, ID_MAX) {
                faults.add(format!("/items/{i}/id"), message);
            }
            // Which of two should win is a question for the caller, and one that a silent answer gets wrong.
            if let Some(earlier) = first.insert(&item.id, i) {
                faults.add(format!("/items/{i}/id"), format!("is the same as /items/{earlier}/id; give each id once"));
            }
        }
    }

    async fn run(&self, ctx: &RunContext, payload: Payload) -> Result<Output, Failure> {
        let by = answer_by(ctx, RESERVE);
        let import = tokio::time::timeout_at(by, self.import(ctx.job_id, &payload, by));
        let result = tokio::select! {
            result = import => result,
            // Dropping the transaction rolls it back.
            () = ctx.cancelled() => return Err(Failure::retry("stopped before the items were written")),
        };
        match result {
            Ok(Ok((inserted, updated))) => Ok(Output { namespace: payload.namespace, inserted, updated }),
            Ok(Err(e)) => Err(explain(ctx, &e)),
            Err(_) => Err(Failure::retry("the database did not take the items in time")),
        }
    }
}

/// One rule for ids and namespaces.
fn check_name(name: &str, max: usize) -> Result<(), String> {
    if name.is_empty() || name.chars().count() > max {
        return Err(format!("must have 1 to {max} characters"));
    }
    if name.chars().any(char::is_control) {
        return Err("must not hold control characters".into());
    }
    Ok(())
}

/// Details stay in the log, since they may quote the data.
fn explain(ctx: &RunContext, error: &sqlx::Error) -> Failure {
    tracing::warn!(job.id = %ctx.job_id, "could not write the items of job {}: {error}", ctx.job_id);
    let code = error.as_database_error().and_then(|e| e.code()).map(|code| code.into_owned());
    match code.as_deref() {
        // Bad data, a broken constraint, a limit of the database: the same the next time.
        Some(code) if matches!(code.get(..2), Some("22" | "23" | "54")) => {
            Failure::permanent(format!("the database refused the items (SQLSTATE {code})"))
        }
        Some(code) => Failure::retry(format!("the database could not write the items (SQLSTATE {code})")),
        None => Failure::retry("the database could not be reached"),
    }
}

#[cfg(test)]
mod tests;
