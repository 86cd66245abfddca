//! Writing new jobs: row, outbox row, key and count in one statement for everything that waits. Those that start at once
//! are written as runs of their worker, and need no outbox row.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Error, Store, keys::ROUNDS, types::is_not_paused};
use crate::faults::{self, Mutant};
use crate::job::{JobType, Lane, Priority, Status, Trace, model::JobId};

/// A job that has passed all checks.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Made by the caller, so that a repeated statement finds its own rows.
    pub id: JobId,
    pub job_type: JobType,
    pub payload: Box<RawValue>,
    pub priority: Priority,
    pub max_attempts: u16,
    pub timeout: Option<Duration>,
    pub due: Due,
    pub tags: Vec<String>,
    pub key: Option<Key>,
    /// Of whoever asked for it.
    pub trace: Option<Trace>,
}

/// When a job may run first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Due {
    Now,
    /// After this much time, by the database's clock.
    In(Duration),
    /// A time in the past means now.
    At(DateTime<Utc>),
}

/// An idempotency key and what was asked for with it.
#[derive(Clone, Debug)]
pub struct Key {
    pub text: String,
    /// By the formula of versions that know no other, so that they can compare.
    pub content_hash: [u8; 32],
    /// As [`crate::job::content`] hashes it.
    pub value_hash: [u8; 32],
    /// As it was asked for; `None`: what the type says.
    pub max_attempts: Option<u16>,
}

/// What became of one new job.
#[derive(Clone, Debug, PartialEq)]
pub enum Enqueued {
    Accepted,
    /// The key names this job already, with the same content.
    Duplicate {
        id: JobId,
        status: Status,
    },
    /// The key names this job already, with other content.
    Conflict {
        id: JobId,
    },
    /// A transaction that has not ended holds the key: nothing was written.
    Held,
}

/// Jobs of a batch that start at once: they are written as the first runs of a worker. See docs/adr/0024.
#[derive(Debug)]
pub struct Start<'a> {
    pub worker_id: &'a str,
    /// Under which they are on record as held; see [`super::held`].
    pub claim: Uuid,
    /// For each job of the batch whether it starts.
    pub places: Vec<bool>,
}

/// A job that was written as a run.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Its place in the batch.
    pub place: usize,
    /// When it was created and due.
    pub at: DateTime<Utc>,
}

/// The outcome of a batch.
#[derive(Debug)]
pub struct Batch {
    /// In the order of the jobs given.
    pub outcomes: Vec<Enqueued>,
    /// The outbox row of the wake-ups that are due now.
    pub outbox_id: Uuid,
    /// Indices of the jobs that `outbox_id` covers.
    pub due: Vec<usize>,
    /// In the order of the jobs. None of them is in the outbox.
    pub started: Vec<Started>,
}

/// Of an inserted job: when it runs, whether it is due, and whether it has started.
type Inserted = (DateTime<Utc>, bool, bool);

/// A batch: `keyed` comes to have the keys that are new, `wanted` are the jobs to insert, `later` looks after those not due yet. Of
/// those that are to start (`$15`), by `starts`, the rows have `values` for further `columns`, and `held` puts them on record.
macro_rules! insert {
    (
        keyed: $keyed:literal, wanted: $wanted:literal, later: $later:literal,
        starts: $starts:expr, columns: $columns:literal, values: $values:literal, held: $held:literal
    ) => {
        concat!(
            r#"
WITH batch AS (
    SELECT b.*, CASE WHEN delay_us IS NOT NULL THEN now() + delay_us * interval '1 microsecond'
                     ELSE greatest(at, now()) END AS due_at"#,
            $starts,
            r#"
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int2[], $5::int2[], $6::int8[], $7::int8[],
                $8::timestamptz[], $9::text[], $10::text[], $11::bytea[], $14::text[])
         WITH ORDINALITY AS b (id, type, payload, priority, max_attempts, timeout_ms, delay_us, at, tags, key, hash, traceparent, place)
)"#,
            $keyed,
            r#", inserted AS (
    INSERT INTO jobs (id, type, payload, priority, max_attempts, timeout_ms, tags, idempotency_key, run_at, traceparent"#,
            $columns,
            r#")
    SELECT id, type, payload::json, priority, max_attempts, timeout_ms,
           CASE WHEN tags IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(tags::json)) END, key, due_at, traceparent"#,
            $values,
            r#"
    FROM batch "#,
            $wanted,
            r#"
    RETURNING id, type, status, priority, run_at, run_at <= now() AS due, status = 'processing' AS started
), aimed AS (
    SELECT id, run_at, due,
           type || CASE sign(priority) WHEN 1 THEN '.high' WHEN 0 THEN '.normal' ELSE '.low' END AS target
    FROM inserted WHERE NOT started
), now_due AS (
    INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
    SELECT $12, 'wake-up', now() + $13 * interval '1 millisecond', array_agg(id), array_agg(target)
    FROM aimed WHERE due HAVING count(*) > 0
)"#,
            $later,
            $held,
            r#", counted AS (
    INSERT INTO job_count_deltas (type, status, day, n)
    SELECT type, status, 'epoch', count(*) FROM inserted GROUP BY type, status
)
SELECT id, run_at, due, started FROM inserted"#
        )
    };
    (keyed: $keyed:literal, wanted: $wanted:literal, later: $later:literal) => {
        insert!(keyed: $keyed, wanted: $wanted, later: $later, starts: "", columns: "", values: "", held: "")
    };
    (keyed: $keyed:literal, wanted: $wanted:literal, later: $later:literal, starting) => {
        insert!(
            keyed: $keyed, wanted: $wanted, later: $later,
            starts: concat!(", coalesce(($15::bool[])[place], false) AND type ", is_not_paused!(), " AS starts"),
            columns: ", status, attempt, run, worker_id, started_at",
            values: r#",
           CASE WHEN starts THEN 'processing' ELSE 'pending' END, starts::int, starts::int, CASE WHEN starts THEN $16 END,
           CASE WHEN starts THEN clock_timestamp() END"#,
            held: r#", noted AS (
    INSERT INTO held (id, worker_id, job_ids) SELECT $17, $16, array_agg(id) FROM inserted WHERE started HAVING count(*) > 0
)"#
        )
    };
}

/// For new jobs without keys that are due at once, which most are. What the others look for costs a sixth of it.
const INSERT_PLAIN: &str = insert!(keyed: "", wanted: "", later: "");

/// As that, where some start at once.
const INSERT_STARTING: &str = insert!(keyed: "", wanted: "", later: "", starting);

/// `$18`: which of the jobs to leave out, since their keys are held. A key is waited for a few milliseconds at most: whoever
/// has written it may not have ended his transaction, and all that is in the statement would wait with it. A type that finds the key with another
/// type has a row beside it; see migrations/0015_keys.sql.
const INSERT: &str = insert!(
    keyed: r#", keyed AS (
    -- In the order of the keys, so that two batches can't wait for each other; the first of equal keys wins.
    INSERT INTO job_keys (key, job_id, content_hash, type, name, value_hash, hash_version)
    SELECT DISTINCT ON (b.key, b.type)
           CASE WHEN EXISTS (SELECT FROM job_keys k WHERE k.key = b.key AND k.type <> b.type)
                THEN chr(2) || type || chr(2) || key ELSE key END,
           id, substr(hash, 1, 32), type, key, substr(hash, 33), 2
    FROM batch AS b
    WHERE key IS NOT NULL AND NOT coalesce(($18::bool[])[place], false)
      AND (SELECT set_config('lock_timeout', '5ms', true)) IS NOT NULL
    ORDER BY b.key, b.type, b.place
    ON CONFLICT DO NOTHING
    RETURNING job_id
)"#,
    wanted: r#"WHERE key IS NULL OR id IN (SELECT job_id FROM keyed)
    ON CONFLICT (id) DO NOTHING"#,
    later: r#", later AS (
    INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
    SELECT gen_random_uuid(), 'wake-up', run_at, array_agg(id), array_agg(target) FROM aimed WHERE NOT due GROUP BY run_at
)"#,
    starting
);

/// lock_not_available
const LOCKED: &str = "55P03";

impl Store {
    /// Writes a batch. Repeating it with the same ids is harmless: rows that are there already count as accepted.
    /// `publish_grace`: how long the caller has to publish the wake-ups before the relay does. `start`: which jobs start at
    /// once, unless their type is paused.
    ///
    /// # Errors
    /// As for every statement; nothing of the batch is written then, unless the answer to the commit was lost.
    /// [`Store::held_besides`] tells which of those that were to start have been written as runs.
    pub async fn enqueue(
        &self,
        jobs: &[NewJob],
        publish_grace: Duration,
        start: Option<&Start<'_>>,
    ) -> Result<Batch, Error> {
        self.enqueue_in(jobs, publish_grace, start, ROUNDS).await
    }

    /// As [`Store::enqueue`]; `rounds`: how often what is not clear yet is looked at again.
    pub(super) async fn enqueue_in(
        &self,
        jobs: &[NewJob],
        publish_grace: Duration,
        start: Option<&Start<'_>>,
        rounds: u8,
    ) -> Result<Batch, Error> {
        let outbox_id = Uuid::now_v7();
        let (inserted, held) = match self.insert(jobs, outbox_id, publish_grace, start, &[]).await {
            Err(e) if e.code().as_deref() == Some(LOCKED) => {
                let held = self.held_keys(jobs).await?;
                // Else it was a lock of a table, which passes.
                if !held.contains(&true) {
                    return Err(e);
                }
                (self.insert(jobs, outbox_id, publish_grace, start, &held).await?, held)
            }
            inserted => (inserted?, Vec::new()),
        };
        let mut batch =
            Batch { outcomes: vec![Enqueued::Accepted; jobs.len()], outbox_id, due: Vec::new(), started: Vec::new() };
        let mut missing = Vec::new();
        for (place, job) in jobs.iter().enumerate() {
            match inserted.get(&job.id) {
                None if held.get(place) == Some(&true) => batch.outcomes[place] = Enqueued::Held,
                None => missing.push(place),
                Some((at, _, true)) => batch.started.push(Started { place, at: *at }),
                Some((_, true, false)) => batch.due.push(place),
                Some((_, false, false)) => {}
            }
        }
        if !missing.is_empty() {
            self.explain_missing(jobs, &missing, publish_grace, rounds, &mut batch.outcomes).await?;
        }
        Ok(batch)
    }

    async fn insert(
        &self,
        jobs: &[NewJob],
        outbox_id: Uuid,
        publish_grace: Duration,
        start: Option<&Start<'_>>,
        held: &[bool],
    ) -> Result<HashMap<JobId, Inserted>, Error> {
        if jobs.iter().all(|job| job.key.is_none() && matches!(job.due, Due::Now)) {
            let insert = if start.is_some() { INSERT_STARTING } else { INSERT_PLAIN };
            match self.insert_by(insert, jobs, outbox_id, publish_grace, start, None).await {
                // An earlier try has written them, and its answer got lost.
                Err(Error::Rejected { source, .. }) if is_taken(&source) => {}
                inserted => return inserted,
            }
        }
        let decided = "key IS NULL OR id IN (SELECT job_id FROM keyed)";
        let looked_up = "key IS NULL OR NOT EXISTS (SELECT FROM job_keys k WHERE k.key = batch.key)";
        let insert = faults::statement(Mutant::KeyBySelect, INSERT, decided, looked_up);
        self.insert_by(insert, jobs, outbox_id, publish_grace, start, Some(held)).await
    }

    async fn insert_by(
        &self,
        statement: &'static str,
        jobs: &[NewJob],
        outbox_id: Uuid,
        publish_grace: Duration,
        start: Option<&Start<'_>>,
        held: Option<&[bool]>,
    ) -> Result<HashMap<JobId, Inserted>, Error> {
        let micros = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        let (delays, times): (Vec<_>, Vec<_>) = jobs
            .iter()
            .map(|job| match job.due {
                Due::Now => (None, None),
                Due::In(delay) => (Some(micros(delay)), None),
                Due::At(at) => (None, Some(at)),
            })
            .unzip();
        let tags = |job: &NewJob| (!job.tags.is_empty()).then(|| serde_json::Value::from(job.tags.clone()).to_string());
        let mut query = sqlx::query_as(statement)
            .bind(jobs.iter().map(|j| j.id).collect::<Vec<_>>())
            .bind(jobs.iter().map(|j| j.job_type.as_str()).collect::<Vec<_>>())
            .bind(jobs.iter().map(|j| j.payload.get()).collect::<Vec<_>>())
            .bind(jobs.iter().map(|j| j.priority.get()).collect::<Vec<_>>())
            .bind(jobs.iter().map(|j| j.max_attempts as i16).collect::<Vec<_>>())
            .bind(jobs.iter().map(|j| j.timeout.map(|t| t.as_millis() as i64)).collect::<Vec<_>>())
            .bind(delays)
            .bind(times)
            .bind(jobs.iter().map(tags).collect::<Vec<_>>())
            .bind(jobs.iter().map(|j| j.key.as_ref().map(|k| k.text.as_str())).collect::<Vec<_>>())
            .bind(jobs.iter().map(|j| j.key.as_ref().map(Key::hashes)).collect::<Vec<_>>())
            .bind(outbox_id)
            .bind(publish_grace.as_millis() as i64)
            .bind(jobs.iter().map(|j| j.trace.map(|trace| trace.to_string())).collect::<Vec<_>>());
        if statement != INSERT_PLAIN {
            query = query
                .bind(start.map(|start| start.places.as_slice()))
                .bind(start.map(|start| start.worker_id))
                .bind(start.map(|start| start.claim));
        }
        if let Some(held) = held {
            query = query.bind(held);
        }
        let rows: Vec<(Uuid, DateTime<Utc>, bool, bool)> = self.hot_all("enqueue", query).await?;
        Ok(rows.into_iter().map(|(id, run_at, due, started)| (id, (run_at, due, started))).collect())
    }
}

/// Whether a row was refused because its id is there already.
fn is_taken(refusal: &super::Cause) -> bool {
    refusal.as_database_error().is_some_and(|e| e.is_unique_violation())
}

impl Key {
    /// Both, one after the other, as the statement takes them apart.
    fn hashes(&self) -> Vec<u8> {
        [self.content_hash, self.value_hash].concat()
    }
}

impl NewJob {
    pub fn lane(&self) -> Lane {
        self.priority.lane()
    }
}
