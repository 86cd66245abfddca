//! Forms of arguments that several commands take.

use std::{collections::HashSet, io::BufRead, time::Duration};

use super::exit::UsageError;
use crate::job::{JobType, model::JobId};

/// A job id. Any spelling of a UUID will do here; it is asked for as the service spells it.
pub fn job_id(text: &str) -> Result<JobId, String> {
    JobId::try_parse(text.trim()).map_err(|_| {
        "a job id is a UUID as `enqueue` printed it, for instance 0198c5a4-5d5c-7000-8000-000000000000".into()
    })
}

/// A job that is named, or `-`: all that standard input names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    Job(JobId),
    Input,
}

/// An id, or `-`.
pub fn named_job(text: &str) -> Result<Named, String> {
    if text == "-" { Ok(Named::Input) } else { job_id(text).map(Named::Job) }
}

/// The ids, with those that standard input has where `-` stands: one per line or between blanks. Each once.
///
/// # Errors
/// Standard input can't be read, or has something that is no id.
pub fn job_ids(named: &[Named]) -> anyhow::Result<Vec<JobId>> {
    let mut ids = Vec::new();
    for named in named {
        match named {
            Named::Job(id) => ids.push(*id),
            Named::Input => ids.extend(read_ids(std::io::stdin().lock())?),
        }
    }
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

fn read_ids(input: impl BufRead) -> anyhow::Result<Vec<JobId>> {
    let mut ids = Vec::new();
    for (line, text) in input.lines().enumerate() {
        let text = text.map_err(|e| UsageError(format!("standard input can't be read: {e}")))?;
        for word in text.trim_start_matches('\u{feff}').split_whitespace() {
            ids.push(job_id(word).map_err(|e| UsageError(format!("line {} of standard input: {e}", line + 1)))?);
        }
    }
    Ok(ids)
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
    fn ids_are_read_from_lines_and_words_and_none_is_no_fault() {
        let (one, two) = ("0198c5a4-5d5c-7000-8000-000000000001", "0198c5a4-5d5c-7000-8000-000000000002");
        let read = |text: &str| read_ids(text.as_bytes()).map(|ids| ids.len()).map_err(|e| e.to_string());
        assert_eq!(read(&format!("\u{feff}{one}\r\n\n  {two} {one}\n")), Ok(3));
        assert_eq!(read(""), Ok(0));
        let refused = read(&format!("{one}\nsecret\n")).unwrap_err();
        assert!(refused.starts_with("line 2 of standard input: ") && !refused.contains("secret"), "{refused}");
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
