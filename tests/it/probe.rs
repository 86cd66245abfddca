//! A job type for tests: it does what its payload says, and writes down every start and end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use queue_service::{
    handlers::{Handler, RunContext},
    job::Failure,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use uuid::Uuid;

/// What a run does.
#[derive(Clone, Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Script {
    /// Fail so many attempts before one succeeds.
    pub fail: u16,
    /// Fail for good.
    pub permanent: bool,
    pub panic: bool,
    /// Take so long.
    pub sleep_ms: u64,
    /// Go on until the test says so, or somebody stops the run.
    pub wait: bool,
    /// Block the thread instead of waiting.
    pub block_ms: u64,
    pub progress: Option<f64>,
    pub checkpoint: Option<u64>,
    pub retry_after_ms: Option<u64>,
    /// A result of so many bytes.
    pub result_bytes: Option<usize>,
    /// Any text, for the test's own use; it is the result.
    pub note: String,
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub job: Uuid,
    pub attempt: u16,
    pub run: i64,
    pub what: &'static str,
    pub note: String,
    pub at: Instant,
}

/// Everything that happened to the runs of one test.
#[derive(Clone, Default)]
pub struct Journal {
    lines: Arc<Mutex<Vec<Line>>>,
    go: Arc<Notify>,
}

impl Journal {
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap().clone()
    }

    /// How many lines say `what` of a job.
    pub fn count(&self, job: &str, what: &str) -> usize {
        let job: Uuid = job.parse().unwrap();
        self.lines.lock().unwrap().iter().filter(|line| line.job == job && line.what == what).count()
    }

    /// Holds that each of these jobs has run to its end once, however many they are.
    pub fn all_ran_once(&self, jobs: &[String]) {
        let mut ends: HashMap<Uuid, usize> = HashMap::new();
        for line in self.lines.lock().unwrap().iter().filter(|line| line.what == "end") {
            *ends.entry(line.job).or_default() += 1;
        }
        for job in jobs {
            assert_eq!(ends.get(&job.parse().unwrap()).copied().unwrap_or_default(), 1, "runs of {job}");
        }
    }

    /// The notes of the lines that say `what`, in their order.
    pub fn notes(&self, what: &str) -> Vec<String> {
        self.lines().into_iter().filter(|line| line.what == what).map(|line| line.note).collect()
    }

    /// Returns when `what` is written of a job, with its line.
    pub async fn until(&self, job: &str, what: &str) -> Line {
        let job: Uuid = job.parse().unwrap();
        crate::harness::until(|| async {
            self.lines.lock().unwrap().iter().find(|line| line.job == job && line.what == what).cloned()
        })
        .await
    }

    /// Lets all runs go on that wait now.
    pub fn release(&self) {
        self.go.notify_waiters();
    }

    fn write(&self, ctx: &RunContext, what: &'static str, note: &str) {
        let line = Line {
            job: ctx.job_id,
            attempt: ctx.attempt,
            run: ctx.run,
            what,
            note: note.to_owned(),
            at: Instant::now(),
        };
        self.lines.lock().unwrap().push(line);
    }
}

pub struct Probe {
    pub journal: Journal,
}

impl Handler for Probe {
    const TYPE: &'static str = "probe";
    const ABOUT: &'static str = "Does what a test tells it.";
    type Payload = Script;
    type Output = Value;

    async fn run(&self, ctx: &RunContext, script: Script) -> Result<Value, Failure> {
        let released = self.journal.go.notified();
        tokio::pin!(released);
        released.as_mut().enable();
        self.journal.write(ctx, "start", &script.note);
        let before: Option<u64> = ctx.last_checkpoint();
        if let Some(percent) = script.progress {
            ctx.progress(percent, "half way");
        }
        if let Some(value) = script.checkpoint {
            ctx.checkpoint(&value);
        }
        if script.block_ms > 0 {
            std::thread::sleep(Duration::from_millis(script.block_ms));
        }
        if script.wait {
            tokio::select! {
                () = released => {}
                () = ctx.cancelled() => {
                    self.journal.write(ctx, "stopped", &script.note);
                    return Err(Failure::retry("told to stop"));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(script.sleep_ms)).await;
        self.journal.write(ctx, "end", &script.note);
        assert!(!script.panic, "the probe was told to panic");
        if script.permanent {
            return Err(Failure::permanent("no hope"));
        }
        if ctx.attempt <= script.fail {
            let wish = script.retry_after_ms.map(Duration::from_millis);
            return Err(Failure::retry(format!("failed attempt {}", ctx.attempt)).after(wish));
        }
        Ok(match script.result_bytes {
            Some(n) => json!("x".repeat(n)),
            None => json!({"note": script.note, "checkpoint": before}),
        })
    }
}
