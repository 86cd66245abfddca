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
    columns::{attempts, kept, last_end},
    harmed::ALIKE,
};
use crate::faults::{self, Mutant};
use crate::job::{End, Failure, Status, Verdict, model::JobId};

/// The end of one run, to be recorded.
#[derive(Debug)]
pub struct Settlement {
    pub id: JobId,
    pub run: i64,
    pub verdict: Verdict,
    pub wake_up: WakeUp,
    /// Of a run outside, to be kept with the row. While somebody wants the job cancelled, what it says is not wanted.
    pub end: Option<End>,
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
    (may: $may:literal, final: $final:literal, result: $result:literal, errors: $errors:literal, ends: $ends:expr, last: $last:literal, dead: $dead:literal) => {
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
            concat!(kept!(), ", ", attempts!(), $ends),
            r#")
    SELECT final, cancel_reason, now(), "#,
            concat!($result, ", ", $errors, ", ", kept!(), ", ", attempts!(), $last),
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
SELECT id, run, final FROM ended"#
        )
    };
}

/// For batches of completed jobs that this process has done, which most are.
const END_WELL: &str = end!(
    may: "", final: "'completed'", result: "($3::text[])[place]::json", errors: "errors", ends: "", last: "", dead: ""
);

/// `$4`: the statuses; `$5` and `$6`: messages and kinds of failures. `$7` and `$8`: kinds and hashes of the ends of runs
/// outside, and `$9` which of them count only before the deadline.
const END: &str = end!(
    may: r#"
      AND (($4::text[])[width_bucket(j.id, $1::uuid[])] <> 'cancelled' OR j.cancel_requested_at IS NOT NULL)
      AND (j.deadline > clock_timestamp() OR NOT ($9::bool[])[width_bucket(j.id, $1::uuid[])] OR j.deadline IS NULL)"#,
    final: r#"
              CASE WHEN j.cancel_requested_at IS NOT NULL
                        AND (($4::text[])[width_bucket(j.id, $1::uuid[])] = 'failed'
                             OR ($7::text[])[width_bucket(j.id, $1::uuid[])] IS NOT NULL) THEN 'cancelled'
                   ELSE ($4::text[])[width_bucket(j.id, $1::uuid[])] END"#,
    result: "CASE WHEN final = 'completed' THEN ($3::text[])[place]::json END",
    // The cast to and from jsonb happens for failures alone.
    errors: r#"
           CASE WHEN ($5::text[])[place] IS NULL THEN errors
                ELSE with_error(errors, attempt, ($5::text[])[place], ($6::text[])[place]) END"#,
    ends: concat!(", ", last_end!()),
    last: ", run, ($7::text[])[place], ($8::bytea[])[place], final",
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
                                      ($6::text[])[width_bucket(j.id, $1::uuid[])]) END,
        end_run = j.run, end_kind = ($8::text[])[width_bucket(j.id, $1::uuid[])],
        end_hash = ($9::bytea[])[width_bucket(j.id, $1::uuid[])], end_status = 'pending'
    WHERE j.id = ANY ($1::uuid[]) AND j.run = ($2::int8[])[width_bucket(j.id, $1::uuid[])] AND j.status = 'processing'
      AND j.cancel_requested_at IS NULL
      AND (j.deadline > clock_timestamp() OR NOT ($10::bool[])[width_bucket(j.id, $1::uuid[])] OR j.deadline IS NULL)
    RETURNING j.id, j.run, j.type, j.priority, j.run_at, ($7::bool[])[width_bucket(j.id, $1::uuid[])] AS rearm
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
SELECT id, run FROM back"#;

/// What keeps a run that was replaced from writing.
const FENCE: &str = "AND j.run = ($2::int8[])[width_bucket(j.id, $1::uuid[])]";
/// For the deliberate bug without it; what is bound must be spoken of.
const NO_FENCE: &str = "AND $2::int8[] IS NOT NULL";

const READ_BACK: &str = "SELECT id, run, status FROM jobs_by_id($1)";

/// Of one run.
type Key = (JobId, i64);

struct Final<'a> {
    id: JobId,
    run: i64,
    status: Status,
    result: Option<&'a RawValue>,
    failure: Option<&'a Failure>,
    end: Option<End>,
}

struct Back<'a> {
    id: JobId,
    run: i64,
    attempts_returned: i16,
    delay: Duration,
    failure: Option<&'a Failure>,
    rearm: bool,
    end: Option<End>,
}

impl Store {
    /// Records a batch of outcomes; the answers come in its order. Of several for one run the first counts. `retried`: an
    /// earlier try of the same batch got no answer, so that rows which look lost may have been written by it.
    ///
    /// # Errors
    /// As for every statement. [`Error::Rejected`] means that one of the outcomes can't be stored: split the batch.
    pub async fn finish(&self, batch: &[Settlement], retried: Retried) -> Result<Vec<Recorded>, Error> {
        let mut recorded: HashMap<Key, Status> = HashMap::new();
        let mut runs = HashSet::new();
        let firsts: Vec<(bool, &Settlement)> = batch.iter().map(|s| (runs.insert((s.id, s.run)), s)).collect();
        let batch = || firsts.iter().filter(|(first, _)| *first).map(|(_, settlement)| *settlement);
        let mut backs: Vec<Back> = batch().filter_map(back).collect();
        // As the statements need them. Of two runs of a job the later one counts, if any.
        backs.sort_by_key(|back| (back.id, back.run));
        for run in self.send_back(&backs).await? {
            recorded.insert(run, Status::Pending);
        }
        // What could not go back to pending was cancelled meanwhile, or was lost.
        let mut ends: Vec<Final> = batch().filter(|s| !recorded.contains_key(&(s.id, s.run))).map(end).collect();
        ends.sort_by_key(|end| (end.id, end.run));
        recorded.extend(self.end(&ends).await?);
        let open: Vec<&Settlement> = batch().filter(|s| !recorded.contains_key(&(s.id, s.run))).collect();
        if retried == Retried::Yes && !open.is_empty() {
            let ids: Vec<Uuid> = open.iter().map(|s| s.id).collect();
            let rows: Vec<(Uuid, i64, String)> =
                self.hot_all("read outcomes back", sqlx::query_as(READ_BACK).bind(ids)).await?;
            for Settlement { id, run, end, .. } in open {
                let row = rows.iter().find(|row| (row.0, row.1) == (*id, *run));
                let status = row.and_then(|row| row.2.parse().ok()).filter(|status| *status != Status::Processing);
                let status = match end {
                    // Others may have ended it.
                    Some(end) if status.is_some() => self.standing(*id).await?.and_then(|row| row.after(*run, end)),
                    Some(_) | None => status,
                };
                recorded.extend(status.map(|status| ((*id, *run), status)));
            }
        }
        let answer = |(first, s): &(bool, &Settlement)| match recorded.get(&(s.id, s.run)) {
            Some(status) if *first => Recorded::As(*status),
            Some(_) | None => Recorded::LeaseLost,
        };
        Ok(firsts.iter().map(answer).collect())
    }

    /// As [`Store::finish`], for what nobody waits for: an outcome that can't be stored is noted and gives `None`, and its
    /// neighbours are recorded.
    ///
    /// # Errors
    /// As for every statement; what was recorded before stays so.
    pub async fn finish_each(&self, batch: &[Settlement], retried: Retried) -> Result<Vec<Option<Recorded>>, Error> {
        let finish = async |some: &[Settlement]| {
            let recorded = self.finish(some, retried).await?;
            Ok(recorded.into_iter().map(Some).collect())
        };
        self.apart(ALIKE, batch, |settlement| settlement.id, |_| Some(None), finish).await
    }

    async fn end(&self, ends: &[Final<'_>]) -> Result<Vec<(Key, Status)>, Error> {
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let well = ends.iter().all(|e| e.status == Status::Completed && e.end.is_none());
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
                .bind(ends.iter().map(|e| e.failure.map(|f| f.kind.as_str())).collect::<Vec<_>>())
                .bind(ends.iter().map(|e| e.end.map(|end| end.kind.as_str())).collect::<Vec<_>>())
                .bind(ends.iter().map(|e| hash(&e.end)).collect::<Vec<_>>())
                .bind(ends.iter().map(|e| e.end.is_some_and(|end| end.in_time)).collect::<Vec<_>>());
        }
        let rows: Vec<(Uuid, i64, String)> = self.hot_all("record outcomes", query).await?;
        Ok(rows.into_iter().filter_map(|(id, run, status)| Some(((id, run), status.parse().ok()?))).collect())
    }

    async fn send_back(&self, backs: &[Back<'_>]) -> Result<Vec<Key>, Error> {
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
            .bind(backs.iter().map(|b| b.rearm).collect::<Vec<_>>())
            .bind(backs.iter().map(|b| b.end.map(|end| end.kind.as_str())).collect::<Vec<_>>())
            .bind(backs.iter().map(|b| hash(&b.end)).collect::<Vec<_>>())
            .bind(backs.iter().map(|b| b.end.is_some_and(|end| end.in_time)).collect::<Vec<_>>());
        self.hot_all("send back to pending", query).await
    }
}

fn hash(end: &Option<End>) -> Option<&[u8]> {
    end.as_ref()?.hash.as_ref().map(|hash| &hash[..])
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
    Some(Back { id, run, attempts_returned, delay, failure, rearm, end: settlement.end })
}

/// How the job ends; one that was to go back ends as cancelled when it can't, which the statement checks.
fn end(settlement: &Settlement) -> Final<'_> {
    let (status, result, failure) = match &settlement.verdict {
        Verdict::Complete { result } => (Status::Completed, Some(&**result), None),
        Verdict::DeadLetter { failure } => (Status::Failed, None, Some(failure)),
        Verdict::Retry { failure, .. } => (Status::Cancelled, None, Some(failure)),
        Verdict::Cancel | Verdict::HandBack { .. } => (Status::Cancelled, None, None),
    };
    Final { id: settlement.id, run: settlement.run, status, result, failure, end: settlement.end }
}
