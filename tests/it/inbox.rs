//! Jobs handed in by publishing alone: the broker's acknowledgement is enough, also when the service is down.

use async_nats::{HeaderMap, jetstream};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::{
    books,
    child::Program,
    harness::{Place, Running, start, until},
};

async fn publish(nats: &async_nats::Client, subject: String, id: Option<&str>, body: impl Into<Vec<u8>>) {
    let mut headers = HeaderMap::new();
    if let Some(id) = id {
        headers.insert("Nats-Msg-Id", id);
    }
    let acked = jetstream::new(nats.clone()).publish_with_headers(subject, headers, body.into().into()).await.unwrap();
    acked.await.expect("the broker has not acknowledged it");
}

async fn completed(service: &Running, n: i64) -> Vec<Value> {
    until(|| async { (service.call("getStats", json!({})).await["completed"] == n).then_some(()) }).await;
    service.call("listJobs", json!({"limit": 1000})).await["jobs"].as_array().unwrap().clone()
}

async fn emptied(service: &Running) {
    let mut stream = service.stream("background-jobs-inbox").await;
    until(async || (stream.info().await.unwrap().state.messages == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_while_the_service_is_down_runs_when_it_is_back() {
    let (place, service) = start().await;
    let nats = service.nats.clone();
    let subject = service.subject("inbox.probe");
    service.stop().await;
    for n in 0..20 {
        publish(&nats, subject.clone(), Some(&format!("order-{n}")), r#"{"payload": {}, "tags": ["inbox"]}"#).await;
    }
    let service = place.start().await;
    let jobs = completed(&service, 20).await;
    assert!(jobs.iter().all(|job| job["tags"] == json!(["inbox"]) && job["idempotencyKey"] == Value::Null), "{jobs:?}");
    emptied(&service).await;
    let ids: Vec<String> = jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
    books::all_completed_once(&place, &service, &ids).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_id_is_one_job_however_often_it_comes() {
    let (_place, service) = start().await;
    let subject = service.subject("inbox.probe");
    let body = r#"{"type": "probe", "payload": {"note": "once"}}"#;
    publish(&service.nats, subject.clone(), Some("order-7"), body).await;
    completed(&service, 1).await;
    // As if the broker's own window were over: it has forgotten the id, and we have not.
    let stream = service.stream("background-jobs-inbox").await;
    let mut config = stream.cached_info().config.clone();
    config.duplicate_window = std::time::Duration::from_millis(100);
    let admin = jetstream::new(service.nats.clone());
    admin.update_stream(config).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    publish(&service.nats, subject.clone(), Some("order-7"), body).await;
    emptied(&service).await;
    // Without an id each message is one of its own; a key of the caller's holds as elsewhere.
    for _ in 0..2 {
        publish(&service.nats, subject.clone(), None, body).await;
        let keyed = json!({"payload": {}, "idempotencyKey": "mine"}).to_string();
        publish(&service.nats, subject.clone(), None, keyed).await;
    }
    let jobs = completed(&service, 4).await;
    assert_eq!(jobs.iter().filter(|job| job["idempotencyKey"] == "mine").count(), 1);
    emptied(&service).await;
    assert_eq!(service.call("getStats", json!({})).await["total"], 4);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_messages_go_to_a_readable_place_with_the_reason_and_hold_up_nobody() {
    let mut place = Place::new().await;
    // The large one must find room in the share of the store that bad messages have.
    place.config.nats.store = bytesize::ByteSize::mib(64);
    let service = place.start().await;
    let inbox = |name: &str| service.subject(&format!("inbox.{name}"));
    publish(&service.nats, inbox("probe"), Some("a"), "no json").await;
    publish(&service.nats, inbox("nobody-does-this"), Some("b"), r#"{"payload": {}}"#).await;
    publish(&service.nats, inbox("probe"), Some("c"), r#"{"payload": {"unknown": 1}}"#).await;
    publish(&service.nats, inbox("probe"), Some("d"), r#"{"type": "send-email", "payload": {}}"#).await;
    publish(&service.nats, inbox("probe"), Some(&"x".repeat(201)), r#"{"payload": {}}"#).await;
    let large = json!({"payload": {"note": "x".repeat(600 << 10)}}).to_string();
    publish(&service.nats, inbox("probe"), None, large).await;
    publish(&service.nats, inbox("probe"), None, r#"{"payload": {}}"#).await;
    completed(&service, 1).await;
    emptied(&service).await;
    let mut stream = service.stream("background-jobs-inbox-dlq").await;
    let n = until(async || Some(stream.info().await.unwrap().state.messages).filter(|n| *n == 6)).await;
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut seen: Vec<(String, String, String)> = messages
        .take(n as usize)
        .map(|message| {
            let message = message.unwrap();
            let headers = message.headers.as_ref().unwrap();
            let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
            assert!(!text("Error-Detail").is_empty());
            if text("Original-Msg-Id") == "d" {
                assert!(text("Error-Detail").starts_with("/type: the subject says"), "{}", text("Error-Detail"));
            }
            (text("Original-Msg-Id").chars().take(1).collect(), text("Error-Code"), message.subject.to_string())
        })
        .collect()
        .await;
    seen.sort();
    let codes: Vec<(&str, &str)> = seen.iter().map(|(id, code, _)| (id.as_str(), code.as_str())).collect();
    assert_eq!(
        codes,
        [
            ("", "payload_too_large"),
            ("a", "invalid_json"),
            ("b", "unknown_type"),
            ("c", "invalid_payload"),
            ("d", "invalid_request"),
            ("x", "invalid_request"),
        ]
    );
    assert_eq!(seen[2].2, service.subject("inbox-dlq.nobody-does-this"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_while_it_takes_messages_in_makes_none_of_them_two_jobs() {
    let mut place = Place::new().await;
    place.config.worker.types = vec!["batch-import".into()];
    let mut first = Program::serve(&place.config).await;
    let nats = async_nats::connect(&place.config.nats.url).await.unwrap();
    let subject = format!("{}.inbox.batch-import", place.config.nats.prefix);
    let body = json!({"payload": {"items": [{"id": "a", "data": 1}]}}).to_string();
    let publishing = async {
        for n in 0..300 {
            publish(&nats, subject.clone(), Some(&n.to_string()), body.clone()).await;
        }
    };
    let database = place.database().await;
    let killing = async {
        let begun = "SELECT count(*) FROM job_keys";
        until(|| async {
            (sqlx::query_scalar::<_, i64>(begun).fetch_one(&database).await.unwrap() > 50).then_some(())
        })
        .await;
        first.kill().await;
    };
    tokio::join!(publishing, killing);
    let service = place.start().await;
    emptied(&service).await;
    let jobs = completed(&service, 300).await;
    let ids: Vec<String> = jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(books::all_completed_once(&place, &service, &ids).await.len(), 300);
    service.stop().await;
}
