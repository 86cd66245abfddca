//! Health looks at the real things, and says what it saw.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Place, Running, start, until};

async fn get(service: &Running, path: &str) -> (StatusCode, Value) {
    let answer = reqwest::get(service.url(path)).await.unwrap();
    (answer.status(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_has_all_it_needs_is_well() {
    let (_place, service) = start().await;
    let (status, health) = get(&service, "/health").await;
    assert_eq!((status, &health["status"]), (StatusCode::OK, &json!("ok")));
    let checks = health["checks"].as_object().unwrap();
    assert_eq!(checks.keys().collect::<Vec<_>>(), ["jetstream", "nats", "postgres", "tasks", "workers"]);
    assert!(checks.values().all(|check| check["status"] == "ok"), "{health}");
    assert_eq!(checks["workers"]["detail"], "1 alive");
    assert!(checks["nats"]["detail"].as_str().unwrap().starts_with("connected to nats-server 2."));
    for probe in ["/health/live", "/health/ready"] {
        assert_eq!(get(&service, probe).await.0, StatusCode::OK, "{probe}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_jobs_are_taken_but_wait() {
    let mut place = Place::new().await;
    place.config.worker.enabled = false;
    let service = place.start().await;
    let (status, health) = get(&service, "/health").await;
    assert_eq!((status, &health["status"]), (StatusCode::OK, &json!("degraded")));
    assert_eq!(health["checks"]["workers"]["status"], "degraded");
    let id = service.probe(json!({})).await;
    place.config.worker.enabled = true;
    let worker = place.start().await;
    assert_eq!(worker.finished(&id).await["status"], "completed");
    assert_eq!(get(&service, "/health").await.1["status"], "ok", "the worker of another process counts");
    worker.stop().await;
    until(async || (get(&service, "/health").await.1["status"] == "degraded").then_some(())).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_database_no_job_can_be_taken_and_the_process_lives() {
    let place = Place::new().await;
    let service = place.start_without_database().await;
    let (status, health) = get(&service, "/health").await;
    assert_eq!((status, &health["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    assert_eq!(health["checks"]["postgres"]["status"], "unavailable");
    assert_eq!(get(&service, "/health/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&service, "/health/live").await.0, StatusCode::OK);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_stream_jetstream_is_not_well_until_it_is_made_again() {
    let mut place = Place::new().await;
    // Else the job would need no stream.
    place.config.worker.eager = false;
    let service = place.start().await;
    let name = format!("{}-background-jobs", service.config.nats.prefix);
    async_nats::jetstream::new(service.nats.clone()).delete_stream(name).await.unwrap();
    let id = service.probe(json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed", "made again, and what was due published again");
    assert_eq!(get(&service, "/health").await.1["checks"]["jetstream"]["status"], "ok");
    service.stop().await;
}
