//! `get`: shows one job.

use chrono::Utc;
use clap::Args;
use serde_json::json;

use super::{args, exit::Exit, output::Output};
use crate::{
    client::{Client, Job, read},
    job::model::JobId,
    ops::Verb,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  queue-service get 0198c5a4-5d5c-7000-8000-000000000000
  queue-service get --json 0198c5a4-5d5c-7000-8000-000000000000 | jq .result")]
pub struct GetArgs {
    /// The job, as `enqueue` printed it
    #[arg(value_name = "ID", value_parser = args::job_id)]
    id: JobId,
}

pub async fn run(args: GetArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let answer = client.call(Verb::GetJob, &json!({"jobId": args.id})).await?;
    show(&answer, Verb::GetJob, out)?;
    Ok(Exit::Done)
}

/// Prints a job that was answered, and gives it.
pub fn show(answer: &[u8], verb: Verb, out: &Output) -> anyhow::Result<Job> {
    let job: Job = read(verb, answer)?;
    if out.json {
        out.json(answer)?;
    } else {
        out.line(&job.card(out, Utc::now()))?;
    }
    Ok(job)
}
