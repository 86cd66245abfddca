//! The program that is examined, when the kit is to start it.

use std::{process::Stdio, time::Duration};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::report::{Ruling, failed, passed, skipped};
use crate::config;

/// Longest time between SIGTERM and the end.
const END: Duration = Duration::from_secs(15);

pub(super) struct Program(Option<Child>);

impl Program {
    /// Starts `command`, if there is one. What it prints goes to standard error.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(command: &[String], nats: &config::Nats, prefix: &str) -> anyhow::Result<Self> {
        let Some((program, arguments)) = command.split_first() else { return Ok(Self(None)) };
        let child = Command::new(program)
            .args(arguments)
            .env("NATS_URL", &nats.url)
            .env("QUEUE_PREFIX", prefix)
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .kill_on_drop(true)
            .spawn();
        Ok(Self(Some(child.with_context(|| format!("'{program}' can't be started"))?)))
    }

    pub fn is_ours(&self) -> bool {
        self.0.is_some()
    }

    /// Says that it has ended although nobody told it to.
    pub fn has_ended(&mut self) -> Option<String> {
        let status = self.0.as_mut()?.try_wait().ok()??;
        Some(format!("the program has ended by itself ({status})"))
    }

    /// Tells it to end.
    pub fn terminate(&self) {
        if let Some(pid) = self.0.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid as i32)) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits until it has ended.
    pub async fn ended(mut self) -> Ruling {
        let Some(child) = &mut self.0 else { return skipped(NOT_OURS) };
        match tokio::time::timeout(END, child.wait()).await {
            Ok(Ok(status)) => passed(status.to_string()),
            Ok(Err(e)) => failed(e.to_string()),
            Err(_) => failed(format!("it still runs {} s after SIGTERM", END.as_secs())),
        }
    }
}

pub(super) const NOT_OURS: &str = "give the program's command line after `--` to have it started and ended";
