//! `queue-service bench`: how fast the service is on this machine, and how near that is to what its parts can do.
//!
//! Load comes from this process, the service runs in a child, Postgres and nats-server run with their durable defaults.
//! Every scenario checks itself: a run that lost a job, or did one twice, is an error and no figure.

mod database;
mod grow;
mod limit;
mod load;
mod mixed;
mod noop;
mod report;
mod scenarios;
mod soak;
mod stage;
mod usage;

use anyhow::{Context, ensure};
use clap::ValueEnum;

pub use noop::serve;
use report::{Row, Table};
use stage::{Door, Stage};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Single requests over RPC and HTTP, and bulk requests, while nothing runs
    Enqueue,
    /// Waiting jobs, until the last one's end is recorded
    Drain,
    /// Jobs enqueued and run at the same time
    Lifecycle,
    /// Time from a request to the start and to the end, at a fixed rate
    Latency,
    /// What the parts can do by themselves, and our share of it
    Limit,
    /// With millions of finished and waiting jobs, beside a service that has none: is anything slower?
    Grow,
    /// One load beside another: does a flood, a slow handler or a retry delay hold anybody up?
    Mixed,
    /// Mixed load for many minutes, and a kill in each: is anything lost, does anything grow, is the rate back soon?
    Soak,
}

/// What to measure, and how much.
#[derive(Clone, Debug)]
pub struct Options {
    pub scenarios: Vec<Scenario>,
    /// Jobs per scenario.
    pub jobs: usize,
    /// Requests in flight, one run each.
    pub concurrency: Vec<usize>,
    /// Jobs per second of the latency scenario, and for how many seconds.
    pub rate: u32,
    pub seconds: u32,
    /// Finished and waiting jobs of `grow`.
    pub finished: u64,
    pub waiting: usize,
    /// Minutes of the soak.
    pub minutes: u32,
    /// Measure a service that runs already: the type of its jobs and their payload.
    pub running: Option<(String, serde_json::Value)>,
    pub json: bool,
    pub quiet: bool,
}

/// Measures, and gives a table (or JSON) to be shown.
///
/// # Errors
/// A part could not start, or a scenario found a job missing or done twice.
pub async fn run(options: Options, config: crate::config::Config) -> anyhow::Result<String> {
    let stage = match &options.running {
        None => Stage::own(&config).await?,
        Some((job_type, payload)) => Stage::running(&config, job_type, payload).await?,
    };
    let measured = measure(&options, &config, &stage).await;
    stage.end().await;
    let table = measured?;
    Ok(if options.json { serde_json::to_string_pretty(&table)? } else { table.text() })
}

async fn measure(options: &Options, config: &crate::config::Config, stage: &Stage) -> anyhow::Result<Table> {
    let say = |text: &str| {
        if !options.quiet {
            crate::telemetry::say(text);
        }
    };
    let mut rows: Vec<Row> = Vec::new();
    if stage.is_own() {
        say("warming up …");
        scenarios::lifecycle(stage, 2_000.min(options.jobs), 64).await?;
        rows.push(scenarios::idle(stage));
    }
    let mut before = limit::Rates::new();
    if options.scenarios.contains(&Scenario::Limit) {
        say("the parts by themselves …");
        before = limit::measure(servers(stage)?).await?;
    }
    for scenario in &options.scenarios {
        match scenario {
            Scenario::Enqueue => {
                for n in &options.concurrency {
                    say(&format!("enqueue over RPC, {n} in flight …"));
                    rows.push(scenarios::enqueue(stage, Door::Rpc, options.jobs, *n).await?);
                }
                if stage.has_http() {
                    say("enqueue over HTTP, 64 in flight …");
                    rows.push(scenarios::enqueue(stage, Door::Http, options.jobs, 64).await?);
                }
                say("bulk enqueue, 1000 a request …");
                rows.push(scenarios::bulk(stage, options.jobs * 4, scenarios::Meanwhile::Nothing).await?);
                say("one request at a time …");
                rows.push(scenarios::enqueue(stage, Door::Rpc, options.jobs / 20 + 1, 1).await?);
            }
            Scenario::Drain => {
                say("drain …");
                rows.push(scenarios::drain(stage, options.jobs * 4).await?);
            }
            Scenario::Lifecycle => {
                for n in &options.concurrency {
                    say(&format!("enqueue and run, {n} in flight …"));
                    rows.push(scenarios::lifecycle(stage, options.jobs, *n).await?);
                }
                say("bulk enqueue and run …");
                rows.push(scenarios::bulk(stage, options.jobs * 4, scenarios::Meanwhile::Run).await?);
            }
            Scenario::Latency => {
                say(&format!("{} jobs a second for {} s …", options.rate, options.seconds));
                rows.extend(scenarios::latency(stage, &stage.client(), options.rate, options.seconds).await?);
            }
            Scenario::Grow => {
                ensure!(stage.is_own(), "`grow` fills a database with millions of rows: private servers only");
                rows.extend(grow::run(stage, config, options, &say).await?);
            }
            Scenario::Mixed => {
                ensure!(stage.is_own(), "`mixed` needs job types of its own: private servers only");
                rows.extend(mixed::run(stage, options, &say).await?);
            }
            Scenario::Soak => {
                ensure!(stage.is_own(), "`soak` kills what it measures: private servers only");
                say("soak …");
                rows.push(soak::run(stage, options.minutes).await?);
            }
            Scenario::Limit => {
                say("the parts by themselves once more …");
                rows.extend(limit::shares(&before, &limit::measure(servers(stage)?).await?, &rows));
            }
        }
    }
    Ok(Table { rows })
}

fn servers(stage: &Stage) -> anyhow::Result<&crate::dev::Servers> {
    stage.servers().context("`limit` measures private servers only")
}
