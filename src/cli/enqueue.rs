//! `enqueue`: hands in a job, or a file full of them.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    args, bulk,
    exit::Exit,
    output::{Output, Tone},
    payload::Source,
    text::clean,
    wait,
};
use crate::{
    client::{Client, read},
    ops::{Verb, wire::EnqueueReply},
};

#[derive(Debug, Args)]
#[command(
    override_usage = "queue-service enqueue [OPTIONS] TYPE PAYLOAD\n       queue-service enqueue [OPTIONS] --jsonl FILE",
    after_help = "\
Prints the job's id, alone on a line. With --wait it prints the job when it is over; the exit code is 0 for \
completed and 6 for failed or cancelled.

With --jsonl each line is a request as on the wire: {\"type\", \"payload\", \"priority\"?, \"maxAttempts\"?, \"delay\"?, \
\"runAt\"?, \"idempotencyKey\"?, \"tags\"?, \"timeout\"?}. A line that is refused does not keep the others out: it is told \
with its number, and the exit code is 4. With --json the answer to each line is printed, in the order of the lines.

Examples:
  queue-service enqueue send-email '{\"to\": \"a@example.org\", \"subject\": \"Hi\", \"body\": \"…\"}'
  queue-service enqueue batch-import @items.json --priority 5 --tag nightly --key import-2026-01-31
  jq -n '{url: \"https://example.org\"}' | queue-service enqueue crawl-website - --wait
  queue-service enqueue send-email @mail.json --delay 2h --max-attempts 5
  queue-service enqueue --jsonl jobs.jsonl
  zcat jobs.jsonl.gz | queue-service enqueue --jsonl -"
)]
pub struct EnqueueArgs {
    /// Job type, see `queue-service types`
    #[arg(value_name = "TYPE", required_unless_present = "jsonl")]
    r#type: Option<String>,
    /// JSON, or @FILE, or - for standard input
    #[arg(value_name = "PAYLOAD", required_unless_present = "jsonl", allow_negative_numbers = true)]
    payload: Option<String>,
    /// From -9 to 9, higher runs sooner [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-9..=9))]
    priority: Option<i64>,
    /// From 1 to 100 [default: what is set for the type]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=100))]
    max_attempts: Option<i64>,
    /// Not before this much time has passed: 90s, 2h, 1d
    #[arg(long, value_name = "SPAN", value_parser = args::span, conflicts_with = "run_at")]
    delay: Option<Duration>,
    /// Not before this time: 2026-01-31T08:00:00+01:00
    #[arg(long, value_name = "TIME", value_parser = time)]
    run_at: Option<String>,
    /// Idempotency key: the same key again names the same job instead of making another
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Tag to find it by; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Longest run of one attempt: 500ms, 10m
    #[arg(long, value_name = "SPAN", value_parser = args::span)]
    timeout: Option<Duration>,
    /// Wait until the job is over, at most this long [default: as long as it takes]
    #[arg(long, value_name = "SPAN", num_args = 0..=1, require_equals = true, value_parser = args::span)]
    wait: Option<Option<Duration>>,
    /// Enqueue each line of this file, or of standard input (-)
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["type", "payload", "priority", "max_attempts", "delay", "run_at", "key", "tags", "timeout", "wait"]
    )]
    jsonl: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    r#type: &'a str,
    payload: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
}

impl EnqueueArgs {
    /// Reads what comes from files and standard input, before anything is asked of the network.
    ///
    /// # Errors
    /// A payload that can't be read or is no JSON.
    pub fn prepare(self) -> anyhow::Result<Prepared> {
        if let Some(file) = self.jsonl {
            return Ok(Prepared::Bulk(bulk::Input::open(&file)?));
        }
        let payload = Source::parse(self.payload.as_deref().unwrap_or_default()).read()?;
        let spelled = |span: Option<Duration>| span.map(|span| humantime::format_duration(span).to_string());
        let request = Request {
            r#type: self.r#type.as_deref().unwrap_or_default(),
            payload: &payload,
            priority: self.priority,
            max_attempts: self.max_attempts,
            delay: spelled(self.delay),
            run_at: self.run_at.as_deref(),
            idempotency_key: self.key.as_deref(),
            tags: &self.tags,
            timeout: spelled(self.timeout),
        };
        Ok(Prepared::One { request: serde_json::to_vec(&request)?, wait: self.wait })
    }
}

/// What will be sent.
pub enum Prepared {
    One { request: Vec<u8>, wait: Option<Option<Duration>> },
    Bulk(bulk::Input),
}

pub async fn run(prepared: Prepared, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let (request, wait) = match prepared {
        Prepared::Bulk(input) => return bulk::run(input, client, out).await,
        Prepared::One { request, wait } => (request, wait),
    };
    let answer = client.call_raw(Verb::Enqueue, request.into(), Duration::ZERO).await?;
    let reply: EnqueueReply = read(Verb::Enqueue, &answer)?;
    if reply.duplicate {
        out.note("the idempotency key was used before: this is the job that it made then");
    }
    match wait {
        Some(limit) => return wait::wait_and_show(reply.job_id, limit, client, out).await,
        None if out.json => out.json(&answer)?,
        None => {
            out.line(&reply.job_id.to_string())?;
            if out.terminal {
                let hint = format!("{}; follow it with `queue-service watch {}`", reply.status, reply.job_id);
                out.note(&out.paint(Tone::Faint, &clean(&hint)));
            }
        }
    }
    Ok(Exit::Done)
}

/// The service judges; this only catches a slip before it is sent.
fn time(text: &str) -> Result<String, String> {
    chrono::DateTime::parse_from_rfc3339(text)
        .map(|_| text.to_owned())
        .map_err(|_| "write a time with its zone as 2026-01-31T08:00:00Z or 2026-01-31T08:00:00+01:00".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: EnqueueArgs,
    }

    fn request(args: &[&str]) -> String {
        let parsed = Command::try_parse_from(["x"].iter().chain(args)).unwrap_or_else(|e| panic!("{e}"));
        match parsed.args.prepare().unwrap() {
            Prepared::One { request, .. } => String::from_utf8(request).unwrap(),
            Prepared::Bulk(_) => panic!("bulk"),
        }
    }

    #[test]
    fn every_option_is_sent_and_the_payload_is_not_touched() {
        assert_eq!(request(&["x", r#"{"z":1.50,"a":1}"#]), r#"{"type":"x","payload":{"z":1.50,"a":1}}"#);
        let all = request(&[
            "x",
            "-1",
            "--priority",
            "-5",
            "--max-attempts",
            "9",
            "--delay",
            "90",
            "--key",
            "k",
            "--tag",
            "a",
            "--tag",
            "b",
            "--timeout",
            "1500ms",
            "--wait=2m",
        ]);
        let expected = r#"{"type":"x","payload":-1,"priority":-5,"maxAttempts":9,"delay":"1m 30s","idempotencyKey":"k","tags":["a","b"],"timeout":"1s 500ms"}"#;
        assert_eq!(all, expected);
        assert!(
            request(&["x", "{}", "--run-at", "2026-01-31T08:00:00+01:00"])
                .contains(r#""runAt":"2026-01-31T08:00:00+01:00""#)
        );
    }

    #[test]
    fn slips_are_caught_before_anything_is_sent() {
        for args in [
            &["x"][..],
            &[],
            &["x", "{}", "--priority", "10"],
            &["x", "{}", "--delay", "1s", "--run-at", "2026-01-31T08:00:00Z"],
            &["x", "{}", "--run-at", "tomorrow"],
            &["x", "{}", "--jsonl", "f"],
            &["--jsonl", "f", "--priority", "1"],
        ] {
            assert!(Command::try_parse_from(["x"].iter().chain(args)).is_err(), "{args:?}");
        }
    }
}
