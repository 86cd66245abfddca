//! The HTTP door as a program elsewhere sees it, and one request asked at both doors.

use std::sync::LazyLock;

use reqwest::{Client, Method, StatusCode, header::HeaderMap};
use serde_json::Value;

use crate::harness::Running;

static CLIENT: LazyLock<Client> =
    LazyLock::new(|| Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap());

/// What HTTP answered.
#[derive(Debug)]
pub struct WebAnswer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl WebAnswer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("no JSON ({e}): {:.300}", self.text))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The code of a refusal; `None` for success.
    pub fn code(&self) -> Option<String> {
        let refused = self.header("content-type") == Some("application/problem+json");
        assert_eq!(refused, self.status >= 400, "{self:?}");
        refused.then(|| self.json()["code"].as_str().unwrap().to_owned())
    }
}

impl Running {
    pub async fn web(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> WebAnswer {
        let mut request = CLIENT.request(method.parse::<Method>().unwrap(), self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.into();
        if !body.is_empty() {
            request = request.body(body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        WebAnswer { status, headers, text: response.text().await.unwrap() }
    }

    pub async fn get(&self, path: &str) -> WebAnswer {
        self.web("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> WebAnswer {
        self.web("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// Asks HTTP for what an RPC request asks for; `None` when no URL can say it.
    pub async fn web_verb(&self, verb: &str, body: &[u8]) -> Option<WebAnswer> {
        let json = [("content-type", "application/json")];
        let (method, path) = match verb {
            "enqueue" => return Some(self.web("POST", "/jobs", &json, body).await),
            "enqueueMany" => return Some(self.web("POST", "/jobs/batch", &json, body).await),
            "listJobs" => ("GET", format!("/jobs?{}", query(&serde_json::from_slice(body).ok()?)?)),
            _ => {
                let request: Value = serde_json::from_slice(body).ok()?;
                let id = || request["jobId"].as_str().map(escape);
                match verb {
                    "getJob" => ("GET", format!("/jobs/{}", id()?)),
                    "retryJob" => ("POST", format!("/jobs/{}/retry", id()?)),
                    "cancelJob" => {
                        let reason = request["reason"].as_str().map(|reason| format!("?reason={}", escape(reason)));
                        ("DELETE", format!("/jobs/{}{}", id()?, reason.unwrap_or_default()))
                    }
                    "pauseType" => ("POST", format!("/types/{}/pause", escape(request["type"].as_str()?))),
                    "getSchema" => ("GET", format!("/schemas/{}", escape(request["verb"].as_str()?))),
                    _ => return None,
                }
            }
        };
        // A request line has its own limit.
        match path.len() {
            ..16_000 => Some(self.web(method, &path, &[], "").await),
            _ => None,
        }
    }
}

/// An object as a query string; `None` for what a query has no words for: other names, and types where all is text.
fn query(request: &Value) -> Option<String> {
    let mut pairs = Vec::new();
    for (name, value) in request.as_object()? {
        let texts = match (name.as_str(), value) {
            ("limit" | "offset", Value::Number(n)) => vec![n.as_i64()?.to_string()],
            ("status" | "include", Value::Array(list)) => list.iter().map(text).collect::<Option<_>>()?,
            ("status" | "include" | "type" | "tag" | "cursor" | "limit" | "offset", value) => vec![text(value)?],
            _ => return None,
        };
        pairs.extend(texts.iter().map(|text| format!("{name}={}", escape(text))));
    }
    Some(pairs.join("&"))
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b == b'-' { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// The reason phrase is part of no promise, but the number is.
pub fn ok(status: u16) -> bool {
    StatusCode::from_u16(status).is_ok_and(|status| status.is_success())
}
