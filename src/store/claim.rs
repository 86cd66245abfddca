//! Winning rows: a run starts only here.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{FromRow, Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{
    Error, Harmed, Store,
    finish::{Recorded, Retried, Settlement, WakeUp},
    harmed::ALIKE,
    row::{At, Read},
    sweep::Freed,
    types::is_not_paused,
};
use crate::faults::{self, Mutant};
use crate::job::{End, EndKind, Failure, Lane, Status, Trace, Verdict, model::JobId};

/// A job that this worker holds for one run.
#[derive(Debug)]
pub struct Claimed {
    pub id: JobId,
    pub r#type: String,
    pub priority: i16,
    pub run: i64,
    pub attempt: i16,
    pub max_attempts: i16,
    pub timeout_ms: Option<i64>,
    pub run_at: DateTime<Utc>,
    pub payload: Json<Box<RawValue>>,
    pub checkpoint: Option<Json<Box<RawValue>>>,
    /// Everything a handler elsewhere is told besides the payload.
    pub tags: Option<Vec<String>>,
    pub created_at: DateTime<Utc>,
    /// When a run outside is over; `None`: this process holds it.
    pub deadline: Option<DateTime<Utc>>,
    pub traceparent: Option<String>,
}

/// By the places of the columns in [`CLAIM`]: looking each up by its name takes a twentieth of a worker's time.
impl FromRow<'_, PgRow> for Claimed {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get(0)?,
            r#type: row.try_get(1)?,
            priority: row.try_get(2)?,
            run: row.try_get(3)?,
            attempt: row.try_get(4)?,
            max_attempts: row.try_get(5)?,
            timeout_ms: row.try_get(6)?,
            run_at: row.try_get::<At, _>(7)?.0,
            payload: row.try_get(8)?,
            checkpoint: row.try_get(9)?,
            tags: row.try_get::<Option<Vec<Option<String>>>, _>(10)?.map(|tags| tags.into_iter().flatten().collect()),
            created_at: row.try_get::<At, _>(11)?.0,
            deadline: row.try_get::<Option<At>, _>(12)?.map(|at| at.0),
            traceparent: row.try_get(13)?,
        })
    }
}

impl Claimed {
    pub fn lane(&self) -> Lane {
        Lane::of(self.priority)
    }

    /// With the span of this run.
    pub fn trace(&self) -> Trace {
        let given = self.traceparent.as_deref().and_then(Trace::parse);
        given.unwrap_or_else(|| Trace::of_job(self.id)).of_run(self.id, self.run)
    }
}

/// Why a message did not lead to a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refused {
    /// Finished, or never was: the message has nothing to say any more.
    Over,
    /// Pending, but its time comes only after this.
    NotDue(Duration),
    /// Its type is paused.
    Paused,
    /// Another run holds it and its lease is current.
    Held,
    /// Its last runs ended with the death of their workers, and maybe it was what killed them: a worker may hold one
    /// such job at a time, by [`Store::claim_alone`].
    Suspect,
    /// The database refuses to claim it or to look at it, for good; see [`super::Harmed`].
    Harmed,
    /// The row says another type than the message: somebody wrote one of them by hand.
    Mismatch,
}

#[derive(Debug)]
pub enum Claim {
    Won(Box<Claimed>),
    Refused(Refused),
}

/// What a round of claims has brought.
#[derive(Debug)]
pub struct Round {
    /// Under which those that were won are on record as held; see [`super::held`].
    pub id: Uuid,
    /// In the order of what was wanted.
    pub claims: Vec<Claim>,
    /// Jobs whose run was ended for it, to be told: those taken from dead workers, and those whose row can't be read.
    pub freed: Vec<Freed>,
}

/// Whether a job of the table `j` may be what killed its workers: its last run was lost, and the one before as well or
/// this is its last attempt. A single death is no reason: all that the worker had in hand would have to go one by one.
macro_rules! suspect {
    () => {
        "(j.errors IS NOT NULL AND j.errors -> -1 ->> 'kind' IS NOT DISTINCT FROM 'lost'
          AND (j.attempt + 1 >= j.max_attempts OR j.errors -> -2 ->> 'kind' IS NOT DISTINCT FROM 'lost'))"
    };
}

/// `$1`: ids in order. `$2`: types, and `$8` for each id the place of its type among them; nothing is joined, see
/// docs/adr/0022. `$4`: also those that are suspects. `$5`: the lease of a run outside, and `$6` its type's timeout, both in ms;
/// NULL: the lease of the worker counts. `$7`: names this claim, for [`super::held`].
const CLAIM: &str = concat!(
    r#"
WITH claimed AS (
    UPDATE jobs AS j
    SET status = 'processing', attempt = j.attempt + 1, run = j.run + 1, worker_id = $3, started_at = clock_timestamp(),
        lease_ms = $5,
        lease_until = CASE WHEN $5 IS NOT NULL THEN
            clock_timestamp() + least($5::int8, coalesce(j.timeout_ms, $6)) * interval '1 millisecond' END,
        deadline = CASE WHEN $5 IS NOT NULL THEN
            clock_timestamp() + coalesce(j.timeout_ms, $6) * interval '1 millisecond' END
    WHERE j.id = ANY ($1::uuid[]) AND j.type = ($2::text[])[($8::int2[])[width_bucket(j.id, $1::uuid[])]]
      AND j.status = 'pending' AND j.run_at <= clock_timestamp() AND j.attempt < j.max_attempts
      AND j.type "#,
    is_not_paused!(),
    r#" AND ($4 OR NOT "#,
    suspect!(),
    r#")
    RETURNING j.id, j.type, j.priority, j.run, j.attempt, j.max_attempts, j.timeout_ms, j.run_at, j.payload, j.checkpoint,
              j.tags, j.created_at, j.deadline, j.traceparent
), counted AS (
    INSERT INTO job_count_deltas (type, status, day, n)
    SELECT type, change.status, 'epoch', change.sign * n
    FROM (SELECT type, count(*) AS n FROM claimed GROUP BY type) AS claims
    CROSS JOIN (VALUES ('pending', -1), ('processing', 1)) AS change (status, sign)
), noted AS (
    INSERT INTO held (id, worker_id, job_ids) SELECT $7, $3, array_agg(id) FROM claimed WHERE $5 IS NULL HAVING count(*) > 0
    ON CONFLICT (id) DO UPDATE SET job_ids = held.job_ids || excluded.job_ids
)
SELECT * FROM claimed"#
);

const WHY_NOT: &str = concat!(
    r#"
SELECT j.id, j.type, j.status,
       CASE WHEN isfinite(j.run_at) THEN (extract(epoch FROM j.run_at - clock_timestamp()) * 1000000)::int8
            WHEN j.run_at > clock_timestamp() THEN 9000000000000000 ELSE -1 END AS due_in_us,
       coalesce(j.lease_until, w.expires_at) > clock_timestamp() IS TRUE AS holder_alive, "#,
    suspect!(),
    r#" AS suspect
FROM jobs j LEFT JOIN workers w ON w.id = j.worker_id
WHERE j.id = ANY($1)"#
);

#[derive(sqlx::FromRow)]
struct WhyNot {
    id: Uuid,
    r#type: String,
    status: String,
    due_in_us: i64,
    holder_alive: bool,
    suspect: bool,
}

/// How long a run outside is held.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// From its claim and from each sign of life on.
    pub lease: Duration,
    /// Longest run, unless the job says another.
    pub timeout: Duration,
}

/// Whether suspects are claimed as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suspects {
    Left,
    Taken,
}

impl Store {
    /// Tries to win each of `wanted` (id and type as the message says) for `worker_id`. Jobs whose holder's lease has
    /// expired are taken from it first, so that a redelivered message is enough to recover from a crash.
    ///
    /// The answers come in the order of `wanted`; of equal ids one wins at most.
    ///
    /// # Errors
    /// As for every statement; jobs may have been claimed all the same when the answer was lost. [`Store::held_besides`]
    /// tells which.
    pub async fn claim(&self, wanted: &[(JobId, String)], worker_id: &str) -> Result<Round, Error> {
        self.claim_among(wanted, worker_id, None, Suspects::Left).await
    }

    /// As [`Store::claim`], for one job that is a [`Refused::Suspect`]; the caller holds no other such job.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn claim_alone(&self, wanted: (JobId, String), worker_id: &str) -> Result<Round, Error> {
        self.claim_among(&[wanted], worker_id, None, Suspects::Taken).await
    }

    /// As [`Store::claim`], for a program outside, each run with a lease of its own. Suspects are taken as others: what
    /// they kill is not this process.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn claim_outside(
        &self,
        wanted: &[(JobId, String)],
        worker_id: &str,
        lease: Lease,
    ) -> Result<Round, Error> {
        self.claim_among(wanted, worker_id, Some(lease), Suspects::Taken).await
    }

    async fn claim_among(
        &self,
        wanted: &[(JobId, String)],
        worker_id: &str,
        lease: Option<Lease>,
        suspects: Suspects,
    ) -> Result<Round, Error> {
        let id = Uuid::now_v7();
        let (mut won, mut freed) = self.claim_once(id, wanted, worker_id, lease, suspects).await?;
        self.harmed.forget(won.keys().copied());
        if won.len() == wanted.len() {
            return Ok(Round { id, claims: answers(wanted, won, &HashMap::new(), suspects, &self.harmed), freed });
        }
        let mut why = self.why_not(wanted, &won).await?;
        let is_stale = |row: &WhyNot| row.status == "processing" && !row.holder_alive;
        let stale: Vec<Uuid> = why.values().flatten().filter(|row| is_stale(row)).map(|row| row.id).collect();
        if !stale.is_empty() && !faults::has(Mutant::NoTakeOver) {
            freed.extend(Box::pin(self.release_lost(&stale, WakeUp::NotNeeded)).await?);
            let again: Vec<_> = wanted.iter().filter(|(id, _)| stale.contains(id)).cloned().collect();
            let (more, ended) = self.claim_once(id, &again, worker_id, lease, suspects).await?;
            won.extend(more);
            freed.extend(ended);
            why = self.why_not(wanted, &won).await?;
        }
        Ok(Round { id, claims: answers(wanted, won, &why, suspects, &self.harmed), freed })
    }

    async fn claim_once(
        &self,
        id: Uuid,
        wanted: &[(JobId, String)],
        worker_id: &str,
        lease: Option<Lease>,
        suspects: Suspects,
    ) -> Result<(HashMap<JobId, Claimed>, Vec<Freed>), Error> {
        // Sorted, so that two batches that share rows lock them in the same order.
        let mut sorted: Vec<_> = wanted.iter().collect();
        sorted.sort();
        sorted.dedup();
        let claim = |some| self.claim_sorted(id, some, worker_id, lease, suspects);
        let rows = self.apart(ALIKE, &sorted, |wanted| wanted.0, |_| None, claim).await?;
        let (mut won, mut unreadable) = (HashMap::with_capacity(rows.len()), Vec::new());
        for row in rows {
            match row {
                Read::Whole(job) => drop(won.insert(job.id, job)),
                Read::Not { id, job_type, run, attempt, why } => {
                    let message = format!("the row of this job can't be read: {why}");
                    self.harmed.note_said(id, message.clone());
                    let worker_id = worker_id.to_owned();
                    let status = Status::Failed;
                    unreadable.push((run, Freed { id, job_type, attempt: attempt as u16, worker_id, message, status }));
                }
            }
        }
        let ended = Box::pin(self.end_unreadable(unreadable)).await;
        Ok((won, ended))
    }

    /// Nobody can do these jobs. What can't be ended now is held by nobody, and given back by whoever looks for such runs.
    async fn end_unreadable(&self, jobs: Vec<(i64, Freed)>) -> Vec<Freed> {
        if jobs.is_empty() {
            return Vec::new();
        }
        let settle = |(run, job): &(i64, Freed)| {
            let verdict = Verdict::DeadLetter { failure: Failure::permanent(job.message.clone()) };
            Settlement {
                id: job.id,
                run: *run,
                verdict,
                wake_up: WakeUp::Outbox,
                end: Some(End::unsaid(EndKind::Error)),
            }
        };
        let settlements: Vec<_> = jobs.iter().map(settle).collect();
        let recorded = self.finish_each(&settlements, Retried::No).await.unwrap_or_default();
        let ended = |((_, job), recorded)| match recorded {
            Some(Recorded::As(status)) => Some(Freed { status, ..job }),
            Some(Recorded::LeaseLost) | None => None,
        };
        jobs.into_iter().zip(recorded).filter_map(ended).collect()
    }

    async fn claim_sorted(
        &self,
        id: Uuid,
        sorted: &[&(JobId, String)],
        worker_id: &str,
        lease: Option<Lease>,
        suspects: Suspects,
    ) -> Result<Vec<Read<Claimed>>, Error> {
        let (types, places) = types_of(sorted);
        let counted = "attempt = j.attempt + 1";
        let query = sqlx::query_as(faults::statement(Mutant::AttemptNotCounted, CLAIM, counted, "attempt = j.attempt"))
            .bind(sorted.iter().map(|w| w.0).collect::<Vec<_>>())
            .bind(types)
            .bind(worker_id)
            .bind(suspects == Suspects::Taken)
            .bind(lease.map(|lease| lease.lease.as_millis() as i32))
            .bind(lease.map(|lease| lease.timeout.as_millis() as i64))
            .bind(id)
            .bind(places);
        self.hot_all("claim", query).await
    }

    async fn why_not(
        &self,
        wanted: &[(JobId, String)],
        won: &HashMap<JobId, Claimed>,
    ) -> Result<HashMap<JobId, Option<WhyNot>>, Error> {
        let open: Vec<Uuid> = wanted.iter().map(|w| w.0).filter(|id| !won.contains_key(id)).collect();
        let look = async |some: &[Uuid]| {
            let rows: Vec<WhyNot> = self.hot_all("why not claimed", sqlx::query_as(WHY_NOT).bind(some)).await?;
            Ok(rows.into_iter().map(|row| (row.id, Some(row))).collect())
        };
        let rows = self.apart(ALIKE, &open, |id| *id, |id| Some((*id, None)), look).await?;
        Ok(rows.into_iter().collect())
    }
}

/// The types, each once, and for each job the place of its own among them, from 1 on.
fn types_of<'a>(wanted: &[&'a (JobId, String)]) -> (Vec<&'a str>, Vec<i16>) {
    let mut types: Vec<&str> = Vec::new();
    let place = |(_, job_type): &&'a (JobId, String)| {
        let known = types.iter().position(|known| known == job_type);
        known.unwrap_or_else(|| {
            types.push(job_type);
            types.len() - 1
        }) as i16
            + 1
    };
    let places = wanted.iter().map(place).collect();
    (types, places)
}

fn answers(
    wanted: &[(JobId, String)],
    mut won: HashMap<JobId, Claimed>,
    why: &HashMap<JobId, Option<WhyNot>>,
    suspects: Suspects,
    harmed: &Harmed,
) -> Vec<Claim> {
    let answer = |(id, job_type): &(JobId, String)| {
        if let Some(job) = won.remove(id) {
            return Claim::Won(Box::new(job));
        }
        Claim::Refused(match why.get(id) {
            None => Refused::Over,
            Some(None) => Refused::Harmed,
            Some(Some(row)) if row.r#type != *job_type => Refused::Mismatch,
            Some(Some(row)) if row.status == "processing" => Refused::Held,
            Some(Some(row)) if row.due_in_us > 0 => Refused::NotDue(Duration::from_micros(row.due_in_us as u64)),
            Some(Some(row)) if row.suspect && suspects == Suspects::Left => Refused::Suspect,
            Some(Some(_)) if harmed.of(*id).is_some() => Refused::Harmed,
            Some(Some(_)) => Refused::Paused,
        })
    };
    wanted.iter().map(answer).collect()
}
