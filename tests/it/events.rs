//! Events tell what happened to a job in the order in which it happened, and never what is in it.

use futures_util::StreamExt;
use queue_service::{
    job::{JobType, Priority},
    store::{
        Store,
        claim::Claim,
        enqueue::{Due, NewJob},
        workers::heartbeat,
    },
};
use serde_json::{Value, json, value::RawValue};

use crate::harness::{Listener, PATIENCE, Place, Running, start, time, until};

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

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_worker_is_told_by_those_who_find_it() {
    let place = Place::new().await;
    let store = place.store().await;
    let nats = async_nats::connect(&place.config.nats.url).await.unwrap();
    let subject = format!("{}.events.probe.*.*", place.config.nats.prefix);
    let mut events = Listener::new(&nats, subject).await;
    let last = lost(&place, &store, 1).await;
    let service = place.start().await;
    let (subject, event) = events.next().await;
    assert_eq!(subject, service.subject(&format!("events.probe.failed.{last}")));
    assert_eq!((&event["attempt"], &event["workerId"]), (&json!(1), &json!("the-late-one")));
    assert_eq!(event["error"], "the worker the-late-one vanished during attempt 1");
    assert_eq!(service.finished(&last.to_string()).await["error"], event["error"]);
    let again = lost(&place, &store, 2).await;
    let told = events.until_state("completed").await;
    assert_eq!(states(&told), ["retrying", "started", "completed"]);
    assert!(told.iter().all(|event| event["jobId"] == json!(again)));
    store.close().await;
    service.stop().await;
}

/// A job whose worker died with it.
async fn lost(place: &Place, store: &Store, max_attempts: u16) -> uuid::Uuid {
    let job = NewJob {
        id: uuid::Uuid::now_v7(),
        job_type: JobType::new("probe").unwrap(),
        payload: RawValue::from_string("{}".into()).unwrap(),
        priority: Priority::default(),
        max_attempts,
        timeout: None,
        due: Due::Now,
        tags: Vec::new(),
        key: None,
        trace: None,
    };
    let batch = store.enqueue(std::slice::from_ref(&job), PATIENCE, None).await.unwrap();
    let mut connection = place.database().await.acquire().await.unwrap();
    heartbeat(&mut connection, "the-late-one", PATIENCE).await.unwrap();
    let round = store.claim(&[(job.id, "probe".into())], "the-late-one").await.unwrap();
    assert!(matches!(round.claims[..], [Claim::Won(_)]));
    store.clear_outbox(vec![batch.outbox_id]).await.unwrap();
    heartbeat(&mut connection, "the-late-one", std::time::Duration::ZERO).await.unwrap();
    job.id
}
