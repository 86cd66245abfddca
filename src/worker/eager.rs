//! Eager starts: a job that was asked for here starts here, when there is room, without a message.
//!
//! The intake leaves wake-ups on a type's doorstep, as many as its puller says that there is room for; all others go to
//! the broker. What lies there is a hint like a message: the job starts by winning its row, and until then its outbox row
//! stays. See docs/adr/0023.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, mpsc};

use crate::{
    broker::{
        Broker,
        pull::{AckHandle, Delivery, Garbage, WakeUp},
    },
    job::{JobType, Lane},
    store::enqueue::NewJob,
};

/// The doorsteps of this process's worker; none while it has no worker. Cheap to clone.
#[derive(Clone, Default)]
pub struct Eager(Arc<Mutex<HashMap<JobType, Arc<Step>>>>);

/// Where wake-ups of one type are left.
#[derive(Default)]
struct Step {
    state: Mutex<State>,
    rung: Notify,
}

#[derive(Default)]
struct State {
    /// How many more may be left.
    room: usize,
    left: Vec<Handed>,
    /// By lane: how many found no room, so that the broker has them.
    turned_away: [usize; 3],
}

/// The puller's side of a doorstep; with it the doorstep goes.
pub(crate) struct Doorstep {
    eager: Eager,
    job_type: JobType,
    step: Arc<Step>,
}

/// A wake-up that was handed over.
pub(crate) struct Handed {
    wake_up: WakeUp,
    ticket: Ticket,
}

/// The way back to whoever handed a wake-up over. Dropped before its job was claimed, it tells him.
pub(crate) struct Ticket {
    place: usize,
    back: Option<mpsc::UnboundedSender<usize>>,
}

/// What became of wake-ups that were to be handed over, by their places.
pub(crate) struct HandOver {
    /// There was no room for these.
    pub turned_away: Vec<usize>,
    /// Tells which come back, and ends when all others are claimed.
    pub returned: mpsc::UnboundedReceiver<usize>,
}

/// What leads to a run: a message of the broker, or a wake-up that was left here.
pub(crate) enum Prompt {
    Message(Delivery),
    Handed(Handed),
}

/// Who has to be told what became of a prompt.
pub(crate) enum Origin {
    /// The broker, which delivers the message again until it is answered.
    Message(AckHandle),
    /// The intake, until the job is claimed; and then nobody.
    Intake(Mutex<Option<Ticket>>),
}

impl Eager {
    /// Hands over the wake-ups of `jobs` at these places, as far as there is room.
    pub(crate) fn hand_over(&self, jobs: &[NewJob], places: &[usize]) -> HandOver {
        let (back, returned) = mpsc::unbounded_channel();
        let steps = self.lock();
        let is_taken = |place: usize| {
            let job = &jobs[place];
            let Some(step) = steps.get(&job.job_type) else { return false };
            step.leave(job.lane(), || Handed {
                wake_up: WakeUp { id: job.id, job_type: job.job_type.to_string(), lane: job.lane() },
                ticket: Ticket { place, back: Some(back.clone()) },
            })
        };
        let turned_away = places.iter().copied().filter(|place| !is_taken(*place)).collect();
        HandOver { turned_away, returned }
    }

    /// The doorstep of a type, in place of the one that it may have had. Nothing may be left there at first.
    pub(crate) fn doorstep(&self, job_type: &JobType) -> Doorstep {
        let step = Arc::<Step>::default();
        self.lock().insert(job_type.clone(), step.clone());
        Doorstep { eager: self.clone(), job_type: job_type.clone(), step }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobType, Arc<Step>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Step {
    /// `false`: there is no room for it.
    fn leave(&self, lane: Lane, handed: impl FnOnce() -> Handed) -> bool {
        let mut state = self.lock();
        if state.room == 0 {
            state.turned_away[lane as usize] += 1;
            return false;
        }
        state.room -= 1;
        state.left.push(handed());
        drop(state);
        self.rung.notify_one();
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Doorstep {
    /// Takes what lies there.
    pub fn take(&self) -> Vec<Handed> {
        std::mem::take(&mut self.step.lock().left)
    }

    /// There is room for so many from now on, with those that lie there.
    pub fn allow(&self, room: usize) {
        let mut state = self.step.lock();
        state.room = room.saturating_sub(state.left.len());
    }

    /// Nothing more may be left, and what lies there goes back.
    pub fn close(&self) {
        self.allow(0);
        drop(self.take());
    }

    /// By lane: how many were turned away since the last call.
    pub fn turned_away(&self) -> [usize; 3] {
        std::mem::take(&mut self.step.lock().turned_away)
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

impl Handed {
    pub fn lane(&self) -> Lane {
        self.wake_up.lane
    }
}

impl Ticket {
    fn claimed(mut self) {
        self.back = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            // Whoever handed it over may be gone: then the outbox has it.
            let _ = back.send(self.place);
        }
    }
}

impl Prompt {
    pub fn is_message(&self) -> bool {
        matches!(self, Self::Message(_))
    }

    pub fn split(self) -> (Result<WakeUp, Garbage>, Origin) {
        match self {
            Self::Message(delivery) => {
                let (wake_up, ack) = delivery.split();
                (wake_up, Origin::Message(ack))
            }
            Self::Handed(Handed { wake_up, ticket }) => (Ok(wake_up), Origin::Intake(Mutex::new(Some(ticket)))),
        }
    }
}

impl Origin {
    /// The message, if there is one: it is there until it is answered, and can come again.
    pub fn message(&self) -> Option<&AckHandle> {
        match self {
            Self::Message(ack) => Some(ack),
            Self::Intake(_) => None,
        }
    }

    /// To be called when the job is somebody's: without a message nobody has to be told of it any more.
    pub fn claimed(&self) {
        if let Self::Intake(ticket) = self
            && let Some(ticket) = take(ticket)
        {
            ticket.claimed();
        }
    }

    /// It has done its work.
    pub async fn ack(&self, broker: &Broker) {
        match self {
            Self::Message(ack) => ack.ack(broker).await,
            Self::Intake(_) => self.claimed(),
        }
    }

    /// Shall come again after `delay`, if it is a message; by a message, if the job is not claimed.
    pub async fn nak(&self, broker: &Broker, delay: Duration) {
        match self {
            Self::Message(ack) => ack.nak(broker, delay).await,
            Self::Intake(ticket) => drop(take(ticket)),
        }
    }
}

fn take(ticket: &Mutex<Option<Ticket>>) -> Option<Ticket> {
    ticket.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{job::Priority, store::enqueue::Due};

    /// A job as the intake has it.
    pub fn job(job_type: &str, priority: i64) -> NewJob {
        NewJob {
            id: uuid::Uuid::now_v7(),
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
    fn as_many_are_taken_as_there_is_room_for_and_the_others_are_counted() {
        let (eager, jobs) = (Eager::default(), [job("one", 0), job("two", 0), job("one", 0), job("one", 0)]);
        assert_eq!(eager.hand_over(&jobs, &[0, 1, 2, 3]).turned_away, [0, 1, 2, 3], "nobody works here");
        let step = eager.doorstep(&jobs[0].job_type);
        assert_eq!(eager.hand_over(&jobs, &[0]).turned_away, [0], "nothing was allowed yet");
        step.allow(1);
        assert_eq!(eager.hand_over(&jobs, &[0, 1, 3]).turned_away, [1, 3]);
        step.allow(2);
        assert_eq!(eager.hand_over(&jobs, &[2, 3]).turned_away, [3], "what lies there takes room as well");
        assert_eq!(step.turned_away(), [0, 3, 0]);
        let taken: Vec<_> = step.take().iter().map(|handed| handed.wake_up.id).collect();
        assert_eq!(taken, [jobs[0].id, jobs[2].id]);
        drop(step);
        assert_eq!(eager.hand_over(&jobs, &[0]).turned_away, [0], "nobody works here any more");
    }

    #[tokio::test]
    async fn what_is_not_claimed_comes_back_and_what_is_does_not() {
        let (eager, jobs) = (Eager::default(), [job("one", 0), job("one", 0), job("one", 0)]);
        let step = eager.doorstep(&jobs[0].job_type);
        step.allow(3);
        let HandOver { turned_away, mut returned } = eager.hand_over(&jobs, &[0, 1, 2]);
        assert!(turned_away.is_empty());
        let origins: Vec<_> = step.take().into_iter().map(|handed| Prompt::Handed(handed).split().1).collect();
        origins[0].claimed();
        drop(origins);
        let mut back = Vec::new();
        while let Some(place) = returned.recv().await {
            back.push(place);
        }
        assert_eq!(back, [1, 2]);
    }
}
