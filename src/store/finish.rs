//! Recording outcomes: one statement for those that end a job, one for those that send it back to pending.
//!
//! Both are fenced: they touch a row only while it is processing with the run that the worker was given.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    Error, Store,
    columns::{attempts, kept},
};
use crate::faults::{self, Mutant};
use crate::job::{Failure, Status, Verdict, model::JobId};

/// The end of one run, to be recorded.
#[derive(Debug)]
pub struct Settlement {
    pub id: JobId,
    pub run: i64,
    pub verdict: Verdict,
    pub wake_up: WakeUp,
}

/// Who brings a job that goes back to pending to a worker again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeUp {
    /// The caller still has its message.
    NotNeeded,
    /// The outbox, when the job is due.
    Outbox,
}

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// The job has this status now.
    As(Status),
    /// The job was taken over meanwhile; nothing was written.
    LeaseLost,
}

/// `$1`: ids in order, `$2` their runs, `$3` their results; nothing is joined, see docs/adr/0022. `may` says which may end so, `final`
/// how, `errors` with what history, and `dead` tells the relay of dead letters.
macro_rules! end {
    (may: $may:literal, final: $final:literal, errors: $errors:literal, dead: $dead:literal) => {
        concat!(
            r#"
WITH ended AS (
    DELETE FROM jobs AS j
    WHERE j.id = ANY ($1::uuid[]) AND j.run = ($2::int8[])[width_bucket(j.id, $1::uuid[])] AND j.status = 'processing'"#,
            $may,
            r#"
    RETURNING j.*, width_bucket(j.id, $1::uuid[]) AS place, "#,
            $final,
            r#" AS final
), moved AS (
    INSERT INTO finished_jobs (status, cancel_reason, finished_at, result, errors, "#,
            concat!(kept!(), ", ", attempts!()),
            r#")
    SELECT final, cancel_reason, now(), ($3::text[])[place]::json, "#,
            concat!($errors, ", ", kept!(), ", ", attempts!()),
            r#"
    FROM ended
), counted AS (
    INSERT INTO job_count_deltas (type, status, day, n)
    SELECT type, change.status, change.day, change.n
    FROM (SELECT type, final, count(*) AS n FROM ended GROUP BY type, final) AS ends
    CROSS JOIN LATERAL (VALUES (final, (now() AT TIME ZONE 'UTC')::date, n), ('processing', 'epoch', -n)) AS change (status, day, n)
)"#,
            $dead,
            r#"
SELECT id, final FROM ended"#
        )
    };
}

/// For batches of completed jobs, which most are.
const END_WELL: &str = end!(may: "", final: "'completed'", errors: "errors", dead: "");

/// `$4`: the statuses; `$5` and `$6`: messages and kinds of failures.
const END: &str = end!(
    may: r#"
      AND (($4::text[])[width_bucket(j.id, $1::uuid[])] <> 'cancelled' OR j.cancel_requested_at IS NOT NULL)"#,
    final: r#"
              CASE WHEN ($4::text[])[width_bucket(j.id, $1::uuid[])] = 'failed' AND j.cancel_requested_at IS NOT NULL THEN 'cancelled'
                   ELSE ($4::text[])[width_bucket(j.id, $1::uuid[])] END"#,
    // The cast to and from jsonb happens for failures alone.
    errors: r#"
           CASE WHEN ($5::text[])[place] IS NULL THEN errors
                ELSE with_error(errors, attempt, ($5::text[])[place], ($6::text[])[place]) END"#,
    dead: r#", dead AS (
    INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
    SELECT gen_random_uuid(), 'dead-letter', now(), array_agg(id), array_agg(type || '.' || run)
    FROM ended WHERE final = 'failed' HAVING count(*) > 0
)"#
);

const BACK: &str = r#"
WITH back AS (
    UPDATE jobs AS j
    SET status = 'pending', worker_id = NULL, lease_until = NULL, lease_ms = NULL, deadline = NULL,
        attempt = j.attempt - ($3::int2[])[width_bucket(j.id, $1::uuid[])],
        run_at = clock_timestamp() + ($4::int8[])[width_bucket(j.id, $1::uuid[])] * interval '1 microsecond',
        errors = CASE WHEN ($5::text[])[width_bucket(j.id, $1::uuid[])] IS NULL THEN j.errors
                      ELSE with_error(j.errors, j.attempt, ($5::text[])[width_bucket(j.id, $1::uuid[])],
                                      ($6::text[])[width_bucket(j.id, $1::uuid[])]) END
    WHERE j.id = ANY ($1::uuid[]) AND j.run = ($2::int8[])[width_bucket(j.id, $1::uuid[])] AND j.status = 'processing'
      AND j.cancel_requested_at IS NULL
    RETURNING j.id, j.type, j.priority, j.run_at, ($7::bool[])[width_bucket(j.id, $1::uuid[])] AS rearm
), counted AS (
    INSERT INTO job_count_deltas (type, status, day, n)
    SELECT type, change.status, 'epoch', change.sign * n
    FROM (SELECT type, count(*) AS n FROM back GROUP BY type) AS backs
    CROSS JOIN (VALUES ('pending', 1), ('processing', -1)) AS change (status, sign)
), rearmed AS (
    INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
    SELECT gen_random_uuid(), 'wake-up', run_at, array_agg(id),
           array_agg(type || CASE sign(priority) WHEN 1 THEN '.high' WHEN 0 THEN '.normal' ELSE '.low' END)
    FROM back WHERE rearm GROUP BY run_at
)
SELECT id FROM back"#;

/// What keeps a run that was replaced from writing.
const FENCE: &str = "AND j.run = ($2::int8[])[width_bucket(j.id, $1::uuid[])]";
/// For the deliberate bug without it; what is bound must be spoken of.
const NO_FENCE: &str = "AND $2::int8[] IS NOT NULL";

const READ_BACK: &str = "SELECT id, run, status FROM jobs_by_id($1)";

struct End<'a> {
    id: JobId,
    run: i64,
    status: Status,
    result: Option<&'a RawValue>,
    failure: Option<&'a Failure>,
}

struct Back<'a> {
    id: JobId,
    run: i64,
    attempts_returned: i16,
    delay: Duration,
    failure: Option<&'a Failure>,
    rearm: bool,
}

impl Store {
    /// Records a batch of outcomes; the answers come in its order. `retried`: an earlier try of the same batch got no
    /// answer, so that rows which look lost may have been written by it.
    ///
    /// # Errors
    /// As for every statement. [`Error::Rejected`] means that one of the outcomes can't be stored: split the batch.
    pub async fn finish(&self, batch: &[Settlement], retried: Retried) -> Result<Vec<Recorded>, Error> {
        let mut recorded: HashMap<JobId, Status> = HashMap::new();
        let mut backs: Vec<Back> = batch.iter().filter_map(back).collect();
        // As the statements need them. Of two runs of a job the later one counts, if any.
        backs.sort_by_key(|back| (back.id, back.run));
        for id in self.send_back(&backs).await? {
            recorded.insert(id, Status::Pending);
        }
        // What could not go back to pending was cancelled meanwhile, or was lost.
        let mut ends: Vec<End> = batch.iter().filter(|s| !recorded.contains_key(&s.id)).map(end).collect();
        ends.sort_by_key(|end| (end.id, end.run));
        for (id, status) in self.end(&ends).await? {
            recorded.insert(id, status);
        }
        let open: Vec<&Settlement> = batch.iter().filter(|s| !recorded.contains_key(&s.id)).collect();
        if retried == Retried::Yes && !open.is_empty() {
            let ids: Vec<Uuid> = open.iter().map(|s| s.id).collect();
            let rows: Vec<(Uuid, i64, String)> =
                self.hot_all("read outcomes back", sqlx::query_as(READ_BACK).bind(ids)).await?;
            let mine: HashSet<(Uuid, i64)> = open.iter().map(|s| (s.id, s.run)).collect();
            for (id, run, status) in rows {
                let status = status.parse().unwrap_or(Status::Processing);
                if mine.contains(&(id, run)) && status != Status::Processing {
                    recorded.insert(id, status);
                }
            }
        }
        let answer = |s: &Settlement| recorded.get(&s.id).map_or(Recorded::LeaseLost, |status| Recorded::As(*status));
        Ok(batch.iter().map(answer).collect())
    }

    async fn end(&self, ends: &[End<'_>]) -> Result<Vec<(JobId, Status)>, Error> {
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let well = ends.iter().all(|e| e.status == Status::Completed);
        let end = if well { END_WELL } else { END };
        let end = faults::statement(Mutant::NoFence, end, FENCE, NO_FENCE);
        let end = faults::statement(Mutant::CountsSkewed, end, "'epoch', -n", "'epoch', 0");
        let mut query = sqlx::query_as(end)
            .bind(ends.iter().map(|e| e.id).collect::<Vec<_>>())
            .bind(ends.iter().map(|e| e.run).collect::<Vec<_>>())
            .bind(ends.iter().map(|e| e.result.map(RawValue::get)).collect::<Vec<_>>());
        if !well {
            query = query
                .bind(ends.iter().map(|e| e.status.as_str()).collect::<Vec<_>>())
                .bind(ends.iter().map(|e| e.failure.map(|f| f.message.as_str())).collect::<Vec<_>>())
                .bind(ends.iter().map(|e| e.failure.map(|f| f.kind.as_str())).collect::<Vec<_>>());
        }
        let rows: Vec<(Uuid, String)> = self.hot_all("record outcomes", query).await?;
        Ok(rows.into_iter().filter_map(|(id, status)| Some((id, status.parse().ok()?))).collect())
    }

    async fn send_back(&self, backs: &[Back<'_>]) -> Result<Vec<JobId>, Error> {
        if backs.is_empty() {
            return Ok(Vec::new());
        }
        let micros = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX / 2);
        let query = sqlx::query_as(faults::statement(Mutant::NoFence, BACK, FENCE, NO_FENCE))
            .bind(backs.iter().map(|b| b.id).collect::<Vec<_>>())
            .bind(backs.iter().map(|b| b.run).collect::<Vec<_>>())
            .bind(backs.iter().map(|b| b.attempts_returned).collect::<Vec<_>>())
            .bind(backs.iter().map(|b| micros(b.delay)).collect::<Vec<_>>())
            .bind(backs.iter().map(|b| b.failure.map(|f| f.message.as_str())).collect::<Vec<_>>())
            .bind(backs.iter().map(|b| b.failure.map(|f| f.kind.as_str())).collect::<Vec<_>>())
            .bind(backs.iter().map(|b| b.rearm).collect::<Vec<_>>());
        let rows: Vec<(Uuid,)> = self.hot_all("send back to pending", query).await?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }
}

/// Whether the same batch was sent before without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retried {
    No,
    Yes,
}

fn back(settlement: &Settlement) -> Option<Back<'_>> {
    let (delay, failure, attempts_returned) = match &settlement.verdict {
        Verdict::Retry { delay, .. } if faults::has(Mutant::RetryLosesError) => (*delay, None, 0),
        Verdict::HandBack { delay } if faults::has(Mutant::DrainSpends) => (*delay, None, 0),
        Verdict::Retry { failure, delay } => (*delay, Some(failure), 0),
        Verdict::HandBack { delay } => (*delay, None, 1),
        // Goes back only when nobody has asked for the cancellation, which the statement checks: a signal that came late,
        // for an earlier run, must neither cost an attempt nor strand the job.
        Verdict::Cancel => (Duration::ZERO, None, 1),
        Verdict::Complete { .. } | Verdict::DeadLetter { .. } => return None,
    };
    let (id, run, rearm) = (settlement.id, settlement.run, settlement.wake_up == WakeUp::Outbox);
    Some(Back { id, run, attempts_returned, delay, failure, rearm })
}

/// How the job ends; one that was to go back ends as cancelled when it can't, which the statement checks.
fn end(settlement: &Settlement) -> End<'_> {
    let (status, result, failure) = match &settlement.verdict {
        Verdict::Complete { result } => (Status::Completed, Some(&**result), None),
        Verdict::DeadLetter { failure } => (Status::Failed, None, Some(failure)),
        Verdict::Retry { failure, .. } => (Status::Cancelled, None, Some(failure)),
        Verdict::Cancel | Verdict::HandBack { .. } => (Status::Cancelled, None, None),
    };
    End { id: settlement.id, run: settlement.run, status, result, failure }
}
