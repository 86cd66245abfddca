//! Tells what became of the lines: refusals as they come, and the sum at the end.

use std::{fmt::Write, time::Instant};

use indicatif::ProgressBar;
use serde_json::{json, value::RawValue};

use super::send::{Answered, Outcome};
use crate::cli::{
    exit::{Exit, report},
    output::Output,
    text::{clean, count, counted},
};
use crate::{client::CallError, telemetry::say};

/// Faults that are told one by one: more are a file of another kind, and would fill the screen.
const TOLD: u64 = 20;

pub struct Report {
    input: String,
    out: Output,
    bar: ProgressBar,
    start: Instant,
    accepted: u64,
    duplicates: u64,
    refused: u64,
    /// Runs of lines without an answer: first and last line.
    unanswered: Vec<(u64, u64)>,
    /// The last line that was sent, or refused here.
    last: u64,
    /// Lines whose fault was told, or would have been.
    told: u64,
    broken: Option<CallError>,
    unreadable: Option<std::io::Error>,
    /// Standard output is closed, or can't be written to.
    unheard: Option<anyhow::Error>,
}

impl Report {
    pub fn new(input: &str, out: Output, bar: ProgressBar) -> Self {
        Self {
            input: input.to_owned(),
            out,
            bar,
            start: Instant::now(),
            accepted: 0,
            duplicates: 0,
            refused: 0,
            unanswered: Vec::new(),
            last: 0,
            told: 0,
            broken: None,
            unreadable: None,
            unheard: None,
        }
    }

    /// Takes the answers to a batch. Returns whether it makes sense to go on.
    pub fn add(&mut self, answered: Answered, bytes: u64, unreadable: Option<std::io::Error>) -> bool {
        for (line, outcome) in answered.lines {
            match (outcome, self.unanswered.last_mut()) {
                (Some(outcome), _) => self.line(line, outcome),
                // Lines come in their order, so only an answered one can lie between; blank ones don't count.
                (None, Some((_, to))) if *to == self.last => *to = line,
                (None, _) => self.unanswered.push((line, line)),
            }
            self.last = line;
        }
        // The first reason is the one to tell; what was on its way then fails for the same.
        self.broken = self.broken.take().or(answered.broken);
        self.unreadable = self.unreadable.take().or(unreadable);
        self.bar.set_position(bytes);
        self.bar.set_message(format!("{} enqueued, {} refused", count(self.accepted), count(self.refused)));
        self.broken.is_none() && self.unheard.is_none()
    }

    fn line(&mut self, line: u64, outcome: Outcome) {
        let fault = match &outcome {
            Outcome::Accepted { duplicate, .. } => {
                self.accepted += 1;
                self.duplicates += u64::from(*duplicate);
                None
            }
            Outcome::Refused { refusal, .. } => {
                self.refused += 1;
                Some(refusal.to_string())
            }
            Outcome::Unfit(fault) => {
                self.refused += 1;
                Some(fault.clone())
            }
        };
        if self.out.json {
            let printed = self.bar.suspend(|| self.out.json_line(&as_json(line, &outcome)));
            self.unheard = self.unheard.take().or(printed.err());
        } else if let Some(fault) = fault {
            let fault: Vec<String> = fault.lines().map(|part| clean(part.trim())).collect();
            self.told += 1;
            if self.told <= TOLD {
                self.bar.suspend(|| say(format!("line {line}: {}", fault.join("; "))));
            }
        }
    }

    /// Tells the sum and gives the exit code.
    pub fn finish(mut self, interrupted: bool) -> anyhow::Result<Exit> {
        self.bar.finish_and_clear();
        if let Some(more @ 1..) = self.told.checked_sub(TOLD) {
            say(format!("{} more were refused; --json tells of each", counted(more, "line")));
        }
        let sum = self.sum();
        // What goes on in a pipe is answers only; the sum is for people then.
        if self.out.json {
            self.out.note(&sum);
        } else if let Err(e) = self.out.line(&sum) {
            self.out.note(&sum);
            return Err(e);
        }
        if let Some(e) = self.broken.take() {
            self.out.note(&self.unsent(&e));
            return Ok(report(&e.into(), &self.out).or(Exit::Failed));
        }
        if let Some(e) = self.unreadable {
            return Err(anyhow::Error::new(e).context(format!("could not read {} to its end", self.input)));
        }
        match self.unheard {
            Some(_) => {
                self.out.note("stopped: nobody reads standard output any more");
                Ok(Exit::Failed)
            }
            None if interrupted => {
                self.out.note("interrupted: the rest was not sent");
                Ok(Exit::Interrupted)
            }
            None if self.refused > 0 => Ok(Exit::Refused),
            None => Ok(Exit::Done),
        }
    }

    /// Which lines are to be sent again, and at what risk.
    fn unsent(&self, why: &CallError) -> String {
        let name = |&(from, to): &(u64, u64)| if from == to { from.to_string() } else { format!("{from}-{to}") };
        let lines = self.unanswered.iter().map(name).collect::<Vec<_>>().join(", ");
        let one = matches!(self.unanswered[..], [(from, to)] if from == to);
        let risk = match (why.was_not_heard(), one) {
            (true, true) => "it was not enqueued",
            (true, false) => "they were not enqueued",
            (false, true) => {
                "with an idempotencyKey it can be sent again without harm, else it may be enqueued twice then"
            }
            (false, false) => {
                "those with an idempotencyKey can be sent again without harm, others may be enqueued twice then"
            }
        };
        let noun = if one { "line" } else { "lines" };
        format!("no answer for {noun} {lines}: {risk}; nothing after line {} was sent", self.last)
    }

    fn sum(&self) -> String {
        let mut sum = format!("{} enqueued", counted(self.accepted, "job"));
        if self.duplicates > 0 {
            let _ = write!(sum, " ({} already existed: same idempotency key)", count(self.duplicates));
        }
        if self.refused > 0 {
            let _ = write!(sum, ", {} refused", counted(self.refused, "line"));
        }
        let seconds = self.start.elapsed().as_secs_f64();
        let _ = write!(sum, " in {seconds:.1} s");
        if self.accepted >= 1000 {
            let _ = write!(sum, ", {} a second", count((self.accepted as f64 / seconds) as u64));
        }
        sum
    }
}

/// The answer as it was received, with the line's number put first.
fn as_json(line: u64, outcome: &Outcome) -> String {
    let with_line = |reply: &RawValue| match reply.get().strip_prefix('{') {
        Some(rest) if !rest.trim_start().starts_with('}') => format!(r#"{{"line":{line},{rest}"#),
        _ => json!({"line": line}).to_string(),
    };
    match outcome {
        Outcome::Accepted { reply, .. } => with_line(reply),
        Outcome::Refused { problem, .. } => format!(r#"{{"line":{line},"error":{}}}"#, problem.get()),
        Outcome::Unfit(fault) => {
            json!({"line": line, "error": {"title": "The line was not sent", "detail": fault}}).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_as_it_came_with_its_line_in_front() {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        let accepted = Outcome::Accepted { duplicate: false, reply: raw(r#"{"jobId":"x","n":1.50}"#) };
        assert_eq!(as_json(7, &accepted), r#"{"line":7,"jobId":"x","n":1.50}"#);
        let refused = Outcome::Refused { refusal: Default::default(), problem: raw(r#"{"status":400}"#) };
        assert_eq!(as_json(8, &refused), r#"{"line":8,"error":{"status":400}}"#);
        let unfit: serde_json::Value = serde_json::from_str(&as_json(9, &Outcome::Unfit("\"bad\"".into()))).unwrap();
        assert_eq!((&unfit["line"], &unfit["error"]["detail"]), (&json!(9), &json!("\"bad\"")));
    }

    #[test]
    fn the_sum_counts_lines_and_the_code_tells_of_refusals() {
        let mut report = Report::new("x", Output::piped(), ProgressBar::hidden());
        let unfit = |line| (line, Some(Outcome::Unfit("bad".into())));
        assert!(report.add(Answered { lines: vec![unfit(1), unfit(2)], broken: None }, 10, None));
        assert!(report.sum().starts_with("0 jobs enqueued, 2 lines refused in "), "{}", report.sum());
        assert_eq!(report.finish(false).unwrap(), Exit::Refused);
    }

    #[test]
    fn lines_without_an_answer_are_named_with_what_it_means_to_send_them_again() {
        let mut report = Report::new("x", Output::piped(), ProgressBar::hidden());
        let away = || CallError::NoResponders { subject: "s".into(), url: "u".into() };
        let lines = vec![(1, None), (3, None), (4, Some(Outcome::Unfit("bad".into()))), (5, None)];
        assert!(!report.add(Answered { lines, broken: Some(away()) }, 10, None));
        assert!(!report.add(Answered { lines: vec![(7, None)], broken: Some(away()) }, 20, None));
        let told = report.unsent(&away());
        assert_eq!(told, "no answer for lines 1-3, 5-7: they were not enqueued; nothing after line 7 was sent");
        let lost = CallError::TimedOut { subject: "s".into(), after: std::time::Duration::ZERO };
        assert!(report.unsent(&lost).contains("without harm"));
        assert_eq!(report.finish(false).unwrap(), Exit::Failed);
    }
}
