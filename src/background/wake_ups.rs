//! Finds due jobs that the broker will not deliver, and puts them back into the outbox.
//!
//! It publishes nothing that the broker still has. Invariant: a job is lost when, at the moment of a mark, it was due and
//! not in the outbox, when it is as it was then, and when none of its lane's messages up to the mark names it. How many
//! messages there are decides only which mark is taken, and so how many of them are read. See docs/adr/0026.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use uuid::Uuid;

use super::{AT_ONCE, Deps, Error, relay::HOLD};
use crate::{
    broker::stored::Progress,
    job::{Lane, model::JobId},
    store::{
        marks::Mark,
        rearm::{Due, READ},
        sweep::SLICE,
    },
};

/// Messages of a lane that are all read when there are fewer of them than jobs that should have one.
const FEW: u64 = READ as u64;
/// Shortest time that the outbox is looked ahead: a relay of other settings may hide what it has taken for so long.
const AHEAD: Duration = Duration::from_secs(60);

/// Puts the jobs back into the outbox that have lost their wake-up, once one of their lane has been due for `due_for`.
///
/// # Errors
/// The broker or the database is away; what was put back before stays so.
pub(super) async fn rearm_lost(deps: &Deps, due_for: Duration) -> Result<(), Error> {
    let (store, broker) = (&deps.store, &deps.broker);
    let types = store.live_types().await?;
    if types.is_empty() {
        return Ok(());
    }
    let ahead = (deps.config.background.publish_grace * HOLD * 2).max(AHEAD);
    let outbox = store.outbox_now(ahead).await?;
    // After the look into the outbox: what had left it by then is in the stream at this place or before.
    let stream = broker.work_stream().await?;
    let is_anew = store.marked_stream().await?.is_some_and(|marked| marked != stream.created);
    store.note_mark(&outbox, &stream.created, stream.last_seq as i64).await?;
    let search = Search {
        deps,
        id: Uuid::now_v7(),
        at: outbox.at,
        marks: store.marks(&stream.created).await?,
        rearmed: store.rearmed_lanes().await?,
        unpublished: Mutex::new(HashMap::from([(outbox.at, Arc::new(outbox.unpublished))])),
    };
    let overdue = if is_anew { search.at } else { search.at - due_for };
    let due = store.due_before(overdue, READ + 1).await?;
    if due.len() <= READ { search.among(due).await } else { search.through(&types, is_anew).await }
}

/// One search for lost wake-ups.
struct Search<'a> {
    deps: &'a Deps,
    id: Uuid,
    /// When it began.
    at: DateTime<Utc>,
    /// The newest first.
    marks: Vec<Mark>,
    /// For each lane the transaction that last put jobs of it back.
    rearmed: HashMap<String, i64>,
    /// By the times of their marks.
    unpublished: Mutex<HashMap<DateTime<Utc>, Arc<HashSet<JobId>>>>,
}

/// What the jobs of one lane are judged by.
struct Evidence {
    job_type: String,
    lane: Lane,
    mark: Mark,
    unpublished: Arc<HashSet<JobId>>,
    progress: Progress,
    /// The jobs that have a message; read when there is somebody to ask for.
    stored: Option<HashSet<JobId>>,
}

impl Search<'_> {
    /// Judges the lanes of these jobs, which are all that are overdue. A lane that fails holds up no other.
    async fn among(&self, overdue: Vec<Due>) -> Result<(), Error> {
        let lane_of = |row: &Due| (row.job_type.clone(), row.lane());
        let lanes: BTreeSet<_> = overdue.iter().filter(|row| row.pending).map(lane_of).collect();
        if lanes.is_empty() {
            return Ok(());
        }
        let looks = lanes.iter().map(|(job_type, lane)| self.deps.broker.progress(job_type, *lane));
        let looks: Vec<_> = stream::iter(looks.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
        // After the messages were counted: all that wait now waited then. And all of them, however long they have been
        // due, since what was lost together shall come back together.
        let mut rows: BTreeMap<(String, Lane), Vec<Due>> = BTreeMap::new();
        for row in self.deps.store.due_before(self.at, READ + 1).await?.into_iter().filter(|row| row.pending) {
            rows.entry(lane_of(&row)).or_default().push(row);
        }
        let judged = lanes.iter().zip(looks).map(|(lane, progress)| {
            let rows = rows.remove(lane).unwrap_or_default();
            async move {
                let Some(mut evidence) = self.evidence(&lane.0, lane.1, progress?, &rows).await? else {
                    return Ok(());
                };
                let n = self.rearm(&mut evidence, &rows).await?;
                self.tell(&evidence, n);
                Ok(())
            }
        });
        let judged: Vec<Result<(), Error>> = stream::iter(judged.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
        judged.into_iter().collect()
    }

    /// Walks through the jobs of each type, as far as its lanes have come. A type that fails holds up no other.
    async fn through(&self, types: &[String], is_anew: bool) -> Result<(), Error> {
        let looks = types.iter().map(|job_type| async move {
            let mut lanes = Vec::new();
            // Of one that was never used nothing was published to this stream.
            for lane in Lane::ALL.into_iter().filter(|lane| is_anew || self.deps.broker.is_lane_used(job_type, *lane)) {
                let progress = self.deps.broker.progress(job_type, lane).await?;
                lanes.extend(self.evidence(job_type, lane, progress, &[]).await?);
            }
            Ok(lanes)
        });
        let looks: Vec<Result<Vec<Evidence>, Error>> =
            stream::iter(looks.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
        let mut all = Ok(());
        for (job_type, lanes) in types.iter().zip(looks) {
            let walked = match lanes {
                Ok(lanes) => self.walk(job_type, lanes).await,
                Err(e) => Err(e),
            };
            all = all.and(walked);
        }
        all
    }

    async fn walk(&self, job_type: &str, mut lanes: Vec<Evidence>) -> Result<(), Error> {
        let Some(upto) = lanes.iter().map(|evidence| evidence.mark.at).max() else { return Ok(()) };
        let (mut after, mut found) = (Uuid::nil(), vec![0; lanes.len()]);
        loop {
            let rows = self.deps.store.live_of_type(job_type, after, upto, self.at).await?;
            for (evidence, n) in lanes.iter_mut().zip(&mut found) {
                let lane = evidence.lane;
                let of_lane: Vec<Due> = rows.iter().filter(|row| row.pending && row.lane() == lane).cloned().collect();
                *n += self.rearm(evidence, &of_lane).await?;
            }
            match rows.last() {
                Some(last) if rows.len() == READ => after = last.id,
                _ => break,
            }
        }
        lanes.iter().zip(found).for_each(|(evidence, n)| self.tell(evidence, n));
        Ok(())
    }

    /// The newest mark that a lane has passed: of what it names, few messages can be left. `rows`: jobs that wait in the
    /// lane, as far as they are known.
    async fn evidence(
        &self,
        job_type: &str,
        lane: Lane,
        progress: Progress,
        rows: &[Due],
    ) -> Result<Option<Evidence>, Error> {
        let name = name(job_type, lane);
        let rearmed = self.rearmed.get(&name).copied().unwrap_or_default();
        let speaks = |mark: &&Mark| mark.horizon > rearmed && !mark.full_lanes.contains(&name);
        let messages = progress.backlog.undelivered + progress.backlog.unacknowledged;
        let mut waiting = 0;
        if let Some(newest) = self.marks.first().filter(speaks)
            && let Some(unpublished) = self.unpublished_at(newest.at).await?
        {
            let should_have_one = |row: &&Due| newest.is_after(row) && !unpublished.contains(&row.id);
            waiting = rows.iter().filter(should_have_one).count() as u64;
        }
        let passed = if messages <= FEW && waiting > messages {
            None
        } else {
            let next = self.deps.broker.next_stored(job_type, lane, progress.delivered + 1).await?;
            next.map(|next| next.seq - 1)
        };
        let is_fit = |mark: &&Mark| passed.is_none_or(|passed| mark.last_seq as u64 <= passed) && speaks(mark);
        let Some(mark) = self.marks.iter().find(is_fit).cloned() else { return Ok(None) };
        let Some(unpublished) = self.unpublished_at(mark.at).await? else { return Ok(None) };
        Ok(Some(Evidence { job_type: job_type.to_owned(), lane, mark, unpublished, progress, stored: None }))
    }

    async fn unpublished_at(&self, at: DateTime<Utc>) -> Result<Option<Arc<HashSet<JobId>>>, Error> {
        if let Some(known) = self.lock().get(&at) {
            return Ok(Some(known.clone()));
        }
        let read = self.deps.store.unpublished_at(at).await?.map(Arc::new);
        self.lock().extend(read.iter().map(|ids| (at, ids.clone())));
        Ok(read)
    }

    /// Puts those of these pending jobs back that have lost their wake-up. Returns how many.
    async fn rearm(&self, evidence: &mut Evidence, rows: &[Due]) -> Result<i64, Error> {
        let mut lost: Vec<JobId> = rows.iter().filter(|row| evidence.tells_of(row)).map(|row| row.id).collect();
        if lost.is_empty() {
            return Ok(0);
        }
        let stored = evidence.stored(self.deps).await?;
        lost.retain(|id| !stored.contains(id));
        let (name, mut n) = (name(&evidence.job_type, evidence.lane), 0);
        for slice in lost.chunks(SLICE as usize) {
            n += self.deps.store.rearm(&name, self.id, &evidence.mark, slice).await?;
        }
        if n > 0 {
            self.deps.relay.notify_one();
        }
        Ok(n)
    }

    fn tell(&self, evidence: &Evidence, n: i64) {
        if n > 0 {
            let name = name(&evidence.job_type, evidence.lane);
            tracing::warn!("published {n} wake-ups of {name} again, which the broker had lost");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DateTime<Utc>, Arc<HashSet<JobId>>>> {
        self.unpublished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Evidence {
    /// Whether this job was due and published at the mark, and has not been touched since.
    fn tells_of(&self, job: &Due) -> bool {
        self.mark.is_after(job) && !self.unpublished.contains(&job.id)
    }

    async fn stored(&mut self, deps: &Deps) -> Result<&HashSet<JobId>, Error> {
        if self.stored.is_none() {
            let upto = self.mark.last_seq as u64;
            let read = deps.broker.stored(&self.job_type, self.lane, self.progress.acknowledged, upto).await?;
            self.stored = Some(read);
        }
        Ok(self.stored.get_or_insert_default())
    }
}

fn name(job_type: &str, lane: Lane) -> String {
    format!("{job_type}.{lane}")
}
