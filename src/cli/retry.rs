//! `retry`: gives failed or cancelled jobs a fresh start.

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
The job keeps its history and gets its full number of attempts again. Jobs that are not over, or are completed, are \
refused (exit code 4).

Examples:
  queue-service retry 0198c5a4-5d5c-7000-8000-000000000000
  queue-service list --status failed --type send-email --all --json | jq -r .id | queue-service retry -")]
pub struct RetryArgs {
    /// The jobs; `-` reads ids from standard input, and does nothing when there are none
    #[arg(value_name = "ID", required = true, value_parser = args::named_job)]
    ids: Vec<Named>,
}

pub async fn run(args: RetryArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    each::job(Verb::RetryJob, &args::job_ids(&args.ids)?, |id| json!({"jobId": id}), client, out).await
}
