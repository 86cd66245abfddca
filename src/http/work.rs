//! `/work`: the routes of programs that come and fetch their work.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::IntoResponse,
    routing::post,
};

use super::{Door, jobs::LIKE_RPC, query, refusal::Answer};
use crate::ops::{EnqueueOptions, Verb};

pub fn routes() -> Router<Arc<Door>> {
    let route = |verb: Verb| post(move |door, q, headers, body| ask(verb, door, q, headers, body));
    Router::new()
        .route("/work/fetch", route(Verb::Fetch))
        .route("/work/heartbeat", route(Verb::Heartbeat))
        .route("/work/complete", route(Verb::Complete))
        .route("/work/fail", route(Verb::Fail))
        .route("/work/release", route(Verb::Release))
}

/// The body is the request of the verb, as over NATS.
async fn ask(
    verb: Verb,
    State(door): State<Arc<Door>>,
    RawQuery(q): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    query::none(q.as_deref())?;
    let body = door.bodies.read(&headers, body, LIKE_RPC).await?;
    let reply = door.ops.call(verb, None, &body.bytes, EnqueueOptions::default()).await?;
    Ok(([("content-type", "application/json")], reply).into_response())
}
