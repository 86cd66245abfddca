//! Answers as the commands show them. Read leniently: unknown fields are passed over and missing ones are empty, so
//! that this program and a service of another version understand each other.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    output::{Output, Tone},
    pretty::pretty,
    text::{cell, clean, local, relative, span},
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Job {
    pub id: String,
    pub r#type: String,
    pub status: String,
    pub payload: Option<Box<RawValue>>,
    pub priority: i64,
    pub attempts: u64,
    pub max_attempts: u64,
    pub result: Option<Box<RawValue>>,
    pub error: Option<String>,
    pub errors: Option<Vec<AttemptError>>,
    pub progress: Option<Progress>,
    pub tags: Vec<String>,
    pub idempotency_key: Option<String>,
    pub worker_id: Option<String>,
    pub created_at: Option<DateTime<Utc>>,
    pub run_at: Option<DateTime<Utc>>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct AttemptError {
    pub attempt: u64,
    pub at: Option<DateTime<Utc>>,
    pub message: String,
    pub kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub percent: f64,
    pub message: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Page {
    pub jobs: Vec<Box<RawValue>>,
    pub next_cursor: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stats {
    pub total: u64,
    #[serde(flatten)]
    pub all: Counts,
    pub completion_rate: String,
    pub failure_rate: String,
    pub by_type: BTreeMap<String, Counts>,
    pub oldest_pending_seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub pending: u64,
    pub processing: u64,
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Types {
    pub types: Vec<Box<RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TypeInfo {
    pub r#type: String,
    pub description: String,
    pub handler: String,
    pub origin: String,
    pub attended: Option<bool>,
    pub url: Option<String>,
    pub paused: bool,
    pub timeout: String,
    pub heartbeat: Option<String>,
    pub concurrency: u64,
    pub max_attempts: u64,
    pub retry_delays: Vec<String>,
    pub schema: Option<Box<RawValue>>,
    pub result_schema: Option<Box<RawValue>>,
}

impl TypeInfo {
    /// What to know first.
    pub fn state(&self) -> &'static str {
        match (self.paused, self.attended) {
            (true, _) => "paused",
            (false, Some(false)) => "unattended",
            (false, _) => "active",
        }
    }
}

impl Job {
    /// The status, or which kind of pending it is.
    pub fn state(&self, now: DateTime<Utc>) -> &str {
        let later = self.run_at.is_some_and(|at| at > now);
        match self.status.as_str() {
            "pending" if self.attempts > 0 => "retrying",
            "pending" if later => "scheduled",
            status => status,
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "cancelled")
    }

    /// What the state means in time: how long it took, runs, or has to wait.
    pub fn timing(&self, now: DateTime<Utc>) -> String {
        match (self.status.as_str(), self.started_at, self.finished_at, self.run_at) {
            ("completed" | "failed", Some(start), Some(end), _) => format!("took {}", span(end - start)),
            ("processing", Some(start), ..) => format!("for {}", span(now - start)),
            ("pending", _, _, Some(due)) if due > now => format!("due {}", relative(due, now)),
            ("pending", _, _, Some(due)) => format!("waits {}", span(now - due)),
            _ => super::text::NOTHING.to_owned(),
        }
    }

    /// The error, or how far it is.
    pub fn remark(&self) -> String {
        match (&self.error, &self.progress) {
            (Some(error), _) => cell(Some(error)),
            (None, Some(progress)) if !self.is_over() => progress.text(),
            _ => super::text::NOTHING.to_owned(),
        }
    }

    /// Everything about the job, a line per fact.
    pub fn card(&self, out: &Output, now: DateTime<Utc>) -> String {
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
    pub fn text(&self) -> String {
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
    use chrono::TimeDelta;

    use super::*;

    fn job(json: &str) -> Job {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_job_of_another_version_is_understood() {
        let job = job(r#"{"id":"1","status":"completed","payload":null,"errors":null,"tags":[],"news":{}}"#);
        assert!(job.is_over() && job.payload.is_none());
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
