//! What a handler outside is told of a run. Pure.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{handlers::RunContext, ops::wire::Job};

/// The body: the job as `getJob` shows it, and what an earlier run has kept.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    job: &'a Job,
    checkpoint: Option<&'a RawValue>,
}

/// The body of a request.
///
/// # Errors
/// A part that is no JSON, which the database never gives.
pub fn body(job: &Job, checkpoint: Option<&RawValue>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Body { job, checkpoint })
}

/// The headers of a request. `now`: by the clock of this process.
pub fn headers(ctx: &RunContext, now: DateTime<Utc>) -> [(&'static str, String); 7] {
    let left = ctx.time_left();
    [
        ("Job-Id", ctx.job_id.to_string()),
        ("Job-Type", ctx.job_type.to_string()),
        ("Job-Attempt", ctx.attempt.to_string()),
        ("Job-Run", ctx.run.to_string()),
        ("Job-Deadline", deadline(now, left)),
        ("Job-Timeout-Ms", left.as_millis().to_string()),
        ("traceparent", ctx.trace.to_string()),
    ]
}

fn deadline(now: DateTime<Utc>, left: Duration) -> String {
    let left = TimeDelta::from_std(left).unwrap_or(TimeDelta::days(1));
    now.checked_add_signed(left).unwrap_or(now).to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_a_time_of_day_and_not_a_span() {
        let now = "2026-11-25T12:00:00Z".parse().unwrap();
        assert_eq!(deadline(now, Duration::from_millis(1500)), "2026-11-25T12:00:01.500Z");
    }
}
