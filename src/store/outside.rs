//! Runs that are held by programs outside: each has a lease of its own, which signs of life renew.

use std::time::Duration;

use uuid::Uuid;

use super::{Error, Store};
use crate::job::model::JobId;

/// A sign of life of one run.
#[derive(Debug)]
pub struct Sign {
    pub id: JobId,
    pub run: i64,
    /// JSON.
    pub progress: Option<String>,
    /// JSON.
    pub checkpoint: Option<String>,
}

/// What a run is told that gave a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has its whole lease again.
    Held,
    /// The job is cancelled: stop.
    Cancel,
    /// Another run has begun, or the job is over: nothing it says is wanted.
    Lost,
}

/// A run that is over by the clock keeps its lease until somebody takes it: its holder is back in time.
const RENEW: &str = r#"
UPDATE jobs AS j
SET lease_until = coalesce(least(clock_timestamp() + j.lease_ms * interval '1 millisecond', j.deadline), j.lease_until),
    progress = coalesce(s.progress::json, j.progress), checkpoint = coalesce(s.checkpoint::json, j.checkpoint)
FROM unnest($1::uuid[], $2::int8[], $3::text[], $4::text[]) AS s (id, run, progress, checkpoint)
WHERE j.id = ANY ($1) AND j.id = s.id AND j.run = s.run AND j.status = 'processing' AND j.lease_until IS NOT NULL
  AND ($5::text IS NULL OR j.type = $5)
RETURNING j.id, j.type, j.attempt, coalesce(j.worker_id, ''), j.cancel_requested_at IS NOT NULL"#;

const LEAVE: &str = r#"
UPDATE jobs SET deadline = clock_timestamp() + $3 * interval '1 millisecond', lease_ms = $4,
       lease_until = clock_timestamp() + coalesce(least($3, $4), $3) * interval '1 millisecond'
WHERE id = $1 AND run = $2 AND status = 'processing' RETURNING id"#;

/// A run whose lease was renewed.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Renewed {
    pub id: JobId,
    pub job_type: String,
    pub attempt: i16,
    pub worker_id: String,
    pub cancelled: bool,
}

impl Store {
    /// Renews the leases of runs outside, and writes what they say. Those that are not among the answers are lost. With
    /// `job_type` only those of that type.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn renew(&self, signs: &[Sign], job_type: Option<&str>) -> Result<Vec<Renewed>, Error> {
        let mut sorted: Vec<&Sign> = signs.iter().collect();
        sorted.sort_by_key(|sign| sign.id);
        let query = sqlx::query_as(RENEW)
            .bind(sorted.iter().map(|s| s.id).collect::<Vec<_>>())
            .bind(sorted.iter().map(|s| s.run).collect::<Vec<_>>())
            .bind(sorted.iter().map(|s| s.progress.as_deref()).collect::<Vec<_>>())
            .bind(sorted.iter().map(|s| s.checkpoint.as_deref()).collect::<Vec<_>>())
            .bind(job_type);
        let rows: Vec<(Uuid, String, i16, String, bool)> = self.hot_all("renew leases", query).await?;
        let renewed =
            |(id, job_type, attempt, worker_id, cancelled)| Renewed { id, job_type, attempt, worker_id, cancelled };
        Ok(rows.into_iter().map(renewed).collect())
    }

    /// Leaves a run to the program outside that does it: from now on it is held by a lease of its own, whatever becomes of
    /// this process, until `left` is over or, where a `heartbeat` is due, that is missing. `false`: the run is not this
    /// worker's any more.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn leave_outside(
        &self,
        id: JobId,
        run: i64,
        left: Duration,
        heartbeat: Option<Duration>,
    ) -> Result<bool, Error> {
        let heartbeat = heartbeat.map(|span| span.as_millis() as i32);
        let query = sqlx::query_as(LEAVE).bind(id).bind(run).bind(left.as_millis() as i64).bind(heartbeat);
        let rows: Vec<(Uuid,)> = self.hot_all("leave a run outside", query).await?;
        Ok(!rows.is_empty())
    }
}
