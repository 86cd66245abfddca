//! `wait`: returns when a job is over.

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;

use super::{args, exit::Exit, get, output::Output};
use crate::{
    client::{CallError, Client, Job},
    job::{model::JobId, span::rounded},
    ops::Verb,
};

/// One request waits this long at most; then it is asked again, so that a replica that went away is noticed.
const SLICE: Duration = Duration::from_secs(10);
/// How long the service may be away while a job is waited for: long enough for a deploy.
const AWAY: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
#[command(after_help = "\
Prints the job when it is over. Exit code 0: completed; 6: failed or cancelled; 5: not over within --timeout.

Examples:
  queue-service wait 0198c5a4-5d5c-7000-8000-000000000000 --timeout 2m
  id=$(queue-service enqueue crawl-website @site.json) && queue-service wait --json $id | jq .result.pages")]
pub struct WaitArgs {
    /// The job, as `enqueue` printed it
    #[arg(value_name = "ID", value_parser = args::job_id)]
    id: JobId,
    /// Longest wait, for instance 90s or 5m [default: as long as it takes]
    #[arg(long, value_name = "SPAN", value_parser = args::span)]
    timeout: Option<Duration>,
}

pub async fn run(args: WaitArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    wait_and_show(args.id, args.timeout, client, out).await
}

/// Waits, prints the job and tells by the exit code how it ended.
pub async fn wait_and_show(id: JobId, limit: Option<Duration>, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let spinner = if out.quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    spinner.set_message(format!("waiting for {id}"));
    spinner.enable_steady_tick(Duration::from_millis(120));
    let answer = until_over(id, limit, client, |job| spinner.set_message(news(job))).await;
    spinner.finish_and_clear();
    let job = get::show(&answer?, Verb::WaitJob, out)?;
    Ok(end_of(&job))
}

/// How a job that is over counts for scripts.
pub fn end_of(job: &Job) -> Exit {
    if job.status == "completed" { Exit::Done } else { Exit::JobFailed }
}

fn news(job: &Job) -> String {
    let state = super::text::clean(job.state(chrono::Utc::now()));
    format!("{state}, attempt {} of {}, {}", job.attempts, job.max_attempts, job.remark())
}

/// A service that stops says so to those who wait.
fn is_unavailable(error: &CallError) -> bool {
    matches!(error, CallError::Refused(refusal) if refusal.status == 503)
}

/// Asks until the job is over, and gives the job as it was answered. `look` sees it now and then before that.
///
/// # Errors
/// `wait_timeout` when the limit is reached; anything else that does not pass by itself.
pub async fn until_over(
    id: JobId,
    limit: Option<Duration>,
    client: &Client,
    look: impl Fn(&Job),
) -> Result<Bytes, CallError> {
    let start = Instant::now();
    let mut away_since: Option<Instant> = None;
    let mut known = false;
    loop {
        let left = limit.map_or(SLICE, |limit| limit.saturating_sub(start.elapsed()).min(SLICE));
        let request = json!({"jobId": id, "timeoutMs": left.as_millis() as u64});
        match client.call_within(Verb::WaitJob, &request, left).await {
            Ok(answer) => return Ok(answer),
            Err(CallError::Refused(mut refusal)) if refusal.status == 408 => {
                (known, away_since) = (true, None);
                if let Some(job) = refusal.job.as_ref().and_then(|job| serde_json::from_str(job.get()).ok()) {
                    look(&job);
                }
                if let Some(limit) = limit.filter(|limit| start.elapsed() >= *limit) {
                    let limit = rounded(limit);
                    refusal.detail = format!("job {id} is not over after {limit}; wait again, or look with `get`");
                    return Err(CallError::Refused(refusal));
                }
            }
            // The job goes on without us; a service that was there before will be there again.
            Err(e) if (known || is_unavailable(&e)) && e.is_passing() => {
                known = true;
                let since = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() > AWAY || limit.is_some_and(|limit| start.elapsed() >= limit) {
                    return Err(e);
                }
                tracing::debug!("{e}; asking again");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(e) => return Err(e),
        }
    }
}
