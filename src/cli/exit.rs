//! How a command ended, as a number for scripts, and how an error is told to a person.

use std::process::ExitCode;

use super::{
    output::{Closed, Output},
    text::clean,
};
use crate::{
    client::CallError,
    config,
    telemetry::{self, say},
};

/// Exit codes. Part of what scripts rely on, so numbers are never given a new meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    /// Nothing that another request would help: no connection, no answer, a fault of the service or the machine.
    Failed = 1,
    /// The command line, a file named in it or the configuration can't be used. clap ends with it, too.
    Usage = 2,
    NotFound = 3,
    /// The service understood and said no.
    Refused = 4,
    WaitTimeout = 5,
    /// What was waited for ended as failed or cancelled.
    JobFailed = 6,
    /// Stopped by Ctrl-C: 128 + SIGINT, as shells count.
    Interrupted = 130,
}

/// Shown below `--help`.
pub const TABLE: &str = "\
Exit codes:
  0  done
  1  it could not be done: no connection, no answer, a fault of the service
  2  the command line or the configuration can't be used
  3  there is no such job
  4  refused: the request is not valid, not allowed, or not possible as the job is now
  5  the wait ran out before the job was over
  6  the job ended as failed or cancelled (wait, watch ID, enqueue --wait)";

/// The user asked for something that can't be asked, whatever the service would say.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

impl Exit {
    pub fn of_error(error: &anyhow::Error) -> Self {
        if let Some(CallError::Forbidden { .. }) = error.downcast_ref() {
            return Exit::Refused;
        }
        if let Some(CallError::Refused(refusal)) = error.downcast_ref() {
            return match refusal.status {
                404 => Exit::NotFound,
                408 => Exit::WaitTimeout,
                400..=499 if refusal.status != 429 => Exit::Refused,
                _ => Exit::Failed,
            };
        }
        let usage = error.is::<UsageError>() || error.is::<config::layers::Error>() || error.is::<telemetry::Error>();
        if usage { Exit::Usage } else { Exit::Failed }
    }

    /// The first thing that went wrong decides when several things are done.
    pub fn or(self, later: Exit) -> Exit {
        if self == Exit::Done { later } else { self }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Tells the error on standard error, and gives the code to end with. A reader that has gone away is no error: `| head`
/// has what it wanted.
pub fn report(error: &anyhow::Error, output: &Output) -> Exit {
    if error.downcast_ref::<Closed>().is_some() {
        return Exit::Done;
    }
    match error.downcast_ref() {
        Some(CallError::Refused(refusal)) if output.json && !refusal.body.is_empty() => {
            say(clean(&String::from_utf8_lossy(&refusal.body)));
        }
        _ => say(format!("error: {}", explain(error))),
    }
    Exit::of_error(error)
}

/// The error and its causes, one to a line, each said once.
fn explain(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Many libraries print their source within their own message.
        if told.is_empty() {
            told = text;
        } else if !told.contains(&text) {
            told.push_str("\n  because: ");
            told.push_str(&text);
        }
    }
    told.lines().map(clean_indented).collect::<Vec<_>>().join("\n")
}

/// What comes from elsewhere must not steer the terminal; the indentation is ours.
fn clean_indented(line: &str) -> String {
    let rest = line.trim_start_matches(' ');
    format!("{}{}", &line[..line.len() - rest.len()], clean(rest))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn each_cause_is_told_once() {
        let io = std::io::Error::other("disk on fire");
        let error = Err::<(), _>(io).context("could not read jobs.jsonl").context("bulk: disk on fire").unwrap_err();
        assert_eq!(explain(&error), "bulk: disk on fire\n  because: could not read jobs.jsonl");
    }

    #[test]
    fn what_others_wrote_can_not_steer_the_terminal() {
        let error = anyhow::anyhow!("first\n  /payload/\u{1b}[31mto: bad");
        assert_eq!(explain(&error), "first\n  /payload/[31mto: bad");
    }

    #[test]
    fn the_first_failure_decides_the_code() {
        assert_eq!(Exit::Done.or(Exit::NotFound).or(Exit::Refused), Exit::NotFound);
        assert_eq!(Exit::of_error(&UsageError("x".into()).into()), Exit::Usage);
    }
}
