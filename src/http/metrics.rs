//! `/metrics`: the numbers of `getStats` and of this process, in the Prometheus text format (0.0.4). Pure but for one
//! look into `/proc`.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use crate::ops::wire::{Stats, StatusCounts};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is told of this process.
pub struct Process {
    pub uptime: Duration,
    pub resident_bytes: Option<u64>,
    /// Of the runtime.
    pub tasks: usize,
    /// Of long-lived tasks, by kind.
    pub restarts: BTreeMap<&'static str, u64>,
}

/// Writes everything out. Jobs are gauges: retention lowers the counts of finished ones.
pub fn text(stats: &Stats, process: &Process) -> String {
    let mut out = String::new();
    head(&mut out, "queue_jobs", "Jobs by type and status, as far as they are kept.");
    for (name, counts) in &stats.by_type {
        for (status, n) in by_status(counts) {
            // Writing into a String can't fail.
            let _ = writeln!(out, "queue_jobs{{type=\"{}\",status=\"{status}\"}} {n}", label(name));
        }
    }
    for (name, of_which, age) in [
        ("queue_oldest_pending_seconds", "has waited, but for those of paused types", stats.oldest_pending_seconds),
        ("queue_oldest_paused_seconds", "of a paused type has waited", stats.oldest_paused_seconds),
    ] {
        head(&mut out, name, &format!("For how long the oldest due job {of_which}; 0 when none does."));
        let _ = writeln!(out, "{name} {}", age.unwrap_or(0.0));
    }
    for (name, help, types) in [
        ("queue_type_unattended", "Types that nobody answers for: 1 for each.", &stats.unattended),
        ("queue_type_paused", "Types that are paused: 1 for each.", &stats.paused),
    ] {
        head(&mut out, name, help);
        for job_type in types {
            let _ = writeln!(out, "{name}{{type=\"{}\"}} 1", label(job_type));
        }
    }
    head(&mut out, "queue_build_info", "The version of this process.");
    let _ = writeln!(out, "queue_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    head(&mut out, "process_uptime_seconds", "Since the start of this process.");
    let _ = writeln!(out, "process_uptime_seconds {:.3}", process.uptime.as_secs_f64());
    head(&mut out, "queue_alive_tasks", "Tasks of the runtime that have not ended.");
    let _ = writeln!(out, "queue_alive_tasks {}", process.tasks);
    let help = "How often long-lived tasks of this process have failed and were started again, by kind.";
    typed(&mut out, "queue_task_restarts_total", help, "counter");
    for (task, n) in &process.restarts {
        let _ = writeln!(out, "queue_task_restarts_total{{task=\"{}\"}} {n}", label(task));
    }
    if let Some(bytes) = process.resident_bytes {
        head(&mut out, "process_resident_memory_bytes", "Memory of this process.");
        let _ = writeln!(out, "process_resident_memory_bytes {bytes}");
    }
    out
}

pub fn by_status(counts: &StatusCounts) -> [(&'static str, i64); 5] {
    [
        ("pending", counts.pending),
        ("processing", counts.processing),
        ("completed", counts.completed),
        ("failed", counts.failed),
        ("cancelled", counts.cancelled),
    ]
}

/// Memory in use, where the system tells it (Linux).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn head(out: &mut String, name: &str, help: &str) {
    typed(out, name, help, "gauge");
}

fn typed(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_as_prometheus_reads_it() {
        let counts = StatusCounts { pending: 1, completed: 2, ..StatusCounts::default() };
        let stats = Stats {
            total: 3,
            all: counts,
            completion_rate: String::new(),
            failure_rate: String::new(),
            by_type: [("odd\"\\\nname".to_owned(), counts)].into(),
            unattended: vec!["lonely".into()],
            paused: Vec::new(),
            oldest_pending_seconds: Some(1.5),
            oldest_paused_seconds: None,
        };
        let process = Process {
            uptime: Duration::from_millis(2500),
            resident_bytes: Some(4096),
            tasks: 17,
            restarts: BTreeMap::from([("relay", 2), ("sweep", 0)]),
        };
        let text = text(&stats, &process);
        insta::assert_snapshot!(text.replace(env!("CARGO_PKG_VERSION"), "[version]"), @r##"
        # HELP queue_jobs Jobs by type and status, as far as they are kept.
        # TYPE queue_jobs gauge
        queue_jobs{type="odd\"\\\nname",status="pending"} 1
        queue_jobs{type="odd\"\\\nname",status="processing"} 0
        queue_jobs{type="odd\"\\\nname",status="completed"} 2
        queue_jobs{type="odd\"\\\nname",status="failed"} 0
        queue_jobs{type="odd\"\\\nname",status="cancelled"} 0
        # HELP queue_oldest_pending_seconds For how long the oldest due job has waited, but for those of paused types; 0 when none does.
        # TYPE queue_oldest_pending_seconds gauge
        queue_oldest_pending_seconds 1.5
        # HELP queue_oldest_paused_seconds For how long the oldest due job of a paused type has waited; 0 when none does.
        # TYPE queue_oldest_paused_seconds gauge
        queue_oldest_paused_seconds 0
        # HELP queue_type_unattended Types that nobody answers for: 1 for each.
        # TYPE queue_type_unattended gauge
        queue_type_unattended{type="lonely"} 1
        # HELP queue_type_paused Types that are paused: 1 for each.
        # TYPE queue_type_paused gauge
        # HELP queue_build_info The version of this process.
        # TYPE queue_build_info gauge
        queue_build_info{version="[version]"} 1
        # HELP process_uptime_seconds Since the start of this process.
        # TYPE process_uptime_seconds gauge
        process_uptime_seconds 2.500
        # HELP queue_alive_tasks Tasks of the runtime that have not ended.
        # TYPE queue_alive_tasks gauge
        queue_alive_tasks 17
        # HELP queue_task_restarts_total How often long-lived tasks of this process have failed and were started again, by kind.
        # TYPE queue_task_restarts_total counter
        queue_task_restarts_total{task="relay"} 2
        queue_task_restarts_total{task="sweep"} 0
        # HELP process_resident_memory_bytes Memory of this process.
        # TYPE process_resident_memory_bytes gauge
        process_resident_memory_bytes 4096
        "##);
        assert!(resident_bytes().is_none_or(|bytes| bytes > 1 << 20));
    }
}
