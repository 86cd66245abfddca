//! The wire contract as snapshots: every reply and every refusal over RPC. A change here is a change for users in other
//! languages.

use serde_json::{Value, json};

use crate::harness::{Answer, Place, Running, start};

/// Hides what differs from run to run, after a look that it is what it should be.
pub fn hide(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| {
                let value = match (key.as_str(), &value) {
                    ("id" | "jobId", Value::String(text)) => {
                        assert_eq!(uuid::Uuid::parse_str(text).expect("an id").get_version_num(), 7, "{key}");
                        json!("[id]")
                    }
                    ("at" | "createdAt" | "runAt" | "startedAt" | "finishedAt", Value::String(text)) => {
                        assert!(text.len() == 27 && text.ends_with('Z'), "{key} is no time with microseconds: {text}");
                        text.parse::<chrono::DateTime<chrono::Utc>>().expect("a time");
                        json!("[time]")
                    }
                    ("workerId", Value::String(text)) => {
                        assert!(text.split('-').count() >= 3, "{text}");
                        json!("[worker]")
                    }
                    ("nextCursor", Value::String(_)) => json!("[cursor]"),
                    ("oldestPendingSeconds", Value::Number(n)) => {
                        assert!((0.0..60.0).contains(&n.as_f64().unwrap()));
                        json!("[seconds]")
                    }
                    _ => hide(value),
                };
                (key, value)
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(hide).collect(),
        Value::String(text) => json!(hide_ids(&text)),
        other => other,
    }
}

fn hide_ids(text: &str) -> String {
    let hide = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_hexdigit());
        if uuid::Uuid::parse_str(bare).is_ok() { word.replace(bare, "[id]") } else { word.to_owned() }
    };
    text.split(' ').map(hide).collect::<Vec<_>>().join(" ")
}

/// A refusal with its headers.
fn refusal(answer: Answer) -> Value {
    let header = |name: &str| {
        let headers = answer.headers.as_ref().expect("a refusal has headers");
        hide_ids(headers.get(name).expect(name).as_str())
    };
    json!({
        "Nats-Service-Error": header("Nats-Service-Error"),
        "Nats-Service-Error-Code": header("Nats-Service-Error-Code"),
        "body": hide(answer.body.clone()),
    })
}

async fn refused(service: &Running, verb: &str, body: impl Into<Vec<u8>>) -> Value {
    refusal(service.ask(verb, body).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_have_the_shapes_of_the_contract() {
    let (_place, service) = start().await;
    let request = json!({
        "type": "probe", "payload": {"fail": 1, "note": "n", "progress": 50.0, "retryAfterMs": 10}, "priority": 3,
        "maxAttempts": 5, "idempotencyKey": "order-7", "tags": ["a", "b"], "timeout": "10s",
    });
    let accepted = service.call("enqueue", request.clone()).await;
    let completed = accepted["jobId"].as_str().unwrap().to_owned();
    let completed_job = service.finished(&completed).await;
    let duplicate = service.call("enqueue", request).await;
    insta::assert_json_snapshot!("enqueue", [hide(accepted), hide(duplicate)]);
    insta::assert_json_snapshot!("job_completed", hide(completed_job));

    let jobs = json!([
        {"type": "probe", "payload": {"permanent": true}},
        {"type": "probe", "payload": {"note": 1}},
        {"type": "probe", "payload": {}, "delay": "1h"},
    ]);
    let many = service.call("enqueueMany", json!({"jobs": jobs})).await;
    insta::assert_json_snapshot!("enqueue_many", hide(many.clone()));
    let (failed, waiting) = (many["results"][0]["jobId"].clone(), many["results"][2]["jobId"].clone());
    insta::assert_json_snapshot!("job_failed", hide(service.finished(failed.as_str().unwrap()).await));
    insta::assert_json_snapshot!("job_pending", hide(service.job(waiting.as_str().unwrap()).await));

    insta::assert_json_snapshot!("list_jobs", hide(service.call("listJobs", json!({"limit": 2})).await));
    insta::assert_json_snapshot!("get_stats", hide(service.call("getStats", json!({})).await));
    let cancelled = service.call("cancelJob", json!({"jobId": waiting, "reason": "not needed"})).await;
    insta::assert_json_snapshot!("job_cancelled", hide(cancelled));
    service.call("pauseType", json!({"type": "probe"})).await;
    let retried = service.call("retryJob", json!({"jobId": waiting})).await;
    insta::assert_json_snapshot!("job_retried", hide(retried));
    insta::assert_json_snapshot!("list_types", hide(service.call("listTypes.probe", json!({})).await));
    insta::assert_json_snapshot!("resume_type", hide(service.call("resumeType", json!({"type": "probe"})).await));
    insta::assert_json_snapshot!("get_schema", service.call("getSchema", json!({"verb": "waitJob"})).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_shape_of_the_contract() {
    let (place, service) = start().await;
    let waiting = json!({"type": "probe", "payload": {}, "delay": "1h", "idempotencyKey": "taken"});
    let waiting = service.enqueue(waiting).await;
    let done = service.probe(json!({})).await;
    service.finished(&done).await;
    let enqueue = |request: Value| {
        let service = &service;
        async move { refused(service, "enqueue", request.to_string()).await }
    };
    insta::assert_json_snapshot!("invalid_json", refused(&service, "enqueue", r#"{"type": "probe", "#).await);
    let faults = json!({"type": "probe", "payload": {}, "priority": 10, "maxAttempts": 0, "tags": [""]});
    insta::assert_json_snapshot!("invalid_request", enqueue(faults).await);
    insta::assert_json_snapshot!("invalid_payload", enqueue(json!({"type": "probe", "payload": {"note": 1}})).await);
    insta::assert_json_snapshot!("unknown_type", enqueue(json!({"type": "dance", "payload": {}})).await);
    let other = json!({"type": "probe", "payload": {"note": "other"}, "idempotencyKey": "taken"});
    insta::assert_json_snapshot!("idempotency_conflict", enqueue(other).await);
    let large = json!({"type": "probe", "payload": {"note": "x".repeat(512 * 1024)}});
    insta::assert_json_snapshot!("payload_too_large", enqueue(large).await);
    insta::assert_json_snapshot!("no_id", refused(&service, "getJob", "7").await);
    let nobody = uuid::Uuid::now_v7().to_string();
    insta::assert_json_snapshot!("job_not_found", refused(&service, "getJob", nobody).await);
    let wait = json!({"jobId": waiting, "timeoutMs": 1}).to_string();
    insta::assert_json_snapshot!("wait_timeout", refused(&service, "waitJob", wait).await);
    insta::assert_json_snapshot!("not_retryable", refused(&service, "retryJob", done.clone()).await);
    insta::assert_json_snapshot!("already_finished", refused(&service, "cancelJob", done).await);
    // A schema that is not ours stands for any bug.
    sqlx::query("ALTER TABLE job_types RENAME TO elsewhere").execute(&place.database().await).await.unwrap();
    insta::assert_json_snapshot!("internal", refused(&service, "listTypes", "").await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_done_now_says_when_to_come_again() {
    let mut place = Place::new().await;
    place.config.limits.intake = 1;
    let full = place.start().await;
    let jobs = json!({"jobs": [{"type": "probe", "payload": {}}, {"type": "probe", "payload": {}}]});
    insta::assert_json_snapshot!("overloaded", refused(&full, "enqueueMany", jobs.to_string()).await);
    full.stop().await;
    let place = Place::new().await;
    let alone = place.start_without_database().await;
    let began = std::time::Instant::now();
    insta::assert_json_snapshot!("unavailable", refused(&alone, "getStats", "").await);
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
    alone.stop().await;
}
