//! From refusals to responses: `application/problem+json` (RFC 9457).

use axum::response::{IntoResponse, Response};
use hyper::{
    HeaderMap, StatusCode,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Serialize;

use crate::ops::{ApiError, Code, error::Problem};

/// A refusal on its way out of a handler.
#[derive(Debug)]
pub struct Refusal(pub Box<ApiError>);

/// What handlers return.
pub type Answer = Result<Response, Refusal>;

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(Box::new(error))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = self.0.problem();
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))]);
        if let Some(seconds) = problem.retry_after_seconds {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if problem.code == Code::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"queue-service\""));
        }
        (status, headers, text_of(&problem)).into_response()
    }
}

fn text_of(problem: &Problem) -> Vec<u8> {
    // A problem is made of texts and numbers: it can always be written.
    serde_json::to_vec(problem).unwrap_or_default()
}

/// An answer of JSON.
///
/// # Errors
/// `internal` when the value can't be written.
pub fn json(status: StatusCode, reply: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(reply).map_err(|e| ApiError::internal(&e))?;
    Ok((status, [(CONTENT_TYPE, "application/json")], body).into_response())
}
