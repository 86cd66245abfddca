//! Jobs that are asked for where there is room start there, without a message, and lose nothing by it.

use std::time::Duration;

use queue_service::config::{AllowPrivate, TypeOverrides};
use serde_json::{Value, json};

use crate::{
    books,
    child::Program,
    harness::{Place, Running, start, until},
    receiver::{Call, Receiver},
};

/// Returns when a job has started without a message: before that the worker may not have said that it has room.
async fn until_eager(service: &Running) {
    until(|| async {
        let before = service.published().await;
        let id = service.probe(json!({})).await;
        service.finished(&id).await;
        (service.published().await == before).then_some(())
    })
    .await;
}

async fn outbox_is_empty(place: &Place) {
    let database = place.database().await;
    let left = "SELECT count(*) FROM outbox";
    until(|| async { (sqlx::query_scalar::<_, i64>(left).fetch_one(&database).await.unwrap() == 0).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_starts_without_a_message_where_there_is_room_and_is_told_of_as_others() {
    let (place, service) = start().await;
    until_eager(&service).await;
    let before = service.published().await;
    let mut ids = Vec::new();
    for priority in [0, 5, -5] {
        ids.push(service.enqueue(json!({"type": "probe", "payload": {}, "priority": priority})).await);
    }
    books::all_completed_once(&place, &service, &ids).await;
    assert_eq!(service.published().await, before);
    outbox_is_empty(&place).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_eager_starts_switched_off_each_job_is_a_message() {
    let mut place = Place::new().await;
    place.config.worker.eager = false;
    let service = place.start().await;
    for n in 1..=20 {
        let id = service.probe(json!({})).await;
        service.finished(&id).await;
        assert_eq!(service.published().await, n);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_found_no_room_start_before_those_that_come_later() {
    let mut place = Place::new().await;
    place.config.types.insert("probe".into(), TypeOverrides { concurrency: Some(1), ..TypeOverrides::default() });
    let service = place.start().await;
    until_eager(&service).await;
    let blocker = service.probe(json!({"wait": true, "note": "blocker"})).await;
    place.journal.until(&blocker, "start").await;
    let before = service.published().await;
    for note in ["1", "2", "3", "4", "5"] {
        service.probe(json!({"note": note, "sleepMs": 30})).await;
    }
    until(|| async { (service.published().await == before + 5).then_some(()) }).await;
    place.journal.release();
    let last = service.probe(json!({"note": "later"})).await;
    service.finished(&last).await;
    let starts: Vec<String> = place.journal.notes("start").into_iter().filter(|note| !note.is_empty()).collect();
    assert_eq!(starts, ["blocker", "1", "2", "3", "4", "5", "later"]);
    outbox_is_empty(&place).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_is_tried_again_when_it_is_due() {
    let (place, service) = start().await;
    until_eager(&service).await;
    let before = service.published().await;
    let id = service.probe(json!({"fail": 2})).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(3)), "{job}");
    // The first attempt had none; the relay sent one for the second, which came again for the third.
    assert_eq!(service.published().await, before + 1);
    outbox_is_empty(&place).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_worker_has_started_without_a_message_runs_elsewhere_long_before_the_next_repair() {
    let mut place = Place::new().await;
    place.config.webhook.allow_private = AllowPrivate::All(true);
    place.config.background.sweep = Duration::from_secs(3600);
    let mut receiver = Receiver::start().await;
    let mut first = Program::serve(&place.config).await;
    let mut held: Vec<(Value, Call)> = Vec::new();
    let nats = async_nats::connect(&place.config.nats.url).await.unwrap();
    let subject = format!("{}.enqueue", place.config.nats.prefix);
    for _ in 0..5 {
        let reply = nats.request(subject.clone(), receiver.held().to_string().into()).await.unwrap();
        held.push((serde_json::from_slice(&reply.payload).unwrap(), receiver.call().await));
    }
    let ids: Vec<String> = held.iter().map(|(reply, _)| reply["jobId"].as_str().unwrap().to_owned()).collect();
    let second = place.start().await;
    let messages = second.stream("background-jobs").await.info().await.unwrap().state.messages;
    assert!(messages < 5, "all of them have a message to come again by");
    first.kill().await;
    for _ in &ids {
        receiver.call().await.answer("from the second");
    }
    for id in &ids {
        let job = second.finished(id).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(2)), "{job}");
        assert_eq!(job["errors"][0]["kind"], "lost");
    }
    books::all_completed_once(&place, &second, &ids).await;
    second.stop().await;
}
