//! Where a run stands for a program outside that wants to end it, and how the last one has ended.

use sqlx::{AssertSqlSafe, FromRow};

use super::{Error, Store, places};
use crate::job::{End, Status, model::JobId};

/// A job as somebody meets it who says how a run of it has ended.
#[derive(Clone, Debug, FromRow)]
pub struct Standing {
    pub r#type: String,
    pub status: String,
    pub run: i64,
    pub attempt: i16,
    pub max_attempts: i16,
    pub worker_id: String,
    /// Whether the run has a lease of its own, so that it is outside whatever its type is by now.
    pub leased: bool,
    end_run: Option<i64>,
    end_kind: Option<String>,
    end_hash: Option<Vec<u8>>,
    end_status: Option<String>,
}

macro_rules! standing {
    ($leased:literal, $table:literal) => {
        concat!(
            "SELECT type, status, run, attempt, max_attempts, coalesce(worker_id, '') AS worker_id, ",
            $leased,
            " AS leased, end_run, end_kind, end_hash, end_status FROM ",
            $table,
            " WHERE id = $1"
        )
    };
}

const LIVE: &str = standing!("lease_until IS NOT NULL", "jobs");
const FINISHED: &str = standing!("false", "finished_jobs");

impl Store {
    /// One job, live or finished.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn standing(&self, id: JobId) -> Result<Option<Standing>, Error> {
        // Again: it may end, or come back by a retry, between two looks.
        for _ in 0..2 {
            if let Some(live) = self.read_answer("look for a run", sqlx::query_as(LIVE).bind(id)).await?.pop() {
                return Ok(Some(live));
            }
            let Some(place) = self.places(&[id]).await?.pop() else { return Ok(None) };
            let within = AssertSqlSafe(format!("{FINISHED} AND {}", places::within(&place)));
            let query = sqlx::query_as(within).persistent(false).bind(id);
            if let Some(finished) = self.read_answer("look for a run", query).await?.pop() {
                return Ok(Some(finished));
            }
        }
        Ok(None)
    }
}

impl Standing {
    /// Where the job stood when this ended the run; `None`: something else did, or nothing yet.
    pub fn after(&self, run: i64, end: &End) -> Option<Status> {
        let is = self.run == run
            && self.end_run == Some(run)
            && self.end_kind.as_deref() == Some(end.kind.as_str())
            && self.end_hash.as_deref() == end.hash.as_ref().map(|hash| &hash[..]);
        self.end_status.as_deref().filter(|_| is)?.parse().ok()
    }
}
