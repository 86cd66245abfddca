//! Dead letters: every job that failed for good, complete, for whoever looks after failures.

use bytes::Bytes;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Deps, Error};
use crate::{
    broker::{findings::Stream, publish::Outgoing},
    ops::wire::Job,
    store::{entity::job::Model, outbox::Row},
};

/// Jobs read and published at once: each may be larger than half a megabyte.
const CHUNK: usize = 16;
/// Kept free below the broker's limit for subject and headers.
const FRAME: usize = 4096;

/// Publishes the dead letters of a row, and says of each whether the broker has acknowledged it.
pub(super) async fn publish(deps: &Deps, row: &Row) -> Result<Vec<bool>, Error> {
    let mut acked = Vec::with_capacity(row.job_ids.len());
    for (ids, targets) in row.job_ids.chunks(CHUNK).zip(row.targets.chunks(CHUNK)) {
        let jobs = deps.store.jobs(ids).await?;
        let messages: Vec<Option<Outgoing>> =
            ids.iter().zip(targets).map(|(id, target)| letter(deps, &jobs, *id, target)).collect();
        let known: Vec<bool> = messages.iter().map(Option::is_some).collect();
        let mut answers = deps.publisher.publish(messages.into_iter().flatten().collect()).await.into_iter();
        // A job that is past its retention needs no letter any more; one that can't be read gets it when it can be.
        let is_gone = |id: &Uuid| deps.store.harmed().of(*id).is_none();
        let acked_now = ids.iter().zip(known).map(|(id, known)| match known {
            true => answers.next().unwrap_or_default(),
            false => is_gone(id),
        });
        acked.extend(acked_now);
    }
    Ok(acked)
}

/// `target`: `<type>.<run>`.
fn letter(deps: &Deps, jobs: &[Model], id: Uuid, target: &str) -> Option<Outgoing> {
    let (job_type, run) = target.rsplit_once('.')?;
    let job = Job::from(jobs.iter().find(|job| job.id == id)?.clone());
    let limit = deps.broker.jetstream.max_payload().saturating_sub(FRAME);
    Some(Outgoing {
        stream: Stream::DeadLetters,
        subject: deps.broker.subjects.dead_letter(job_type),
        message_id: Some(format!("{id}:{run}")),
        headers: Vec::new(),
        body: body(job, limit)?,
    })
}

/// The job as JSON. One that would pass the broker's limit goes without its payload and, should that not do, with the
/// newer half of its errors again and again; `getJob` still shows all of it.
fn body(mut job: Job, limit: usize) -> Option<Bytes> {
    loop {
        let body = serde_json::to_vec(&job).ok()?;
        if body.len() <= limit {
            return Some(Bytes::from(body));
        }
        if job.payload.take().is_some() {
            continue;
        }
        let errors: Vec<&RawValue> = job.errors.as_deref().and_then(|raw| serde_json::from_str(raw.get()).ok())?;
        // Nothing else can be large: without this the letter would be tried for ever.
        let newer = errors.get(errors.len().div_ceil(2)..).filter(|_| !errors.is_empty())?;
        job.errors = serde_json::value::to_raw_value(newer).ok();
    }
}
