//! `dev`: the whole service on this machine, with a private Postgres and nats-server.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::{exit::Exit, flags::Flags};
use crate::{config::Loaded, dev};

#[derive(Debug, Args)]
#[command(after_help = "\
Starts Postgres and nats-server as children with their data in one folder, prepares the database, and serves. Job types \
that reach outside find stand-ins here: a mailbox, an AI provider, a web site to crawl, a webhook receiver. Other \
commands find it by themselves while NATS has its usual port.

Examples:
  queue-service dev
  queue-service dev --demo                     with jobs to look at
  queue-service dev --ephemeral --ready-file ready.json     for scripts and tests")]
pub struct DevArgs {
    /// Folder of all data; kept for the next time
    #[arg(long, value_name = "DIR", default_value = ".dev", conflicts_with = "ephemeral")]
    pub data: PathBuf,
    /// Use a new folder, and remove it at the end
    #[arg(long)]
    pub ephemeral: bool,
    /// Address and port of the HTTP door
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Port of NATS [default: 4222 when it is free, else any]
    #[arg(long, value_name = "N")]
    pub nats_port: Option<u16>,
    /// Enqueue some jobs of every type
    #[arg(long)]
    pub demo: bool,
    /// Write {"natsUrl", "databaseUrl", "httpUrl", "pid", "dataDir"} to this file once everything answers
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
}

impl DevArgs {
    pub fn add_to(&self, flags: &mut Flags) {
        flags.add("http.bind", self.http);
    }
}

pub async fn run(args: DevArgs, loaded: Loaded) -> anyhow::Result<Exit> {
    let options = dev::Options {
        data: (!args.ephemeral).then_some(args.data),
        nats_port: args.nats_port,
        http_chosen: args.http.is_some(),
        demo: args.demo,
        ready_file: args.ready_file,
    };
    dev::run(options, loaded).await?;
    Ok(Exit::Done)
}
