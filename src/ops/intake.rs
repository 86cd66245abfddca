//! The intake: jobs of all callers that wait are committed together, and after the answer started here or published.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::{
    Deps,
    error::{ApiError, Code},
};
use crate::{
    broker::{
        Broker, Publisher,
        events::{Event, EventState},
        publish::Outgoing,
    },
    faults::{self, Mutant, crash_point},
    flow::{Batcher, Budget, batcher::Size},
    store::{
        ANSWER, Error, Store,
        enqueue::{Batch, Due, Enqueued, NewJob},
    },
    supervise::Tasks,
    worker::eager::{Eager, Starts},
};

/// Jobs in one statement. More lowers the number of commits but makes each caller wait longer.
const BATCH: usize = 1000;
/// Jobs that are worth a second statement beside the one under way. See docs/laboratory.md.
const ENOUGH: usize = BATCH / 4;
/// How long outbox rows that were published gather before they are cleared together.
const CLEAR: Duration = Duration::from_millis(20);
/// Payload bytes that may wait, over all callers.
const WAITING_BYTES: usize = 128 << 20;
/// How long a batch may be tried again before its callers are told that the database is away. They are promised an
/// answer within 2 s.
const PATIENCE: Duration = Duration::from_millis(600);
/// Batches that are written or whose wake-ups are on their way to the broker; those of further ones are the relay's at once.
const PUBLISHING: usize = 64;

/// How long a key may be held by somebody's transaction before whoever else wants it is told to come again.
const HELD: Duration = Duration::from_millis(600);
/// Pauses between two looks at such a key. Most are held by another replica, for the length of a commit.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const LOOK_AGAIN_MOST: Duration = Duration::from_millis(100);

type Outcome = Result<Enqueued, ApiError>;
/// What became of a batch, and the jobs that have to come again.
type Outcomes = (Vec<Outcome>, Vec<NewJob>);

/// The way in for new jobs.
#[derive(Clone)]
pub(crate) struct Intake {
    plain: Batcher<Vec<NewJob>, Outcomes>,
    /// Those with keys have statements of their own: what has to be looked up for a few of them is not for the others to wait for.
    keyed: Batcher<Vec<NewJob>, Outcomes>,
    budget: Budget,
}

struct Lane {
    store: Store,
    broker: Broker,
    publisher: Publisher,
    publish_grace: Duration,
    publishing: Arc<Semaphore>,
    published: Batcher<Uuid, ()>,
    relay: Arc<Notify>,
    eager: Eager,
    tasks: Tasks,
}

impl Intake {
    pub fn start(deps: &Deps, eager: Eager, tasks: &Tasks) -> Self {
        let config = &deps.config;
        let lane = Arc::new(Lane {
            store: deps.store.clone(),
            broker: deps.broker.clone(),
            publisher: deps.publisher.clone(),
            publish_grace: config.background.publish_grace,
            publishing: Arc::new(Semaphore::new(PUBLISHING)),
            published: clearer(deps.store.clone(), tasks),
            relay: deps.relay.clone(),
            eager,
            tasks: tasks.clone(),
        });
        let size = Size { weight: BATCH, lanes: 2, enough: ENOUGH, waiting: config.limits.intake };
        let start = |name| {
            let lane = lane.clone();
            Batcher::start(name, size, Vec::len, tasks, move |groups| {
                let lane = lane.clone();
                async move { lane.carry_out(groups).await }
            })
        };
        Self {
            plain: start("intake"),
            keyed: start("intake-of-keys"),
            budget: Budget::new(config.limits.intake, WAITING_BYTES),
        }
    }

    /// Commits jobs; the answers come in their order.
    ///
    /// # Errors
    /// `overloaded` at once when too much waits already.
    pub async fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Outcome>, ApiError> {
        let bytes = jobs.iter().map(|job| job.payload.get().len() + 512).sum();
        let Some(_share) = self.budget.try_take(jobs.len(), bytes) else {
            return Err(ApiError::overloaded("more jobs wait to be written than limits.intake allows"));
        };
        // Batches ahead of this one may use up a limit of their own each, so the caller's is kept here. What has not begun
        // by then never will; what has may still be written, which is why callers are told to use a key.
        match tokio::time::timeout(ANSWER, self.write(jobs)).await {
            Ok(outcomes) => outcomes,
            Err(_) => Err(ApiError::unavailable("the database can't be reached or is too slow")),
        }
    }

    async fn write(&self, jobs: Vec<NewJob>) -> Result<Vec<Outcome>, ApiError> {
        match jobs.iter().filter(|job| job.key.is_some()).count() {
            0 => return Ok(self.plain.submit(jobs).await?.0),
            n if n == jobs.len() => return self.write_keyed(jobs).await,
            _ => {}
        }
        let is_keyed: Vec<bool> = jobs.iter().map(|job| job.key.is_some()).collect();
        let (keyed, plain) = jobs.into_iter().partition(|job| job.key.is_some());
        let (keyed, plain) = tokio::join!(self.write_keyed(keyed), self.plain.submit(plain));
        let (mut keyed, mut plain) = (keyed?.into_iter(), plain?.0.into_iter());
        let lost = || Err(ApiError::unavailable("the intake gave no answer"));
        let next = |is_keyed| if is_keyed { keyed.next() } else { plain.next() }.unwrap_or_else(lost);
        Ok(is_keyed.into_iter().map(next).collect())
    }

    /// Those whose keys are held come again for a while, outside of the lane, which is for the others.
    async fn write_keyed(&self, jobs: Vec<NewJob>) -> Result<Vec<Outcome>, ApiError> {
        let (until, mut pause) = (Instant::now() + HELD, LOOK_AGAIN);
        let (mut outcomes, mut held) = self.keyed.submit(jobs).await?;
        while !held.is_empty() && Instant::now() < until {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_AGAIN_MOST);
            let (said, still) = self.keyed.submit(held).await?;
            let open = outcomes.iter_mut().filter(|outcome| matches!(outcome, Ok(Enqueued::Held)));
            open.zip(said).for_each(|(outcome, said)| *outcome = said);
            held = still;
        }
        Ok(outcomes)
    }
}

/// Outbox rows that were published go together as well.
fn clearer(store: Store, tasks: &Tasks) -> Batcher<Uuid, ()> {
    let size = Size { weight: 1000, lanes: 1, enough: 1, waiting: 1000 };
    Batcher::start(
        "outbox-clearer",
        size,
        |_| 1,
        tasks,
        move |ids: Vec<Uuid>| {
            let store = store.clone();
            async move {
                let n = ids.len();
                // Nobody waits for it, and the relay lets these rows be for much longer, so they may gather.
                tokio::time::sleep(CLEAR).await;
                if let Err(e) = store.clear_outbox(ids).await {
                    tracing::debug!("the relay will publish {n} batches again: {e}");
                }
                vec![(); n]
            }
        },
    )
}

impl Lane {
    async fn carry_out(self: &Arc<Self>, groups: Vec<Vec<NewJob>>) -> Vec<Outcomes> {
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        let jobs: Vec<NewJob> = groups.into_iter().flatten().collect();
        let (outcomes, held) = self.commit(jobs, Instant::now()).await;
        let (mut outcomes, mut held) = (outcomes.into_iter(), held.into_iter());
        let group = |n| {
            let outcomes: Vec<Outcome> = outcomes.by_ref().take(n).collect();
            let n = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Enqueued::Held))).count();
            (outcomes, held.by_ref().take(n).collect())
        };
        sizes.into_iter().map(group).collect()
    }

    async fn commit(self: &Arc<Self>, mut jobs: Vec<NewJob>, since: Instant) -> Outcomes {
        let mut starts = self.eager.take_room(&jobs);
        let turn = self.publishing.clone().try_acquire_owned().ok();
        let grace = if turn.is_some() { self.publish_grace } else { Duration::ZERO };
        loop {
            match self.store.enqueue(&jobs, grace, starts.to_write().as_ref()).await {
                Ok(batch) => {
                    crash_point("after_enqueue_commit");
                    let outcomes = batch.outcomes.iter().cloned().map(Ok).collect();
                    let held = jobs.iter().zip(&batch.outcomes).filter(|(_, outcome)| **outcome == Enqueued::Held);
                    let held = held.map(|(job, _)| job.clone()).collect();
                    self.announce(jobs, batch, starts, turn);
                    return (outcomes, held);
                }
                // The ids are ours, so a repetition can't write a job twice, even if only the answer was lost.
                Err(e) if e.is_transient() && since.elapsed() < PATIENCE => {
                    std::mem::take(&mut starts).give_up();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // One row that the database refuses must not harm its neighbours.
                Err(e)
                    if jobs.len() > 1 && (e.is_about_data() || e.may_be_about_one() && since.elapsed() < PATIENCE) =>
                {
                    drop((starts, turn));
                    let right = jobs.split_off(jobs.len() / 2);
                    let (mut outcomes, mut held) = Box::pin(self.commit(jobs, since)).await;
                    let (more, more_held) = Box::pin(self.commit(right, since)).await;
                    outcomes.extend(more);
                    held.extend(more_held);
                    return (outcomes, held);
                }
                Err(Error::Rejected { source, .. }) => {
                    tracing::warn!("the database refused a job: {source}");
                    let refusal = ApiError::new(Code::InvalidPayload, "the database can't store this payload");
                    return (vec![Err(refusal)], Vec::new());
                }
                Err(_) if faults::has(Mutant::AnswerBeforeCommit) => {
                    return (jobs.iter().map(|_| Ok(Enqueued::Accepted)).collect(), Vec::new());
                }
                Err(e) => {
                    starts.give_up();
                    let error = ApiError::from(e);
                    return (jobs.iter().map(|_| Err(error.clone())).collect(), Vec::new());
                }
            }
        }
    }

    /// Tells the worker here and the broker, without the callers waiting for it: their jobs are safe already.
    fn announce(self: &Arc<Self>, jobs: Vec<NewJob>, batch: Batch, starts: Starts, turn: Option<OwnedSemaphorePermit>) {
        starts.note(&batch.started);
        if turn.is_none() || jobs.iter().any(|job| job.due != Due::Now) {
            self.relay.notify_one();
        }
        let lane = self.clone();
        self.tasks.spawn("announce", async move {
            // On the same connection and before the wake-ups, so that nobody sees a job start before it was there.
            lane.broker.emit(&events(&jobs, &batch, starts.worker_id())).await;
            // Without a turn they are the relay's.
            let due = if turn.is_some() { &batch.due[..] } else { &[] };
            lane.eager.note_published(&jobs, due);
            let wake_ups = lane.wake_ups(&jobs, due);
            starts.leave(jobs, &batch.started);
            let all_acked = lane.publisher.publish(wake_ups).await.into_iter().all(|acked| acked);
            crash_point("after_publish");
            drop(turn);
            if !due.is_empty() && all_acked {
                let _ = lane.published.submit(batch.outbox_id).await;
            }
        });
    }

    /// The wake-ups of the jobs at these places.
    fn wake_ups(&self, jobs: &[NewJob], places: &[usize]) -> Vec<Outgoing> {
        let wake_up = |place: &usize| {
            let job = &jobs[*place];
            // Without a message id: the relay's have one. A wake-up that comes twice is refused by its claim. See docs/adr/0020.
            Outgoing::wake_up(&self.broker.subjects, job.id, &format!("{}.{}", job.job_type, job.lane()), None)
        };
        places.iter().map(wake_up).collect()
    }
}

/// That the jobs of a batch are there, and which of them have started.
fn events<'a>(jobs: &'a [NewJob], batch: &Batch, worker_id: Option<&'a str>) -> Vec<Event<'a>> {
    let event = |job: &'a NewJob, state, attempt, worker_id| {
        Event::new(job.id, job.job_type.as_str(), state, attempt, worker_id)
    };
    let accepted = jobs.iter().zip(&batch.outcomes).filter(|(_, outcome)| **outcome == Enqueued::Accepted);
    let enqueued = accepted.map(|(job, _)| event(job, EventState::Enqueued, 0, None));
    let started = batch.started.iter().map(|start| event(&jobs[start.place], EventState::Started, 1, worker_id));
    enqueued.chain(started).collect()
}
