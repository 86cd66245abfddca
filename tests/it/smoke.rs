//! A job goes from a request to a recorded outcome.

use serde_json::json;

use crate::harness::start;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_from_a_request_to_a_recorded_outcome() {
    let (place, service) = start().await;
    let id = service.probe(json!({"note": "hello"})).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)));
    assert_eq!(job["result"]["note"], "hello");
    assert_eq!(place.journal.count(&id, "end"), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_runs_again_and_ends_as_a_dead_letter() {
    let (place, service) = start().await;
    let id = service.probe(json!({"fail": 9})).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("failed"), &json!(3)));
    assert_eq!(job["errors"].as_array().unwrap().len(), 3);
    assert_eq!(place.journal.count(&id, "end"), 3);
    service.stop().await;
}
