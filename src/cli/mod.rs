//! The command line: a file per command. Commands that ask the service speak the public RPC and know no more than any
//! other program; `serve`, `dev` and `migrate` run parts of the service in this process.

mod args;
mod bench;
mod bulk;
mod cancel;
mod completions;
mod config;
mod conformance;
pub mod dev;
mod each;
mod enqueue;
pub mod exit;
mod flags;
mod get;
mod list;
mod migrate;
pub mod output;
mod payload;
mod pretty;
mod retry;
mod serve;
mod stats;
mod table;
mod text;
mod types;
mod view;
mod wait;
mod watch;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use self::{exit::Exit, flags::Flags, output::Output};
use crate::{
    client::Client,
    config::{Config, Loaded, Log},
    job::JobType,
    ops::Verb,
    telemetry,
};

/// Background jobs over NATS JetStream and Postgres, for programs in any language
#[derive(Debug, Parser)]
#[command(name = "queue-service", version, max_term_width = 120, after_help = exit::TABLE)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Configuration file [default: queue.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print answers as JSON, as they were received
    #[arg(long, global = true)]
    pub json: bool,
    /// NATS servers, separated by commas (nats.url)
    #[arg(long, global = true, value_name = "URL")]
    pub nats_url: Option<String>,
    /// Namespace of the service (nats.prefix)
    #[arg(long, global = true, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// See and touch jobs of this type only, for users who are allowed no more
    #[arg(long, global = true, value_name = "TYPE", value_parser = args::job_type)]
    pub scope: Option<JobType>,
    /// Say only what was asked for
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log more to standard error; twice: everything
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service
    Serve(serve::ServeArgs),
    /// Run the service with a private Postgres and NATS, for trying and developing
    Dev(dev::DevArgs),
    /// Create or update the tables
    #[command(after_help = migrate::HELP)]
    Migrate,
    /// Hand in a job, or a file full of them
    Enqueue(enqueue::EnqueueArgs),
    /// Show a job
    Get(get::GetArgs),
    /// List jobs, newest first
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Wait until a job is over
    Wait(wait::WaitArgs),
    /// Show what happens, as it happens
    Watch(watch::WatchArgs),
    /// Give failed or cancelled jobs a fresh start
    Retry(retry::RetryArgs),
    /// Stop jobs
    Cancel(cancel::CancelArgs),
    /// Count jobs by type and status
    Stats(stats::StatsArgs),
    /// List job types and their settings
    Types(types::TypesArgs),
    /// Stop starting jobs of a type; new ones are still accepted
    Pause(types::PauseArgs),
    /// Start jobs of a paused type again
    Resume(types::PauseArgs),
    /// Check whether a handler or a pull worker in another language keeps the protocol
    Conformance(Box<conformance::ConformanceArgs>),
    /// Measure the service on this machine
    Bench(bench::BenchArgs),
    /// The service that `bench` measures
    #[command(hide = true, after_help = "Examples:\n  Started by `queue-service bench`.")]
    BenchServe,
    /// Show the configuration in force, and where each value came from
    Config(config::ConfigArgs),
    /// Print a script that completes commands and options in a shell
    Completions(completions::CompletionsArgs),
}

/// Runs one command.
///
/// # Errors
/// What [`exit::report`] tells.
pub fn run(cli: Cli, out: &Output) -> anyhow::Result<Exit> {
    match &cli.command {
        Command::Completions(args) => return completions::run(args, out),
        Command::Config(args) => {
            if let Some(printed) = args.page(out) {
                return printed.map(|()| Exit::Done);
            }
        }
        _ => {}
    }
    let loaded = load(&cli)?;
    telemetry::init(&log(&cli, &loaded))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(command(cli.command, cli.global.scope, &loaded, out));
    // A thread that waits for a key on standard input can't be ended; it must not keep the process.
    runtime.shutdown_background();
    ended
}

async fn command(command: Command, scope: Option<JobType>, loaded: &Loaded, out: &Output) -> anyhow::Result<Exit> {
    let own = || loaded.config.clone();
    let connect = || Client::open(&loaded.config.nats, scope.clone());
    match command {
        Command::Serve(_) => serve::run(own()).await,
        Command::Dev(args) => dev::run(args, loaded.clone()).await,
        Command::Migrate => migrate::run(own()).await,
        Command::Enqueue(args) => {
            let prepared = args.prepare()?;
            enqueue::run(prepared, &connect().await?, out).await
        }
        Command::Get(args) => get::run(args, &connect().await?, out).await,
        Command::List(args) => list::run(args, &connect().await?, out).await,
        Command::Wait(args) => wait::run(args, &connect().await?, out).await,
        Command::Watch(args) => watch::run(args, &connect().await?, out).await,
        Command::Retry(args) => retry::run(args, &connect().await?, out).await,
        Command::Cancel(args) => cancel::run(args, &connect().await?, out).await,
        Command::Stats(args) => stats::run(args, &connect().await?, out).await,
        Command::Types(args) => types::run(args, &connect().await?, out).await,
        Command::Pause(args) => types::set(Verb::PauseType, args, &connect().await?, out).await,
        Command::Resume(args) => types::set(Verb::ResumeType, args, &connect().await?, out).await,
        Command::Conformance(args) => conformance::run(*args, &loaded.config, out).await,
        Command::Bench(args) => bench::run(args, own(), out).await,
        Command::BenchServe => {
            crate::bench::serve(own()).await?;
            Ok(Exit::Done)
        }
        Command::Config(_) => config::run(loaded, out),
        Command::Completions(args) => completions::run(&args, out),
    }
}

fn load(cli: &Cli) -> Result<Loaded, crate::config::layers::Error> {
    let mut flags = Flags::default();
    flags.add("nats.url", cli.global.nats_url.as_ref());
    flags.add("nats.prefix", cli.global.prefix.as_ref());
    match &cli.command {
        Command::Serve(args) => args.add_to(&mut flags),
        Command::Dev(args) => args.add_to(&mut flags),
        _ => {}
    }
    // A variable that is not UTF-8 is none of ours: ours are checked for their form.
    let env =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    crate::config::load(cli.global.config.as_deref(), env, flags.as_slice())
}

/// The log of this command: as configured for what serves, silent but for warnings for what asks and ends.
fn log(cli: &Cli, loaded: &Loaded) -> Log {
    let serves = matches!(cli.command, Command::Serve(_) | Command::Dev(_) | Command::BenchServe | Command::Migrate);
    let configured = loaded.config.log.clone();
    let chosen = configured.filter != Config::default().log.filter;
    let filter = match (cli.global.verbose, cli.global.quiet) {
        (0, true) if serves => "warn",
        (0, true) => "off,queue_service=error",
        (0, false) if serves || chosen => return configured,
        // What a library logs here, the command tells as its own error.
        (0, false) => "off,queue_service=warn",
        (1, _) => "info,queue_service=debug",
        (_, _) => "debug",
    };
    Log { filter: filter.to_owned(), ..configured }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn the_command_line_is_consistent_and_every_command_shows_examples() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "{} has no examples", command.get_name());
        }
    }

    #[test]
    fn flags_are_the_last_layer_of_the_configuration() {
        let loaded = load(&parse(
            "x serve --nats-url nats://h --prefix p --http 127.0.0.1:9 --no-rpc --types a,b --concurrency 7",
        ));
        let config = loaded.unwrap().config;
        assert_eq!((config.nats.url.as_str(), config.nats.prefix.as_str()), ("nats://h", "p"));
        assert_eq!((config.http.bind.port(), config.rpc.enabled, config.worker.concurrency), (9, false, 7));
        assert_eq!(config.worker.types, ["a", "b"]);
        let config = load(&parse("x serve --no-http --no-worker --insecure")).unwrap().config;
        assert!(!config.http.enabled && !config.worker.enabled && config.http.insecure);
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        assert!(parse("x --json stats").global.json && parse("x stats --json").global.json);
        assert_eq!(parse("x -vv stats").global.verbose, 2);
        assert!(Cli::try_parse_from(["x", "stats", "-q", "-v"]).is_err());
    }
}
