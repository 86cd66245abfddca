//! The built program as a child process: to be killed, stopped and continued, which nothing inside this process can be.

use std::{
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use queue_service::config::Config;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
};

use crate::harness::PATIENCE;

/// A running `queue-service`, with its log. It is killed when this is dropped.
pub struct Program {
    child: Child,
    pid: Pid,
    log: Log,
    /// Read both outputs to their end.
    readers: tokio::task::JoinSet<()>,
    _config: Option<tempfile::NamedTempFile>,
}

/// What the program has written so far, on both outputs.
#[derive(Clone)]
struct Log {
    text: Arc<Mutex<String>>,
    lines: watch::Sender<usize>,
}

impl Program {
    /// Starts it with `arguments` and no other settings than these.
    pub fn start(arguments: &[&str], config: Option<&Config>) -> Self {
        Self::start_with(arguments, config, &[])
    }

    /// As [`Program::start`], with these environment variables.
    pub fn start_with(arguments: &[&str], config: Option<&Config>, variables: &[(&str, PathBuf)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_queue-service"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Where there is no queue.toml, nor variables that change what is tested.
        command.args(arguments).env_clear().env("PATH", path).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let file = config.map(|config| {
            let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
            std::fs::write(&file, toml::to_string(config).unwrap()).unwrap();
            command.arg("--config").arg(file.path());
            file
        });
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let pid = Pid::from_raw(child.id().unwrap() as i32).unwrap();
        let log = Log { text: Arc::default(), lines: watch::channel(0).0 };
        let mut readers = tokio::task::JoinSet::new();
        readers.spawn(log.clone().follow(child.stdout.take().unwrap()));
        readers.spawn(log.clone().follow(child.stderr.take().unwrap()));
        Self { child, pid, log, readers, _config: file }
    }

    /// Starts `serve` with these settings, and returns when its worker takes jobs.
    pub async fn serve(config: &Config) -> Self {
        let program = Self::start(&["serve"], Some(config));
        program.logged("worker started").await;
        program
    }

    /// As [`Program::serve`], with these environment variables.
    pub async fn serve_with(config: &Config, variables: &[(&str, PathBuf)]) -> Self {
        let program = Self::start_with(&["serve"], Some(config), variables);
        program.logged("worker started").await;
        program
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// Goes away as a reader of both outputs: whatever is written from now on fails.
    pub async fn stop_reading(&mut self) {
        self.readers.shutdown().await;
    }

    /// Sends a signal to this process alone.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Returns when the process has ended and all that it wrote is in the log.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(PATIENCE, async {
            let status = self.child.wait().await;
            while self.readers.join_next().await.is_some() {}
            status
        });
        let ended = ended.await;
        ended.unwrap_or_else(|_| panic!("the program goes on:\n{}", self.log())).unwrap()
    }

    /// Whether the process ends by itself within this time.
    pub async fn ends_within(&mut self, span: std::time::Duration) -> bool {
        tokio::time::timeout(span, self.child.wait()).await.is_ok()
    }

    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }

    /// Asks it to end, and demands that it does so in good order.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    pub fn log(&self) -> String {
        self.log.text.lock().unwrap().clone()
    }

    /// Returns when the log has a line that contains `text`, and gives that line.
    pub async fn logged(&self, text: &str) -> String {
        let mut lines = self.log.lines.subscribe();
        let found = async {
            loop {
                lines.borrow_and_update();
                if let Some(line) = self.log().lines().find(|line| line.contains(text)) {
                    return line.to_owned();
                }
                lines.changed().await.unwrap();
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("the program does not say '{text}':\n{}", self.log()))
    }
}

impl Log {
    async fn follow(self, output: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut text = self.text.lock().unwrap();
            text.push_str(&line);
            text.push('\n');
            self.lines.send_modify(|count| *count += 1);
        }
    }
}

/// Whether a process of this number is there and is not merely waiting to be buried.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| !"ZX".contains(state))
}

/// The children of a process and their children.
pub fn descendants(pid: u32) -> Vec<u32> {
    let parent_of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let all: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| Some((pid, parent_of(pid)?)))
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}
