//! What processes have used so far, as the kernel counts it. Source: proc(5).

use std::time::Duration;

/// Clock ticks per second of /proc/…/stat: 100 on every Linux that there is.
const TICKS: u64 = 100;

/// Processor time and memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub cpu: Duration,
    pub memory: u64,
}

/// Of one process, and of its children when `family`: those that have ended are in the parent's account.
pub(super) fn of(pid: Option<u32>, family: bool) -> Usage {
    let Some(pid) = pid else { return Usage::default() };
    let mut usage = Usage { cpu: cpu(pid, family), memory: memory(pid) };
    if family {
        for child in children(pid) {
            usage.cpu += cpu(child, false);
            usage.memory += memory(child);
        }
    }
    usage
}

fn cpu(pid: u32, with_ended_children: bool) -> Duration {
    let ticks: u64 = stat(pid).get(11..if with_ended_children { 15 } else { 13 }).into_iter().flatten().sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// The numbers after the name, from the third field (the state, which counts as 0) on.
fn stat(pid: u32) -> Vec<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect()
}

/// What the process has for itself: shared memory would count once per process of Postgres.
fn memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    (kib("RssAnon:").unwrap_or(0) + kib("RssFile:").unwrap_or(0)) * 1024
}

fn children(pid: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|child| stat(*child).get(1) == Some(&u64::from(pid))).collect()
}
