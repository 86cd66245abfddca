//! What must still be told to the broker. A row goes only when the broker has acknowledged all of it.

use std::time::Duration;

use uuid::Uuid;

use super::{Error, Store};

/// A batch that waits to be published.
#[derive(Debug, sqlx::FromRow)]
pub struct Row {
    pub id: Uuid,
    pub kind: String,
    pub job_ids: Vec<Uuid>,
    pub targets: Vec<String>,
}

/// What rows are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    WakeUp,
    DeadLetter,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::WakeUp => "wake-up",
            Self::DeadLetter => "dead-letter",
        }
    }
}

impl Row {
    pub fn is(&self, kind: Kind) -> bool {
        self.kind == kind.as_str()
    }
}

/// Takes due rows for `$2` ms: another relay sees them again only after that, and a crash in between loses nothing. At
/// most `$1` rows, and no further one once they have `$3` jobs. The ids are an array: a subquery would run once per row
/// of the outbox, and more would be taken than the limit. `$4`: rows of one kind alone.
const TAKE: &str = r#"
WITH due AS MATERIALIZED (
    SELECT id, publish_at, cardinality(job_ids) AS n FROM outbox
    WHERE publish_at <= clock_timestamp() AND ($4::text IS NULL OR kind = $4)
    ORDER BY publish_at LIMIT $1 FOR UPDATE SKIP LOCKED
), sums AS (
    SELECT id, sum(n) OVER (ORDER BY publish_at, id) - n AS before FROM due
)
UPDATE outbox SET publish_at = clock_timestamp() + $2 * interval '1 millisecond'
WHERE id = ANY (ARRAY(SELECT id FROM sums WHERE before < $3))
RETURNING id, kind, job_ids, targets"#;

/// NULL when there is none, negative when one is overdue.
const NEXT: &str = "SELECT (extract(epoch FROM min(publish_at) - clock_timestamp()) * 1000000)::int8 FROM outbox
    WHERE $1::text IS NULL OR kind = $1";

impl Store {
    /// Takes due rows for `hold`: at most `rows`, and no further one once they have so many `jobs`. `only`: of this kind.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn take_outbox(
        &self,
        rows: i64,
        jobs: i64,
        hold: Duration,
        only: Option<Kind>,
    ) -> Result<Vec<Row>, Error> {
        let take = sqlx::query_as(TAKE).bind(rows).bind(hold.as_millis() as i64).bind(jobs);
        self.hot_all("take outbox rows", take.bind(only.map(Kind::as_str))).await
    }

    /// Time until the next row is due; `None` when there is none. `only`: of this kind.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn next_outbox(&self, only: Option<Kind>) -> Result<Option<Duration>, Error> {
        let next = sqlx::query_as(NEXT).bind(only.map(Kind::as_str));
        let rows: Vec<(Option<i64>,)> = self.hot_all("look into the outbox", next).await?;
        Ok(rows.first().and_then(|row| row.0).map(|us| Duration::from_micros(us.max(0) as u64)))
    }

    /// Removes rows that the broker has acknowledged in full.
    ///
    /// # Errors
    /// As for every statement; they are published again then, which is harmless.
    pub async fn clear_outbox(&self, ids: Vec<Uuid>) -> Result<(), Error> {
        let delete = "DELETE FROM outbox WHERE id = ANY($1) RETURNING id";
        self.hot_all::<(Uuid,)>("clear outbox rows", sqlx::query_as(delete).bind(ids)).await.map(|_| ())
    }

    /// Keeps of a row only what the broker has not acknowledged, to be tried again after `delay`. It becomes another
    /// row, since message ids are made of the row's id and the place in it, and the places move.
    ///
    /// # Errors
    /// As for every statement; all of it is published again then, which is harmless.
    pub async fn shrink_outbox(&self, row: &Row, unacked: &[usize], delay: Duration) -> Result<(), Error> {
        let update = "UPDATE outbox SET id = gen_random_uuid(), job_ids = $2, targets = $3,
                      publish_at = clock_timestamp() + $4 * interval '1 millisecond' WHERE id = $1 RETURNING id";
        let query = sqlx::query_as(update)
            .bind(row.id)
            .bind(unacked.iter().map(|i| row.job_ids[*i]).collect::<Vec<_>>())
            .bind(unacked.iter().map(|i| row.targets[*i].as_str()).collect::<Vec<_>>())
            .bind(delay.as_millis() as i64);
        self.hot_all::<(Uuid,)>("shrink an outbox row", query).await.map(|_| ())
    }
}
