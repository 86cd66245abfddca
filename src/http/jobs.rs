//! `/jobs`: the routes that make, show, retry and cancel jobs.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::LOCATION},
    routing::{get, post},
};
use serde_json::Value;

use super::{
    Door,
    query::{self, Kind, Parameters, Segment},
    refusal::{Answer, json},
};
use crate::ops::{
    ApiError, Code, EnqueueOptions,
    input::{self, IdText, Span},
    wire::{CancelRequest, FinishRequest, ListRequest, WaitRequest},
};

/// Largest bulk request. A thousand jobs of 8 KiB each; larger ones go in several requests.
pub const MAX_BULK_BYTES: usize = 8 << 20;
/// What a body may hold beside the payload: keys, tags, white space.
const ENVELOPE: usize = 64 * 1024;
/// The broker's usual `max_payload`: what passes there is judged by the same rules here.
pub(super) const LIKE_RPC: usize = 1 << 20;

pub const LIST: Parameters = &[
    ("status", Kind::List),
    ("type", Kind::Text),
    ("tag", Kind::Text),
    ("limit", Kind::Number),
    ("offset", Kind::Number),
    ("cursor", Kind::Text),
    ("include", Kind::List),
];
const WAIT: Parameters = &[("wait", Kind::Number)];
const CANCEL: Parameters = &[("reason", Kind::Text)];
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub fn routes() -> Router<Arc<Door>> {
    Router::new()
        .route("/jobs", post(enqueue).get(list))
        .route("/jobs/batch", post(enqueue_many))
        // An empty id is a bad id.
        .route("/jobs/", get(no_id).delete(no_id))
        .route("/jobs/{id}", get(show).delete(cancel))
        .route("/jobs/{id}/retry", post(retry))
        .route("/jobs/{id}/finish", post(finish))
}

async fn enqueue(State(door): State<Arc<Door>>, RawQuery(q): RawQuery, headers: HeaderMap, body: Body) -> Answer {
    query::none(q.as_deref())?;
    let limit = LIKE_RPC.max(door.payload_limit + ENVELOPE);
    let body = door.bodies.read(&headers, body, limit).await?;
    let options = EnqueueOptions { idempotency_key: idempotency_key(&headers)?, ..traced(&headers) };
    let reply = door.ops.enqueue(None, &body.bytes, options).await?;
    let status = if reply.duplicate { StatusCode::OK } else { StatusCode::CREATED };
    let mut response = json(status, &reply)?;
    if let Ok(location) = HeaderValue::from_str(&format!("/jobs/{}", reply.job_id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

async fn enqueue_many(State(door): State<Arc<Door>>, RawQuery(q): RawQuery, headers: HeaderMap, body: Body) -> Answer {
    query::none(q.as_deref())?;
    if headers.contains_key(IDEMPOTENCY_KEY) {
        let detail = "the header Idempotency-Key is for single jobs; give each job its own idempotencyKey";
        return Err(ApiError::new(Code::InvalidRequest, detail).into());
    }
    let body = door.bodies.read(&headers, body, MAX_BULK_BYTES).await?;
    json(StatusCode::OK, &door.ops.enqueue_many(None, &body.bytes, traced(&headers)).await?)
}

/// The trace that the caller is in.
fn traced(headers: &HeaderMap) -> EnqueueOptions<'_> {
    let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    EnqueueOptions { traceparent, ..EnqueueOptions::default() }
}

async fn list(State(door): State<Arc<Door>>, RawQuery(q): RawQuery) -> Answer {
    let request: ListRequest = query::decode(query::object(q.as_deref(), LIST)?)?;
    json(StatusCode::OK, &door.ops.list_jobs(None, request).await?)
}

async fn show(State(door): State<Arc<Door>>, Segment(id): Segment, RawQuery(q): RawQuery) -> Answer {
    let id = input::parse_id(&id)?;
    let Some(patience) = wait(q.as_deref())? else {
        return json(StatusCode::OK, &door.ops.job(None, id).await?);
    };
    let request = WaitRequest { job_id: IdText(id), timeout_ms: Some(patience) };
    json(StatusCode::OK, &door.ops.wait_job(None, request).await.map_err(of_wait)?)
}

async fn retry(
    State(door): State<Arc<Door>>,
    Segment(id): Segment,
    RawQuery(q): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    query::none(q.as_deref())?;
    let id = input::parse_id(&id)?;
    door.no_body(&headers, body).await?;
    json(StatusCode::OK, &door.ops.retry_job(None, id.into()).await?)
}

async fn finish(
    State(door): State<Arc<Door>>,
    Segment(id): Segment,
    RawQuery(q): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    query::none(q.as_deref())?;
    let id = input::parse_id(&id)?;
    let body = door.bodies.read(&headers, body, LIKE_RPC).await?;
    let request: FinishRequest = input::parse_of_run_with(&body.bytes, "jobId", Value::String(id.to_string()))?;
    json(StatusCode::OK, &door.ops.finish(None, request).await?)
}

async fn cancel(
    State(door): State<Arc<Door>>,
    Segment(id): Segment,
    RawQuery(q): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let id = input::parse_id(&id)?;
    let mut object = query::object(q.as_deref(), CANCEL)?;
    object.insert("jobId".to_owned(), Value::String(id.to_string()));
    let request: CancelRequest = query::decode(object)?;
    door.no_body(&headers, body).await?;
    json(StatusCode::OK, &door.ops.cancel_job(None, request).await?)
}

async fn no_id() -> Answer {
    input::parse_id("")?;
    Err(ApiError::new(Code::NotFound, "give the id of a job").into())
}

/// The header's text, if it was sent.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let refuse = |what: &str| ApiError::fault(Code::InvalidRequest, "/idempotencyKey", what);
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            std::str::from_utf8(value.as_bytes()).map(Some).map_err(|_| refuse("the header is not UTF-8"))
        }
        (Some(_), Some(_)) => Err(refuse("the header stands here twice")),
    }
}

/// `?wait=30s` in milliseconds.
fn wait(query: Option<&str>) -> Result<Option<i64>, ApiError> {
    let Some(value) = query::object(query, WAIT)?.remove("wait") else { return Ok(None) };
    match serde_json::from_value::<Span>(value) {
        Ok(Span(span)) => Ok(Some(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))),
        Err(e) => Err(ApiError::fault(Code::InvalidRequest, "/wait", e.to_string())),
    }
}

/// Names the parameter as the caller knows it, where `ops` speaks of the field behind it.
fn of_wait(error: ApiError) -> ApiError {
    match error.errors.as_slice() {
        [fault] if fault.path == "/timeoutMs" => {
            ApiError::fault(error.code, "/wait", format!("{} in milliseconds", fault.message))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_span_or_a_number_of_seconds() {
        assert_eq!(wait(Some("wait=30s")), Ok(Some(30_000)));
        assert_eq!(wait(Some("wait=2")), Ok(Some(2_000)));
        assert_eq!(wait(Some("wait=250ms")), Ok(Some(250)));
        assert_eq!(wait(None), Ok(None));
        for bad in ["wait=-1", "wait=soon", "wait=", "wait=1s&wait=2s", "wait=%00"] {
            assert_eq!(wait(Some(bad)).unwrap_err().errors[0].path, "/wait", "{bad}");
        }
    }

    #[test]
    fn an_idempotency_key_is_one_utf8_text() {
        let headers = |values: &[&[u8]]| -> HeaderMap {
            values.iter().map(|v| (IDEMPOTENCY_KEY, HeaderValue::from_bytes(v).unwrap())).collect()
        };
        assert_eq!(idempotency_key(&headers(&[])), Ok(None));
        assert_eq!(idempotency_key(&headers(&["schlüssel".as_bytes()])), Ok(Some("schlüssel")));
        assert!(idempotency_key(&headers(&[b"\xff"])).is_err());
        assert!(idempotency_key(&headers(&[b"a", b"a"])).is_err());
    }
}
