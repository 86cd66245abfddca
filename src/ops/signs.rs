//! Signs of life of runs outside, whichever way they come: gathered by run, cleaned before they are written, told after it.

use std::{collections::HashMap, sync::Arc};

use serde_json::value::RawValue;

use crate::{
    broker::{
        Broker,
        events::{Event, EventState},
    },
    handlers::Progress,
    job::{
        Update,
        model::JobId,
        update::{CHECKPOINT_MAX, keep_checkpoint},
    },
    store::outside::{Renewed, Sign},
};

/// What one run has said since the last time, by run: of two signs the later one counts, in what it says. Signs of other runs
/// of the same job (and those that name another type) stand beside it; the rows decide which of them count.
#[derive(Debug, Default)]
pub(crate) struct Signs {
    runs: HashMap<(JobId, i64, Option<String>), Update>,
    checkpoints: usize,
}

impl Signs {
    pub fn add(&mut self, sign: Sign) {
        let Sign { id, run, job_type, update } = sign;
        self.checkpoints += usize::from(update.checkpoint.is_some());
        self.runs.entry((id, run, job_type)).or_default().take_over(update);
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether they should be written before more are taken: `many` runs, or 8 MiB if all checkpoints are as large as can be.
    pub fn are_enough(&self, many: usize) -> bool {
        self.runs.len() >= many || self.checkpoints >= 8 * 1024 * 1024 / CHECKPOINT_MAX
    }

    pub fn take(&mut self) -> Vec<Sign> {
        let Self { runs, .. } = std::mem::take(self);
        runs.into_iter().map(|((id, run, job_type), update)| Sign { id, run, job_type, update }).collect()
    }
}

/// What is wrong with what a run says: the field, and why it is not kept.
pub(crate) type Refused = (&'static str, String);

/// What a run says, judged. What can't be kept is left out and named; the rest counts.
pub(crate) fn judge(
    percent: Option<f64>,
    message: Option<String>,
    checkpoint: Option<&RawValue>,
) -> (Update, Vec<Refused>) {
    let mut refused = Vec::new();
    let fits = |percent: &f64| (0.0..=100.0).contains(percent);
    if percent.is_some_and(|percent| !fits(&percent)) {
        refused.push(("percent", "must be 0 to 100".to_owned()));
    }
    let mut update = Update::of_progress(percent.filter(fits), message);
    match checkpoint.map(|raw| keep_checkpoint(raw.to_owned())) {
        Some(Err(fault)) => refused.push(("checkpoint", fault)),
        Some(Ok(kept)) => update.checkpoint = Some(Arc::from(kept)),
        None => {}
    }
    (update, refused)
}

/// Tells the progress of runs whose lease was renewed.
pub(crate) async fn tell(broker: &Broker, renewed: &[Renewed]) {
    let read = |run: &Renewed| serde_json::from_str::<Progress>(run.progress.as_deref()?).ok();
    let told: Vec<(&Renewed, Progress)> = renewed.iter().filter_map(|run| Some((run, read(run)?))).collect();
    let events: Vec<Event> = told
        .iter()
        .map(|(run, progress)| Event {
            percent: Some(progress.percent),
            message: progress.message.as_deref(),
            ..Event::new(run.id, &run.job_type, EventState::Progress, run.attempt as u16, Some(&run.worker_id))
        })
        .collect();
    broker.emit(&events).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(run: i64, percent: Option<f64>, message: Option<&str>) -> Sign {
        let update = Update::of_progress(percent, message.map(str::to_owned));
        Sign { id: JobId::nil(), run, job_type: None, update }
    }

    #[test]
    fn signs_of_an_older_run_stand_beside_those_of_the_live_one() {
        let mut signs = Signs::default();
        for sign in [sign(2, Some(10.0), None), sign(1, Some(90.0), None), sign(2, None, Some("half"))] {
            signs.add(sign);
        }
        let mut taken = signs.take();
        taken.sort_by_key(|sign| sign.run);
        let said: Vec<_> = taken.iter().map(|s| (s.run, s.update.percent, s.update.message.as_deref())).collect();
        assert_eq!(said, [(1, Some(90.0), None), (2, Some(10.0), Some("half"))]);
        assert!(signs.is_empty());
    }

    #[test]
    fn what_can_not_be_kept_is_named_and_the_rest_counts() {
        let large = RawValue::from_string(format!("\"{}\"", "x".repeat(CHECKPOINT_MAX))).unwrap();
        let (update, refused) = judge(Some(101.0), Some("half".into()), Some(&large));
        assert_eq!(
            (update.percent, update.message.as_deref(), update.checkpoint.is_none()),
            (None, Some("half"), true)
        );
        let named: Vec<_> = refused.iter().map(|(field, _)| *field).collect();
        assert_eq!(named, ["percent", "checkpoint"]);
        assert!(refused[1].1.contains("262144 bytes"), "{}", refused[1].1);
    }
}
