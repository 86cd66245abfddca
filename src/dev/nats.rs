//! A private nats-server with JetStream in one folder, on the loopback.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
};

use super::{
    postgres::free_port,
    process::{Kept, Program, end_leftover, find},
};

/// The port that every NATS client tries first.
pub const USUAL_PORT: u16 = 4222;
const START: Duration = Duration::from_secs(20);
/// A stop writes down the state of every consumer, at 10 ms each (tried on nats-server 2.15).
const STOP: Duration = Duration::from_secs(20);

/// A running server; it ends when this is dropped.
pub struct Nats {
    kept: Kept,
    port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nats-server is not installed: run script/bootstrap, or put it on the PATH")]
    Missing,
    #[error("could not prepare the folder {}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("port {0} is taken; choose another with --nats-port")]
    PortTaken(u16),
    #[error("nats-server did not start; its log is {}", .0.display())]
    Start(PathBuf),
}

impl Nats {
    /// Starts the server with its store in `folder`. `port`: the one to use; else the usual one if `usual` and it is
    /// free, else any.
    ///
    /// # Errors
    /// nats-server is missing, the port is taken, or it does not start.
    pub async fn start(folder: &Path, port: PortChoice) -> Result<Self, Error> {
        let path = find_server().ok_or(Error::Missing)?;
        let failed = |source| Error::Folder { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let (pid_file, log, config) =
            (folder.join("nats-server.pid"), folder.join("nats-server.log"), folder.join("nats-server.conf"));
        end_leftover(&pid_file, &config.display().to_string(), STOP);
        for _ in 0..5 {
            let port = choose(port).map_err(failed)?.ok_or_else(|| Error::PortTaken(port.wanted()))?;
            let name = format!("queue-service-dev-{:016x}", rand::random::<u64>());
            std::fs::write(&config, configuration(&name, port, &folder.join("store"))).map_err(failed)?;
            let program = Program {
                name: "nats-server",
                path: path.clone(),
                arguments: ["-c", &config.display().to_string(), "-P", &pid_file.display().to_string()]
                    .map(str::to_owned)
                    .to_vec(),
                log: log.clone(),
                user: None,
                stop_signal: Signal::TERM,
            };
            let nats = Self { kept: Kept::start(program).map_err(failed)?, port };
            if nats.answers(&name).await {
                return Ok(nats);
            }
        }
        Err(Error::Start(log))
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> Option<u32> {
        self.kept.pid()
    }

    /// Ends it in good order.
    pub fn stop(mut self) {
        self.kept.stop(STOP);
    }

    /// The server greets every connection with its INFO line, which has its name. Another name: somebody else was quicker
    /// to take the port.
    async fn answers(&self, name: &str) -> bool {
        let began = Instant::now();
        while began.elapsed() < START && !self.kept.has_ended() {
            if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await {
                let mut greeting = String::new();
                let read = BufReader::new(stream).read_line(&mut greeting).await;
                if read.is_ok() && greeting.starts_with("INFO") && greeting.contains(name) {
                    return true;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

/// Which port to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// This one or none.
    Exactly(u16),
    /// The usual one when it is free, else any.
    UsualIfFree,
    Any,
}

impl PortChoice {
    fn wanted(self) -> u16 {
        match self {
            PortChoice::Exactly(port) => port,
            PortChoice::UsualIfFree | PortChoice::Any => USUAL_PORT,
        }
    }
}

fn choose(choice: PortChoice) -> std::io::Result<Option<u16>> {
    let is_free = |port| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok();
    match choice {
        PortChoice::Exactly(port) => Ok(is_free(port).then_some(port)),
        PortChoice::UsualIfFree if is_free(USUAL_PORT) => Ok(Some(USUAL_PORT)),
        PortChoice::UsualIfFree | PortChoice::Any => free_port().map(Some),
    }
}

/// In `.tools/bin` of the checkout, where script/bootstrap puts it, or on the PATH.
fn find_server() -> Option<PathBuf> {
    let own = Path::new(".tools/bin/nats-server");
    if super::process::is_program(own) { own.canonicalize().ok() } else { find("nats-server") }
}

fn configuration(name: &str, port: u16, store: &Path) -> String {
    format!(
        "# Written at each start of `queue-service dev`.\n\
         server_name: \"{name}\"\n\
         listen: \"127.0.0.1:{port}\"\n\
         jetstream {{\n    store_dir: \"{}\"\n    max_file_store: 8GB\n    max_memory_store: 64MB\n}}\n",
        store.display()
    )
}
