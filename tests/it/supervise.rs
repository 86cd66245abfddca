//! Tasks that fail: they start again, health and metrics tell it, and jobs go on.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use queue_service::{
    handlers::{Handler, Registry, RunContext},
    job::Failure,
    service::{Error, Service},
};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    books,
    harness::{PATIENCE, Place, Running, until},
};

/// How often a task was started again.
fn restarts(service: &Running, name: &str) -> Option<u64> {
    let report = service.service.supervisor().report();
    report.into_iter().find(|task| task.name == name).map(|task| task.restarts)
}

async fn runs_jobs(place: &Place, service: &Running, ids: &mut Vec<String>) {
    let id = service.probe(json!({})).await;
    // Its first wake-up is the relay's.
    let later = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "10ms"})).await;
    for id in [id, later] {
        assert_eq!(service.finished(&id).await["status"], "completed");
        ids.push(id);
    }
    books::all_ran_once(place, service, ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_task_that_panics_starts_again_and_jobs_still_run() {
    let mut place = Place::new().await;
    // No task of the worker may be taken for dead.
    place.config.worker.lease = Duration::from_secs(30);
    let service = place.start().await;
    let pull = json!({"type": "fetched", "handler": "pull", "payloadSchema": {}});
    service.call("registerType", pull).await;
    service.call("work.fetch", json!({"types": ["fetched"], "workerId": "w"})).await;
    let names: Vec<String> = service.service.supervisor().report().into_iter().map(|task| task.name).collect();
    for expected in [
        "cancels",
        "claims",
        "counts",
        "dead-workers",
        "discovery",
        "ends-outside",
        "fetch fetched",
        "heartbeat",
        "held",
        "http",
        "inbox",
        "intake 1",
        "lanes",
        "late-answers",
        "late-signs",
        "lineup",
        "notices",
        "outbox-clearer",
        "outcomes",
        "publisher",
        "puller probe",
        "reconcile",
        "relay",
        "replies",
        "retention",
        "rpc enqueue",
        "signs-of-life",
        "sweep",
        "topology",
        "types",
        "unanswered probe",
        "vacuum",
    ] {
        assert!(names.iter().any(|name| name == expected), "{expected} is not among {names:?}");
    }
    let mut ids = Vec::new();
    for name in &names {
        assert!(service.service.supervisor().panic(name), "{name} is gone");
        until(async || restarts(&service, name).filter(|n| *n > 0)).await;
    }
    // What each of them does it does again.
    until(async || {
        let health = reqwest::get(service.url("/health")).await.ok()?.json::<serde_json::Value>().await.ok()?;
        let tasks = &health["checks"]["tasks"];
        assert_eq!(tasks["status"], "ok", "one failure is none in a row: {health}");
        tasks["detail"].as_str()?.contains("restarted: ").then_some(())
    })
    .await;
    runs_jobs(&place, &service, &mut ids).await;
    let fetched = service.enqueue(json!({"type": "fetched", "payload": {}})).await;
    until(async || {
        let jobs = service.call("work.fetch", json!({"types": ["fetched"], "workerId": "w", "waitMs": 1000})).await;
        (jobs["jobs"][0]["id"] == json!(fetched)).then_some(())
    })
    .await;
    let metrics = reqwest::get(service.url("/metrics")).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("queue_task_restarts_total{task=\"relay\"} 1\n"), "{metrics}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_again_and_again_makes_health_degraded() {
    let place = Place::new().await;
    let service = place.start().await;
    for n in 1..=2 {
        assert!(service.service.supervisor().panic("relay"));
        until(async || restarts(&service, "relay").filter(|restarts| *restarts == n)).await;
    }
    let health: serde_json::Value = reqwest::get(service.url("/health")).await.unwrap().json().await.unwrap();
    let tasks = &health["checks"]["tasks"];
    assert_eq!((&health["status"], &tasks["status"]), (&json!("degraded"), &json!("degraded")), "{health}");
    assert!(tasks["detail"].as_str().unwrap().contains("relay (2)"), "{health}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_panics_ends_the_process_and_says_so() {
    let place = Place::new().await;
    let mut config = place.config.clone();
    // Nobody listens there, so that the start goes on until it is told to panic.
    config.database.url = "postgres://127.0.0.1:1/nothing".into();
    let service = Service::start_with(config, axum::Router::new(), |registry: Registry| Ok(registry)).await.unwrap();
    until(async || service.supervisor().panic("start").then_some(())).await;
    let failed = async { tokio::join!(service.failed(), service.supervisor().failed()) };
    tokio::time::timeout(PATIENCE, failed).await.unwrap();
    assert_eq!(service.supervisor().failure().as_deref(), Some("start"));
    let refused = service.stop(CancellationToken::new()).await.unwrap_err();
    assert!(matches!(&refused, Error::Died(task) if task == "start"), "{refused}");
}

/// Blocks its thread at the first attempt, until the test lets go of it.
struct Stuck {
    begun: Arc<Notify>,
    held: Arc<Mutex<mpsc::Receiver<()>>>,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Nothing {}

impl Handler for Stuck {
    const TYPE: &'static str = "stuck";
    const ABOUT: &'static str = "Blocks its thread.";
    type Payload = Nothing;
    type Output = ();

    async fn run(&self, ctx: &RunContext, _: Nothing) -> Result<(), Failure> {
        if ctx.attempt == 1 {
            self.begun.notify_one();
            let _ = self.held.lock().unwrap().recv();
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_process_whose_threads_are_all_blocked_run_elsewhere() {
    let mut place = Place::new().await;
    place.config.worker.lease = Duration::from_millis(600);
    let (let_go, held) = mpsc::channel();
    let (begun, held) = (Arc::new(Notify::new()), Arc::new(Mutex::new(held)));
    let add = || {
        let stuck = Stuck { begun: begun.clone(), held: held.clone() };
        move |registry: Registry| registry.with(stuck).map_err(Into::into)
    };
    let blocked = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut config, add_first) = (place.config.clone(), add());
    // It answers nobody once it is blocked.
    (config.rpc.enabled, config.http.enabled) = (false, false);
    let first = blocked.spawn(Service::start_with(config, axum::Router::new(), add_first)).await.unwrap().unwrap();
    assert!(first.ready().await);
    let mut config = place.config.clone();
    config.worker.enabled = false;
    let door = Place { config, journal: place.journal.clone() }.start_with(add()).await;
    let id = door.enqueue(json!({"type": "stuck", "payload": {}})).await;
    begun.notified().await;
    let second = place.start_with(add()).await;
    let job = door.finished(&id).await;
    assert_eq!(
        (&job["status"], &job["attempts"], &job["errors"][0]["kind"]),
        (&json!("completed"), &json!(2), &json!("lost"))
    );
    drop(let_go);
    blocked.spawn(first.stop(CancellationToken::new())).await.unwrap().unwrap();
    blocked.shutdown_background();
    second.stop().await;
    door.stop().await;
}
