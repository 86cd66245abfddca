//! Signs of life of runs outside, whichever way they come: cleaned before they are written, told after it.

use serde_json::value::RawValue;

use crate::{
    broker::{
        Broker,
        events::{Event, EventState},
    },
    handlers::{Progress, context::can_be_kept},
    job::model::JobId,
    store::outside::{Renewed, Sign},
};

/// A sign of life as the database takes it: cleaned, and without what is too large.
pub(crate) fn of(
    id: JobId,
    run: i64,
    percent: Option<f64>,
    message: Option<String>,
    checkpoint: Option<&RawValue>,
) -> Sign {
    let progress = (percent.is_some() || message.is_some())
        .then(|| Progress::cleaned(percent.unwrap_or_default(), message.unwrap_or_default()));
    Sign {
        id,
        run,
        progress: progress.and_then(|progress| serde_json::to_string(&progress).ok()),
        checkpoint: checkpoint.filter(|raw| can_be_kept(raw)).map(|raw| raw.get().to_owned()),
    }
}

/// Tells the progress of runs whose lease was renewed.
pub(crate) async fn tell(broker: &Broker, signs: &[Sign], renewed: &[Renewed]) {
    let mut told = Vec::new();
    for run in renewed {
        let sign = signs.iter().find(|sign| sign.id == run.id);
        let progress = sign.and_then(|sign| serde_json::from_str::<Progress>(sign.progress.as_deref()?).ok());
        told.extend(progress.map(|progress| (run, progress)));
    }
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
