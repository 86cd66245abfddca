//! What a repair sweep judges by: marks, each of which says how far the stream had come when so much was published.
//!
//! Invariant: a row version that was written before a mark's `horizon`, is due at its `at` and not among its
//! `unpublished`, has its wake-up in the stream at `last_seq` or before, or nowhere. See docs/adr/0026.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{Error, Store, rearm::Due};
use crate::job::model::JobId;

/// Ids of the outbox that a mark lists. A lane with more of them is left out, until the relay has caught up.
const LISTED: usize = 10_000;
/// Outbox rows per fetch, of up to a thousand ids each.
const ROWS: usize = 200;
/// Longest look into the outbox.
const LOOK: Duration = Duration::from_secs(30);
/// Marks that are all kept: eight hours at a sweep a minute. Of older ones so many that the next one is never further
/// away than an eighth of their age.
const KEPT: i64 = 500;

/// One look at what was published.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Mark {
    pub at: DateTime<Utc>,
    pub horizon: i64,
    pub last_seq: i64,
    /// Lanes (`<type>.<lane>`) that it says nothing about.
    pub full_lanes: Vec<String>,
}

impl Mark {
    /// Whether this job was due at the mark, and has not been touched since.
    pub fn is_after(&self, job: &Due) -> bool {
        job.written_by < self.horizon && job.run_at <= self.at
    }
}

/// What was in the outbox at one moment.
#[derive(Debug)]
pub struct Outbox {
    pub at: DateTime<Utc>,
    /// All transactions before this one were over.
    pub horizon: i64,
    /// Due jobs that it held.
    pub unpublished: HashSet<JobId>,
    pub full_lanes: HashSet<String>,
}

const MOMENT: &str = "SELECT now(), pg_snapshot_xmin(pg_current_snapshot())::text::int8";

const NOTE: &str = "INSERT INTO sweep_marks (at, horizon, stream, last_seq, unpublished, full_lanes)
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (at) DO NOTHING RETURNING at";

const MARKS: &str = "SELECT at, horizon, last_seq, full_lanes FROM sweep_marks WHERE stream = $1 ORDER BY at DESC";

const FORGET: &str = r#"
DELETE FROM sweep_marks WHERE stream <> $1 OR at IN (
    SELECT at FROM (SELECT at, row_number() OVER newest_first AS place,
                           lag(at) OVER newest_first - lead(at) OVER newest_first AS gap
                    FROM sweep_marks WINDOW newest_first AS (ORDER BY at DESC)) AS m
    WHERE place > $2 AND place % 2 = 0 AND gap < (now() - at) / 8)
RETURNING at"#;

impl Store {
    /// What is in the outbox and due within `ahead`: rows that a relay has taken are due again later.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn outbox_now(&self, ahead: Duration) -> Result<Outbox, Error> {
        const CONTEXT: &str = "look into the outbox";
        self.check_migrated()?;
        let failed = |e| Error::of(CONTEXT, e);
        let look = async {
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
            let mut moment = self.reads().begin_with(begin).await.map_err(failed)?;
            let (at, horizon) = sqlx::query_as(MOMENT).fetch_one(&mut *moment).await.map_err(failed)?;
            // A cursor, since rows that share `publish_at` can't be told apart by any index. Without statistics the
            // planner would read all that is scheduled.
            let open = format!(
                "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;
                 DECLARE unpublished NO SCROLL CURSOR FOR SELECT job_ids, targets FROM outbox
                 WHERE publish_at <= now() + interval '{} milliseconds' AND kind = 'wake-up' ORDER BY publish_at",
                ahead.as_millis()
            );
            sqlx::raw_sql(AssertSqlSafe(open)).execute(&mut *moment).await.map_err(failed)?;
            let fetch = format!("FETCH {ROWS} FROM unpublished");
            let mut outbox = Outbox { at, horizon, unpublished: HashSet::new(), full_lanes: HashSet::new() };
            loop {
                let rows: Vec<(Vec<Uuid>, Vec<String>)> =
                    sqlx::query_as(AssertSqlSafe(fetch.clone())).fetch_all(&mut *moment).await.map_err(failed)?;
                let n = rows.len();
                rows.into_iter().for_each(|(ids, targets)| outbox.add(ids, targets));
                if n < ROWS {
                    break;
                }
            }
            moment.rollback().await.map_err(failed)?;
            Ok(outbox)
        };
        let too_late = Error::Unavailable { context: CONTEXT, source: None };
        tokio::time::timeout(LOOK, look).await.unwrap_or(Err(too_late))
    }

    /// Notes that what was published before `outbox` has a place of `last_seq` at most in the `stream`.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn note_mark(&self, outbox: &Outbox, stream: &str, last_seq: i64) -> Result<(), Error> {
        let note = sqlx::query_as(NOTE)
            .bind(outbox.at)
            .bind(outbox.horizon)
            .bind(stream)
            .bind(last_seq)
            .bind(outbox.unpublished.iter().copied().collect::<Vec<Uuid>>())
            .bind(outbox.full_lanes.iter().cloned().collect::<Vec<String>>());
        self.hot_all::<(DateTime<Utc>,)>("note a mark", note).await?;
        let forget = sqlx::query_as(FORGET).bind(stream).bind(KEPT);
        self.hot_all::<(DateTime<Utc>,)>("forget marks", forget).await.map(|_| ())
    }

    /// The stream of the newest mark.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn marked_stream(&self) -> Result<Option<String>, Error> {
        let newest = "SELECT stream FROM sweep_marks ORDER BY at DESC LIMIT 1";
        let rows: Vec<(String,)> = self.hot_all("read the newest mark", sqlx::query_as(newest)).await?;
        Ok(rows.into_iter().next().map(|(stream,)| stream))
    }

    /// All marks of a stream, the newest first.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn marks(&self, stream: &str) -> Result<Vec<Mark>, Error> {
        self.hot_all("read marks", sqlx::query_as(MARKS).bind(stream)).await
    }

    /// What a mark lists as unpublished; `None` when it was forgotten meanwhile.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn unpublished_at(&self, at: DateTime<Utc>) -> Result<Option<HashSet<JobId>>, Error> {
        let sql = "SELECT unpublished FROM sweep_marks WHERE at = $1";
        let rows: Vec<(Vec<Uuid>,)> = self.hot_all("read a mark", sqlx::query_as(sql).bind(at)).await?;
        Ok(rows.into_iter().next().map(|(ids,)| ids.into_iter().collect()))
    }

    /// For each lane the transaction that last put jobs of it back into the outbox.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn rearmed_lanes(&self) -> Result<HashMap<String, i64>, Error> {
        let rows: Vec<(String, i64)> =
            self.hot_all("read re-armed lanes", sqlx::query_as("SELECT lane, written_by FROM rearmed_lanes")).await?;
        Ok(rows.into_iter().collect())
    }
}

impl Outbox {
    fn add(&mut self, ids: Vec<Uuid>, lanes: Vec<String>) {
        let room = LISTED.saturating_sub(self.unpublished.len()).min(ids.len());
        self.unpublished.extend(&ids[..room]);
        for lane in lanes.into_iter().skip(room) {
            if !self.full_lanes.contains(&lane) {
                self.full_lanes.insert(lane);
            }
        }
    }
}
