//! `bench`: measures the service on this machine.

use clap::Args;

use super::{exit::Exit, output::Output};
use crate::{
    bench::{self, Scenario},
    config::Config,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Starts private servers with their durable defaults and a service of its own, unless --type names the jobs of one that runs \
already. Each figure is of jobs whose end is recorded; a run in which a job is lost or done twice is an error.

Examples:
  queue-service bench
  queue-service bench lifecycle limit --concurrency 64,1024 --jobs 100000
  queue-service bench grow --finished 1000000 --waiting 100000
  queue-service bench latency --rate 100 --seconds 10 --json
  queue-service bench enqueue --type send-email --payload '{\"to\":\"a@example.com\",\"subject\":\"x\",\"body\":\"x\"}'")]
pub struct BenchArgs {
    /// What to measure [default: all but grow, mixed and soak]
    scenarios: Vec<Scenario>,
    /// Private servers and a service of its own (the default unless --type is given)
    #[arg(long, conflicts_with = "job_type")]
    self_contained: bool,
    /// Jobs of this type at a service that runs already
    #[arg(long = "type", value_name = "TYPE", requires = "payload")]
    job_type: Option<String>,
    /// Payload of those jobs
    #[arg(long, value_name = "JSON", requires = "job_type")]
    payload: Option<serde_json::Value>,
    /// Jobs per measurement; bulk and drain take four times as many
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    jobs: usize,
    /// Requests in flight, one measurement each
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [64, 256, 1024])]
    concurrency: Vec<usize>,
    /// Jobs per second of `latency`
    #[arg(long, value_name = "N", default_value_t = 100)]
    rate: u32,
    /// Seconds of `latency`
    #[arg(long, value_name = "N", default_value_t = 20)]
    seconds: u32,
    /// Finished jobs of `grow`; ten million take about 12 GB of disk and some minutes
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    finished: u64,
    /// Waiting jobs of `grow`
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    waiting: usize,
    /// Minutes of `soak`
    #[arg(long, value_name = "N", default_value_t = 60)]
    minutes: u32,
}

pub async fn run(args: BenchArgs, config: Config, out: &Output) -> anyhow::Result<Exit> {
    let all = [Scenario::Enqueue, Scenario::Drain, Scenario::Lifecycle, Scenario::Latency];
    let running = args.job_type.zip(args.payload);
    let scenarios = match (args.scenarios.is_empty(), &running) {
        (false, _) => args.scenarios,
        (true, Some(_)) => all.to_vec(),
        (true, None) => all.into_iter().chain([Scenario::Limit]).collect(),
    };
    let options = bench::Options {
        scenarios,
        jobs: args.jobs.max(1),
        concurrency: args.concurrency.into_iter().map(|n| n.max(1)).collect(),
        rate: args.rate.max(1),
        seconds: args.seconds.max(1),
        finished: args.finished.max(1000),
        waiting: args.waiting.max(1000),
        minutes: args.minutes.max(1),
        running,
        json: out.json,
        quiet: out.quiet,
    };
    out.line(&bench::run(options, config).await?)?;
    Ok(Exit::Done)
}
