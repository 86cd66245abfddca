//! The time of a run outside is up at its deadline, by the database's clock, whether or not anybody fetches or sweeps.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    harness::{Place, Running, time, until},
    outside::{Handler, header},
};

/// Nobody else looks for what is over.
async fn start() -> (Place, Running) {
    let mut place = Place::new().await;
    place.config.background.sweep = Duration::from_secs(3600);
    let service = place.start().await;
    for (name, handler) in [("pulled", "pull"), ("outside", "nats")] {
        service.call("registerType", json!({"type": name, "handler": handler, "backoff": {"delays": ["1h"]}})).await;
    }
    (place, service)
}

async fn enqueue(service: &Running, job_type: &str, attempts: u32) -> String {
    let job = json!({"type": job_type, "payload": {}, "timeout": "1500ms", "maxAttempts": attempts});
    service.enqueue(job).await
}

async fn fetch(service: &Running) -> Value {
    let wish = json!({"types": ["pulled"], "waitMs": 30_000, "workerId": "w", "leaseMs": 60_000});
    service.call("work.fetch", wish).await["jobs"][0].clone()
}

async fn state(service: &Running, id: &str) -> Value {
    let beat = json!({"workerId": "w", "runs": [{"jobId": id, "run": 1}]});
    service.call("work.heartbeat", beat).await["runs"][0]["state"].clone()
}

/// Says that it is alive until it is told that it is too late; then tries to end its run all the same.
async fn outlives_its_deadline(service: &Running, id: &str) {
    until(async || (state(service, id).await == "lost").then_some(())).await;
    for (verb, with) in [
        ("work.complete", json!({"result": 1})),
        ("work.fail", json!({"message": "no"})),
        ("work.release", json!({})),
        ("finish", json!({"result": 1})),
        ("finish", json!({"error": {"message": "no"}})),
    ] {
        let mut said = with;
        said["jobId"] = json!(id);
        said["run"] = json!(1);
        let answer = service.ask(verb, said.to_string()).await;
        assert_eq!(answer.code(), Some("lease_lost"), "{verb}: {}", answer.body);
    }
}

async fn ended_in_time(service: &Running, id: &str, status: &str, deadline: chrono::DateTime<chrono::Utc>) {
    let job = service.until_status(id, status).await;
    let errors = job["errors"].as_array().unwrap();
    assert_eq!((errors.len(), &errors[0]["kind"]), (1, &json!("timeout")), "{job}");
    assert_eq!(job["error"], "the attempt took longer than its timeout of 1.5s");
    assert_eq!(job["result"], Value::Null);
    let after = (time(&errors[0]["at"]) - deadline).num_milliseconds();
    assert!((0..=2000).contains(&after), "ended {after} ms after the deadline");
    if status == "pending" {
        let waits = (time(&job["runAt"]) - deadline).num_seconds();
        assert!(waits > 1000, "comes again after {waits} s: not by the back-off of its type");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_run_is_too_late_at_its_deadline_though_nobody_fetches() {
    let (_place, service) = start().await;
    for (attempts, status) in [(3, "pending"), (1, "failed")] {
        let id = enqueue(&service, "pulled", attempts).await;
        let run = fetch(&service).await;
        assert_eq!((&run["id"], state(&service, &id).await), (&json!(id), json!("held")));
        outlives_its_deadline(&service, &id).await;
        ended_in_time(&service, &id, status, time(&run["deadline"])).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_run_is_too_late_at_its_deadline_though_its_process_is_gone() {
    let (place, service) = start().await;
    let mut handler = Handler::start(&service).await;
    let mut runs = Vec::new();
    for (attempts, status) in [(3, "pending"), (1, "failed")] {
        let id = enqueue(&service, "outside", attempts).await;
        let request = handler.next().await;
        handler.reply(&request, &[("Job-Accepted", "true")], "").await;
        until(async || (state(&service, &id).await == "held").then_some(())).await;
        runs.push((id, status, time(&json!(header(&request, "Job-Deadline")))));
    }
    let second = place.start().await;
    service.stop().await;
    for (id, status, deadline) in &runs {
        outlives_its_deadline(&second, id).await;
        // By the clock of the process that asked, and by the database's: the same one here, and read a moment later.
        ended_in_time(&second, id, status, *deadline - chrono::TimeDelta::milliseconds(5)).await;
    }
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_are_too_late_are_all_told_once() {
    const RUNS: usize = 60;
    let (_place, service) = start().await;
    let mut events = service.listen("events.pulled.*.*").await;
    let jobs = vec![json!({"type": "pulled", "payload": {}, "timeout": "1s", "maxAttempts": 1}); RUNS];
    let ids = service.enqueue_many(jobs).await;
    let mut held = 0;
    while held < RUNS {
        let wish = json!({"types": ["pulled"], "max": 100, "waitMs": 500, "workerId": "w", "leaseMs": 60_000});
        let fetched = service.call("work.fetch", wish).await["jobs"].as_array().unwrap().len();
        assert!(fetched > 0, "{held} were fetched in time");
        held += fetched;
    }
    for id in &ids {
        assert_eq!(service.finished(id).await["errors"][0]["kind"], "timeout");
    }
    let mut failed = 0;
    while failed < RUNS {
        failed += usize::from(events.next().await.1["state"] == "failed");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_a_run_is_told_the_time_that_is_left_so_that_clocks_do_not_matter() {
    let (_place, service) = start().await;
    let mut handler = Handler::start(&service).await;
    let id = enqueue(&service, "outside", 1).await;
    let request = handler.next().await;
    let left: u64 = header(&request, "Job-Timeout-Ms").parse().unwrap();
    assert!((1..=1500).contains(&left), "{left}");
    handler.reply(&request, &[], "1").await;
    service.finished(&id).await;
    enqueue(&service, "pulled", 1).await;
    let by_nats = fetch(&service).await;
    enqueue(&service, "pulled", 1).await;
    let wish = json!({"types": ["pulled"], "waitMs": 30_000, "workerId": "w"});
    let answer = reqwest::Client::new().post(service.url("/work/fetch")).json(&wish).send().await.unwrap();
    let by_http = answer.json::<Value>().await.unwrap()["jobs"][0].clone();
    for run in [by_nats, by_http] {
        let left = run["timeoutMs"].as_u64().unwrap();
        assert!((1..=1500).contains(&left), "{run}");
        service.call("work.complete", json!({"jobId": run["id"], "run": 1})).await;
    }
    service.stop().await;
}
