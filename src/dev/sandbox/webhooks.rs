//! A place for webhooks: records what comes, and fails when its address says so.
//!
//! `/dev/webhooks/NAME?fail=2&status=503&retryAfter=1&wait=5s`: the first two deliveries of a webhook (by `webhook-id`,
//! else by name) are answered 503 with that `Retry-After`; all answers take five seconds. `status` without `fail`
//! answers so for ever.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    page::{escape, page, table, wants_json},
    ring::Ring,
};

/// Deliveries that are kept.
const KEPT: usize = 200;
/// Largest body that is taken.
const BODY_MAX: usize = 2 * 1024 * 1024;
/// How much of a body, and of one header, is kept.
const BODY_KEPT: usize = 16 * 1024;
const HEADER_KEPT: usize = 1024;
const HEADERS_KEPT: usize = 64;
const NAME_MAX: usize = 100;
/// Longest `wait`.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// One delivery.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    pub id: u64,
    pub at: DateTime<Utc>,
    pub name: String,
    pub method: String,
    /// The header `webhook-id`: the job's id, when deliveries are signed.
    pub webhook_id: Option<String>,
    pub headers: Vec<(String, String)>,
    /// The beginning of the body, as text.
    pub body: String,
    pub body_bytes: usize,
    /// What it was answered with.
    pub status: u16,
}

/// What an address asks the sandbox to do.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Rule {
    fail: Option<usize>,
    status: Option<u16>,
    /// Seconds.
    retry_after: Option<u64>,
    #[serde(with = "humantime_serde")]
    wait: Option<Duration>,
}

pub(super) struct Webhooks(Ring<Delivery>);

impl Webhooks {
    pub fn new() -> Self {
        Self(Ring::new(KEPT))
    }

    pub fn newest(&self) -> Vec<Arc<Delivery>> {
        self.0.newest().into_iter().map(|(_, delivery)| delivery).collect()
    }
}

pub(super) fn router(webhooks: Arc<Webhooks>) -> Router {
    Router::new()
        .route("/dev/webhooks", get(list))
        .route("/dev/webhooks.json", get(list_json))
        .route("/dev/webhooks/{name}", get(list_of).fallback(receive))
        .with_state(webhooks)
}

async fn receive(
    State(webhooks): State<Arc<Webhooks>>,
    Path(name): Path<String>,
    Query(rule): Query<Rule>,
    request: Request<Body>,
) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_MAX).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, format!("the sandbox takes at most {BODY_MAX} bytes\n"))
            .into_response();
    };
    let failing = match rule.status.map(StatusCode::from_u16) {
        None => StatusCode::SERVICE_UNAVAILABLE,
        Some(Ok(status)) => status,
        Some(Err(_)) => return (StatusCode::BAD_REQUEST, "status must be 100 to 999\n").into_response(),
    };
    let wanted = rule.fail.unwrap_or(if rule.status.is_some() { usize::MAX } else { 0 });
    let (id, delivery) = webhooks.0.push_with(|before, id| {
        let new = describe(id, &name, &head.method, &head.headers, &body);
        let same = |d: &&Delivery| d.name == new.name && d.webhook_id == new.webhook_id;
        let status = if before.filter(same).count() < wanted { failing } else { StatusCode::OK };
        Delivery { status: status.as_u16(), ..new }
    });
    tokio::time::sleep(rule.wait.unwrap_or_default().min(WAIT_MAX)).await;
    let status = StatusCode::from_u16(delivery.status).unwrap_or(failing);
    let mut response = (status, Json(json!({"sandbox": "queue-service dev", "delivery": id}))).into_response();
    if let Some(seconds) = rule.retry_after.filter(|_| !status.is_success()) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn describe(id: u64, name: &str, method: &Method, headers: &HeaderMap, body: &[u8]) -> Delivery {
    let text = |value: &HeaderValue| cut(&String::from_utf8_lossy(value.as_bytes()), HEADER_KEPT);
    let shown = |(name, value): (&header::HeaderName, &HeaderValue)| {
        let hidden = *name == header::AUTHORIZATION || *name == header::COOKIE;
        (name.to_string(), if hidden { "(hidden)".to_owned() } else { text(value) })
    };
    Delivery {
        id,
        at: Utc::now(),
        name: cut(name, NAME_MAX),
        method: cut(method.as_str(), 20),
        webhook_id: headers.get("webhook-id").map(text),
        headers: headers.iter().take(HEADERS_KEPT).map(shown).collect(),
        body: cut(&String::from_utf8_lossy(&body[..body.len().min(BODY_KEPT)]), BODY_KEPT),
        body_bytes: body.len(),
        status: 0,
    }
}

fn cut(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

async fn list(State(webhooks): State<Arc<Webhooks>>, headers: HeaderMap) -> Response {
    show(webhooks.newest(), &headers)
}

async fn list_json(State(webhooks): State<Arc<Webhooks>>) -> Response {
    Json(json!({"deliveries": webhooks.newest()})).into_response()
}

async fn list_of(State(webhooks): State<Arc<Webhooks>>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    show(webhooks.newest().into_iter().filter(|delivery| delivery.name == name).collect(), &headers)
}

fn show(deliveries: Vec<Arc<Delivery>>, headers: &HeaderMap) -> Response {
    if wants_json(headers) {
        return Json(json!({"deliveries": deliveries})).into_response();
    }
    let rows = deliveries.iter().map(|d| {
        let lines: Vec<_> = d.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let more = format!(
            "<details><summary>{} bytes</summary><pre>{}</pre><pre class=\"quiet\">{}</pre></details>",
            d.body_bytes,
            escape(&d.body),
            escape(&lines.join("\n"))
        );
        let time = d.at.format("%H:%M:%S%.3f").to_string();
        vec![d.id.to_string(), time, escape(&d.name), escape(&d.method), d.status.to_string(), more]
    });
    let how = "<p>Send anything but GET to <code>/dev/webhooks/NAME</code>. \
        <code>?fail=2&amp;status=503&amp;retryAfter=1&amp;wait=5s</code> lets the first two deliveries of a webhook fail; \
        <code>?status=410</code> all of them. As JSON: <a href=\"/dev/webhooks.json\">/dev/webhooks.json</a>.</p>";
    let table = match deliveries.is_empty() {
        true => "<p class=\"quiet\">Nothing came yet.</p>".to_owned(),
        false => table(&["No.", "UTC", "name", "method", "answered", "body and headers"], rows),
    };
    page("Webhooks", &format!("{how}{table}"))
}
