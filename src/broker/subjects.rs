//! Every name that NATS sees, made from the prefix. One prefix is one namespace: its streams are its own.

use std::sync::Arc;

use crate::job::{Lane, model::JobId};

/// The prefix whose streams have the plain names of the wire contract.
const DEFAULT_PREFIX: &str = "queue";

/// Maker of subjects, stream names and consumer names. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Subjects {
    prefix: Arc<str>,
}

impl Subjects {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Name of a stream; `name` is its plain name.
    pub fn stream(&self, name: &str) -> String {
        if &*self.prefix == DEFAULT_PREFIX { name.to_owned() } else { format!("{}-{name}", self.prefix) }
    }

    /// The stream of wake-ups.
    pub fn jobs_stream(&self) -> String {
        self.stream("background-jobs")
    }

    /// A subject of the built-in topology, which is written with the default prefix.
    pub fn rebase(&self, subject: &str) -> String {
        match subject.strip_prefix("queue.") {
            Some(rest) => format!("{}.{rest}", self.prefix),
            None => subject.to_owned(),
        }
    }

    pub fn rpc(&self, verb: &str) -> String {
        format!("{}.{verb}", self.prefix)
    }

    pub fn wake_up(&self, job_type: &str, lane: Lane) -> String {
        format!("{}.jobs.{job_type}.{lane}", self.prefix)
    }

    /// From `<type>.<lane>`, as the outbox has it.
    pub fn wake_up_target(&self, target: &str) -> String {
        format!("{}.jobs.{target}", self.prefix)
    }

    /// The type and the lane of a wake-up's subject.
    pub fn lane_of<'a>(&self, subject: &'a str) -> Option<(&'a str, Lane)> {
        let target = subject.strip_prefix(&*self.prefix)?.strip_prefix(".jobs.")?;
        let (job_type, lane) = target.rsplit_once('.')?;
        Some((job_type, Lane::ALL.into_iter().find(|known| known.as_str() == lane)?))
    }

    pub fn dead_letter(&self, job_type: &str) -> String {
        format!("{}.dlq.{job_type}", self.prefix)
    }

    /// Where a message of the inbox goes that can't be taken in. `token`: the type, as its subject had it.
    pub fn inbox_dead_letter(&self, token: &str) -> String {
        format!("{}.inbox-dlq.{token}", self.prefix)
    }

    /// The stream of jobs that are handed in by publishing alone.
    pub fn inbox_stream(&self) -> String {
        self.stream("background-jobs-inbox")
    }

    pub fn event(&self, job_type: &str, state: &str, id: JobId) -> String {
        format!("{}.events.{job_type}.{state}.{id}", self.prefix)
    }

    /// All events of one job.
    pub fn events_of(&self, id: JobId) -> String {
        format!("{}.events.*.*.{id}", self.prefix)
    }

    pub fn cancel(&self, job_type: &str, id: JobId) -> String {
        format!("{}.control.cancel.{job_type}.{id}", self.prefix)
    }

    pub fn all_cancels(&self) -> String {
        format!("{}.control.cancel.*.*", self.prefix)
    }

    /// Told when a type was paused or resumed.
    pub fn types_changed(&self) -> String {
        format!("{}.control.types", self.prefix)
    }

    /// Told when a lane came into use.
    pub fn lanes_used(&self) -> String {
        format!("{}.control.lanes", self.prefix)
    }

    /// Live progress of a running job.
    pub fn progress(&self, job_type: &str, id: JobId) -> String {
        format!("{}.progress.{job_type}.{id}", self.prefix)
    }

    /// Progress of all jobs, as handlers outside tell it.
    pub fn all_progress(&self) -> String {
        format!("{}.progress.*.*", self.prefix)
    }

    /// Where handlers of a type are asked.
    pub fn handler(&self, job_type: &str) -> String {
        format!("{}.handlers.{job_type}", self.prefix)
    }

    /// Where a handler answers for one run.
    pub fn reply(&self, worker_id: &str, job_type: &str, id: JobId, run: i64) -> String {
        format!("{}.reply.{worker_id}.{job_type}.{id}.{run}", self.prefix)
    }

    /// All answers to one process.
    pub fn replies_to(&self, worker_id: &str) -> String {
        format!("{}.reply.{worker_id}.*.*.*", self.prefix)
    }

    pub fn consumer(job_type: &str, lane: Lane) -> String {
        format!("{job_type}-{lane}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_prefix_has_the_names_of_the_contract_and_others_have_their_own() {
        let (plain, other) = (Subjects::new("queue"), Subjects::new("t1"));
        assert_eq!(
            (plain.jobs_stream().as_str(), other.jobs_stream().as_str()),
            ("background-jobs", "t1-background-jobs")
        );
        assert_eq!(other.rebase("queue.jobs.*.*"), "t1.jobs.*.*");
        assert_eq!(plain.wake_up("send-email", Lane::Normal), "queue.jobs.send-email.normal");
        assert_eq!(other.lane_of(&other.wake_up("send-email", Lane::Low)), Some(("send-email", Lane::Low)));
        for no_wake_up in ["queue.jobs.send-email.low", "t1.jobs.send-email", "t1.jobs.a.middle", "t1.dlq.a.low"] {
            assert_eq!(other.lane_of(no_wake_up), None, "{no_wake_up}");
        }
    }
}
