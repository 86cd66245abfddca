//! Servers of one test alone, which it may kill, start again, fill up and roll back. Unlike those of the harness they
//! stay down until they are told to start.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use queue_service::dev::{
    postgres::{find_bin, free_port, server_user},
    process,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use crate::{
    child::descendants,
    disk::SmallDisk,
    foreign::tool,
    harness::{PATIENCE, until},
};

/// A program, and its process while it runs.
struct Server {
    program: process::Program,
    disk: Option<SmallDisk>,
    child: Option<Child>,
}

impl Server {
    fn command(&self, program: &process::Program) -> Command {
        let command = program.command(true);
        let command = match &self.disk {
            Some(disk) => disk.command(&command),
            None => command,
        };
        Command::from(command)
    }

    fn spawn(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.program.log).unwrap();
        let mut command = self.command(&self.program);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn().unwrap());
    }

    fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    fn freeze(&self) -> Frozen {
        Frozen::new(self.child.as_ref().and_then(Child::id).expect("the server does not run"))
    }

    async fn end(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
            kill_process(pid, signal).unwrap();
        }
        tokio::time::timeout(PATIENCE, child.wait()).await.expect("the server goes on").unwrap();
    }
}

/// Processes that stand still until this is dropped: they answer nothing, and the kernel goes on taking connections for
/// them.
pub struct Frozen(Vec<u32>);

impl Frozen {
    /// Freezes a process and its children.
    fn new(pid: u32) -> Self {
        let signal = |pid: u32| kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::STOP);
        // The parent first: it must make no further ones.
        signal(pid).unwrap();
        let frozen = Self([vec![pid], descendants(pid)].concat());
        // One may have ended by itself in the meantime.
        for pid in &frozen.0[1..] {
            let _ = signal(*pid);
        }
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in self.0.iter().filter_map(|pid| Pid::from_raw(*pid as i32)) {
            let _ = kill_process(pid, Signal::CONT);
        }
    }
}

/// A nats-server with JetStream.
pub struct OwnNats {
    server: Server,
    folder: PathBuf,
    port: u16,
}

impl OwnNats {
    /// Prepares one with its store in `folder`. `more`: further lines of its configuration.
    pub fn new(folder: &Path, name: &str, more: &str) -> Self {
        Self::on_disk(folder, name, more, None)
    }

    /// As [`OwnNats::new`], with its store on a disk of its own.
    pub fn on_disk(folder: &Path, name: &str, more: &str, disk: Option<SmallDisk>) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let (config, port) = (folder.join("nats-server.conf"), free_port().unwrap());
        let store = disk.as_ref().map_or_else(|| folder.join("store"), |disk| disk.path().join("store"));
        let jetstream =
            format!("jetstream {{ store_dir: \"{}\", max_file_store: 2GB, max_memory_store: 16MB }}", store.display());
        std::fs::write(&config, configuration(name, port, &format!("{jetstream}\n{more}"))).unwrap();
        let program = process::Program {
            name: "nats-server",
            path: tool("nats-server"),
            arguments: vec!["-c".into(), config.display().to_string()],
            log: folder.join("nats-server.log"),
            user: None,
            stop_signal: Signal::TERM,
        };
        Self { server: Server { program, disk, child: None }, folder: folder.to_owned(), port }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Gives it another configuration, all but its name and its port; in force when it starts next.
    pub fn configure(&self, name: &str, all: &str) {
        let all = all.replace("{store}", &self.store().display().to_string());
        std::fs::write(self.folder.join("nats-server.conf"), configuration(name, self.port, &all)).unwrap();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts it, and returns when it greets.
    pub async fn start(&mut self) {
        self.start_at("127.0.0.1").await;
    }

    /// As [`OwnNats::start`], where its configuration has it listen at another address.
    pub async fn start_at(&mut self, host: &str) {
        self.server.spawn();
        let port = self.port;
        until(|| async {
            let stream = TcpStream::connect((host, port)).await.ok()?;
            let mut greeting = String::new();
            BufReader::new(stream).read_line(&mut greeting).await.ok()?;
            greeting.starts_with("INFO").then_some(())
        })
        .await;
    }

    /// As a power cut does, apart from what the kernel still writes.
    pub async fn kill(&mut self) {
        self.server.end(Signal::KILL).await;
    }

    pub async fn stop(&mut self) {
        self.server.end(Signal::TERM).await;
    }

    pub fn freeze(&self) -> Frozen {
        self.server.freeze()
    }

    /// Lets it store nothing more: its disk is full, or, where it has none of its own, no file of it may grow.
    pub fn fill(&self) {
        match &self.server.disk {
            Some(disk) => disk.fill(),
            None => self.limit_files(Some(0)),
        }
    }

    /// Takes that back.
    pub fn make_room(&self) {
        match &self.server.disk {
            Some(disk) => disk.make_room(),
            None => self.limit_files(None),
        }
    }

    fn limit_files(&self, current: Option<u64>) {
        let pid = self.server.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid as i32));
        rustix::process::prlimit(pid, Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
    }

    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }
}

/// Of a nats-server on the loopback.
fn configuration(name: &str, port: u16, more: &str) -> String {
    format!("server_name: {name}\nlisten: \"127.0.0.1:{port}\"\n{more}\n")
}

/// A Postgres that lets everybody in from the loopback.
pub struct OwnPostgres {
    server: Server,
    pub port: u16,
}

/// Where the write-ahead log of a cluster goes, and the rest of it.
pub enum Places {
    /// Both into the folder.
    Together,
    /// The data onto the small disk, the log into the folder.
    SmallData(SmallDisk),
    /// The log onto the small disk, the data into the folder.
    SmallLog(SmallDisk),
}

impl OwnPostgres {
    /// Makes a cluster in `folder`.
    pub async fn new(folder: &Path, settings: &[&str], places: Places) -> Self {
        let (user, bin) = (server_user().unwrap(), find_bin().expect("Postgres is missing: run script/bootstrap"));
        let own = |name: &str| folder.join(name).display().to_string();
        let (data, log, disk) = match places {
            Places::Together => (own("data"), None, None),
            Places::SmallData(disk) => (disk.path().join("data").display().to_string(), Some(own("wal")), Some(disk)),
            Places::SmallLog(disk) => (own("data"), Some(disk.path().join("wal").display().to_string()), Some(disk)),
        };
        std::fs::create_dir_all(folder).unwrap();
        if let Some(user) = &user {
            std::os::unix::fs::chown(folder, Some(user.uid), Some(user.gid)).unwrap();
            if let Some(disk) = &disk {
                std::os::unix::fs::chown(disk.outside(disk.path()), Some(user.uid), Some(user.gid)).unwrap();
            }
        }
        let mut server = Server { program: program(&bin, &data, folder, user), disk, child: None };
        let mut arguments = vec!["-D".to_owned(), data, "--username=queue".into(), "--auth=trust".into()];
        arguments.extend(["--encoding=UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"].map(str::to_owned));
        arguments.extend(log.map(|log| format!("--waldir={log}")));
        let initdb = process::Program { path: bin.join("initdb"), arguments, ..server.program.clone() };
        let made = server.command(&initdb).output().await.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port().unwrap();
        server.program.arguments.extend(arguments_of(port, settings));
        Self { server, port }
    }

    /// A standby of `primary`, which it follows through `through`.
    pub async fn standby(folder: &Path, through: SocketAddr) -> Self {
        let (user, bin) = (server_user().unwrap(), find_bin().unwrap());
        std::fs::create_dir_all(folder).unwrap();
        if let Some(user) = &user {
            std::os::unix::fs::chown(folder, Some(user.uid), Some(user.gid)).unwrap();
        }
        let data = folder.join("data").display().to_string();
        let mut server = Server { program: program(&bin, &data, folder, user), disk: None, child: None };
        let source = format!("host=127.0.0.1 port={} user=queue", through.port());
        let arguments = ["-D", &data, "-d", &source, "-R", "-X", "stream", "-c", "fast", "--no-sync"];
        let copy = process::Program {
            path: bin.join("pg_basebackup"),
            arguments: arguments.map(str::to_owned).to_vec(),
            ..server.program.clone()
        };
        let made = server.command(&copy).output().await.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port().unwrap();
        server.program.arguments.extend(arguments_of(port, &[]));
        Self { server, port }
    }

    /// Starts it, and returns when it lets us in.
    pub async fn start(&mut self) {
        let url = self.url("postgres");
        until(async || {
            // It can't start before the last process of the one before has gone.
            if !self.server.is_running() {
                self.server.spawn();
            }
            PgConnection::connect(&url).await.ok()?.close().await.ok()
        })
        .await;
    }

    pub fn freeze(&self) -> Frozen {
        self.server.freeze()
    }

    /// Whether its main process runs.
    pub fn is_running(&mut self) -> bool {
        self.server.is_running()
    }

    pub async fn kill(&mut self) {
        self.server.end(Signal::KILL).await;
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://queue@127.0.0.1:{}/{database}", self.port)
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn disk(&self) -> &SmallDisk {
        self.server.disk.as_ref().expect("a cluster on a small disk")
    }

    /// Has one statement carried out in the database `postgres`.
    pub async fn run(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

fn program(bin: &Path, data: &str, folder: &Path, user: Option<process::User>) -> process::Program {
    process::Program {
        name: "postgres",
        path: bin.join("postgres"),
        arguments: vec!["-D".into(), data.into()],
        log: folder.join("postgres.log"),
        user,
        stop_signal: Signal::INT,
    }
}

fn arguments_of(port: u16, settings: &[&str]) -> Vec<String> {
    let mut all = vec![format!("port={port}")];
    all.extend(["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"].map(str::to_owned));
    all.extend(settings.iter().map(|setting| (*setting).to_owned()));
    all.into_iter().flat_map(|setting| ["-c".to_owned(), setting]).collect()
}

/// A folder that Postgres may enter, also when it runs as another user.
pub fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    folder
}
