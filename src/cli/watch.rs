//! `watch`: what happens, as it happens. Events are news and may be missed; for one job the row has the last word.

use std::time::Duration;

use chrono::{Local, Utc};
use clap::{Args, builder::PossibleValuesParser};
use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{
    args,
    exit::Exit,
    output::Output,
    text::{absolute, clean},
    view::tone,
    wait,
};
use crate::{
    client::{Client, Job, JobEvent, Progress, read},
    job::{JobType, model::JobId},
    ops::Verb,
};

/// An end that the row knows of already: its event is on the way.
const LAST_EVENTS: Duration = Duration::from_millis(500);

const PROGRESS: &str = "{bar:30} {pos:>3} %  {msg}  {elapsed}";
const NO_PROGRESS: &str = "{spinner} {elapsed}";

#[derive(Debug, Args)]
#[command(after_help = "\
For one job: its state now, then what happens to it until it is over; the exit code is 0 for completed, 6 for failed or \
cancelled. Without an id: the events of all jobs, until Ctrl-C.

With --json there is one event per line as it was received; for one job, the job itself is the first line.

Examples:
  queue-service watch 0198c5a4-5d5c-7000-8000-000000000000
  queue-service watch --state failed --state cancelled
  queue-service watch --type send-email --json | jq -r 'select(.state == \"failed\") | .error'")]
pub struct WatchArgs {
    /// Only this job, until it is over
    #[arg(value_name = "ID", value_parser = args::job_id, conflicts_with_all = ["type", "state"])]
    id: Option<JobId>,
    /// Only jobs of this type; may be repeated
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = args::job_type)]
    r#type: Vec<JobType>,
    /// Only these events; may be repeated
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = PossibleValuesParser::new(
        ["enqueued", "started", "progress", "retrying", "completed", "failed", "cancelled"]
    ))]
    state: Vec<String>,
}

pub async fn run(args: WatchArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    match args.id {
        Some(id) => one(id, client, out).await,
        None => all(args, client, out).await,
    }
}

async fn all(args: WatchArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let or_all = |tokens: Vec<String>| if tokens.is_empty() { vec!["*".to_owned()] } else { tokens };
    let types = or_all(args.r#type.iter().map(|t| t.as_str().to_owned()).collect());
    let states = or_all(args.state);
    let mut subscriptions = Vec::new();
    for job_type in &types {
        for state in &states {
            subscriptions.push(client.events(job_type, state, "*").await?);
        }
    }
    out.note("watching; Ctrl-C ends it");
    let mut events = stream::select_all(subscriptions);
    loop {
        let message = tokio::select! {
            message = events.next() => message,
            e = client.forbidden() => return Err(e.into()),
        };
        let Some(message) = message else { return Ok(Exit::Failed) };
        print(&message.payload, true, out)?;
    }
}

async fn one(id: JobId, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    // Listening before looking: what happens in between is heard.
    let mut events = client.events("*", "*", &id.to_string()).await?;
    let answer = client.call(Verb::GetJob, &json!({"jobId": id})).await?;
    let job: Job = read(Verb::GetJob, &answer)?;
    if out.json {
        out.json_line(&String::from_utf8_lossy(&answer))?;
    } else {
        out.line(&summary(&job, out))?;
    }
    if job.is_over() {
        return Ok(wait::end_of(&job));
    }
    let bar = progress_bar(&job, out);
    let mut over = std::pin::pin!(wait::until_over(id, None, client, |_| ()));
    let last = loop {
        tokio::select! {
            message = events.next() => {
                let Some(message) = message else { break over.await? };
                if show(&message.payload, &bar, out)? {
                    break client.call(Verb::GetJob, &json!({"jobId": id})).await?;
                }
            }
            answer = &mut over => {
                let answer = answer?;
                let rest = async {
                    while let Some(message) = events.next().await {
                        if show(&message.payload, &bar, out)? {
                            break;
                        }
                    }
                    anyhow::Ok(())
                };
                if let Ok(shown) = tokio::time::timeout(LAST_EVENTS, rest).await {
                    shown?;
                }
                break answer;
            }
            e = client.forbidden() => return Err(e.into()),
        }
    };
    bar.finish_and_clear();
    let job: Job = read(Verb::GetJob, &last)?;
    if !out.json {
        out.line(&summary(&job, out))?;
    }
    Ok(wait::end_of(&job))
}

/// Shows an event of the one job; whether it is its last. On a terminal, progress moves the bar.
fn show(payload: &[u8], bar: &ProgressBar, out: &Output) -> anyhow::Result<bool> {
    let event: JobEvent = serde_json::from_slice(payload).unwrap_or_default();
    if let Some(percent) = event.percent {
        bar.set_style(style(PROGRESS));
        bar.set_position(percent.clamp(0.0, 100.0) as u64);
        bar.set_message(event.message.as_deref().map(clean).unwrap_or_default());
    }
    if bar.is_hidden() || out.json || event.state != "progress" {
        bar.suspend(|| print(payload, false, out))?;
    }
    Ok(matches!(event.state.as_str(), "completed" | "failed" | "cancelled"))
}

fn print(payload: &[u8], with_job: bool, out: &Output) -> anyhow::Result<()> {
    let text = String::from_utf8_lossy(payload);
    if out.json {
        return out.json_line(&text);
    }
    match serde_json::from_str::<JobEvent>(&text) {
        Ok(event) => out.line(&event.line(with_job, out)),
        Err(_) => {
            out.note(&format!("an event that is not understood: {}", clean(&text)));
            Ok(())
        }
    }
}

impl JobEvent {
    fn line(&self, with_job: bool, out: &Output) -> String {
        let at = self.at.unwrap_or_else(Utc::now);
        let at = if out.terminal { at.with_timezone(&Local).format("%H:%M:%S%.3f").to_string() } else { absolute(at) };
        let state = clean(&self.state);
        let state = out.paint(tone(&state), &format!("{state:<9}"));
        let job = if with_job { format!("{}  {}  ", clean(&self.r#type), clean(&self.job_id)) } else { String::new() };
        format!("{at}  {state}  {job}{}", self.detail()).trim_end().to_owned()
    }

    fn detail(&self) -> String {
        let error = self.error.as_deref().map(clean).unwrap_or_default();
        match self.state.as_str() {
            "started" => {
                let worker = self.worker_id.as_deref().map(clean).unwrap_or_default();
                format!("attempt {} on {worker}", self.attempt)
            }
            "progress" => Progress { percent: self.percent.unwrap_or_default(), message: self.message.clone() }.text(),
            "retrying" => {
                let delay = self.delay_seconds.map_or_else(String::new, |s| format!("; again in {s:.1} s"));
                format!("attempt {} failed: {error}{delay}", self.attempt)
            }
            "failed" => format!("attempt {}: {error}", self.attempt),
            _ => error,
        }
    }
}

/// Where the job stands, in a line.
fn summary(job: &Job, out: &Output) -> String {
    let now = Utc::now();
    let state = clean(job.state(now));
    let facts = [format!("attempt {} of {}", job.attempts, job.max_attempts), job.timing(now), job.remark()];
    let facts: Vec<String> = facts.into_iter().filter(|fact| fact != super::text::NOTHING).collect();
    format!("{} {}: {}, {}", clean(&job.r#type), clean(&job.id), out.paint(tone(&state), &state), facts.join(", "))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A bar where somebody looks at it; else hidden.
fn progress_bar(job: &Job, out: &Output) -> ProgressBar {
    if out.quiet || out.json || !out.terminal {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(100);
    match &job.progress {
        Some(progress) => {
            bar.set_style(style(PROGRESS));
            bar.set_position(progress.percent.clamp(0.0, 100.0) as u64);
            bar.set_message(progress.message.as_deref().map(clean).unwrap_or_default());
        }
        // Many jobs never tell how far they are.
        None => bar.set_style(style(NO_PROGRESS)),
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_that_says_what_happened_and_steers_nothing() {
        let out = Output::piped();
        let line = |json: &str| serde_json::from_str::<JobEvent>(json).unwrap().line(true, &out);
        let at = r#""jobId":"0198","type":"x","at":"2026-01-01T00:00:00Z""#;
        assert_eq!(
            line(&format!(r#"{{{at},"state":"retrying","attempt":1,"error":"no\u001b[2J","delaySeconds":60}}"#)),
            "2026-01-01T00:00:00.000Z  retrying   x  0198  attempt 1 failed: no[2J; again in 60.0 s"
        );
        assert_eq!(
            line(&format!(r#"{{{at},"state":"progress","attempt":1,"percent":40.2,"message":"page 4"}}"#)),
            "2026-01-01T00:00:00.000Z  progress   x  0198  40 % page 4"
        );
        assert_eq!(line(&format!(r#"{{{at},"state":"completed"}}"#)), "2026-01-01T00:00:00.000Z  completed  x  0198");
    }
}
