//! What the broker refuses or gives less of, thing by thing: for health, for the log, and for whoever depends on it.
//!
//! Invariant: a thing that is missing costs what depends on it and nothing else. So a refusal is noted here and is no error.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

use super::Error;
use crate::telemetry::Seldom;

/// A stream of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    WakeUps,
    DeadLetters,
    Events,
    Inbox,
    InboxDeadLetters,
}

/// What a finding is about; each has a check of its own in health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Stream(Stream),
    /// Consumers of lanes.
    Lanes,
    /// What is there, with less than was asked for.
    Limits,
    /// What is there and can't be brought to what the settings say.
    Shape,
}

/// What was found; nobody need look for more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub part: Part,
    /// What is missing, the broker's words, what it costs, and what to do.
    pub detail: String,
}

/// Things of one part that are named, at most.
const NAMED: usize = 5;

impl Stream {
    pub const ALL: [Self; 5] = [Self::WakeUps, Self::DeadLetters, Self::Events, Self::Inbox, Self::InboxDeadLetters];

    /// Its plain name.
    pub fn name(self) -> &'static str {
        match self {
            Self::WakeUps => "background-jobs",
            Self::DeadLetters => "background-jobs-dlq",
            Self::Events => "background-jobs-events",
            Self::Inbox => "background-jobs-inbox",
            Self::InboxDeadLetters => "background-jobs-inbox-dlq",
        }
    }

    /// What is not done without it.
    fn cost(self) -> &'static str {
        match self {
            Self::WakeUps => "jobs are kept, and run only where a worker can start them as they are enqueued",
            Self::DeadLetters => "dead letters wait in the database",
            Self::Events => "events are told to those who listen, but not kept for replay",
            Self::Inbox => "what is published to the inbox is not taken in",
            Self::InboxDeadLetters => "messages of the inbox that can't be taken in stay there and are tried again",
        }
    }
}

/// All findings of one process. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Findings(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A bit for each stream that is refused, for the hot path.
    refused: AtomicU8,
}

#[derive(Default)]
struct State {
    /// By part and name: what is wrong with it, and what to do.
    found: BTreeMap<(Part, String), Fault>,
    /// What did not answer when it was last looked at.
    doubted: BTreeSet<(Part, String)>,
    said: Seldom,
}

#[derive(Clone, PartialEq, Eq)]
struct Fault {
    why: String,
    advice: String,
}

impl Findings {
    /// Notes what is refused, or given less of; it is told when it is new, and then at a falling rate.
    pub fn note(&self, part: Part, name: &str, why: String, advice: String) {
        if let Part::Stream(stream) = part {
            self.0.refused.fetch_or(bit(stream), Ordering::SeqCst);
        }
        let mut state = self.lock();
        let fault = Fault { why, advice };
        let text = format!("{}: {}", missing(part, name), told(part, &fault));
        state.found.insert((part, name.to_owned()), fault);
        if state.said.is_due(&text, Instant::now()) {
            tracing::warn!("{text}");
        } else {
            tracing::debug!("{text}");
        }
    }

    /// Takes back what was noted of it. Returns whether there was something.
    pub fn clear(&self, part: Part, name: &str) -> bool {
        if let Part::Stream(stream) = part {
            self.0.refused.fetch_and(!bit(stream), Ordering::SeqCst);
        }
        let mut state = self.lock();
        state.doubted.remove(&(part, name.to_owned()));
        let was_there = state.found.remove(&(part, name.to_owned())).is_some();
        if was_there {
            match part {
                Part::Limits | Part::Shape => tracing::info!("{name}: as wanted now"),
                Part::Stream(_) | Part::Lanes => tracing::info!("{name} is there now"),
            }
        }
        if state.found.is_empty() {
            state.said.clear();
        }
        was_there
    }

    /// It did not answer. Returns whether it did not when it was last looked at either.
    pub fn doubt(&self, part: Part, name: &str) -> bool {
        !self.lock().doubted.insert((part, name.to_owned()))
    }

    pub fn is_refused(&self, stream: Stream) -> bool {
        self.0.refused.load(Ordering::SeqCst) & bit(stream) != 0
    }

    pub fn is_empty(&self) -> bool {
        self.lock().found.is_empty()
    }

    /// One for each part.
    pub fn all(&self) -> Vec<Finding> {
        let state = self.lock();
        let mut parts: BTreeMap<Part, Vec<(&str, &Fault)>> = BTreeMap::new();
        for ((part, name), fault) in &state.found {
            parts.entry(*part).or_default().push((name, fault));
        }
        parts.into_iter().map(|(part, faults)| Finding { part, detail: summary(part, &faults) }).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn bit(stream: Stream) -> u8 {
    1 << stream as u8
}

/// Things of one part, those with the same fault together.
fn summary(part: Part, faults: &[(&str, &Fault)]) -> String {
    let mut told_once: Vec<(&Fault, Vec<&str>)> = Vec::new();
    for (name, fault) in faults {
        match told_once.iter_mut().find(|(known, _)| known == fault) {
            Some((_, names)) => names.push(name),
            None => told_once.push((fault, vec![name])),
        }
    }
    let one = |(fault, names): &(&Fault, Vec<&str>)| {
        let more = if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
        let names = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        format!("{}: {}", missing(part, &format!("{names}{more}")), told(part, fault))
    };
    let more = if told_once.len() > NAMED { "; …" } else { "" };
    format!("{}{more}", told_once.iter().take(NAMED).map(one).collect::<Vec<_>>().join("; "))
}

fn missing(part: Part, names: &str) -> String {
    match part {
        Part::Stream(_) => format!("{names} can't be made"),
        Part::Lanes => format!("no consumer can be made for {names}"),
        Part::Limits | Part::Shape => names.to_owned(),
    }
}

fn told(part: Part, Fault { why, advice }: &Fault) -> String {
    match part {
        Part::Stream(stream) => format!("{why}. Without it {}. {advice}", stream.cost()),
        Part::Lanes => format!(
            "{why}. Jobs of these lanes are kept, and run only where a worker can start them as they are enqueued. {advice}"
        ),
        Part::Limits | Part::Shape => format!("{why}. {advice}"),
    }
}

/// The broker's words.
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::Api { code, description, .. } => format!("the broker says: {description} ({code})"),
        other => other.to_string(),
    }
}

/// What to do about a refusal. Source of the codes: nats-server `server/errors.json`.
pub(super) fn advice(error: &Error) -> String {
    let advice = match error {
        Error::Api { code: 10065, .. } => {
            "Another stream takes these subjects: remove it, give it other subjects, or set another nats.prefix"
        }
        Error::Api { code: 10002 | 10023 | 10028 | 10047, .. } => {
            "Give JetStream more room (max_file_store of the server, or the account's limit), or lower nats.store for \
             every prefix there; then restart nats-server or wait for the next look"
        }
        Error::Api { code: 10027, .. } => "Raise max_streams of the account: each nats.prefix needs five streams",
        Error::Api { code: 10026, .. } => {
            "Raise max_consumers of the account or default_max_consumers of the server: a type needs one consumer, one \
             more for each of its high and low lane in use, and the inbox needs one"
        }
        Error::Api { code: 10074, .. } => "Set nats.replicas to 1, or add servers to the cluster",
        Error::Api { code: 10005, .. } => {
            "There must be as many servers with room as nats.replicas says: start them, or lower nats.replicas"
        }
        Error::Api { code: 10039 | 10076, .. } => {
            "Enable JetStream for the server and for the account of nats.url, or set nats.domain"
        }
        Error::Api { code: 10058, .. } => {
            "Somebody else has made one of this name: remove it, or set another nats.prefix"
        }
        Error::Api { code: 10113 | 10122, .. } => "Lower nats.store, or raise the account's limit for one stream",
        Error::TooOld { .. } => "",
        Error::Unreachable(_) => {
            "It may be without a leader for a moment; else the user of nats.url may lack the right to ask for it: see \
             nats/permissions.conf.example"
        }
        _ => "See the log of nats-server",
    };
    advice.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_with_the_same_fault_are_told_together_and_gone_when_they_are_there() {
        let findings = Findings::default();
        for n in 0..7 {
            findings.note(Part::Lanes, &format!("t{n}-normal"), "full".into(), "Make room".into());
        }
        findings.note(Part::Stream(Stream::Events), "events", "taken".into(), "Remove it".into());
        assert!(findings.is_refused(Stream::Events) && !findings.is_refused(Stream::WakeUps));
        let all = findings.all();
        assert_eq!(all.len(), 2);
        assert!(all[1].detail.contains("t0-normal, t1-normal, t2-normal, t3-normal, t4-normal and 2 more: full."));
        assert!(findings.clear(Part::Stream(Stream::Events), "events"));
        assert!(!findings.is_refused(Stream::Events) && findings.all().len() == 1);
        (0..7).for_each(|n| assert!(findings.clear(Part::Lanes, &format!("t{n}-normal"))));
        assert!(findings.is_empty());
    }
}
