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
/// Jobs that are worth a second statement beside the one under way. See docs/performance.md.
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

type Outcomes = Vec<Result<Enqueued, ApiError>>;

/// The way in for new jobs.
#[derive(Clone)]
pub(crate) struct Intake {
    batcher: Batcher<Vec<NewJob>, Outcomes>,
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
        let batcher = Batcher::start("intake", size, Vec::len, tasks, move |groups| {
            let lane = lane.clone();
            async move { lane.carry_out(groups).await }
        });
        Self { batcher, budget: Budget::new(config.limits.intake, WAITING_BYTES) }
    }

    /// Commits jobs; the answers come in their order.
    ///
    /// # Errors
    /// `overloaded` at once when too much waits already.
    pub async fn submit(&self, jobs: Vec<NewJob>) -> Result<Outcomes, ApiError> {
        let bytes = jobs.iter().map(|job| job.payload.get().len() + 512).sum();
        let Some(_share) = self.budget.try_take(jobs.len(), bytes) else {
            return Err(ApiError::overloaded("more jobs wait to be written than limits.intake allows"));
        };
        // Batches ahead of this one may use up a limit of their own each, so the caller's is kept here. What has not begun
        // by then never will; what has may still be written, which is why callers are told to use a key.
        match tokio::time::timeout(ANSWER, self.batcher.submit(jobs)).await {
            Ok(outcomes) => Ok(outcomes?),
            Err(_) => Err(ApiError::unavailable("the database can't be reached or is too slow")),
        }
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
        let mut outcomes = self.commit(jobs, Instant::now()).await.into_iter();
        sizes.into_iter().map(|n| outcomes.by_ref().take(n).collect()).collect()
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
                    self.announce(jobs, batch, starts, turn);
                    return outcomes;
                }
                // The ids are ours, so a repetition can't write a job twice, even if only the answer was lost.
                Err(e) if e.is_transient() && since.elapsed() < PATIENCE => {
                    std::mem::take(&mut starts).give_up();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // One row that the database refuses must not harm its neighbours.
                Err(Error::Rejected { .. }) if jobs.len() > 1 => {
                    drop((starts, turn));
                    let right = jobs.split_off(jobs.len() / 2);
                    let mut outcomes = Box::pin(self.commit(jobs, since)).await;
                    outcomes.extend(Box::pin(self.commit(right, since)).await);
                    return outcomes;
                }
                Err(Error::Rejected { source, .. }) => {
                    tracing::warn!("the database refused a job: {source}");
                    let refusal = ApiError::new(Code::InvalidPayload, "the database can't store this payload");
                    return vec![Err(refusal)];
                }
                Err(_) if faults::has(Mutant::AnswerBeforeCommit) => {
                    return jobs.iter().map(|_| Ok(Enqueued::Accepted)).collect();
                }
                Err(e) => {
                    starts.give_up();
                    let error = ApiError::from(e);
                    return jobs.iter().map(|_| Err(error.clone())).collect();
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
