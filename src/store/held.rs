//! What workers have in hand, by the claims that brought it. Written with each claim ([`super::claim`]); nothing decides by
//! it, it only tells lists where to look.

use uuid::Uuid;

use super::{Error, Store};
use crate::job::model::JobId;

/// Which jobs may be running: all that do, and some that have ended a moment ago.
pub(super) const CANDIDATES: &str =
    "id IN (SELECT unnest(h.job_ids) FROM held h UNION ALL SELECT j.id FROM jobs j WHERE j.lease_until IS NOT NULL)";

const SHORTEN: &str = "UPDATE held h SET job_ids = ARRAY(SELECT id FROM unnest(h.job_ids) AS id WHERE id = ANY($2))
    WHERE h.id = ANY($1) RETURNING h.id";

impl Store {
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
