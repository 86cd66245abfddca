//! Request bodies: bounded in size and time, and all of them together in memory.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt;
use hyper::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    flow::{Budget, budget::Share},
    ops::{ApiError, Code},
};

/// Longest time for a body, from the end of the head.
const ARRIVAL: Duration = Duration::from_secs(30);
/// Bytes of bodies that may be in memory at once, over all requests.
const IN_MEMORY: usize = 64 << 20;
/// Memory is taken from the budget in steps of this.
const STEP: usize = 64 * 1024;
/// What is read of a refused body, so that the refusal is seen: a connection that is closed with unread bytes is reset.
const LINGER_BYTES: usize = 8 << 20;
const LINGER: Duration = Duration::from_secs(2);

/// Reads bodies. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bodies(Budget);

/// A body and the memory it holds; gives it back on drop.
#[derive(Debug)]
pub struct Held {
    pub bytes: Bytes,
    _shares: Vec<Share>,
}

impl Bodies {
    pub fn new() -> Self {
        Self(Budget::new(IN_MEMORY / STEP, IN_MEMORY))
    }

    /// Reads a body of JSON.
    ///
    /// # Errors
    /// `payload_too_large` before anything is kept, `overloaded`, `invalid_request` for what is not JSON by its headers
    /// or too slow.
    pub async fn read(&self, headers: &HeaderMap, body: Body, limit: usize) -> Result<Held, ApiError> {
        check_type(headers)?;
        let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let mut body = body.into_data_stream();
        if announced.is_some_and(|length| length > limit as u64) {
            // Who waits for "100 Continue" sends nothing before he has seen the refusal.
            if !headers.contains_key(EXPECT) {
                linger(&mut body).await;
            }
            return Err(too_large(limit));
        }
        let deadline = Instant::now() + ARRIVAL;
        let mut bytes = Vec::new();
        let mut shares = Vec::new();
        loop {
            let chunk = match timeout_at(deadline, body.next()).await {
                Ok(None) => return Ok(Held { bytes: bytes.into(), _shares: shares }),
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(_))) => {
                    return Err(ApiError::new(Code::InvalidRequest, "the body is broken, or ended too early"));
                }
                Err(_) => {
                    let detail = format!("the body did not arrive within {} s", ARRIVAL.as_secs());
                    return Err(ApiError::new(Code::InvalidRequest, detail));
                }
            };
            if bytes.len() + chunk.len() > limit {
                drop((bytes, shares));
                linger(&mut body).await;
                return Err(too_large(limit));
            }
            while shares.len() * STEP < bytes.len() + chunk.len() {
                let Some(share) = self.0.try_take(1, STEP) else {
                    return Err(ApiError::overloaded("too many large requests at once"));
                };
                shares.push(share);
            }
            bytes.extend_from_slice(&chunk);
        }
    }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(Code::PayloadTooLarge, format!("the body is too large; the limit is {limit} bytes"))
}

async fn linger(body: &mut BodyDataStream) {
    let mut left = LINGER_BYTES;
    let drain = async {
        while let Some(Ok(chunk)) = body.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}

/// Browsers may send forms and plain text to any site without asking it; JSON they may not.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let refuse = |detail: &str| Err(ApiError::new(Code::InvalidRequest, detail));
    let text = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    let essence = text.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    if essence.is_some_and(|e| e != "application/json" && !(e.starts_with("application/") && e.ends_with("+json"))) {
        return refuse("send JSON, with the header Content-Type: application/json (curl: --json '{…}')");
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|value| value != "identity") {
        return refuse("send the body as it is, without Content-Encoding");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: hyper::header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, hyper::header::HeaderValue::from_static(value))])
    }

    #[test]
    fn json_or_nothing_is_taken_and_what_browsers_send_unasked_is_not() {
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"] {
            assert_eq!(check_type(&headers(CONTENT_TYPE, good)), Ok(()), "{good}");
        }
        assert_eq!(check_type(&HeaderMap::new()), Ok(()));
        for bad in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"] {
            assert_eq!(check_type(&headers(CONTENT_TYPE, bad)).unwrap_err().code, Code::InvalidRequest, "{bad}");
        }
        assert!(check_type(&headers(CONTENT_ENCODING, "gzip")).is_err());
    }

    #[tokio::test]
    async fn the_limit_holds_whether_the_length_is_announced_or_not() {
        let bodies = Bodies::new();
        let whole = bodies.read(&HeaderMap::new(), Body::from("12345"), 5).await.unwrap();
        assert_eq!(whole.bytes, "12345");
        let none = HeaderMap::new();
        for headers in [none, headers(CONTENT_LENGTH, "6")] {
            let refused = bodies.read(&headers, Body::from("123456"), 5).await.unwrap_err();
            assert_eq!(refused.code, Code::PayloadTooLarge);
            assert!(refused.detail.contains("limit is 5 bytes"), "{}", refused.detail);
        }
    }

    #[tokio::test]
    async fn memory_is_bounded_over_all_bodies_and_given_back() {
        let bodies = Bodies::new();
        let none = HeaderMap::new();
        let read = || bodies.read(&none, Body::from(vec![0; IN_MEMORY / 2]), IN_MEMORY);
        let first = read().await.unwrap();
        let second = read().await.unwrap();
        assert_eq!(read().await.unwrap_err().code, Code::Overloaded);
        drop((first, second));
        assert!(read().await.is_ok());
    }
}
