//! Handlers outside that are asked over HTTP: signed, judged by status and headers, guarded.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::harness::{PATIENCE, Place, Running, until};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

type Call = (HeaderMap, Bytes, oneshot::Sender<Response>);

/// A web server whose answers the test gives.
struct Web {
    url: String,
    calls: mpsc::UnboundedReceiver<Call>,
}

impl Web {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener)
    }

    fn on(listener: tokio::net::TcpListener) -> Self {
        let url = format!("http://{}/jobs", listener.local_addr().unwrap());
        let (sender, calls) = mpsc::unbounded_channel();
        let router = Router::new().route("/jobs", post(take)).with_state(Arc::new(Mutex::new(sender)));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, calls }
    }

    async fn call(&mut self) -> Call {
        tokio::time::timeout(PATIENCE, self.calls.recv()).await.expect("nobody called").unwrap()
    }

    async fn answer(&mut self, status: u16, headers: &[(&str, &str)], body: &str) -> (HeaderMap, Bytes) {
        let (asked, request, answer) = self.call().await;
        let mut response = (StatusCode::from_u16(status).unwrap(), body.to_owned()).into_response();
        for (name, value) in headers {
            response.headers_mut().insert(name.parse::<axum::http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        let _ = answer.send(response);
        (asked, request)
    }
}

async fn take(
    State(calls): State<Arc<Mutex<mpsc::UnboundedSender<Call>>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (answer, answered) = oneshot::channel();
    let _ = calls.lock().await.send((headers, body, answer));
    answered.await.unwrap_or_else(|_| StatusCode::GONE.into_response())
}

async fn start(url: &str, more: Value) -> Running {
    let mut place = Place::new().await;
    place.config.handlers.allow_private = queue_service::config::AllowPrivate::All(true);
    let service = place.start().await;
    let mut definition = json!({"type": "render", "handler": "http", "url": url, "backoff": {"base": "20ms"}});
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    service.call("registerType", definition).await;
    service
}

async fn job(service: &Running) -> String {
    service.enqueue(json!({"type": "render", "payload": {"n": 1}})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_signed_and_a_good_status_means_done() {
    let mut web = Web::start().await;
    let service = start(&web.url, json!({"secret": SECRET})).await;
    let id = job(&service).await;
    let (headers, body) = web.answer(200, &[], r#"{"frames": 2}"#).await;
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!((text("job-id"), text("job-run"), text("webhook-id")), (id.clone(), "1".into(), format!("{id}.1")));
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(&body, &headers).unwrap();
    let told: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&told["id"], &told["payload"]), (&json!(id), &json!({"n": 1})));
    assert_eq!(service.finished(&id).await["result"], json!({"frames": 2}));
    let nothing = job(&service).await;
    web.answer(204, &[], "").await;
    assert_eq!(service.finished(&nothing).await["status"], "completed");
    let types = service.call("listTypes.render", json!({})).await.to_string();
    assert!(!types.contains("MfKQ9r8"), "the secret is shown: {types}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_tried_again_with_its_text_unless_it_is_for_good() {
    let mut web = Web::start().await;
    let service = start(&web.url, json!({})).await;
    let id = job(&service).await;
    web.answer(503, &[("Job-Retry-After", "0.05")], "warming up").await;
    web.answer(429, &[("Job-Release", "true"), ("Job-Retry-After", "0.05")], "").await;
    web.answer(422, &[("Job-Retry", "false")], r#"{"title": "x", "detail": "no such scene"}"#).await;
    let failed = service.finished(&id).await;
    let errors: Vec<_> = failed["errors"].as_array().unwrap().iter().map(|e| (&e["attempt"], &e["message"])).collect();
    assert_eq!(
        errors,
        [(&json!(1), &json!("503: warming up")), (&json!(2), &json!("422: no such scene"))],
        "a release costs no attempt"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_costs_no_attempt() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let service = start(&format!("http://{address}/jobs"), json!({"maxAttempts": 1})).await;
    let id = job(&service).await;
    until(|| async { service.job(&id).await["note"].is_string().then_some(()) }).await;
    let mut web = Web::on(tokio::net::TcpListener::bind(address).await.unwrap());
    let (headers, _) = web.answer(200, &[], "1").await;
    assert_eq!(headers["job-attempt"], "1");
    assert_eq!(service.finished(&id).await["status"], "completed");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn to_cancel_a_job_closes_its_connection() {
    let mut web = Web::start().await;
    let service = start(&web.url, json!({})).await;
    let id = job(&service).await;
    let (_, _, mut answer) = web.call().await;
    service.call("cancelJob", json!({"jobId": id})).await;
    tokio::time::timeout(PATIENCE, answer.closed()).await.expect("the connection stays open");
    assert_eq!(service.finished(&id).await["status"], "cancelled");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_and_bad_secrets_are_refused_when_the_type_is_made() {
    let (_place, service) = crate::harness::start().await;
    for (url, secret, path) in [
        ("http://127.0.0.1:9/jobs", SECRET, "/url"),
        ("http://169.254.169.254/latest", SECRET, "/url"),
        ("ftp://example.org/", SECRET, "/url"),
        ("https://example.org/jobs", "whsec_short", "/secret"),
    ] {
        let definition = json!({"type": "render", "handler": "http", "url": url, "secret": secret});
        let refused = service.ask("registerType", definition.to_string()).await;
        assert_eq!(
            (refused.code(), &refused.body["errors"][0]["path"]),
            (Some("invalid_request"), &json!(path)),
            "{url}"
        );
        assert!(!refused.body.to_string().contains("whsec_short"));
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_is_too_late_at_its_deadline_and_the_time_left_is_told() {
    let mut web = Web::start().await;
    let service = start(&web.url, json!({"timeout": "1s", "maxAttempts": 1})).await;
    let id = job(&service).await;
    let (headers, _) = web.answer(202, &[], "").await;
    let left: u64 = headers["job-timeout-ms"].to_str().unwrap().parse().unwrap();
    assert!((1..=1000).contains(&left), "{left}");
    let deadline: chrono::DateTime<chrono::Utc> = headers["job-deadline"].to_str().unwrap().parse().unwrap();
    let failed = service.finished(&id).await;
    assert_eq!((&failed["status"], &failed["errors"][0]["kind"]), (&json!("failed"), &json!("timeout")));
    let after = (crate::harness::time(&failed["errors"][0]["at"]) - deadline).num_milliseconds();
    assert!((-5..=2000).contains(&after), "{after} ms after its deadline");
    let finish = json!({"run": 1, "result": 7}).to_string();
    let late = reqwest::Client::new().post(service.url(&format!("/jobs/{id}/finish"))).body(finish);
    let late = late.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(
        (late.status().as_u16(), late.json::<Value>().await.unwrap()["code"].clone()),
        (409, json!("lease_lost"))
    );
    service.stop().await;
}
