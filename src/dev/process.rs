//! Child processes that can't outlive us: each has a thread of its own that starts it, waits for it, and starts it again
//! when it ends unasked.
//!
//! The thread matters: Linux sends the parent-death signal when the *thread* that started a child ends, so a runtime's
//! worker thread would not do. `setpriv` sets that signal and drops root without a line of unsafe code; where there is
//! none, the next start finds what is left by its pid file.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use crate::supervise;

/// A child that ends sooner than this was not started well, and is not started again unless it ran well before.
const STARTED_WELL: Duration = Duration::from_secs(2);
/// Failed starts in a row after which a child is given up that ran well before.
const TRIES: u32 = 50;
/// Longest wait until the number of a dead process is free again.
const BURIAL: Duration = Duration::from_secs(3);
/// Pause before a child is started again.
const PAUSE: Duration = Duration::from_millis(200);

/// How to start a program.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: &'static str,
    pub path: PathBuf,
    pub arguments: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
    /// Whom it runs as when we are root and it refuses to be.
    pub user: Option<User>,
    /// What asks it to end in good order.
    pub stop_signal: Signal,
}

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// A program that is kept running.
pub struct Kept {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    program: Program,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pid: Option<u32>,
    stopping: bool,
}

impl Kept {
    /// Starts the program and keeps it running.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(program: Program) -> io::Result<Self> {
        let shared = Arc::new(Shared { program, state: Mutex::default() });
        let (told, first) = mpsc::channel();
        let keeper = shared.clone();
        let thread = supervise::thread(shared.program.name, move || keeper.keep(&told))?;
        first.recv().unwrap_or_else(|_| Err(io::Error::other("its thread has ended")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.shared.lock().pid
    }

    /// Whether it has ended and is not started again.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Asks it to end, and waits for that; after `patience` it is killed.
    pub fn stop(&mut self, patience: Duration) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.lock().stopping = true;
        self.shared.signal(self.shared.program.stop_signal);
        let began = Instant::now();
        while !thread.is_finished() && began.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !thread.is_finished() {
            tracing::warn!("{} does not end, and is killed", self.shared.program.name);
            self.shared.signal(Signal::KILL);
        }
        let _ = thread.join();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(5));
    }
}

impl Shared {
    fn keep(&self, told: &mpsc::Sender<io::Result<()>>) {
        // What ran well once is worth more than one try: a Postgres that was killed can't start before its last process
        // has gone.
        let mut tries_left = 0;
        loop {
            let began = Instant::now();
            let mut child = match self.program.spawn() {
                Ok(child) => child,
                Err(e) => {
                    tracing::error!("could not start {}: {e}", self.program.name);
                    let _ = told.send(Err(e));
                    return;
                }
            };
            let stopping = {
                let mut state = self.lock();
                state.pid = Some(child.id());
                state.stopping
            };
            if stopping {
                self.signal(self.program.stop_signal);
            }
            let _ = told.send(Ok(()));
            let ended = child.wait();
            let stopping = {
                let mut state = self.lock();
                state.pid = None;
                state.stopping
            };
            if stopping {
                return;
            }
            let how = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
            let log = self.program.log.display();
            if began.elapsed() >= STARTED_WELL {
                tries_left = TRIES;
            } else if tries_left > 0 {
                tries_left -= 1;
            } else {
                tracing::error!("{} ended at once ({how}); its log is {log}", self.program.name);
                return;
            }
            tracing::warn!("{} ended ({how}) and is started again; its log is {log}", self.program.name);
            std::thread::sleep(PAUSE);
        }
    }

    fn signal(&self, signal: Signal) {
        // Under the lock: the process is not reaped, so the number is still its own.
        let state = self.lock();
        if let Some(pid) = state.pid.and_then(|pid| Pid::from_raw(pid as i32)) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Program {
    fn spawn(&self) -> io::Result<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = self.command(true);
        // A group of its own, so that Ctrl-C in a terminal reaches us alone, and children end last.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()
    }

    /// The command line; with `leashed` it is told when we die.
    pub fn command(&self, leashed: bool) -> Command {
        let leash = leashed.then(|| find("setpriv")).flatten();
        let mut command = match (&leash, &self.user) {
            (Some(setpriv), _) => {
                let mut command = Command::new(setpriv);
                command.arg("--pdeathsig=KILL");
                command
            }
            (None, Some(_)) => Command::new("setpriv"),
            (None, None) => Command::new(&self.path),
        };
        if let Some(user) = &self.user {
            command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid)).arg("--clear-groups");
        }
        if leash.is_some() || self.user.is_some() {
            command.arg("--").arg(&self.path);
        }
        command.args(&self.arguments).current_dir("/");
        command
    }
}

/// The whole path of a program on the PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| is_program(path))
}

/// Whether `path` is a file that can be run.
pub fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Ends what an earlier run left behind when it was killed together with its leash: `pid_file` names the process, and
/// its command line must name `mark`, since numbers are given again.
pub fn end_leftover(pid_file: &Path, mark: &str, patience: Duration) {
    let Ok(text) = std::fs::read_to_string(pid_file) else { return };
    let Some(number) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else { return };
    let command_line = || std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
    let ours = || String::from_utf8_lossy(&command_line()).contains(mark);
    if let Some(pid) = Pid::from_raw(number).filter(|_| ours()) {
        tracing::warn!("ending a process that an earlier run left behind ({number})");
        let _ = rustix::process::kill_process(pid, Signal::INT);
        let began = Instant::now();
        while ours() {
            if began.elapsed() > patience {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    wait_for_burial(number, pid_file);
}

/// A dead process keeps its number until whoever inherited it has taken note, and Postgres takes a number that is in use
/// for a running server.
fn wait_for_burial(number: i32, pid_file: &Path) {
    let began = Instant::now();
    while is_dead(number) {
        if began.elapsed() > BURIAL {
            // As in a container whose first process buries nobody. The dead lock nothing.
            let _ = std::fs::remove_file(pid_file);
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process of this number has ended and is still listed. Source: proc(5).
fn is_dead(number: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
}
