//! Idempotency keys that are taken: by which job, and whether it is what is asked for now.
//!
//! No statement here waits for a caller's transaction: many callers share each of them. What a transaction that has not ended
//! holds is told apart from the rest, and asked for again later.

use std::{collections::HashMap, time::Duration};

use uuid::Uuid;

use super::{
    Error, Store,
    enqueue::{Enqueued, Key, NewJob},
    entity::job::Model,
};
use crate::job::{Status, content};

/// How often it is looked again in one request: a row may go, or turn out to be another type's.
pub(super) const ROUNDS: u8 = 4;

/// By places. Versions before this one write no type; whose key it is, its job says.
const KEYS: &str = r#"
WITH wanted AS (SELECT * FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (type, name, place)), found AS (
    SELECT w.place, k.* FROM wanted w JOIN job_keys k ON k.type = w.type AND k.name = w.name
    UNION ALL
    SELECT w.place, k.* FROM wanted w JOIN job_keys k ON k.key = w.name AND k.type IS NULL
)
SELECT f.place, f.key, f.job_id, f.content_hash, f.value_hash, f.hash_version, p.type AS job_type, p.status
FROM found f LEFT JOIN job_places((SELECT coalesce(array_agg(DISTINCT job_id), '{}') FROM found)) AS p ON p.id = f.job_id
ORDER BY f.place, f.type"#;

/// The jobs that they named are past their retention, and such a one does not come back.
const FREE: &str = r#"
DELETE FROM job_keys WHERE key IN (
    SELECT k.key FROM unnest($1::text[], $2::uuid[]) AS s (key, job_id) JOIN job_keys k ON k.key = s.key AND k.job_id = s.job_id
    FOR UPDATE OF k SKIP LOCKED)
RETURNING job_id"#;

/// Says of what versions before this one wrote whose it is.
const NAME: &str = r#"
UPDATE job_keys AS k SET type = s.type, name = s.key
FROM unnest($1::text[], $2::uuid[], $3::text[]) AS s (key, job_id, type)
WHERE k.key IN (SELECT o.key FROM job_keys o WHERE o.key = ANY ($1) AND o.type IS NULL FOR UPDATE SKIP LOCKED)
  AND k.key = s.key AND k.job_id = s.job_id
RETURNING k.job_id"#;

#[derive(sqlx::FromRow)]
struct Taken {
    place: i64,
    key: String,
    job_id: Uuid,
    content_hash: Vec<u8>,
    value_hash: Option<Vec<u8>>,
    hash_version: Option<i16>,
    /// `None`: there is no such job any more.
    job_type: Option<String>,
    status: Option<String>,
}

impl Store {
    /// For each of these jobs whether a transaction that has not ended holds its key.
    ///
    /// # Errors
    /// As for every statement.
    pub(super) async fn held_keys(&self, jobs: &[NewJob]) -> Result<Vec<bool>, Error> {
        let (mut places, mut types, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (place, job) in jobs.iter().enumerate() {
            if let Some(key) = &job.key {
                places.push(place);
                types.push(job.job_type.as_str());
                names.push(key.text.as_str());
            }
        }
        let query = sqlx::query_as("SELECT held_keys($1, $2)").bind(types).bind(names);
        let held: Vec<(i32,)> = self.hot_all("look for held keys", query).await?;
        let mut all = vec![false; jobs.len()];
        for (nth,) in held {
            let place = usize::try_from(nth - 1).ok().and_then(|nth| places.get(nth));
            place.into_iter().for_each(|place| all[*place] = true);
        }
        Ok(all)
    }

    /// A job that was not inserted has a key that is taken, or was written by an earlier try whose answer got lost.
    pub(super) async fn explain_missing(
        &self,
        jobs: &[NewJob],
        missing: &[usize],
        publish_grace: Duration,
        rounds: u8,
        outcomes: &mut [Enqueued],
    ) -> Result<(), Error> {
        let keyed: Vec<(usize, &Key)> = missing.iter().filter_map(|i| Some((*i, jobs[*i].key.as_ref()?))).collect();
        let types: Vec<&str> = keyed.iter().map(|(i, _)| jobs[*i].job_type.as_str()).collect();
        let names: Vec<&str> = keyed.iter().map(|(_, key)| key.text.as_str()).collect();
        let query = sqlx::query_as(KEYS).bind(types).bind(names);
        let rows: Vec<Taken> = self.hot_all("look up idempotency keys", query).await?;
        let mut taken: HashMap<i64, Taken> = HashMap::new();
        for row in rows {
            taken.entry(row.place).or_insert(row);
        }
        let (mut stale, mut of_others, mut again, mut unlike) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for ((i, key), place) in keyed.into_iter().zip(1..) {
            let Some(row) = taken.remove(&place) else {
                // It has gone meanwhile, or is another type's, which the next round knows.
                again.push(i);
                continue;
            };
            let found = |same: bool| row.found(same);
            match row.job_type.as_deref() {
                _ if row.job_id == jobs[i].id => outcomes[i] = Enqueued::Accepted,
                None => {
                    again.push(i);
                    stale.push(row);
                }
                Some(other) if other != jobs[i].job_type.as_str() => {
                    again.push(i);
                    of_others.push(row);
                }
                Some(_) if row.hash_version == Some(content::VERSION) => {
                    outcomes[i] = found(row.value_hash.as_deref() == Some(&key.value_hash[..]));
                }
                Some(_) if row.content_hash[..] == key.content_hash[..] => outcomes[i] = found(true),
                Some(_) => unlike.push((i, row)),
            }
        }
        if !unlike.is_empty() {
            let ids: Vec<Uuid> = unlike.iter().map(|(_, row)| row.job_id).collect();
            let rows = self.jobs(&ids).await?;
            for (i, row) in unlike {
                let same = rows.iter().any(|job| job.id == row.job_id && is_asked_for(job, &jobs[i]));
                outcomes[i] = row.found(same);
            }
        }
        if !stale.is_empty() {
            let (keys, ids): (Vec<&str>, Vec<Uuid>) = stale.iter().map(|row| (row.key.as_str(), row.job_id)).unzip();
            self.hot_all::<(Uuid,)>("free stale keys", sqlx::query_as(FREE).bind(keys).bind(ids)).await?;
        }
        if !of_others.is_empty() {
            let (keys, ids): (Vec<&str>, Vec<Uuid>) =
                of_others.iter().map(|row| (row.key.as_str(), row.job_id)).unzip();
            let types: Vec<&str> = of_others.iter().filter_map(|row| row.job_type.as_deref()).collect();
            self.hot_all::<(Uuid,)>("name keys", sqlx::query_as(NAME).bind(keys).bind(ids).bind(types)).await?;
        }
        if rounds == 0 {
            again.iter().for_each(|i| outcomes[*i] = Enqueued::Held);
        } else if !again.is_empty() {
            let rest: Vec<NewJob> = again.iter().map(|i| jobs[*i].clone()).collect();
            let batch = Box::pin(self.enqueue_in(&rest, publish_grace, None, rounds - 1)).await?;
            for (i, outcome) in again.into_iter().zip(batch.outcomes) {
                outcomes[i] = outcome;
            }
        }
        Ok(())
    }
}

impl Taken {
    fn found(&self, same: bool) -> Enqueued {
        let id = self.job_id;
        match (same, self.status.as_deref()) {
            (true, status) => {
                let status = status.and_then(|status| status.parse().ok()).unwrap_or(Status::Pending);
                Enqueued::Duplicate { id, status }
            }
            (false, _) => Enqueued::Conflict { id },
        }
    }
}

/// Whether a job is what is asked for now, by its row: its key was hashed by a formula that we can't repeat. When it was to run the row does
/// not say any more.
fn is_asked_for(row: &Model, job: &NewJob) -> bool {
    let asked_attempts = job.key.as_ref().and_then(|key| key.max_attempts).map(i32::from);
    row.priority == job.priority.get()
        && asked_attempts.is_none_or(|n| n == i32::from(row.max_attempts))
        && row.timeout_ms == job.timeout.map(|span| span.as_millis() as i64)
        && row.tags.as_deref().unwrap_or_default() == job.tags
        && row.payload.as_deref().is_some_and(|payload| content::are_equal(payload, job.payload.get()))
}
