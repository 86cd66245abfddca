//! Forms of arguments that several commands take.

use std::time::Duration;

use crate::job::{JobType, model::JobId};

/// A job id. Any spelling of a UUID will do here; it is asked for as the service spells it.
pub fn job_id(text: &str) -> Result<JobId, String> {
    JobId::try_parse(text.trim()).map_err(|_| {
        "a job id is a UUID as `enqueue` printed it, for instance 0198c5a4-5d5c-7000-8000-000000000000".into()
    })
}

/// A job type that becomes a token of a subject.
pub fn job_type(text: &str) -> Result<JobType, String> {
    JobType::new(text).map_err(|e| e.to_string())
}

/// `30s`, `1h 30m`, `250ms`, or a number of seconds.
pub fn span(text: &str) -> Result<Duration, String> {
    let seconds = || text.parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
    seconds()
        .or_else(|| humantime::parse_duration(text).ok())
        .ok_or_else(|| "write a span of time as 30s, 250ms, 1h 30m, or as a number of seconds".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_on_the_wire_and_no_other_way() {
        assert_eq!(span("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(span("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(span("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "-1", "soon", "nan", "inf", "1e300"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_asked_for_as_the_service_spells_them() {
        assert_eq!(
            job_id("0198C5A4-5D5C-7000-8000-000000000000").unwrap().to_string(),
            "0198c5a4-5d5c-7000-8000-000000000000"
        );
        assert!(job_id("queue.>").is_err());
    }
}
