//! Starts every task of the service, each with a name. What has to run for long is started again when it fails.
//!
//! `tokio::spawn` and its kin drop a panic: the task is gone, and nothing shows it. So they are forbidden everywhere
//! else (`disallowed_methods` in clippy.toml). Imports nothing of ours.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Pause before a task that failed starts again: twice as long with each failure, up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// A task that ran for so long is well again: its next failure counts as the first.
const STEADY: Duration = Duration::from_secs(60);
/// How often a task may fail while its part of the service stops. Then it is given up, so that the stop ends.
const AT_STOP: u32 = 3;

/// What a task is called: its kind, and which one of that kind it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    kind: &'static str,
    of: String,
}

/// Knows all long-lived tasks of one service. Cheap to clone.
#[derive(Clone, Default)]
pub struct Supervisor(Arc<Shared>);

#[derive(Default)]
struct Shared {
    records: Mutex<BTreeMap<Name, Record>>,
    /// By kind; kept when a task is over, since counters must not fall.
    restarts: Mutex<BTreeMap<&'static str, u64>>,
    vital: Mutex<Option<String>>,
    ended: CancellationToken,
    stopping: CancellationToken,
    /// The same, for those who ask for each job.
    is_stopping: AtomicBool,
    /// All tasks are dropped where they wait.
    aborted: CancellationToken,
}

/// What is known of one long-lived task.
#[derive(Default)]
struct Record {
    /// An old one may still be ending when its successor begins.
    running: usize,
    restarts: u64,
    in_a_row: u32,
    failed_at: Option<Instant>,
    fault: Arc<tokio::sync::Notify>,
}

/// How one long-lived task is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub name: String,
    pub restarts: u64,
    /// It has failed several times in a row, the last time a moment ago.
    pub is_failing: bool,
}

/// Tasks that end together. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tasks {
    supervisor: Supervisor,
    tracker: TaskTracker,
    /// How many of them run for long.
    kept: Arc<AtomicUsize>,
    cut: CancellationToken,
}

impl Name {
    /// One of a kind of which there are several.
    pub fn of(kind: &'static str, of: impl fmt::Display) -> Self {
        Self { kind, of: of.to_string() }
    }
}

impl From<&'static str> for Name {
    fn from(kind: &'static str) -> Self {
        Self { kind, of: String::new() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)?;
        if self.of.is_empty() { Ok(()) } else { write!(f, " {}", self.of) }
    }
}

impl Supervisor {
    /// A group of tasks that can be waited for.
    pub fn tasks(&self) -> Tasks {
        Tasks { supervisor: self.clone(), ..Tasks::default() }
    }

    /// The service begins to stop.
    pub fn begin_stop(&self) {
        self.0.is_stopping.store(true, Ordering::SeqCst);
        self.0.stopping.cancel();
    }

    /// Cancelled when the service begins to stop: nothing is begun from then on that may be done elsewhere.
    pub fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }

    /// Whether the service has begun to stop.
    pub fn is_stopping(&self) -> bool {
        self.0.is_stopping.load(Ordering::SeqCst)
    }

    /// All long-lived tasks that run or are about to start again.
    pub fn report(&self) -> Vec<Report> {
        let report = |(name, record): (&Name, &Record)| Report {
            name: name.to_string(),
            restarts: record.restarts,
            is_failing: record.in_a_row > 1 && record.failed_at.is_some_and(|at| at.elapsed() < STEADY),
        };
        self.records().iter().map(report).collect()
    }

    /// How often tasks of each kind were started again.
    pub fn restarts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.0.restarts).clone()
    }

    /// Ends all tasks as a crash would, wherever they wait, when it is dropped.
    pub fn end_on_drop(&self) -> DropGuard {
        self.0.aborted.clone().drop_guard()
    }

    /// Is cancelled when all tasks are ended as by a crash.
    pub fn aborted(&self) -> &CancellationToken {
        &self.0.aborted
    }

    /// Runs `work` again and again until it returns while `stop` is cancelled. Without a `stop`, its return is its end.
    ///
    /// A panic or an early return is logged and counted; then it starts again after a pause. For a task on a runtime
    /// of its own; others are started by [`Tasks`].
    pub async fn supervise<Fut>(
        &self,
        name: impl Into<Name>,
        stop: Option<CancellationToken>,
        work: impl FnMut() -> Fut,
    ) where
        Fut: Future<Output = ()>,
    {
        self.0.aborted.run_until_cancelled(self.keep_up(name.into(), stop, work)).await;
    }

    async fn keep_up<Fut>(&self, name: Name, stop: Option<CancellationToken>, mut work: impl FnMut() -> Fut)
    where
        Fut: Future<Output = ()>,
    {
        let entry = Entry::new(self, name);
        let mut at_stop = 0;
        loop {
            let began = Instant::now();
            // Boxed: it is large, and each layer around it would hold and move all of it.
            let run = AssertUnwindSafe(entry.run(async { Box::pin(work()).await })).catch_unwind().await;
            let stopping = stop.as_ref().is_some_and(CancellationToken::is_cancelled);
            let how = match &run {
                Ok(()) if stopping || stop.is_none() => return,
                Ok(()) => "ended too soon".to_owned(),
                Err(panic) => format!("panicked: {}", said(&**panic)),
            };
            let pause = entry.note_failure(began.elapsed());
            at_stop += u32::from(stopping);
            if at_stop == AT_STOP {
                tracing::error!(task = %entry.name, "the task '{}' {how}; given up, the service stops", entry.name);
                return;
            }
            tracing::error!(
                task = %entry.name,
                "the task '{}' {how}; it starts again in {} ms",
                entry.name,
                pause.as_millis()
            );
            let stopped = async {
                match &stop {
                    Some(stop) => stop.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            // What is left to do at a stop must not wait for long.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopped => tokio::time::sleep(FIRST.min(pause)).await,
            }
        }
    }

    /// Starts a task without which the service can't go on: its panic ends the service, see [`Supervisor::failed`].
    pub fn vital<F>(&self, name: &'static str, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let supervisor = self.clone();
        spawn(name, async move {
            let entry = Entry::new(&supervisor, name.into());
            let _alarm = Alarm(supervisor.clone(), name);
            entry.run(work).await
        })
    }

    /// Returns when a vital task has panicked.
    pub async fn failed(&self) {
        self.0.ended.cancelled().await;
    }

    /// The vital task that has panicked, if one has.
    pub fn failure(&self) -> Option<String> {
        lock(&self.0.vital).clone()
    }

    /// Makes the task of this name panic where it waits. `false`: there is none.
    #[cfg(feature = "faults")]
    pub fn panic(&self, name: &str) -> bool {
        let records = self.records();
        let found = records.iter().find(|(known, _)| known.to_string() == name);
        found.map(|(_, record)| record.fault.notify_one()).is_some()
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<Name, Record>> {
        lock(&self.0.records)
    }
}

impl Tasks {
    /// Starts a task that has to run until `stop` is cancelled. It is started again when it panics or returns before.
    pub fn keep<Fut>(&self, name: impl Into<Name>, stop: &CancellationToken, work: impl FnMut() -> Fut + Send + 'static)
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.track(name.into(), Some(stop.clone()), work);
    }

    /// As [`Tasks::keep`], for work that is cut off wherever it waits when `stop` is cancelled.
    pub fn keep_until<Fut>(
        &self,
        name: impl Into<Name>,
        stop: &CancellationToken,
        mut work: impl FnMut() -> Fut + Send + 'static,
    ) where
        Fut: Future<Output = ()> + Send + 'static,
    {
        let stopped = stop.clone();
        self.keep(name, stop, move || stopped.clone().run_until_cancelled_owned(work()).map(drop));
    }

    /// Starts a task that has to run until it returns. It is started again when it panics.
    pub fn keep_until_done<Fut>(&self, name: impl Into<Name>, work: impl FnMut() -> Fut + Send + 'static)
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.track(name.into(), None, work);
    }

    /// As [`spawn`], for a task that is waited for with the others, and ended with them.
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let aborted = self.supervisor.0.aborted.clone();
        start(&self.tracker, async move { aborted.run_until_cancelled(named(name, work)).await });
    }

    /// Who keeps them.
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Lets [`Tasks::wait`] return once all have ended.
    pub fn close(&self) {
        self.tracker.close();
    }

    /// Returns when all have ended, after [`Tasks::close`].
    pub async fn wait(&self) {
        self.tracker.wait().await;
    }

    /// Ends those that run for long, wherever they wait, and drops what they are at.
    pub fn cut_off(&self) {
        self.cut.cancel();
    }

    /// Whether [`Tasks::cut_off`] was called.
    pub fn is_cut_off(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// How many tasks have not ended that end by themselves: those of [`Tasks::spawn`].
    pub fn short_ones(&self) -> usize {
        self.tracker.len().saturating_sub(self.kept.load(Ordering::SeqCst))
    }

    fn track<Fut>(&self, name: Name, stop: Option<CancellationToken>, work: impl FnMut() -> Fut + Send + 'static)
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (supervisor, cut, kept) = (self.supervisor.clone(), self.cut.clone(), Kept::new(&self.kept));
        start(&self.tracker, async move {
            cut.run_until_cancelled_owned(supervisor.supervise(name, stop, work)).await;
            drop(kept);
        });
    }
}

/// Counts a task that runs for long, until it is dropped.
struct Kept(Arc<AtomicUsize>);

impl Kept {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A place in the list of tasks, for as long as the task runs.
struct Entry<'a> {
    supervisor: &'a Supervisor,
    name: Name,
    #[cfg_attr(not(feature = "faults"), expect(dead_code, reason = "only tests ask for a fault"))]
    fault: Arc<tokio::sync::Notify>,
}

impl<'a> Entry<'a> {
    fn new(supervisor: &'a Supervisor, name: Name) -> Self {
        let fault = {
            let mut records = supervisor.records();
            let record = records.entry(name.clone()).or_default();
            record.running += 1;
            record.fault.clone()
        };
        lock(&supervisor.0.restarts).entry(name.kind).or_default();
        Self { supervisor, name, fault }
    }

    #[cfg(feature = "faults")]
    async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            () = self.fault.notified() => panic!("a test has asked for it"),
            done = work => done,
        }
    }

    #[cfg(not(feature = "faults"))]
    fn run<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        work
    }

    /// Counts a failure, and says how long to wait before the next start.
    fn note_failure(&self, ran: Duration) -> Duration {
        *lock(&self.supervisor.0.restarts).entry(self.name.kind).or_default() += 1;
        let mut records = self.supervisor.records();
        let Some(record) = records.get_mut(&self.name) else { return FIRST };
        record.restarts += 1;
        record.in_a_row = if ran >= STEADY { 1 } else { record.in_a_row.saturating_add(1) };
        record.failed_at = Some(Instant::now());
        pause(record.in_a_row)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut records = self.supervisor.records();
        if let Some(record) = records.get_mut(&self.name) {
            record.running -= 1;
            if record.running == 0 {
                records.remove(&self.name);
            }
        }
    }
}

/// Tells that a vital task has panicked, when it is dropped by the panic.
struct Alarm(Supervisor, &'static str);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.0.0.vital).get_or_insert_with(|| self.1.to_owned());
            self.0.0.ended.cancel();
        }
    }
}

fn pause(failures: u32) -> Duration {
    (FIRST * 2u32.saturating_pow(failures.saturating_sub(1).min(10))).min(LONGEST)
}

/// Starts a task that ends by itself soon. A panic in it is logged with its name.
pub fn spawn<F>(name: &'static str, work: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "the one place where a task is started by itself")]
    tokio::spawn(named(name, work))
}

/// As [`spawn`], for a task whose panic is the caller's to judge.
pub fn spawn_silent<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "the caller awaits the handle and sees the panic")]
    tokio::spawn(work)
}

/// As [`spawn`], in a set.
pub fn spawn_in<F>(set: &mut JoinSet<F::Output>, name: &'static str, work: F)
where
    F: Future<Output: Send> + Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "the one place where a task is started in a set")]
    set.spawn(named(name, work));
}

/// Runs what blocks its thread on a thread for that. A panic is the caller's to judge: the handle gives it.
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[expect(clippy::disallowed_methods, reason = "the caller awaits the handle and sees the panic")]
    tokio::task::spawn_blocking(work)
}

/// Starts a thread.
///
/// # Errors
/// The operating system gives none.
pub fn thread<T: Send + 'static>(
    name: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    #[expect(clippy::disallowed_methods, reason = "the one place where a thread is started")]
    std::thread::Builder::new().name(name.into()).spawn(work)
}

fn start<F>(tracker: &TaskTracker, work: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "the one place where a task is started on a tracker")]
    tracker.spawn(work)
}

/// Logs a panic of `work`, and lets it go on.
async fn named<F: Future>(name: &'static str, work: F) -> F::Output {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(output) => output,
        Err(panic) => {
            tracing::error!(task = name, "the task '{name}' panicked: {}", said(&*panic));
            std::panic::resume_unwind(panic)
        }
    }
}

/// The text of a panic.
pub fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Fails at each of its first starts, and then goes on until `stop`.
    fn failing(tasks: &Tasks, stop: &CancellationToken, times: u32) -> Arc<AtomicU32> {
        let starts = Arc::new(AtomicU32::new(0));
        let (counted, told) = (starts.clone(), stop.clone());
        tasks.keep("weak", stop, move || {
            let (n, told) = (counted.fetch_add(1, Ordering::SeqCst), told.clone());
            async move {
                assert!(n >= times || n.is_multiple_of(2), "start {n}");
                if n >= times {
                    told.cancelled().await;
                }
            }
        });
        starts
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_or_returns_early_starts_again() {
        let (tasks, stop) = (Tasks::default(), CancellationToken::new());
        let starts = failing(&tasks, &stop, 5);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(starts.load(Ordering::SeqCst), 6);
        let supervisor = tasks.supervisor().clone();
        let report = Report { name: "weak".into(), restarts: 5, is_failing: true };
        assert_eq!(supervisor.report(), std::slice::from_ref(&report));
        tokio::time::sleep(STEADY).await;
        assert_eq!(supervisor.report(), [Report { is_failing: false, ..report }]);
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        assert_eq!(supervisor.report(), []);
        assert_eq!(supervisor.restarts(), BTreeMap::from([("weak", 5)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_fails_during_a_stop_is_given_up_soon() {
        let (tasks, stop) = (Tasks::default(), CancellationToken::new());
        tasks.keep("weak", &stop, || async { panic!("always") });
        tasks.keep_until_done("done", || async {});
        tokio::time::sleep(Duration::from_secs(60)).await;
        let began = Instant::now();
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_vital_task_that_panics_ends_the_service_and_is_named() {
        let supervisor = Supervisor::default();
        assert_eq!(supervisor.vital("well", async { 7 }).await.unwrap(), 7);
        assert_eq!(supervisor.failure(), None);
        assert!(supervisor.vital("heart", async { panic!("stopped") }).await.is_err());
        supervisor.failed().await;
        assert_eq!(supervisor.failure().as_deref(), Some("heart"));
    }

    #[test]
    fn pauses_grow_up_to_the_longest() {
        assert_eq!([1, 2, 3, 7, 8, u32::MAX].map(|n| pause(n).as_millis()), [100, 200, 400, 6400, 10_000, 10_000]);
    }
}
