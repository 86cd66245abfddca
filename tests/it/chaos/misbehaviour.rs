//! Handlers that abort, eat memory, overflow their stack, keep their thread or ignore everything: each harms its own job.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use queue_service::config::Config;
use rustix::process::{Pid, Resource, Rlimit};
use serde_json::{Value, json};

use crate::{
    child::Program,
    harness::{Place, Running, until},
};

/// A place whose door takes jobs, and the settings of a worker process that knows the type `misbehave`.
async fn place() -> (Running, Config) {
    let mut place = Place::new().await;
    let mut worker = place.config.clone();
    worker.http.enabled = false;
    worker.rpc.enabled = false;
    worker.worker.types = vec!["misbehave".into()];
    place.config.worker.enabled = false;
    let section = toml::from_str("handler = 'pull'").unwrap();
    // The door need not be able to do the work.
    place.config.types.insert("misbehave".into(), section);
    (place.start().await, worker)
}

async fn job(door: &Running, what: &str, more: Value) -> String {
    let mut request = json!({"type": "misbehave", "payload": {"do": what}});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    door.enqueue(request).await
}

fn start(config: &Config) -> Program {
    Program::start_with(&["serve"], Some(config), &[("QUEUE_FAULT_HANDLER", PathBuf::from("1"))])
}

/// Keeps a worker running, as a service manager does, until all of `ids` are over; gives the jobs, and how many processes
/// it took.
async fn kept_running(
    door: &Running,
    config: &Config,
    ids: &[String],
    memory: Option<u64>,
) -> (BTreeMap<String, Value>, usize) {
    let (mut processes, mut jobs) = (0, BTreeMap::new());
    while jobs.len() < ids.len() {
        let mut worker = start(config);
        processes += 1;
        if let Some(bytes) = memory {
            let limit = Rlimit { current: Some(bytes), maximum: None };
            let pid = Pid::from_raw(worker.pid() as i32);
            rustix::process::prlimit(pid, Resource::As, limit).unwrap();
        }
        loop {
            for id in ids {
                let job = door.job(id).await;
                if job["finishedAt"].is_string() {
                    jobs.insert(id.clone(), job);
                }
            }
            if jobs.len() == ids.len() || worker.ends_within(Duration::from_millis(100)).await {
                break;
            }
        }
        assert!(processes < 20, "the processes go on dying");
        if jobs.len() == ids.len() {
            worker.kill().await;
        }
    }
    (jobs, processes)
}

/// One that kills each process that runs it, among others that are well-behaved.
async fn kills_its_process(what: &str, memory: Option<u64>) {
    let (door, config) = place().await;
    let mut ids = vec![job(&door, what, json!({"maxAttempts": 3})).await];
    for _ in 0..10 {
        ids.push(job(&door, "work", json!({"maxAttempts": 3})).await);
    }
    let (jobs, processes) = kept_running(&door, &config, &ids, memory).await;
    let bad = &jobs[&ids[0]];
    let kinds: Vec<&str> = bad["errors"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!((&bad["status"], kinds), (&json!("failed"), vec!["lost"; 3]), "{what}: {bad}");
    assert!((4..=5).contains(&processes), "{what} took {processes} processes");
    for id in &ids[1..] {
        assert_eq!(jobs[id]["status"], "completed", "{what} took a neighbour along: {}", jobs[id]);
    }
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_aborts_the_process_fails_alone() {
    kills_its_process("abort", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_overflows_its_stack_fails_alone() {
    kills_its_process("overflow", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_eats_all_memory_fails_alone() {
    kills_its_process("eat-memory", Some(2 << 30)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_that_keep_every_thread_are_not_taken_for_dead() {
    let (door, config) = place().await;
    let worker = start(&config);
    worker.logged("worker started").await;
    // More than there are threads, and longer than the lease.
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(job(&door, "block-thread", json!({})).await);
    }
    for id in &ids {
        let job = door.finished(id).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)), "{job}");
    }
    worker.stop().await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_ignores_everything_is_cut_off_at_its_timeout_and_by_a_cancel() {
    let (door, config) = place().await;
    let worker = start(&config);
    let late = job(&door, "ignore-everything", json!({"timeout": "300ms", "maxAttempts": 2})).await;
    let stopped = job(&door, "ignore-everything", json!({"timeout": "1h"})).await;
    until(|| async { (door.job(&stopped).await["status"] == "processing").then_some(()) }).await;
    door.call("cancelJob", json!({"jobId": stopped})).await;
    assert_eq!(door.finished(&stopped).await["status"], "cancelled");
    let late = door.finished(&late).await;
    let kinds: Vec<&str> = late["errors"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!((&late["status"], kinds), (&json!("failed"), vec!["timeout", "timeout"]), "{late}");
    worker.stop().await;
    door.stop().await;
}
