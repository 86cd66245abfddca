//! Runs that are held by programs outside: each has a lease of its own, which signs of life renew.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Error, Store,
    harmed::ALIKE,
    notes::{self, progress},
};
use crate::job::{Update, model::JobId};

/// A sign of life of one run.
#[derive(Clone, Debug)]
pub struct Sign {
    pub id: JobId,
    pub run: i64,
    /// It counts only for a job of this type; `None`: of any.
    pub job_type: Option<String>,
    pub update: Update,
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

/// A run whose lease is over keeps it until somebody takes it: its holder is back in time. One whose time is up is over.
const RENEW: &str = concat!(
    r#"
UPDATE jobs AS j
SET lease_until = CASE WHEN j.lease_ms IS NULL THEN j.lease_until
                       ELSE least(clock_timestamp() + j.lease_ms * interval '1 millisecond', j.deadline) END,
    progress = "#,
    progress!(),
    r#", checkpoint = coalesce(n.checkpoint::json, j.checkpoint)
FROM unnest($1::uuid[], $2::int8[], $3::text[], $4::text[], $5::text[], $6::text[])
     AS n (id, run, type, percent, message, checkpoint)
WHERE j.id = ANY ($1) AND j.id = n.id AND j.run = n.run AND j.status = 'processing' AND j.lease_until IS NOT NULL
  AND (j.deadline IS NULL OR j.deadline > clock_timestamp()) AND (n.type IS NULL OR j.type = n.type)
RETURNING j.id, j.run, j.type, j.attempt, coalesce(j.worker_id, ''), j.cancel_requested_at IS NOT NULL,
          CASE WHEN n.percent IS NULL AND n.message IS NULL THEN NULL ELSE j.progress::text END"#
);

const LEAVE: &str = r#"
UPDATE jobs SET deadline = clock_timestamp() + $3 * interval '1 millisecond', lease_ms = $4,
       lease_until = clock_timestamp() + (least($3, $4) + $5) * interval '1 millisecond'
WHERE id = $1 AND run = $2 AND status = 'processing' RETURNING id"#;

/// A run whose lease was renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewed {
    pub id: Uuid,
    pub run: i64,
    pub job_type: String,
    pub attempt: i16,
    pub worker_id: String,
    pub cancelled: bool,
    /// Its progress as it is now, where the sign was about that: JSON.
    pub progress: Option<String>,
}

type RenewedRow = (Uuid, i64, String, i16, String, bool, Option<String>);

impl Store {
    /// Renews the leases of runs outside, and writes what they say. Those that are not among the answers are lost, or can't
    /// be written. Of each run (and type) there is one sign at most.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn renew(&self, signs: &[Sign]) -> Result<Vec<Renewed>, Error> {
        self.apart(ALIKE, signs, |sign| sign.id, |_| None, |some| self.renew_some(some)).await
    }

    async fn renew_some(&self, signs: &[Sign]) -> Result<Vec<Renewed>, Error> {
        let mut sorted: Vec<&Sign> = signs.iter().collect();
        sorted.sort_by_key(|sign| sign.id);
        let query = sqlx::query_as(RENEW)
            .bind(sorted.iter().map(|s| s.id).collect::<Vec<_>>())
            .bind(sorted.iter().map(|s| s.run).collect::<Vec<_>>())
            .bind(sorted.iter().map(|s| s.job_type.as_deref()).collect::<Vec<_>>())
            .bind(sorted.iter().map(|s| notes::percent(&s.update)).collect::<Vec<_>>())
            .bind(sorted.iter().map(|s| notes::message(&s.update)).collect::<Vec<_>>())
            .bind(sorted.iter().map(|s| notes::checkpoint(&s.update)).collect::<Vec<_>>());
        let rows: Vec<RenewedRow> = self.hot_all("renew leases", query).await?;
        let renewed = |(id, run, job_type, attempt, worker_id, cancelled, progress)| Renewed {
            id,
            run,
            job_type,
            attempt,
            worker_id,
            cancelled,
            progress,
        };
        Ok(rows.into_iter().map(renewed).collect())
    }

    /// Leaves a run to the program outside that does it: from now on it is held by a lease of its own, whatever becomes of
    /// this process, until `left` is over or, where a `heartbeat` is due, that is missing. `grace`: so much later somebody acts
    /// on it. `false`: the run is not this worker's any more.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn leave_outside(
        &self,
        id: JobId,
        run: i64,
        left: Duration,
        heartbeat: Option<Duration>,
        grace: Duration,
    ) -> Result<bool, Error> {
        let heartbeat = heartbeat.map(|span| span.as_millis() as i32);
        let (left, grace) = (left.as_millis() as i64, grace.as_millis() as i64);
        let query = sqlx::query_as(LEAVE).bind(id).bind(run).bind(left).bind(heartbeat).bind(grace);
        let rows: Vec<(Uuid,)> = self.hot_all("leave a run outside", query).await?;
        Ok(!rows.is_empty())
    }
}
