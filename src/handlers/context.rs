//! What a run knows of itself, and the little it can say while it goes on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::job::{JobType, Trace, Update, model::JobId, update::keep_checkpoint};

pub use crate::job::update::CHECKPOINT_MAX;

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// From 0 to 100.
    pub percent: f64,
    #[serde(default)]
    pub message: Option<String>,
}

/// Handed to a handler for one run.
#[derive(Clone)]
pub struct RunContext {
    pub job_id: JobId,
    pub job_type: JobType,
    /// From 1; counts against `max_attempts`.
    pub attempt: u16,
    pub max_attempts: u16,
    /// The fencing token of this run.
    pub run: i64,
    /// The trace of whoever asked for the job, or the job's own, with a span for this run; shown as a W3C `traceparent`.
    pub trace: Trace,
    /// When the run is cut off.
    pub deadline: Instant,
    pub(crate) cancel: CancellationToken,
    pub(crate) notes: Arc<Notes>,
}

/// What a run has said and the worker has not yet written down. The worker collects it a few times a second, so a
/// handler may speak as often as it likes.
#[derive(Debug, Default)]
pub struct Notes {
    fresh: Mutex<Update>,
    checkpoint: Mutex<Option<Arc<RawValue>>>,
}

impl Notes {
    pub fn with_checkpoint(checkpoint: Option<Box<RawValue>>) -> Self {
        Self { checkpoint: Mutex::new(checkpoint.map(Arc::from)), ..Self::default() }
    }

    /// What is new since the last look.
    pub fn take(&self) -> Update {
        std::mem::take(&mut *self.fresh())
    }

    /// Gives back what could not be written; what was said since then is newer.
    pub fn put_back(&self, mut older: Update) {
        let mut fresh = self.fresh();
        older.take_over(std::mem::take(&mut *fresh));
        *fresh = older;
    }

    fn fresh(&self) -> std::sync::MutexGuard<'_, Update> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RunContext {
    /// A context that belongs to no stored job, for tests of handlers.
    pub fn detached(job_type: JobType, timeout: Duration) -> Self {
        let job_id = uuid::Uuid::now_v7();
        Self {
            job_id,
            job_type,
            trace: Trace::of_job(job_id).of_run(job_id, 1),
            attempt: 1,
            max_attempts: 1,
            run: 1,
            deadline: Instant::now() + timeout,
            cancel: CancellationToken::new(),
            notes: Arc::default(),
        }
    }

    /// Ends when somebody cancels the job or the worker is told to stop.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Time that is left before the run is cut off.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Tells how far the run has come; `percent` is held between 0 and 100.
    pub fn progress(&self, percent: f64, message: impl Into<String>) {
        self.say(Some(percent), Some(message.into()));
    }

    /// As [`RunContext::progress`]; what is left out stays as it was.
    pub(crate) fn say(&self, percent: Option<f64>, message: Option<String>) {
        self.notes.fresh().take_over(Update::of_progress(percent, message));
    }

    /// Keeps `value` for the next attempt, should this one be cut off. At most [`CHECKPOINT_MAX`] bytes of JSON.
    pub fn checkpoint<T: Serialize>(&self, value: &T) {
        match serde_json::value::to_raw_value(value) {
            Ok(raw) => match keep_checkpoint(raw) {
                Err(fault) => tracing::warn!(job.id = %self.job_id, "ignored a checkpoint, which {fault}"),
                Ok(raw) => {
                    let raw: Arc<RawValue> = Arc::from(raw);
                    *self.notes.checkpoint.lock().unwrap_or_else(PoisonError::into_inner) = Some(raw.clone());
                    self.notes.fresh().checkpoint = Some(raw);
                }
            },
            Err(e) => tracing::warn!(job.id = %self.job_id, "ignored a checkpoint that is no JSON: {e}"),
        }
    }

    /// The last checkpoint of this job, from this attempt or an earlier one; `None` when there is none of this form.
    pub fn last_checkpoint<T: DeserializeOwned>(&self) -> Option<T> {
        let kept = self.notes.checkpoint.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        serde_json::from_str(kept.get()).ok()
    }
}
