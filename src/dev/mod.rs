//! `queue-service dev`: the whole service on one machine, with Postgres, nats-server and the outside world as children.
//!
//! The tests start the same children through the same code. Nothing here is reachable in other commands.

mod banner;
mod demo;
pub mod folder;
pub mod nats;
pub mod postgres;
pub mod process;
pub mod sandbox;

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Loaded,
    service::{Service, Signals},
    supervise,
};
use folder::Folder;
use nats::{Nats, PortChoice};
use postgres::{Durability, Postgres};
use sandbox::Sandbox;

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of all data; `None`: a new one that is removed at the end.
    pub data: Option<PathBuf>,
    pub nats_port: Option<u16>,
    /// Whether HTTP's address was chosen; else another port is taken when the usual one is not free.
    pub http_chosen: bool,
    pub demo: bool,
    pub ready_file: Option<PathBuf>,
}

/// What scripts are told once everything answers. Source: wire contract, section Configuration.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    pub nats_url: String,
    pub database_url: String,
    pub http_url: String,
    pub pid: u32,
    pub data_dir: PathBuf,
}

/// Postgres and nats-server, with their data in one folder.
pub struct Servers {
    pub postgres: Postgres,
    pub nats: Nats,
}

impl Servers {
    /// Starts both.
    ///
    /// # Errors
    /// One of them is missing or does not start.
    pub async fn start(folder: &Path, durability: Durability, port: PortChoice) -> anyhow::Result<Self> {
        let (postgres_folder, nats_folder) = (folder.join("postgres"), folder.join("nats"));
        let (postgres, nats) =
            tokio::join!(Postgres::start(&postgres_folder, durability), Nats::start(&nats_folder, port));
        Ok(Self { postgres: postgres?, nats: nats? })
    }

    /// Ends both in good order.
    pub fn stop(self) {
        let Self { postgres, nats } = self;
        std::thread::scope(|scope| {
            scope.spawn(|| nats.stop());
            postgres.stop();
        });
    }
}

/// Runs until SIGTERM or Ctrl-C; a second one cuts the drain short.
///
/// # Errors
/// What kept something from starting, with what to do.
pub async fn run(options: Options, loaded: Loaded) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let folder = match &options.data {
        Some(path) => Folder::keep(path)?,
        None => Folder::throw_away()?,
    };
    banner::starting(folder.path());
    let port = options.nats_port.map_or(PortChoice::UsualIfFree, PortChoice::Exactly);
    // A start may take long, after a crash for instance, and must be stoppable: what is dropped ends its children.
    let servers = tokio::select! {
        servers = Servers::start(folder.path(), Durability::Durable, port) => servers?,
        _ = signals.next() => return Ok(()),
    };
    let sandbox = Sandbox::start().await.context("the sandbox could not start")?;
    let mut config = loaded.config.clone();
    let set: HashSet<String> =
        loaded.rows().into_iter().filter(|row| row.2 != "default").map(|(key, ..)| key).collect();
    config.nats.url = servers.nats.url();
    config.database.url = servers.postgres.url("queue");
    sandbox.apply(&mut config, |key| set.contains(key));
    if !options.http_chosen && std::net::TcpListener::bind(config.http.bind).is_err() {
        config.http.bind.set_port(0);
    }
    let service = Service::start_with(config.clone(), sandbox.router(), Ok).await?;
    let told = async {
        if service.ready().await {
            let http = service.http_address().unwrap_or(config.http.bind);
            let ready = Ready::new(&servers, http, folder.path());
            if let Some(path) = &options.ready_file {
                ready.write(path).with_context(|| format!("could not write {}", path.display()))?;
            }
            banner::ready(&ready, options.data.is_some());
            if options.demo {
                demo::run(service.ops(), &sandbox).await;
            }
            std::future::pending::<()>().await;
        }
        anyhow::Ok(())
    };
    let outcome = tokio::select! {
        outcome = told => outcome,
        _ = signals.next() => Ok(()),
    };
    banner::stopping();
    if let Some(path) = &options.ready_file {
        let _ = std::fs::remove_file(path);
    }
    let hurry = if outcome.is_ok() { signals.hurry() } else { CancellationToken::new() };
    let stopped = service.stop(hurry).await;
    drop(sandbox);
    supervise::blocking(move || servers.stop()).await?;
    outcome?;
    Ok(stopped?)
}

impl Ready {
    fn new(servers: &Servers, http: SocketAddr, data: &Path) -> Self {
        Self {
            nats_url: servers.nats.url(),
            database_url: servers.postgres.url("queue"),
            http_url: format!("http://{http}"),
            pid: std::process::id(),
            data_dir: data.to_owned(),
        }
    }

    /// All or nothing: whoever waits for the file must not read half of it.
    fn write(&self, path: &Path) -> std::io::Result<()> {
        let half = path.with_extension("tmp");
        std::fs::write(&half, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(half, path)
    }
}
