//! All routes under one roof, and what holds for each of them: the gate, headers, panics, unknown paths.

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    extract::Request,
    http::{
        HeaderName, HeaderValue, Method, Uri,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use super::{
    Door, docs,
    gate::{self, Gate},
    home, html, jobs, openapi,
    refusal::{Answer, Refusal},
    service, work,
};
use crate::ops::{ApiError, Code, error::quoted};

/// For every answer that does not say otherwise.
static HEADERS: [(HeaderName, HeaderValue); 6] = [
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];

pub fn all(door: Arc<Door>, gate: Gate, extra: Router) -> Router {
    let own = Router::new()
        .merge(jobs::routes())
        .merge(service::routes())
        .merge(work::routes())
        .route("/", get(home::page))
        .route("/docs", get(docs::page))
        .route("/problems/{name}", get(docs::problem))
        .route("/openapi.json", get(openapi::document))
        .route("/style.css", get(html::style))
        .with_state(door);
    // All in one: each layer by itself would put every route, and every request to it, into another box.
    let around = ServiceBuilder::new()
        .map_response(with_headers)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(Arc::new(gate), gate::pass))
        .layer(middleware::from_fn(note));
    own.merge(extra).fallback(unknown).method_not_allowed_fallback(not_allowed).layer(around)
}

fn with_headers<B>(mut response: axum::http::Response<B>) -> axum::http::Response<B> {
    for (name, value) in &HEADERS {
        response.headers_mut().entry(name).or_insert_with(|| value.clone());
    }
    response
}

async fn unknown(uri: Uri) -> Answer {
    let detail = format!("there is nothing at {}; /docs lists what there is", quoted(uri.path()));
    Err(ApiError::new(Code::NotFound, detail).into())
}

async fn not_allowed(method: Method) -> Answer {
    let detail = format!("{:.40} can't be used here; the header Allow says what can", method.as_str());
    Err(ApiError::new(Code::MethodNotAllowed, detail).into())
}

/// One line per request for those who look for it; no query, since secrets may stand there.
async fn note(request: Request, next: Next) -> Response {
    let began = std::time::Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let (status, duration_ms) = (response.status().as_u16(), began.elapsed().as_millis() as u64);
    tracing::debug!(%method, path, status, duration_ms, "answered a request");
    response
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let error = std::io::Error::other(format!("a handler of HTTP panicked: {}", text.unwrap_or("no message")));
    Refusal::from(ApiError::internal(&error)).into_response()
}
