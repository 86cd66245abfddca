//! What a handler says while it runs can be seen, and what it wants to remember is there for the next attempt.

use serde_json::{Value, json};

use crate::harness::{start, until};

#[tokio::test(flavor = "multi_thread")]
async fn progress_of_a_running_job_is_seen_in_the_job_and_in_events() {
    let (place, service) = start().await;
    let mut events = service.listen("events.probe.progress.*").await;
    let id = service.probe(json!({"wait": true, "progress": 40.0})).await;
    let (_, event) = events.next().await;
    assert_eq!((&event["jobId"], &event["percent"], &event["message"]), (&json!(id), &json!(40.0), &json!("half way")));
    let job = service.job(&id).await;
    assert_eq!(
        (&job["status"], &job["progress"]),
        (&json!("processing"), &json!({"percent": 40.0, "message": "half way"}))
    );
    place.journal.release();
    let job = service.finished(&id).await;
    assert_eq!(job["progress"]["percent"], 40.0, "the last word stays");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn percents_are_held_between_nothing_and_all() {
    let (_place, service) = start().await;
    for (said, kept) in [(-3.0, 0.0), (1e9, 100.0)] {
        let id = service.probe(json!({"progress": said})).await;
        assert_eq!(service.finished(&id).await["progress"]["percent"], kept);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_there_for_the_next_attempt() {
    let (_place, service) = start().await;
    let id = service.probe(json!({"fail": 1, "checkpoint": 17})).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["attempts"], &job["result"]["checkpoint"]), (&json!(2), &json!(17)));
    let first = service.probe(json!({"checkpoint": 18})).await;
    assert_eq!(service.finished(&first).await["result"]["checkpoint"], Value::Null, "the first attempt had none");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_survives_the_end_of_its_worker() {
    let (place, service) = start().await;
    let id = service.probe(json!({"wait": true, "checkpoint": 5})).await;
    place.journal.until(&id, "start").await;
    let hurry = tokio_util::sync::CancellationToken::new();
    hurry.cancel();
    service.service.stop(hurry).await.unwrap();
    let next = place.start().await;
    until(async || (place.journal.count(&id, "start") == 2).then_some(())).await;
    place.journal.release();
    assert_eq!(next.finished(&id).await["result"]["checkpoint"], 5);
    next.stop().await;
}
