//! `cancel`: stops jobs, or keeps them from starting.

use clap::Args;
use serde_json::json;

use super::{
    args::{self, Named},
    each,
    exit::Exit,
    output::Output,
};
use crate::{client::Client, ops::Verb};

#[derive(Debug, Args)]
#[command(after_help = "\
A job that runs is told to stop; the answer waits briefly for that. A job that is over is refused (exit code 4).

Examples:
  queue-service cancel 0198c5a4-5d5c-7000-8000-000000000000 --reason 'sent by hand'
  queue-service list --status scheduled --tag campaign-9 --all --json | jq -r .id | queue-service cancel -")]
pub struct CancelArgs {
    /// The jobs; `-` reads ids from standard input, and does nothing when there are none
    #[arg(value_name = "ID", required = true, value_parser = args::named_job)]
    ids: Vec<Named>,
    /// Why, for people; kept with the job
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub async fn run(args: CancelArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let request = |id| match &args.reason {
        Some(reason) => json!({"jobId": id, "reason": reason}),
        None => json!({"jobId": id}),
    };
    each::job(Verb::CancelJob, &args::job_ids(&args.ids)?, request, client, out).await
}
