//! Events tell what happened to a job in the order in which it happened, and never what is in it.

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::harness::{Running, start, time, until};

const CANARY: &str = "canary-8c1f";

fn states(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["state"].as_str().unwrap()).collect()
}

/// All that the stream has stored, once it has `n`.
async fn stored(service: &Running, n: u64) -> Vec<(String, Value)> {
    let mut stream = service.stream("background-jobs-events").await;
    until(async || (stream.info().await.unwrap().state.messages >= n).then_some(())).await;
    let config = async_nats::jetstream::consumer::push::OrderedConfig {
        deliver_subject: service.nats.new_inbox(),
        ..Default::default()
    };
    let messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let messages: Vec<_> = messages.take(n as usize).collect().await;
    messages
        .into_iter()
        .map(|message| message.unwrap())
        .map(|message| (message.subject.to_string(), serde_json::from_slice(&message.payload).unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_the_life_of_a_job_in_order() {
    let (_place, service) = start().await;
    let mut events = service.listen("events.*.*.*").await;
    let id = service.enqueue(json!({"type": "probe", "payload": {"fail": 1}})).await;
    let told = events.until_state("completed").await;
    assert_eq!(states(&told), ["enqueued", "started", "retrying", "started", "completed"]);
    let attempts: Vec<&Value> = told.iter().map(|event| &event["attempt"]).collect();
    assert_eq!(attempts, [0, 1, 1, 2, 2]);
    assert!(told.iter().all(|event| event["jobId"] == json!(id) && event["type"] == "probe"));
    assert!(told.is_sorted_by_key(|event| time(&event["at"])));
    assert!(told[0]["workerId"].is_null() && told[1..].iter().all(|event| event["workerId"].is_string()));
    assert_eq!((&told[2]["error"], &told[2]["delaySeconds"]), (&json!("failed attempt 1"), &json!(0.05)));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_end_has_its_event() {
    let (place, service) = start().await;
    let mut events = service.listen("events.probe.*.*").await;
    service.probe(json!({"permanent": true})).await;
    let failed = events.until_state("failed").await;
    assert_eq!(states(&failed), ["enqueued", "started", "failed"]);
    assert_eq!(failed[2]["error"], "no hope");
    let running = service.probe(json!({"wait": true})).await;
    place.journal.until(&running, "start").await;
    service.call("cancelJob", json!({"jobId": running})).await;
    assert_eq!(states(&events.until_state("cancelled").await), ["enqueued", "started", "cancelled"]);
    service.call("retryJob", json!({"jobId": running})).await;
    until(async || (place.journal.count(&running, "start") == 2).then_some(())).await;
    place.journal.release();
    assert_eq!(states(&events.until_state("completed").await), ["enqueued", "started", "completed"]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_subject_names_type_state_and_job_and_the_stream_keeps_a_bucket_for_the_job() {
    let (_place, service) = start().await;
    let mut events = service.listen("events.*.*.*").await;
    let id = service.probe(json!({})).await;
    let mut live = Vec::new();
    for state in ["enqueued", "started", "completed"] {
        let (subject, event) = events.next().await;
        assert_eq!(subject, service.subject(&format!("events.probe.{state}.{id}")));
        live.push(event);
    }
    let stored = stored(&service, 3).await;
    assert_eq!(stored.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>(), live);
    let buckets: Vec<u8> =
        stored.iter().map(|(subject, _)| subject.rsplit_once('.').unwrap().1.parse().unwrap()).collect();
    assert!(buckets[0] < 64 && buckets.iter().all(|bucket| *bucket == buckets[0]), "{buckets:?}");
    assert_eq!(stored[0].0, service.subject(&format!("events.probe.enqueued.{}", buckets[0])));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_event_holds_anything_of_payload_result_tags_or_key() {
    let (_place, service) = start().await;
    let request = json!({
        "type": "probe", "payload": {"note": CANARY, "progress": 50.0, "checkpoint": 1},
        "tags": [CANARY], "idempotencyKey": CANARY,
    });
    let id = service.enqueue(request).await;
    assert!(service.finished(&id).await.to_string().contains(CANARY));
    let stored = stored(&service, 4).await;
    assert_eq!(states(&stored.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>())[3], "completed");
    for (subject, event) in stored {
        assert!(!event.to_string().contains(CANARY) && !subject.contains(CANARY), "{event}");
    }
    service.stop().await;
}
