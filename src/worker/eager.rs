//! Eager starts: a job that is asked for here starts here, when there is room, without a message.
//!
//! Before the intake writes a batch, it takes room for as many of its jobs as the pullers here have said that there is;
//! those are written as runs of this worker, and once they are committed they are left on their type's doorstep. All
//! others go to the broker. See docs/adr/0023 and 0024.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use sqlx::types::Json;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    Shared,
    running::{InHand, Run},
};
use crate::{
    broker::pull::Delivery,
    job::{JobType, Lane, model::JobId},
    store::{
        claim::Claimed,
        enqueue::{Due, NewJob, Start, Started},
    },
    supervise,
};

/// The doorsteps of this process's worker; none while it has no worker. Cheap to clone.
#[derive(Clone, Default)]
pub struct Eager(Arc<Mutex<HashMap<JobType, Arc<Step>>>>);

/// Where jobs of one type are left that have been won.
struct Step {
    shared: Weak<Shared>,
    state: Mutex<State>,
    rung: Notify,
}

struct State<T = Won> {
    /// For how many more jobs there is room.
    room: usize,
    /// For how many it was taken that are being written.
    taken: usize,
    left: Vec<T>,
    /// By lane: how many go to the broker.
    published: [usize; 3],
    closed: bool,
}

/// The puller's side of a doorstep; with it the doorstep goes.
pub(crate) struct Doorstep {
    eager: Eager,
    job_type: JobType,
    step: Arc<Step>,
}

/// Room for jobs of one batch, taken before they are written. What it is not used for, it gives back when it is dropped.
#[derive(Default)]
pub(crate) struct Starts {
    /// Names the runs on record; see [`crate::store::held`].
    claim: Uuid,
    /// By the places of the jobs in their batch. Empty when there is no room for any of them.
    taken: Vec<Option<Taken>>,
}

struct Taken {
    room: Room,
    in_hand: InHand,
}

/// For one job. Dropped, it is given back.
struct Room(Arc<Step>);

/// A job that was written as a run of this worker, and has not started yet.
pub(crate) struct Won {
    pub in_hand: InHand,
    pub job: Box<Claimed>,
}

/// What leads to a run.
pub(crate) enum Prompt {
    /// Of the broker, which delivers it again until it is answered.
    Message(Delivery),
    Won(Won),
}

impl Eager {
    /// Takes room for those of `jobs` that may start here.
    pub(crate) fn take_room(&self, jobs: &[NewJob]) -> Starts {
        let (steps, mut taken) = (self.lock(), Vec::new());
        if steps.is_empty() {
            return Starts::default();
        }
        for (place, job) in jobs.iter().enumerate().filter(|(_, job)| job.due == Due::Now) {
            if let Some(room) = steps.get(&job.job_type).and_then(|step| step.take_room(job)) {
                taken.resize_with(jobs.len(), || None);
                taken[place] = Some(room);
            }
        }
        Starts { claim: Uuid::now_v7(), taken }
    }

    /// To be called before the jobs at these places are published.
    pub(crate) fn note_published(&self, jobs: &[NewJob], places: &[usize]) {
        let steps = self.lock();
        for job in places.iter().map(|place| &jobs[*place]) {
            if let Some(step) = steps.get(&job.job_type) {
                step.lock().published[job.lane() as usize] += 1;
            }
        }
    }

    /// The doorstep of a type, in place of the one that it may have had. There is no room at first.
    pub(super) fn doorstep(&self, shared: Weak<Shared>, job_type: &JobType) -> Doorstep {
        let step = Arc::new(Step { shared, state: Mutex::new(State::new()), rung: Notify::new() });
        self.lock().insert(job_type.clone(), step.clone());
        Doorstep { eager: self.clone(), job_type: job_type.clone(), step }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobType, Arc<Step>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Step {
    fn take_room(self: &Arc<Self>, job: &NewJob) -> Option<Taken> {
        let shared = self.shared.upgrade().filter(|shared| !shared.deps.supervisor.is_stopping())?;
        self.lock().take_room().then_some(())?;
        let room = Room(self.clone());
        // In hand before it is written, so that whoever cancels it finds it, and this worker does not end before it.
        let in_hand = InHand::new(&shared, Run::new(job.id, job.job_type.to_string(), None));
        Some(Taken { room, in_hand })
    }

    fn leave(&self, won: Won) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return won.go_back();
        }
        state.left.push(won);
        drop(state);
        self.rung.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    const fn new() -> Self {
        Self { room: 0, taken: 0, left: Vec::new(), published: [0; 3], closed: false }
    }

    fn take_room(&mut self) -> bool {
        if self.room == 0 || self.closed {
            return false;
        }
        self.room -= 1;
        self.taken += 1;
        true
    }

    /// There is room for so many from now on, with those that lie here or are about to.
    fn allow(&mut self, room: usize) {
        self.room = room.saturating_sub(self.left.len() + self.taken);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.lock().taken -= 1;
    }
}

impl Starts {
    /// What is to be written; `None`: nothing starts.
    pub fn to_write(&self) -> Option<Start<'_>> {
        let places = self.taken.iter().map(Option::is_some).collect();
        Some(Start { worker_id: self.worker_id()?, claim: self.claim, places })
    }

    pub fn worker_id(&self) -> Option<&str> {
        self.shared().map(|shared| &*shared.id)
    }

    /// Nobody knows what was written: it is looked for soon, and handed back.
    pub fn give_up(self) {
        if let Some(shared) = self.shared() {
            shared.doubt.notify_one();
        }
    }

    /// Notes those that were written. To be called before anybody hears of them.
    pub fn note(&self, started: &[Started]) {
        let Some(shared) = self.shared().filter(|_| !started.is_empty()) else { return };
        let runs = started.iter().filter_map(|start| self.taken.get(start.place)?.as_ref());
        let won: Vec<JobId> = runs
            .map(|Taken { in_hand, .. }| {
                in_hand.run.note_claim(1, 1);
                in_hand.run.id
            })
            .collect();
        shared.held.note(self.claim, won);
    }

    /// Leaves those that were written on the doorsteps of their types.
    pub fn leave(mut self, jobs: Vec<NewJob>, started: &[Started]) {
        let mut started = started.iter().peekable();
        for (place, job) in jobs.into_iter().enumerate() {
            if let Some(start) = started.next_if(|start| start.place == place)
                && let Some(Taken { room, in_hand }) = self.taken.get_mut(place).and_then(Option::take)
            {
                room.0.leave(Won { in_hand, job: Box::new(claimed(job, start)) });
            }
        }
    }

    fn shared(&self) -> Option<&Shared> {
        self.taken.iter().flatten().next().map(|taken| &*taken.in_hand.shared)
    }
}

/// The first run of a new job, as the database has it.
fn claimed(job: NewJob, start: &Started) -> Claimed {
    Claimed {
        id: job.id,
        r#type: job.job_type.to_string(),
        priority: job.priority.get(),
        run: 1,
        attempt: 1,
        max_attempts: job.max_attempts as i16,
        timeout_ms: job.timeout.map(|timeout| timeout.as_millis() as i64),
        run_at: start.at,
        payload: Json(job.payload),
        checkpoint: None,
        tags: Some(job.tags).filter(|tags| !tags.is_empty()),
        created_at: start.at,
        deadline: None,
        traceparent: job.trace.map(|trace| trace.to_string()),
    }
}

impl Doorstep {
    /// Takes what lies there.
    pub fn take(&self) -> Vec<Won> {
        std::mem::take(&mut self.step.lock().left)
    }

    /// There is room for so many from now on, with those that lie there or are about to.
    pub fn allow(&self, room: usize) {
        self.step.lock().allow(room);
    }

    /// Nothing more may be left, and what lies there goes back.
    pub fn close(&self) {
        let left = {
            let mut state = self.step.lock();
            state.closed = true;
            std::mem::take(&mut state.left)
        };
        left.into_iter().for_each(Won::go_back);
    }

    /// By lane: how many went to the broker since the last call.
    pub fn published(&self) -> [usize; 3] {
        std::mem::take(&mut self.step.lock().published)
    }

    /// Returns when something lies there.
    pub async fn rung(&self) {
        self.step.rung.notified().await;
    }
}

impl Drop for Doorstep {
    fn drop(&mut self) {
        let mut steps = self.eager.lock();
        if steps.get(&self.job_type).is_some_and(|step| Arc::ptr_eq(step, &self.step)) {
            steps.remove(&self.job_type);
        }
        drop(steps);
        self.close();
    }
}

impl Won {
    pub fn lane(&self) -> Lane {
        self.job.lane()
    }

    /// As [`Won::hand_back`], without anybody waiting for it: many go together.
    pub fn go_back(self) {
        supervise::spawn("hand-back", self.hand_back());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Priority;

    fn job(job_type: &str, priority: i64) -> NewJob {
        NewJob {
            id: Uuid::now_v7(),
            job_type: JobType::new(job_type).unwrap(),
            payload: serde_json::value::RawValue::from_string("{}".into()).unwrap(),
            priority: Priority::new(priority).unwrap(),
            max_attempts: 3,
            timeout: None,
            due: Due::Now,
            tags: Vec::new(),
            key: None,
            trace: None,
        }
    }

    #[test]
    fn what_goes_to_the_broker_is_counted_by_lanes_while_somebody_works_here() {
        let (eager, jobs) = (Eager::default(), [job("one", 0), job("two", 0), job("one", 5), job("one", 0)]);
        eager.note_published(&jobs, &[0, 1, 2, 3]);
        let step = eager.doorstep(Weak::new(), &jobs[0].job_type);
        eager.note_published(&jobs, &[0, 1, 2, 3]);
        assert_eq!(step.published(), [1, 2, 0]);
        assert_eq!(step.published(), [0, 0, 0]);
        assert!(eager.take_room(&jobs).to_write().is_none(), "nothing was allowed yet");
        drop(step);
        assert!(eager.lock().is_empty(), "nobody works here any more");
    }

    #[test]
    fn there_is_room_for_as_many_as_were_allowed_with_those_that_are_on_their_way() {
        let mut state = State::<()>::new();
        assert!(!state.take_room(), "nothing was allowed yet");
        state.allow(2);
        assert!(state.take_room() && state.take_room() && !state.take_room());
        state.allow(3);
        assert!(state.take_room() && !state.take_room(), "two are being written");
        state.taken -= 2;
        state.allow(3);
        assert!(state.take_room() && state.take_room() && !state.take_room());
        state.taken -= 2;
        state.left.push(());
        state.allow(3);
        assert!(state.take_room() && !state.take_room(), "what lies there takes room as well");
        state.closed = true;
        state.allow(100);
        assert!(!state.take_room(), "nobody works here any more");
    }
}
