//! The HTTP contract: every route, status, header and code, as programs elsewhere rely on them.
//!
//! What differs from run to run (ids, times, names of workers) is checked for its form and then hidden.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use queue_service::service::Service;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    harness::{Place, Running, start},
    web::WebAnswer,
};

/// Headers that every answer has, and that are checked once for each.
const EVERYWHERE: [(&str, &str); 5] = [
    ("cache-control", "no-store"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
];
/// Headers of the connection, which are no part of the contract.
const TRANSPORT: [&str; 3] = ["date", "content-length", "content-security-policy"];

/// Requests and their answers, as they are shown in a snapshot.
struct Talk<'a> {
    service: &'a Running,
    shown: Vec<Value>,
}

impl<'a> Talk<'a> {
    fn new(service: &'a Running) -> Self {
        Self { service, shown: Vec::new() }
    }

    async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> WebAnswer {
        let answer = self.service.web(method, path, headers, body).await;
        let mut asked = json!({"request": format!("{method} {}", hide_ids(path))});
        if !body.is_empty() && body.len() < 1000 {
            asked["body"] = hide(&serde_json::from_str(body).unwrap_or(json!(body)));
        }
        if !headers.is_empty() {
            asked["headers"] = headers.iter().map(|(n, v)| (n.to_string(), json!(v))).collect::<Map<_, _>>().into();
        }
        let body = match answer.header("content-type") {
            Some(kind) if kind.ends_with("json") => hide(&answer.json()),
            _ => json!(answer.text),
        };
        asked["answer"] = json!({"status": answer.status, "headers": seen(&answer), "body": body});
        self.shown.push(asked);
        answer
    }

    async fn get(&mut self, path: &str) -> WebAnswer {
        self.ask("GET", path, &[], "").await
    }

    async fn post(&mut self, path: &str, body: Value) -> WebAnswer {
        self.ask("POST", path, &[], &body.to_string()).await
    }
}

/// The headers that the contract speaks of; the others are checked here.
fn seen(answer: &WebAnswer) -> Value {
    for (name, value) in EVERYWHERE {
        assert_eq!(answer.header(name), Some(value), "{name} of {answer:?}");
    }
    assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none';"));
    let other = |name: &str| !TRANSPORT.contains(&name) && !EVERYWHERE.iter().any(|(known, _)| *known == name);
    let headers = answer.headers.iter().filter(|(name, _)| other(name.as_str()));
    headers
        .map(|(name, value)| (name.to_string(), json!(hide_ids(value.to_str().unwrap()))))
        .collect::<Map<_, _>>()
        .into()
}

/// Checks what differs from run to run, and puts a word in its place.
fn hide(value: &Value) -> Value {
    match value {
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), hide_field(key, value))).collect(),
        Value::Array(list) => list.iter().map(hide).collect(),
        Value::String(text) => json!(hide_ids(text)),
        value => value.clone(),
    }
}

fn hide_field(key: &str, value: &Value) -> Value {
    match (key, value) {
        ("id" | "jobId", Value::String(text)) if text.len() == 36 => {
            assert_eq!(text.parse::<Uuid>().unwrap().get_version_num(), 7, "{text}");
            json!("[id]")
        }
        ("createdAt" | "runAt" | "startedAt" | "finishedAt" | "at", Value::String(text)) => {
            let at: DateTime<Utc> = text.parse().unwrap();
            assert!(text.ends_with('Z') && text.len() == "2026-01-01T00:00:00.000000Z".len(), "{text}");
            let near = (Utc::now() - at).abs() < TimeDelta::minutes(1);
            json!(if near { "[now]" } else { "[later]" })
        }
        ("workerId", Value::String(text)) => {
            assert!(!text.is_empty() && !text.contains(char::is_whitespace), "{text}");
            json!("[worker]")
        }
        ("nextCursor", Value::String(text)) => {
            assert!(
                text.len() < 100 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)),
                "{text}"
            );
            json!("[cursor]")
        }
        ("oldestPendingSeconds", Value::Number(n)) => {
            assert!(n.as_f64().is_some_and(|s| (0.0..60.0).contains(&s)), "{n}");
            json!("[seconds]")
        }
        (_, value) => hide(value),
    }
}

fn hide_ids(text: &str) -> String {
    let id = |at: usize| text.get(at..at + 36).filter(|part| part.parse::<Uuid>().is_ok());
    match (0..text.len()).find_map(id) {
        // The one of an example in a message stays.
        Some(id) if !id.starts_with("0198c5a4-") => hide_ids(&text.replace(id, "[id]")),
        _ => text.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_routes_of_jobs_answer_as_agreed() {
    let (place, service) = start().await;
    let mut talk = Talk::new(&service);
    let later = json!({
        "type": "probe", "payload": {"note": "ä"}, "priority": 5, "maxAttempts": 2, "delay": "1h", "timeout": "5s",
        "tags": ["a", "b"], "idempotencyKey": "k",
    });
    // Made, made again, and another content under the same key.
    let made = talk.post("/jobs", later.clone()).await;
    let later_id = made.json()["jobId"].as_str().unwrap().to_owned();
    assert_eq!(made.header("location"), Some(format!("/jobs/{later_id}").as_str()));
    talk.post("/jobs", later).await;
    talk.ask("POST", "/jobs", &[("idempotency-key", "k")], r#"{"type":"probe","payload":{}}"#).await;
    let made = talk.ask("POST", "/jobs", &[("idempotency-key", "h")], r#"{"type":"probe","payload":{}}"#).await;
    let done = made.json()["jobId"].as_str().unwrap().to_owned();
    // Shown, waited for, cancelled, retried.
    service.finished(&done).await;
    let failed = service.enqueue(json!({"type": "probe", "payload": {"fail": 9}, "maxAttempts": 2})).await;
    service.finished(&failed).await;
    for path in [
        format!("/jobs/{later_id}"),
        format!("/jobs/{done}"),
        format!("/jobs/{failed}"),
        format!("/jobs/{done}?wait=30s"),
        format!("/jobs/{later_id}?wait=10ms"),
        format!("/jobs/{later_id}?wait=6m"),
    ] {
        talk.get(&path).await;
    }
    talk.ask("DELETE", &format!("/jobs/{later_id}?reason=not%20now"), &[], "").await;
    talk.ask("DELETE", &format!("/jobs/{later_id}"), &[], "").await;
    talk.ask("POST", &format!("/jobs/{done}/retry"), &[], "").await;
    talk.ask("POST", &format!("/jobs/{later_id}/retry"), &[], "").await;
    service.finished(&later_id).await;
    // A running one is told to stop, and the answer waits for it.
    let running = service.probe(json!({"wait": true})).await;
    service.until_status(&running, "processing").await;
    talk.ask("DELETE", &format!("/jobs/{running}?reason=stop"), &[], "").await;
    assert_eq!(place.journal.count(&running, "stopped"), 1);
    // Lists.
    for query in
        ["", "?status=completed&include=payload,result", "?status=failed,cancelled&include=errors", "?limit=1&offset=1"]
    {
        talk.get(&format!("/jobs{query}")).await;
    }
    talk.post("/jobs/batch", json!({"jobs": [{"type": "nope", "payload": {}}, {"type": "probe", "payload": {}}]}))
        .await;
    insta::assert_json_snapshot!("jobs", talk.shown);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_routes_of_the_service_answer_as_agreed() {
    let (_place, service) = start().await;
    let id = service.probe(json!({})).await;
    service.finished(&id).await;
    let mut talk = Talk::new(&service);
    for path in ["/stats", "/health/live", "/health/ready", "/schemas/getJob", "/problems/job-not-found"] {
        talk.get(path).await;
    }
    talk.ask("POST", "/types/probe/pause", &[], "").await;
    talk.ask("POST", "/types/probe/resume", &[], "{}").await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for path in ["/stats", "/jobs", "/jobs/batch", "/types/probe/pause"] {
            if matches!(
                (method, path),
                ("GET", "/stats" | "/jobs") | ("POST", "/jobs" | "/jobs/batch" | "/types/probe/pause")
            ) {
                continue;
            }
            talk.ask(method, path, &[], "").await;
        }
    }
    insta::assert_json_snapshot!("service", talk.shown);
    let health = service.get("/health").await;
    let told = health.json();
    assert_eq!((health.status, &told["status"]), (200, &json!("ok")));
    let checks: Vec<&String> = told["checks"].as_object().unwrap().keys().collect();
    assert_eq!(checks, ["jetstream", "nats", "postgres", "tasks", "workers"]);
    let types = service.get("/types").await.json();
    let names: Vec<&str> = types["types"].as_array().unwrap().iter().map(|t| t["type"].as_str().unwrap()).collect();
    assert!(names.is_sorted() && names.contains(&"probe") && names.contains(&"send-email"), "{names:?}");
    let metrics = service.get("/metrics").await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(metrics.text.contains("queue_jobs{type=\"probe\",status=\"completed\"} 1\n"), "{}", metrics.text);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_as_agreed() {
    let (_place, service) = start().await;
    let mut talk = Talk::new(&service);
    let unknown = "0198c5a4-5d5c-7000-8000-000000000000";
    for (method, path) in [
        ("GET", "/nowhere"),
        ("GET", "/jobs/1"),
        ("GET", "/jobs/%ff"),
        ("GET", "/jobs?limt=1&limit=0"),
        ("GET", "/jobs?limit=1&limit=2"),
        ("GET", "/stats?x=1"),
        ("GET", "/problems/none"),
        ("GET", "/schemas/none"),
        ("GET", &format!("/jobs/{unknown}")),
        ("GET", &format!("/jobs/{unknown}?wait=1s")),
        ("GET", &format!("/jobs/{unknown}?wait=soon")),
        ("DELETE", &format!("/jobs/{unknown}")),
        ("POST", &format!("/jobs/{unknown}/retry")),
        ("POST", "/types/none/pause"),
    ] {
        talk.ask(method, path, &[], "").await;
    }
    for body in [
        "",
        "{",
        "{}",
        r#"{"type":"nope","payload":{}}"#,
        r#"{"type":"probe","payload":{"nope":1,"fail":"x"}}"#,
        r#"{"type":"probe","payload":{},"priority":10,"tags":[""]}"#,
    ] {
        talk.ask("POST", "/jobs", &[], body).await;
    }
    let large = json!({"type": "probe", "payload": {"note": "x".repeat(600_000)}}).to_string();
    talk.ask("POST", "/jobs", &[], &large).await;
    for headers in [
        [("content-type", "text/plain")],
        [("content-type", "application/x-www-form-urlencoded")],
        [("content-encoding", "gzip")],
        [("sec-fetch-site", "cross-site")],
        [("origin", "https://evil.example")],
        [("host", "evil.example")],
    ] {
        talk.ask("POST", "/jobs", &headers, r#"{"type":"probe","payload":{}}"#).await;
    }
    insta::assert_json_snapshot!("refusals", talk.shown);
    assert_eq!(service.call("getStats", json!({})).await["total"], 0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_can_not_help_now_says_when_to_come_back() {
    let mut place = Place::new().await;
    place.config.limits.intake = 10;
    let service = place.start().await;
    let mut talk = Talk::new(&service);
    let jobs = json!({"jobs": vec![json!({"type": "probe", "payload": {}}); 11]});
    talk.post("/jobs/batch", jobs).await;
    let shown = talk.shown;
    service.stop().await;
    // Nobody answers behind this one.
    place.config.database.url = "postgres://127.0.0.1:1/none".into();
    let panics =
        axum::Router::new().route("/panics", axum::routing::get(async || -> &'static str { panic!("secret") }));
    let service = Service::start_with(place.config.clone(), panics, Ok).await.unwrap();
    let nats = async_nats::connect(&place.config.nats.url).await.unwrap();
    let service = Running { service, nats, config: place.config.clone() };
    let mut talk = Talk { service: &service, shown };
    let began = std::time::Instant::now();
    talk.get("/stats").await;
    talk.post("/jobs", json!({"type": "send-email", "payload": {"to": "a@example.org", "subject": "s", "body": "b"}}))
        .await;
    assert!(began.elapsed() < Duration::from_secs(4), "each is answered within two seconds");
    talk.get("/health/ready").await;
    talk.get("/panics").await;
    insta::assert_json_snapshot!("unavailable", talk.shown);
    assert_eq!((service.get("/health").await.status, service.get("/health/live").await.status), (503, 200));
    assert_eq!(service.get("/").await.status, 200);
    service.service.stop(CancellationToken::new()).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_nothing_but_probes_is_open() {
    let mut place = Place::new().await;
    place.config.http.token = Some("s3cret".to_owned().into());
    let service = place.start().await;
    let mut talk = Talk::new(&service);
    let body = r#"{"type":"probe","payload":{}}"#;
    talk.get("/health/live").await;
    talk.ask("POST", "/jobs", &[], body).await;
    talk.ask("POST", "/jobs", &[("authorization", "Bearer wrong")], body).await;
    talk.ask("POST", "/jobs", &[("authorization", "Basic czNjcmV0")], body).await;
    talk.ask("POST", "/jobs", &[("authorization", "Bearer s3cret")], body).await;
    // With a token any name may be served, and pages of other sites still may not ask.
    talk.ask("GET", "/health/live", &[("host", "queue.example")], "").await;
    let cross = [("authorization", "Bearer s3cret"), ("origin", "https://evil.example")];
    talk.ask("POST", "/jobs", &cross, body).await;
    insta::assert_json_snapshot!("token", talk.shown);
    for path in ["/", "/docs", "/openapi.json", "/metrics", "/stats", "/jobs", "/types", "/nowhere"] {
        assert_eq!(service.get(path).await.status, 401, "{path}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_get_without_the_body() {
    let (_place, service) = start().await;
    let id = service.probe(json!({})).await;
    service.finished(&id).await;
    let job = format!("/jobs/{id}");
    for path in
        ["/", "/docs", "/stats", "/jobs", &job, "/types", "/health", "/metrics", "/openapi.json", "/nowhere", "/jobs/1"]
    {
        let (get, head) = (service.get(path).await, service.web("HEAD", path, &[], "").await);
        assert_eq!((head.status, head.text.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_described_operation_answers_as_described() {
    let (_place, service) = start().await;
    let document = service.get("/openapi.json").await;
    assert_eq!(document.header("content-type"), Some("application/json"));
    let document = document.json();
    insta::assert_json_snapshot!("openapi", document);
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(name), "{name} is there twice");
            let id = service.probe(json!({"fail": 9, "wait": name == "cancelJob"})).await;
            if name == "retryJob" {
                service.finished(&id).await;
            }
            let registers = name.to_lowercase().ends_with("registertype");
            if registers {
                service.call("registerType.foreign", json!({"handler": "pull"})).await;
            }
            let (mut run, mut fetched) = (1, id.clone());
            if ["finish", "complete", "fail", "release", "heartbeat", "fetch"].iter().any(|verb| name.ends_with(verb)) {
                (run, fetched) = a_fetched_run(&service).await;
            }
            let job_type = if registers { "foreign" } else { "probe" };
            let path = path
                .replace("{id}", if name == "finish" { &fetched } else { &id })
                .replace("{type}", job_type)
                .replace("{verb}", "enqueue");
            let body = &operation["requestBody"]["content"]["application/json"]["example"];
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let body = body
                .replace("0198c5a4-5d5c-7000-8000-000000000000", &fetched)
                .replace("\"run\":1", &format!("\"run\":{run}"));
            let answer = service.web(&method.to_uppercase(), &path, &[], body).await;
            assert!(answer.status < 300, "{name}: {answer:?}");
            as_described(&document, operation, &answer);
            // And a refusal, where a parameter can be wrong.
            let answer = service.web(&method.to_uppercase(), &format!("{path}?nonsense=1"), &[], "").await;
            if answer.status >= 300 {
                as_described(&document, operation, &answer);
            }
        }
    }
    service.stop().await;
}

/// A job of the type `thumbnail` that is fetched, and another one that can be.
async fn a_fetched_run(service: &crate::harness::Running) -> (i64, String) {
    service.call("registerType", json!({"type": "thumbnail", "handler": "pull"})).await;
    for _ in 0..2 {
        service.enqueue(json!({"type": "thumbnail", "payload": {}})).await;
    }
    let wish = json!({"types": ["thumbnail"], "waitMs": 30000, "workerId": "w"});
    let job = service.call("work.fetch", wish).await["jobs"][0].clone();
    (job["run"].as_i64().unwrap(), job["id"].as_str().unwrap().to_owned())
}

/// Status, media type and body of an answer are among those that the document promises.
fn as_described(document: &Value, operation: &Value, answer: &WebAnswer) {
    let promised = &operation["responses"][answer.status.to_string()]["content"];
    let kind = answer.header("content-type").unwrap().split(';').next().unwrap();
    let content = promised.get(kind).unwrap_or_else(|| panic!("{} {promised}: {answer:?}", operation["operationId"]));
    if kind.ends_with("json") {
        let mut schema = content["schema"].clone();
        schema["components"] = document["components"].clone();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let faults: Vec<String> = validator.iter_errors(&answer.json()).map(|e| e.to_string()).collect();
        assert!(faults.is_empty(), "{}: {faults:?}\n{}", operation["operationId"], answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_found_by_tag_whether_they_live_or_are_over() {
    let (_place, service) = start().await;
    let tags =
        ["invoice", "a b", "a,b", "ä", "{x}", "[1]", "$1", "?", "%", "_", "'", "\"", "\\", "a/b&c=d#e", "NULL", "💾"];
    let mut expected = Vec::new();
    for tag in tags {
        let done = service.enqueue(json!({"type": "probe", "payload": {}, "tags": ["other", tag]})).await;
        let later = service.enqueue(json!({"type": "probe", "payload": {}, "tags": [tag], "delay": "1h"})).await;
        expected.push((tag, [later, done]));
    }
    service.probe(json!({})).await;
    for (tag, [later, done]) in &expected {
        service.finished(done).await;
        let request = json!({ "tag": tag });
        let by_http = service.web_verb("listJobs", request.to_string().as_bytes()).await.unwrap().json();
        let by_rpc = service.call("listJobs", request).await;
        assert_eq!(by_http, by_rpc, "{tag}");
        let found: Vec<&str> =
            by_rpc["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
        assert_eq!(found, [later, done], "{tag}");
        let narrowed = service.call("listJobs", json!({"tag": tag, "status": "scheduled", "type": "probe"})).await;
        assert_eq!(narrowed["jobs"][0]["id"], json!(later), "{tag}");
    }
    assert_eq!(service.call("listJobs", json!({"tag": "other"})).await["jobs"].as_array().unwrap().len(), tags.len());
    assert_eq!(service.call("listJobs", json!({"tag": "OTHER"})).await["jobs"], json!([]));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_every_job_once() {
    let (_place, service) = start().await;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await);
    }
    made.reverse();
    let (mut seen, mut path) = (Vec::new(), "/jobs?limit=3".to_owned());
    loop {
        let page = service.get(&path).await.json();
        seen.extend(page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["nextCursor"].as_str() else { break };
        path = format!("/jobs?limit=3&cursor={cursor}");
    }
    assert_eq!(seen, made);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_the_job_or_with_the_service() {
    let (place, service) = start().await;
    let id = service.probe(json!({"wait": true})).await;
    service.until_status(&id, "processing").await;
    let path = format!("/jobs/{id}?wait=30s");
    let waiting = service.get(&path);
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        place.journal.release();
    };
    let (answer, ()) = tokio::join!(waiting, release);
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("completed")));
    // The stop answers who still waits, and takes nothing more.
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let url = service.url(&format!("/jobs/{id}?wait=1m"));
    let began = std::time::Instant::now();
    let waiting = tokio::spawn(reqwest::get(url.clone()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    service.stop().await;
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (503, "2"));
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(reqwest::get(url).await.is_err(), "nobody listens any more");
}
