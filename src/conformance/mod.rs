//! Does a foreign handler or pull worker keep the protocol? This module plays the service for it, looks closely at what it
//! answers, and says what it found. The rules are those of docs/protocol.md, judged by the code that judges real answers.
//!
//! `handler` asks handlers that are called, `pull` is asked by workers that fetch; `peer`, `ends`, `office` and `program`
//! are the means, `report` the end.

mod ends;
mod handler;
mod office;
mod peer;
mod program;
mod pull;
mod report;
mod same;

use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::Client;
use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json, value::RawValue};

use crate::{
    broker::login,
    config,
    job::{JobType, json as rules, model::JobId},
};
use program::Program;
use report::Sheet;
pub use report::{Finding, Report, Verdict};

/// Longest result. Source: docs/protocol.md.
const RESULT_MAX: usize = 256 * 1024;
/// How long the kit waits for a first sign of the one who is examined.
const FIRST: Duration = Duration::from_secs(30);
/// Why a check could not be made.
const NEEDS_SLOW: &str = "give the payload of a job of at least ten seconds with --slow";
const NEEDS_BAD: &str = "give the payload of a job that can never succeed with --bad";
const NEEDS_LARGE: &str = "give the payload of a job with a larger result with --large";

/// Who is examined.
#[derive(Clone, Debug)]
pub enum Examinee {
    /// A handler that is called on this subject.
    Handler { subject: String },
    /// A worker that fetches jobs of this type.
    Puller { job_type: JobType },
}

/// What is examined, and with which jobs.
#[derive(Clone, Debug)]
pub struct Options {
    pub examinee: Examinee,
    /// Of a job that succeeds.
    pub payload: Box<RawValue>,
    /// Of a job that can never succeed.
    pub bad: Option<Box<RawValue>>,
    /// Of a job that takes at least ten seconds.
    pub slow: Option<Box<RawValue>>,
    /// Of a job whose result would be larger than 256 KiB.
    pub large: Option<Box<RawValue>>,
    /// How long an ordinary job may take.
    pub patience: Duration,
    /// Started before and ended after, with NATS_URL and QUEUE_PREFIX in its environment.
    pub command: Vec<String>,
}

/// Examines. `told` hears of each finding as it is made.
///
/// # Errors
/// No connection, a program that can't be started, a service that answers where the kit has to; not what is found out.
pub async fn run(nats: &config::Nats, options: &Options, told: impl FnMut(&Finding)) -> anyhow::Result<Report> {
    check(options)?;
    let client = connect(nats).await?;
    match &options.examinee {
        Examinee::Handler { subject } => {
            let (prefix, job_type) = parts_of(subject)?;
            let program = Program::start(&options.command, nats, prefix)?;
            let peer = peer::Peer::open(client, prefix, job_type).await?;
            handler::examine(peer, options, program, Sheet::new(subject, told)).await
        }
        Examinee::Puller { job_type } => {
            let office = office::Office::open(client, &nats.prefix, job_type.clone()).await?;
            let program = Program::start(&options.command, nats, &nats.prefix)?;
            let what = format!("the pull worker of {job_type}");
            pull::examine(office, options, program, Sheet::new(&what, told)).await
        }
    }
}

/// The prefix and the type that a handler's subject names.
fn parts_of(subject: &str) -> anyhow::Result<(&str, JobType)> {
    let parts = subject.split_once(".handlers.");
    let (prefix, name) = parts.with_context(|| format!("'{subject}' is no <prefix>.handlers.<type>"))?;
    let job_type = JobType::new(name).with_context(|| format!("'{name}' is no job type"))?;
    Ok((prefix, job_type))
}

/// What could not be handed in could not come to a handler either.
fn check(options: &Options) -> anyhow::Result<()> {
    let all = [Some(&options.payload), options.bad.as_ref(), options.slow.as_ref(), options.large.as_ref()];
    for payload in all.into_iter().flatten() {
        if let Err(fault) = rules::check_value(payload.get().as_bytes()) {
            bail!("a payload can't be handed in: {fault}");
        }
    }
    Ok(())
}

/// A job in hand as the service shows it, with something of which only later versions know.
fn job(job_type: &JobType, id: JobId, payload: &RawValue, checkpoint: Option<&RawValue>) -> Value {
    let now = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
    // The first attempt, whichever run it is: as when the record of a run was lost that had spent none.
    json!({
        "id": id, "type": job_type.as_str(), "status": "processing", "payload": payload, "priority": 0, "attempts": 1,
        "maxAttempts": 3, "result": null, "error": null, "errors": [], "progress": null, "tags": [], "idempotencyKey": null,
        "workerId": "conformance", "note": null, "createdAt": now, "runAt": now, "startedAt": now, "finishedAt": null,
        "checkpoint": checkpoint, "ofLaterVersions": {"more": [1]},
    })
}

async fn connect(config: &config::Nats) -> anyhow::Result<Client> {
    let (options, servers) = login::prepare(config).await?;
    let options = options
        .name("queue-service conformance")
        .custom_inbox_prefix(&config.inbox_prefix)
        .connection_timeout(Duration::from_secs(2));
    options.connect(servers).await.context("no connection to NATS; `queue-service dev` starts one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_names_the_prefix_and_the_type() {
        let (prefix, job_type) = parts_of("queue.handlers.word-count").unwrap();
        assert_eq!((prefix, job_type.as_str()), ("queue", "word-count"));
        assert!(parts_of("word-count").is_err() && parts_of("queue.handlers.Word Count").is_err());
    }
}
