//! What workers have in hand, by the claims that brought it. Written with each claim ([`super::claim`]). It tells lists,
//! whoever frees the jobs of dead workers, and a worker that looks for what it has forgotten, where to look. Whether a job
//! is held its row says.

use uuid::Uuid;

use super::{Error, Store, sweep::LostRun};
use crate::faults::{self, Mutant};
use crate::job::model::JobId;

/// Which jobs may be running: all that do, and some that have ended a moment ago.
pub(super) const CANDIDATES: &str =
    "id IN (SELECT unnest(h.job_ids) FROM held h UNION ALL SELECT j.id FROM jobs j WHERE j.lease_until IS NOT NULL)";

const SHORTEN: &str = "UPDATE held h SET job_ids = ARRAY(SELECT id FROM unnest(h.job_ids) AS id WHERE id = ANY($2))
    WHERE h.id = ANY($1) RETURNING h.id";

/// A few rows at a time: each names up to 500 jobs.
const OF_THE_DEAD: &str = "SELECT h.id, h.job_ids FROM held h
    WHERE h.worker_id IN (SELECT id FROM workers WHERE expires_at < clock_timestamp()) ORDER BY h.id LIMIT 20";

/// Not of those that have come back meanwhile.
const REMOVE_OF_THE_DEAD: &str = "DELETE FROM held h USING workers w
    WHERE h.id = ANY($1) AND w.id = h.worker_id AND w.expires_at < clock_timestamp() RETURNING h.id";

/// What `$1` holds besides `$2`. Jobs are looked up by their ids, and only those that are not in `$2`: in quiet times none.
const BESIDES: &str = r#"
WITH of_claims AS MATERIALIZED (
    SELECT h.id AS claim, unnest(h.job_ids) AS id FROM held h WHERE h.worker_id = $1
)
SELECT j.id, j.run, j.type, j.attempt, j.max_attempts, j.worker_id,
       (SELECT c.claim FROM of_claims c WHERE c.id = j.id LIMIT 1) AS claim
FROM jobs j
WHERE j.id = ANY (ARRAY(SELECT id FROM of_claims EXCEPT SELECT unnest($2::uuid[])))
  AND j.status = 'processing' AND j.worker_id = $1 AND j.lease_until IS NULL"#;

/// A run that a worker holds by the database's account.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct HeldRun {
    /// Which brought it.
    pub claim: Uuid,
    #[sqlx(flatten)]
    pub run: LostRun,
}

impl Store {
    /// The runs that `worker_id` holds, save for those of the jobs in `in_hand`.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn held_besides(&self, worker_id: &str, in_hand: &[JobId]) -> Result<Vec<HeldRun>, Error> {
        self.hot_all("compare what is held", sqlx::query_as(BESIDES).bind(worker_id).bind(in_hand)).await
    }

    /// Some claims of workers whose lease ran out, with the jobs that they may still hold by them.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn claims_of_dead_workers(&self) -> Result<Vec<(Uuid, Vec<JobId>)>, Error> {
        if faults::has(Mutant::NoTakeOver) {
            return Ok(Vec::new());
        }
        self.read_all("find claims of dead workers", sqlx::query_as(OF_THE_DEAD)).await
    }

    /// Removes claims whose jobs were taken from their workers.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn remove_held_by_dead_workers(&self, claims: &[Uuid]) -> Result<(), Error> {
        let query = sqlx::query_as(REMOVE_OF_THE_DEAD).bind(claims);
        self.read_all::<(Uuid,)>("remove claims of dead workers", query).await.map(|_| ())
    }

    /// Removes claims of which nothing is in hand any more.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn remove_held(&self, claims: &[Uuid]) -> Result<(), Error> {
        let sql = "DELETE FROM held WHERE id = ANY($1) RETURNING id";
        self.hot_all::<(Uuid,)>("remove claims", sqlx::query_as(sql).bind(claims)).await.map(|_| ())
    }

    /// Leaves of these claims only what is `in_hand`.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn shorten_held(&self, claims: &[Uuid], in_hand: &[JobId]) -> Result<(), Error> {
        let query = sqlx::query_as(SHORTEN).bind(claims).bind(in_hand);
        self.hot_all::<(Uuid,)>("shorten claims", query).await.map(|_| ())
    }

    /// Removes claims of workers that are forgotten.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn forget_held(&self) -> Result<(), Error> {
        let sql = "DELETE FROM held h WHERE NOT EXISTS (SELECT FROM workers w WHERE w.id = h.worker_id) RETURNING h.id";
        self.read_all::<(Uuid,)>("forget claims", sqlx::query_as(sql)).await.map(|_| ())
    }
}
