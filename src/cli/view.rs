//! Answers as the commands show them: times as spans, states in colours, nothing that steers a terminal.

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    output::{Output, Tone},
    pretty::pretty,
    text::{cell, clean, local, relative, span},
};
use crate::client::{Job, Progress, TypeInfo};

/// A job that nobody takes is offered again within this time. Source: docs/protocol.md.
const PUT_OFF: TimeDelta = TimeDelta::seconds(16);

impl TypeInfo {
    /// What to know first.
    pub(crate) fn state(&self) -> &'static str {
        match (self.paused, self.attended) {
            (true, _) => "paused",
            (false, Some(false)) => "unattended",
            (false, _) => "active",
        }
    }
}

impl Job {
    /// The status, or which kind of pending it is.
    pub(crate) fn state(&self, now: DateTime<Utc>) -> &str {
        let later = self.run_at.is_some_and(|at| at > now) && !self.waits_for_others(now);
        match self.status.as_str() {
            "pending" if self.attempts > 0 => "retrying",
            "pending" if later => "scheduled",
            status => status,
        }
    }

    /// What the state means in time: how long it took, runs, or has to wait.
    pub(crate) fn timing(&self, now: DateTime<Utc>) -> String {
        match (self.status.as_str(), self.started_at, self.finished_at, self.run_at) {
            ("completed" | "failed", Some(start), Some(end), _) => format!("took {}", span(end - start)),
            ("processing", Some(start), ..) => format!("for {}", span(now - start)),
            ("pending", _, _, Some(due)) if due > now && self.waits_for_others(now) => "waits".to_owned(),
            ("pending", _, _, Some(due)) if due > now => format!("due {}", relative(due, now)),
            ("pending", _, _, Some(due)) => format!("waits {}", span(now - due)),
            _ => super::text::NOTHING.to_owned(),
        }
    }

    /// Whether it is put off for a moment only because nobody takes it.
    fn waits_for_others(&self, now: DateTime<Utc>) -> bool {
        self.note.is_some() && self.run_at.is_some_and(|at| at - now < PUT_OFF)
    }

    /// Why it waits, the error, or how far it is.
    pub(crate) fn remark(&self) -> String {
        match (&self.note, &self.error, &self.progress) {
            (Some(note), ..) => cell(Some(note)),
            (None, Some(error), _) => cell(Some(error)),
            (None, None, Some(progress)) if !self.is_over() => progress.text(),
            _ => super::text::NOTHING.to_owned(),
        }
    }

    /// Everything about the job, a line per fact.
    pub(crate) fn card(&self, out: &Output, now: DateTime<Utc>) -> String {
        let mut lines = Vec::new();
        let mut fact = |name: &str, value: String| {
            lines.push(format!("{} {value}", out.paint(Tone::Faint, &format!("{name:<9}"))));
        };
        let when = |at: DateTime<Utc>| format!("{} ({})", local(at), relative(at, now));
        fact("job", clean(&self.id));
        fact("type", clean(&self.r#type));
        let state = clean(self.state(now));
        let attempts = format!("attempt {} of {}", self.attempts, self.max_attempts);
        fact("status", format!("{}, {attempts}", out.paint(tone(&state), &state)));
        if let Some(note) = &self.note {
            let name = if self.status == "pending" { "waits" } else { "note" };
            fact(name, out.paint(Tone::Waiting, &clean(note)));
        }
        if self.priority != 0 {
            fact("priority", self.priority.to_string());
        }
        if !self.tags.is_empty() {
            fact("tags", clean(&self.tags.join(", ")));
        }
        if let Some(key) = &self.idempotency_key {
            fact("key", clean(key));
        }
        if let Some(at) = self.created_at {
            fact("created", when(at));
        }
        if let Some(at) =
            self.run_at.filter(|at| !self.is_over() && self.created_at.is_none_or(|created| *at > created))
        {
            fact("due", when(at));
        }
        if let Some(at) = self.started_at {
            fact("started", when(at));
        }
        if let Some(at) = self.finished_at {
            let took = self.started_at.map_or_else(String::new, |start| format!(", took {}", span(at - start)));
            fact("finished", format!("{}{took}", when(at)));
        }
        if let Some(worker) = self.worker_id.as_ref().filter(|_| !self.is_over()) {
            fact("worker", clean(worker));
        }
        if let Some(progress) = &self.progress {
            fact("progress", progress.text());
        }
        if let Some(error) = &self.error {
            let error = clean(error);
            fact("error", out.paint(if self.status == "cancelled" { Tone::Plain } else { Tone::Bad }, &error));
        }
        for (i, error) in self.errors.iter().flatten().enumerate() {
            let name = if i == 0 { "attempts" } else { "" };
            let at = error.at.map_or_else(String::new, |at| format!(", {}", relative(at, now)));
            fact(name, format!("{}{at}: {} ({})", error.attempt, clean(&error.message), clean(&error.kind)));
        }
        for (name, json) in [("payload", &self.payload), ("result", &self.result)] {
            if let Some(json) = json {
                fact(name, pretty(json.get(), 10));
            }
        }
        lines.join("\n")
    }
}

impl Progress {
    pub(crate) fn text(&self) -> String {
        let percent = format!("{:.0} %", self.percent);
        match self.message.as_deref().map(clean).filter(|message| !message.is_empty()) {
            Some(message) => format!("{percent} {message}"),
            None => percent,
        }
    }
}

/// The colour of a state or an event.
pub fn tone(state: &str) -> Tone {
    match state {
        "completed" => Tone::Good,
        "failed" => Tone::Bad,
        "processing" | "started" | "progress" => Tone::Busy,
        "retrying" | "cancelled" | "paused" | "unattended" => Tone::Waiting,
        _ => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(json: &str) -> Job {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn pending_says_what_it_waits_for() {
        let now = DateTime::UNIX_EPOCH;
        let with = |attempts, run_at: i64| Job {
            status: "pending".into(),
            attempts,
            run_at: Some(now + TimeDelta::seconds(run_at)),
            ..Job::default()
        };
        assert_eq!(
            (with(0, 60).state(now), with(1, 60).state(now), with(0, 0).state(now)),
            ("scheduled", "retrying", "pending")
        );
        assert_eq!(with(0, 60).timing(now), "due in 1m");
        assert_eq!(with(0, -3).timing(now), "waits 3.0s");
    }

    #[test]
    fn a_card_shows_every_fact_and_nothing_that_steers() {
        let job = job(r#"{"id":"0198","type":"send-email","status":"failed","attempts":2,"maxAttempts":3,"priority":5,
                "tags":["a\u001b[2J"],"error":"no\u0007","errors":[{"attempt":1,"message":"x\ny","kind":"error"}],
                "payload":{"to":"a@b"},"createdAt":"1970-01-01T00:00:00.000000Z","workerId":"w"}"#);
        let card = job.card(&Output::piped(), DateTime::UNIX_EPOCH);
        for part in
            ["failed, attempt 2 of 3", "tags      a[2J", "1: x y (error)", "\"to\": \"a@b\"", "(now)", "priority  5"]
        {
            assert!(card.contains(part), "{part:?} is missing in\n{card}");
        }
        assert!(!card.chars().any(|c| c.is_control() && c != '\n'));
    }
}
