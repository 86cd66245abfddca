//! The runs of this worker: to be found when somebody cancels one, spoken for while they last.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::{MutexGuard, Notify},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Shared, Unfinished};
use crate::{
    broker::{
        Broker,
        events::{Event, EventState},
        pull::AckHandle,
    },
    handlers::{Progress, context::Notes},
    job::End,
    ops::error::chain,
    store::notes::Note,
};

/// How often progress and checkpoints are collected.
const COLLECT: Duration = Duration::from_millis(250);
/// Jobs that are looked at together for a cancellation.
const AT_ONCE: usize = 500;
/// Messages that are kept alive at the same time.
const KEPT_AT_ONCE: usize = 1000;
/// How long the last words of a run are tried to be written.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a run is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    Cancel,
    Drain,
    /// The process goes on without this worker: nothing more is written.
    Crash,
}

/// A handle on a job from its coming to its answer, and on the run that it may lead to.
pub(crate) struct Run {
    pub id: Uuid,
    pub job_type: String,
    /// What brought it, to be answered; a job that was won when it was written has none.
    pub message: Option<AckHandle>,
    /// The handler's token.
    pub token: CancellationToken,
    cause: AtomicU8,
    /// Whether its handler has ended, so that only the outcome is to be written.
    has_ended: AtomicBool,
    /// Of the claim; 0 before it.
    claimed: Mutex<(i64, u16)>,
    pub notes: Mutex<Arc<Notes>>,
    /// Held while what it has said is being written.
    writing: tokio::sync::Mutex<()>,
    /// What a program outside has said in the end.
    pub said: OnceLock<End>,
    /// Off before the message is answered: progress after a nak would cancel its delay.
    keep_alive: Mutex<bool>,
    begun: AtomicBool,
    settled: AtomicBool,
}

impl Run {
    pub fn new(id: Uuid, job_type: String, message: Option<AckHandle>) -> Self {
        Self {
            id,
            job_type,
            message,
            token: CancellationToken::new(),
            cause: AtomicU8::new(0),
            has_ended: AtomicBool::new(false),
            claimed: Mutex::default(),
            notes: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            said: OnceLock::new(),
            keep_alive: Mutex::new(true),
            begun: AtomicBool::new(false),
            settled: AtomicBool::new(false),
        }
    }

    pub fn stop(&self, cause: StopCause) {
        let code = match cause {
            StopCause::Cancel => 1,
            StopCause::Drain => 2,
            StopCause::Crash => 3,
        };
        // The first cause stands.
        let _ = self.cause.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
        self.token.cancel();
    }

    pub fn cause(&self) -> Option<StopCause> {
        match self.cause.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(StopCause::Cancel),
            2 => Some(StopCause::Drain),
            _ => Some(StopCause::Crash),
        }
    }

    /// The handler has ended.
    pub fn note_end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    /// Ends the keeping alive; to be called before the message is answered.
    pub fn let_go(&self) {
        *self.keep_alive.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    async fn keep_alive(&self, broker: &Broker) {
        let alive = *self.keep_alive.lock().unwrap_or_else(PoisonError::into_inner);
        if alive && let Some(message) = &self.message {
            message.progress(broker).await;
        }
    }

    /// What brought it has done its work.
    pub async fn ack(&self, broker: &Broker) {
        if let Some(message) = &self.message {
            message.ack(broker).await;
        }
    }

    /// What brought it shall come again after `delay`.
    pub async fn nak(&self, broker: &Broker, delay: Duration) {
        if let Some(message) = &self.message {
            message.nak(broker, delay).await;
        }
    }

    /// To be called before anybody hears of the claim.
    pub fn note_claim(&self, run: i64, attempt: u16) {
        *self.claimed.lock().unwrap_or_else(PoisonError::into_inner) = (run, attempt);
    }

    /// The handler is about to start.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::SeqCst);
    }

    /// The run is over by the database's account, or is no longer this worker's.
    pub fn settle(&self) {
        self.settled.store(true, Ordering::SeqCst);
    }

    pub fn claimed(&self) -> (i64, u16) {
        *self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run that this worker has in hand, until this is dropped.
pub(crate) struct InHand {
    pub run: Arc<Run>,
    pub shared: Arc<Shared>,
    key: u64,
}

impl InHand {
    pub fn new(shared: &Arc<Shared>, run: Run) -> Self {
        let run = Arc::new(run);
        Self { key: shared.running.add(run.clone()), shared: shared.clone(), run }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.run.let_go();
        self.shared.running.remove(self.key, &self.run);
    }
}

/// All runs in hand, and those that were dropped before their end was recorded.
#[derive(Default)]
pub(crate) struct Running {
    runs: Mutex<Runs>,
    changed: Notify,
}

#[derive(Default)]
pub(super) struct Runs {
    last_key: u64,
    /// By a number of our own: one job may be in hand twice, by two messages.
    pub in_hand: HashMap<u64, Arc<Run>>,
    pub forgotten: HashMap<(Uuid, i64), Forgotten>,
}

/// A run that nobody here has in hand, and that this worker holds by the database's account. See [`super::reconcile`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Forgotten {
    /// Whether its handler has started.
    pub begun: bool,
    pub since: Instant,
    /// How many looks in a row have missed it.
    pub missed: u32,
    /// How many looks it is left alone.
    pub rest: u32,
}

impl Running {
    pub(super) fn add(&self, run: Arc<Run>) -> u64 {
        let mut runs = self.lock();
        runs.last_key += 1;
        let key = runs.last_key;
        runs.in_hand.insert(key, run);
        key
    }

    pub(super) fn remove(&self, key: u64, run: &Run) {
        let mut runs = self.lock();
        let number = run.claimed().0;
        if number > 0 && !run.settled.load(Ordering::SeqCst) {
            let begun = run.begun.load(Ordering::SeqCst);
            runs.forgotten.insert((run.id, number), Forgotten { begun, since: Instant::now(), missed: 0, rest: 0 });
        }
        runs.in_hand.remove(&key);
        if runs.in_hand.is_empty() {
            self.changed.notify_waiters();
        }
    }

    /// The jobs that this worker may hold: of all runs in hand, and of those that were dropped before their end.
    pub fn ids(&self) -> HashSet<Uuid> {
        let runs = self.lock();
        runs.in_hand.values().map(|run| run.id).chain(runs.forgotten.keys().map(|(id, _)| *id)).collect()
    }

    pub fn interrupt_all(&self, cause: StopCause) {
        self.lock().in_hand.values().for_each(|run| run.stop(cause));
    }

    /// What is left of those that were claimed.
    pub fn unfinished(&self) -> Unfinished {
        let runs = self.lock();
        let claimed = runs.in_hand.values().filter(|run| run.claimed().0 > 0);
        let (outcomes, runs): (Vec<_>, Vec<_>) = claimed.partition(|run| run.has_ended.load(Ordering::Relaxed));
        Unfinished { runs: runs.len(), outcomes: outcomes.len() }
    }

    pub async fn wait_empty(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().in_hand.is_empty() {
                return;
            }
            changed.await;
        }
    }

    fn all(&self) -> Vec<Arc<Run>> {
        self.lock().in_hand.values().cloned().collect()
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops runs that somebody cancels. A signal is a hint: whoever may publish it can name any job, and it may come late.
pub(crate) async fn obey_cancels(shared: Arc<Shared>, stop: CancellationToken) {
    let Ok(mut cancels) = shared.deps.broker.cancels().await else { return };
    // Runs may outlive the end of pulling, and are to be cancelled even then.
    while let Some(first) = next_until_idle(&mut cancels, &shared, &stop).await {
        let mut named = HashSet::new();
        let mut next = Some(first);
        while let Some(message) = next {
            named.extend(Broker::cancelled(&message.subject).map(|(job_type, id)| (job_type.to_owned(), id)));
            next = if named.len() < AT_ONCE { cancels.next().now_or_never().flatten() } else { None };
        }
        stop_cancelled(&shared, &named).await;
    }
}

/// Stops those of the named jobs' runs whose rows say that they are to stop, by one look at the database.
async fn stop_cancelled(shared: &Shared, named: &HashSet<(String, Uuid)>) {
    let mut pause = Duration::from_millis(50);
    loop {
        let is_named = |run: &Arc<Run>| named.contains(&(run.job_type.clone(), run.id)) && run.cause().is_none();
        let runs: Vec<Arc<Run>> = shared.running.all().into_iter().filter(is_named).collect();
        if runs.is_empty() {
            return;
        }
        let ids: Vec<Uuid> = runs.iter().map(|run| run.id).collect();
        match shared.deps.store.runs_to_cancel(&shared.id, &ids).await {
            Ok(cancelled) => {
                // One whose claim was not answered yet has no number.
                let is_to_stop =
                    |run: &Run, (id, number): (Uuid, i64)| run.id == id && [0, number].contains(&run.claimed().0);
                let stopped = runs.iter().filter(|run| cancelled.iter().any(|row| is_to_stop(run, *row)));
                stopped.for_each(|run| run.stop(StopCause::Cancel));
                return;
            }
            Err(e) => {
                tracing::debug!("could not look for what is cancelled, trying again: {}", chain(&e));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

async fn next_until_idle(
    messages: &mut async_nats::Subscriber,
    shared: &Shared,
    stop: &CancellationToken,
) -> Option<async_nats::Message> {
    tokio::select! {
        message = messages.next() => message,
        _ = async { stop.cancelled().await; shared.running.wait_empty().await } => None,
    }
}

/// Keeps the messages of runs alive, and writes down what their handlers say.
pub(crate) async fn speak_for_runs(shared: Arc<Shared>, stop: CancellationToken) {
    let deps = &shared.deps;
    let mut alive = tokio::time::interval(deps.config.background.ack_wait / 3);
    let mut collect = tokio::time::interval(COLLECT);
    loop {
        tokio::select! {
            _ = alive.tick() => {
                // Together: each may take a second while the client is stuck.
                let runs = futures_util::stream::iter(shared.running.all());
                runs.for_each_concurrent(KEPT_AT_ONCE, async |run| run.keep_alive(&deps.broker).await).await;
            }
            _ = collect.tick() => write_notes(&shared).await,
            _ = async { stop.cancelled().await; shared.running.wait_empty().await } => return,
        }
    }
}

/// Writes what all handlers have said since the last time.
async fn write_notes(shared: &Shared) {
    // What is being written for the end of a run is in hand.
    let runs = shared.running.all();
    write(shared, runs.iter().filter_map(|run| Some((run, run.writing.try_lock().ok()?)))).await;
}

/// Writes what one handler has said, before its outcome is recorded: a checkpoint must not get lost with it. Given up after
/// [`PATIENCE`] without a database, so that a stop ends.
pub(crate) async fn write_notes_of(shared: &Shared, run: &Arc<Run>) {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(50);
    // Not beside those that were collected a moment ago: the outcome would overtake them, and they came too late.
    while !write(shared, [(run, run.writing.lock().await)]).await && Instant::now() < end {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// One statement for all, and then the news as events. `false`: nothing was written, and it is worth trying again.
async fn write<'a>(shared: &Shared, runs: impl IntoIterator<Item = (&'a Arc<Run>, MutexGuard<'a, ()>)>) -> bool {
    let mut notes = Vec::new();
    let mut said = Vec::new();
    let mut writing = Vec::new();
    for (run, turn) in runs {
        let kept = run.notes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let update = kept.take();
        if update.is_empty() {
            continue;
        }
        let (number, attempt) = run.claimed();
        notes.push(Note { id: run.id, run: number, update });
        writing.push(turn);
        said.push((run, number, attempt, kept));
    }
    if notes.is_empty() {
        return true;
    }
    // Boxed: most runs have nothing to say, and each would carry the room for it.
    let noted = match Box::pin(shared.deps.store.write_notes(&notes)).await {
        Ok(noted) => noted,
        Err(e) => {
            tracing::debug!("progress was not written: {}", crate::ops::error::chain(&e));
            if e.is_transient() {
                notes.into_iter().zip(said).for_each(|(note, (.., kept))| kept.put_back(note.update));
            }
            return !e.is_transient();
        }
    };
    let progress_of = |id: Uuid, run: i64| {
        let noted = noted.iter().find(|noted| (noted.id, noted.run) == (id, run))?;
        serde_json::from_str::<Progress>(noted.progress.as_deref()?).ok()
    };
    let news: Vec<_> = said
        .iter()
        .filter_map(|(run, number, attempt, _)| Some((run, attempt, progress_of(run.id, *number)?)))
        .collect();
    let told: Vec<Event> = news
        .iter()
        .map(|(run, attempt, progress)| Event {
            percent: Some(progress.percent),
            message: progress.message.as_deref(),
            ..Event::new(run.id, &run.job_type, EventState::Progress, **attempt, Some(&shared.id))
        })
        .collect();
    Box::pin(shared.deps.broker.emit(&told)).await;
    true
}
