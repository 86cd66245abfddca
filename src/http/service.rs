//! What tells about the service as a whole: `/stats`, `/types`, `/health`, `/schemas`.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::{get, post},
};
use serde_json::json;

use super::{
    Door, metrics,
    query::{self, Segment},
    refusal::{Answer, json},
};
use crate::ops::{EnqueueOptions, HealthStatus, Verb, wire::TypeRequest};

/// Largest definition of a type: two schemas, and some more.
const MAX_DEFINITION: usize = 256 * 1024;

pub fn routes() -> Router<Arc<Door>> {
    Router::new()
        .route("/stats", get(stats))
        .route("/types", get(types))
        .route("/types/{type}", get(one_type).put(register).delete(unregister))
        .route("/types/{type}/pause", post(pause))
        .route("/types/{type}/resume", post(resume))
        .route("/schemas", get(verbs))
        .route("/schemas/{verb}", get(schema))
        .route("/health", get(health))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(numbers))
}

async fn stats(State(door): State<Arc<Door>>, RawQuery(q): RawQuery) -> Answer {
    query::none(q.as_deref())?;
    json(StatusCode::OK, &door.ops.get_stats(None).await?)
}

async fn types(State(door): State<Arc<Door>>, RawQuery(q): RawQuery) -> Answer {
    query::none(q.as_deref())?;
    json(StatusCode::OK, &door.ops.list_types(None).await?)
}

async fn one_type(State(door): State<Arc<Door>>, Segment(name): Segment, RawQuery(q): RawQuery) -> Answer {
    query::none(q.as_deref())?;
    let job_type = door.ops.type_named(&name)?;
    let found = door.ops.list_types(Some(&job_type)).await?.types.pop();
    json(StatusCode::OK, &found.ok_or_else(|| door.ops.unknown_type(&name))?)
}

async fn register(
    State(door): State<Arc<Door>>,
    Segment(name): Segment,
    RawQuery(q): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    query::none(q.as_deref())?;
    let job_type = door.ops.type_named(&name)?;
    let body = door.bodies.read(&headers, body, MAX_DEFINITION).await?;
    json(StatusCode::OK, &door.ops.register_type(Some(&job_type), &body.bytes).await?)
}

async fn unregister(
    State(door): State<Arc<Door>>,
    Segment(name): Segment,
    RawQuery(q): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    query::none(q.as_deref())?;
    door.no_body(&headers, body).await?;
    json(StatusCode::OK, &door.ops.unregister_type(None, TypeRequest { r#type: Some(name) }).await?)
}

async fn pause(door: State<Arc<Door>>, name: Segment, q: RawQuery, headers: HeaderMap, body: Body) -> Answer {
    set_paused(door, name, q, headers, body, true).await
}

async fn resume(door: State<Arc<Door>>, name: Segment, q: RawQuery, headers: HeaderMap, body: Body) -> Answer {
    set_paused(door, name, q, headers, body, false).await
}

async fn set_paused(
    State(door): State<Arc<Door>>,
    Segment(name): Segment,
    RawQuery(q): RawQuery,
    headers: HeaderMap,
    body: Body,
    paused: bool,
) -> Answer {
    query::none(q.as_deref())?;
    door.no_body(&headers, body).await?;
    let request = TypeRequest { r#type: Some(name) };
    json(StatusCode::OK, &door.ops.set_paused(None, request, paused).await?)
}

async fn schema(State(door): State<Arc<Door>>, Segment(verb): Segment, RawQuery(q): RawQuery) -> Answer {
    query::none(q.as_deref())?;
    schemas(&door, &json!({ "verb": verb })).await
}

async fn verbs(State(door): State<Arc<Door>>, RawQuery(q): RawQuery) -> Answer {
    query::none(q.as_deref())?;
    schemas(&door, &json!({})).await
}

async fn schemas(door: &Door, request: &serde_json::Value) -> Answer {
    let request = request.to_string();
    let reply = door.ops.call(Verb::GetSchema, None, request.as_bytes(), EnqueueOptions::default()).await?;
    Ok(([("content-type", "application/json")], reply).into_response())
}

async fn health(State(door): State<Arc<Door>>) -> Answer {
    let health = door.ops.health().await;
    json(status_of(health.status), &health)
}

/// The process runs; asks nobody, so that a database that is away does not get it restarted.
async fn live() -> Answer {
    json(StatusCode::OK, &json!({ "status": HealthStatus::Ok }))
}

/// Jobs can be taken here.
async fn ready(State(door): State<Arc<Door>>) -> Answer {
    let check = door.ops.ready().await;
    json(status_of(check.status), &check)
}

fn status_of(health: HealthStatus) -> StatusCode {
    match health {
        HealthStatus::Ok | HealthStatus::Degraded => StatusCode::OK,
        HealthStatus::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn numbers(State(door): State<Arc<Door>>) -> Answer {
    let stats = door.ops.get_stats(None).await?;
    let process = metrics::Process {
        uptime: door.started.elapsed(),
        resident_bytes: metrics::resident_bytes(),
        tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        restarts: door.ops.supervisor.restarts(),
    };
    let text = metrics::text(&stats, &process);
    Ok(([("content-type", metrics::CONTENT_TYPE)], text).into_response())
}
