//! `conformance`: does a handler or a pull worker in another language keep the protocol?

use std::{io::IsTerminal, time::Duration};

use clap::Args;
use serde_json::value::RawValue;

use super::{
    args,
    exit::Exit,
    output::{Output, Tone},
    text::{clean, count},
};
use crate::{
    config::Config,
    conformance::{self, Examinee, Finding, Options, Verdict},
    job::JobType,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Plays the service for a handler, or for a pull worker, and reports what it finds: answers, failures, deadlines, cancellation, \
jobs that come twice, leases that are lost, results that are too large. No service is needed, only NATS; for a pull worker \
there must be none under the prefix. What is after `--` is started with NATS_URL and QUEUE_PREFIX in its environment, and \
ended with SIGTERM. The exit code is 0 when the protocol is kept as far as it was checked, else 1.

Examples:
  queue-service conformance --subject queue.handlers.word-count --payload '{\"texts\": [\"a b\"]}'
  queue-service conformance --subject check.handlers.word-count --payload '{\"texts\": [\"a\"]}' --bad '{\"texts\": [\"\"]}' \\
      --slow '{\"texts\": [\"a\",\"a\",\"a\",\"a\",\"a\",\"a\"], \"pauseMs\": 2000}' -- python examples/python/handler.py
  queue-service conformance --prefix check --pull square --payload '{\"n\": 3}' -- python examples/python/puller.py")]
pub struct ConformanceArgs {
    /// Examine the handler that is called on this subject: <prefix>.handlers.<type>
    #[arg(long, value_name = "SUBJECT", required_unless_present = "pull", conflicts_with = "pull")]
    subject: Option<String>,
    /// Examine the worker that fetches jobs of this type
    #[arg(long, value_name = "TYPE", value_parser = args::job_type)]
    pull: Option<JobType>,
    /// Payload of a job that succeeds
    #[arg(long, value_name = "JSON", value_parser = json)]
    payload: Box<RawValue>,
    /// Payload of a job that can never succeed
    #[arg(long, value_name = "JSON", value_parser = json)]
    bad: Option<Box<RawValue>>,
    /// Payload of a job that takes at least ten seconds: cancellation, deadline, signs of life
    #[arg(long, value_name = "JSON", value_parser = json)]
    slow: Option<Box<RawValue>>,
    /// Payload of a job whose result would be larger than 256 KiB
    #[arg(long, value_name = "JSON", value_parser = json)]
    large: Option<Box<RawValue>>,
    /// How long an ordinary job may take
    #[arg(long, value_name = "SPAN", default_value = "30s", value_parser = args::span)]
    patience: Duration,
    /// The program to start
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub async fn run(args: ConformanceArgs, config: &Config, out: &Output) -> anyhow::Result<Exit> {
    let examinee = match (args.subject, args.pull) {
        (_, Some(job_type)) => Examinee::Puller { job_type },
        (subject, None) => Examinee::Handler { subject: subject.unwrap_or_default() },
    };
    let options = Options {
        examinee,
        payload: args.payload,
        bad: args.bad,
        slow: args.slow,
        large: args.large,
        patience: args.patience,
        command: args.command,
    };
    let mut closed = None;
    let report = conformance::run(&config.nats, &options, |finding| {
        if !out.json {
            closed = out.line(&line(finding, out)).err().or(closed.take());
        }
    });
    let report = report.await?;
    let (exit, said) = match report.is_good() {
        true => (Exit::Done, "keeps the protocol"),
        false => (Exit::Failed, "does not keep the protocol"),
    };
    if out.json {
        out.json(&serde_json::to_vec(&report)?)?;
        return Ok(exit);
    }
    let number = |verdict| count(report.count(verdict) as u64);
    out.line(&format!(
        "\n{} {said}: {} passed, {} warnings, {} failed, {} not checked",
        clean(&report.examined),
        number(Verdict::Passed),
        number(Verdict::Warned),
        number(Verdict::Failed),
        number(Verdict::Skipped)
    ))?;
    closed.map_or(Ok(exit), Err)
}

fn line(finding: &Finding, out: &Output) -> String {
    let (mark, tone) = match finding.verdict {
        Verdict::Passed => ("ok", Tone::Good),
        Verdict::Warned => ("warning", Tone::Waiting),
        Verdict::Failed => ("FAILED", Tone::Bad),
        Verdict::Skipped => ("not checked", Tone::Faint),
    };
    let detail = clean(&finding.detail);
    // A terminal wraps long lines badly.
    let detail = match detail.is_empty() {
        true => String::new(),
        false if std::io::stdout().is_terminal() => format!("\n             {}", out.paint(Tone::Faint, &detail)),
        false => format!(": {detail}"),
    };
    format!("{} {}{detail}", out.paint(tone, &format!("{mark:<12}")), finding.check)
}

fn json(text: &str) -> Result<Box<RawValue>, String> {
    serde_json::from_str(text).map_err(|e| format!("it is no JSON: {e}"))
}
