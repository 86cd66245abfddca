//! `serve`: runs the service in this process, all of it or some of its roles.

use std::net::SocketAddr;

use clap::Args;

use super::{exit::Exit, flags::Flags};
use crate::config::Config;

#[derive(Debug, Args)]
#[command(after_help = "\
Requests over NATS, the HTTP door and the workers run in one process; each can be switched off, so that the same program \
scales as separate fleets. Ctrl-C or SIGTERM drains: running jobs may finish, what does not is handed back without \
costing an attempt. A second Ctrl-C ends at once.

Examples:
  queue-service serve
  queue-service serve --no-worker --http 0.0.0.0:8080 --insecure
  queue-service serve --no-rpc --no-http --types crawl-website --concurrency 10")]
pub struct ServeArgs {
    /// Address and port of the HTTP door (http.bind)
    #[arg(long, value_name = "ADDR", conflicts_with = "no_http")]
    http: Option<SocketAddr>,
    /// Listen on any address without a token (http.insecure)
    #[arg(long)]
    insecure: bool,
    /// Without the HTTP door (http.enabled)
    #[arg(long)]
    no_http: bool,
    /// Without running jobs (worker.enabled)
    #[arg(long)]
    no_worker: bool,
    /// Without answering requests over NATS (rpc.enabled)
    #[arg(long)]
    no_rpc: bool,
    /// Run jobs of these types only (worker.types)
    #[arg(long, value_name = "TYPES", value_delimiter = ',', conflicts_with = "no_worker")]
    types: Vec<String>,
    /// Jobs of one type that run at the same time (worker.concurrency)
    #[arg(long, value_name = "N", conflicts_with = "no_worker")]
    concurrency: Option<usize>,
}

impl ServeArgs {
    pub fn add_to(&self, flags: &mut Flags) {
        flags.add("http.bind", self.http);
        flags.add("http.insecure", self.insecure.then_some(true));
        flags.add("http.enabled", self.no_http.then_some(false));
        flags.add("worker.enabled", self.no_worker.then_some(false));
        flags.add("rpc.enabled", self.no_rpc.then_some(false));
        flags.add("worker.types", (!self.types.is_empty()).then(|| self.types.join(",")));
        flags.add("worker.concurrency", self.concurrency);
    }
}

pub async fn run(config: Config) -> anyhow::Result<Exit> {
    crate::service::run(config).await?;
    Ok(Exit::Done)
}
