//! Cancelling: a waiting job ends at once, a running one is marked and its worker told.

use uuid::Uuid;

use super::{
    Error, Store,
    columns::{attempts, kept, last_end},
};

/// What a cancellation met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// The job was waiting and is cancelled now.
    Ended,
    /// The job is running; its worker must be told.
    Asked,
    /// The job is over, or there is none of that id (and type).
    NotLive,
}

const END_WAITING: &str = concat!(
    r#"
WITH ended AS (
    DELETE FROM jobs WHERE id = $1 AND status = 'pending' AND ($3::text IS NULL OR type = $3) RETURNING *
), moved AS (
    INSERT INTO finished_jobs (status, errors, cancel_reason, finished_at, "#,
    concat!(kept!(), ", ", attempts!(), ", ", last_end!()),
    r#")
    SELECT 'cancelled', errors, $2, now(), "#,
    concat!(kept!(), ", ", attempts!(), ", ", last_end!()),
    r#"
    FROM ended
), counted AS (
    INSERT INTO job_count_deltas (type, status, day, n)
    SELECT type, 'cancelled', (now() AT TIME ZONE 'UTC')::date, 1 FROM ended
    UNION ALL SELECT type, 'pending', 'epoch', -1 FROM ended
)
SELECT id FROM ended"#
);

/// A reason that is empty stands for none: that there is one shows whoever reads the job that it is to stop.
const ASK_RUNNING: &str = r#"
UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, now()),
                cancel_reason = coalesce(nullif(cancel_reason, ''), $2, '')
WHERE id = $1 AND status = 'processing' AND ($3::text IS NULL OR type = $3) RETURNING id"#;

const TO_CANCEL: &str = "
SELECT id, run FROM jobs
WHERE id = ANY($1) AND status = 'processing' AND worker_id = $2 AND cancel_requested_at IS NOT NULL";

impl Store {
    /// Runs of these jobs that `worker_id` holds though somebody wants them stopped.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn runs_to_cancel(&self, worker_id: &str, ids: &[Uuid]) -> Result<Vec<(Uuid, i64)>, Error> {
        self.hot_all("look for what is cancelled", sqlx::query_as(TO_CANCEL).bind(ids).bind(worker_id)).await
    }

    /// Cancels one job; with `job_type` only when it is of that type.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn cancel(&self, id: Uuid, reason: Option<&str>, job_type: Option<&str>) -> Result<Cancel, Error> {
        // Between the two statements a job may be claimed or sent back; it can't go round for ever.
        for _ in 0..3 {
            for (sql, met) in [(END_WAITING, Cancel::Ended), (ASK_RUNNING, Cancel::Asked)] {
                let query = sqlx::query_as(sql).bind(id).bind(reason).bind(job_type);
                if !self.hot_answer::<(Uuid,)>("cancel", query).await?.is_empty() {
                    return Ok(met);
                }
            }
        }
        Ok(Cancel::NotLive)
    }
}
