//! `webhook-delivery`: one HTTP request to somebody else's server, signed when a secret is set.
//!
//! The body of a refusal is not repeated in the error: servers echo what they were sent, and errors are shown to people
//! who may not see payloads.

mod headers;

use std::{collections::BTreeMap, time::Duration};

use chrono::Utc;
use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use schemars::JsonSchema;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;
use url::Url;

use super::{
    Faults, Handler, RunContext,
    clients::{
        answer_by,
        fetch::{Fetcher, Request, Response},
        guard::shown,
        retry_after::retry_after,
        sign::Signer,
    },
};
use crate::{config::Webhook, job::Failure};

/// What is kept of an answer. Source: wire contract.
const ANSWER_MAX: usize = 4096;
/// Redirects that are followed.
const HOPS_MAX: usize = 5;
/// Kept of the run's time to say what went wrong.
const RESERVE: Duration = Duration::from_millis(250);
const USER_AGENT: &str = concat!("queue-service/", env!("CARGO_PKG_VERSION"));

/// Delivers webhooks.
pub struct WebhookDelivery {
    fetcher: Fetcher,
    signer: Option<Signer>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "WebhookDeliveryPayload")]
pub struct Payload {
    /// An http or https address on the public internet, or in a network that the operator allows.
    url: String,
    #[serde(default)]
    method: Verb,
    /// Sent as JSON; a text is sent as it stands (`text/plain` unless `headers` say otherwise).
    #[serde(default)]
    body: Option<Box<RawValue>>,
    /// Further headers, up to 50. Those of the connection and `webhook-*` are the service's own.
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Verb {
    #[default]
    Post,
    Put,
    Patch,
    Delete,
    Get,
}

impl Verb {
    fn method(self) -> Method {
        match self {
            Verb::Post => Method::POST,
            Verb::Put => Method::PUT,
            Verb::Patch => Method::PATCH,
            Verb::Delete => Method::DELETE,
            Verb::Get => Method::GET,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    status: u16,
    duration_ms: u64,
    /// The first 4 KiB of the answer, as text.
    body: String,
}

impl WebhookDelivery {
    /// # Errors
    /// `webhook.secret` can't be used.
    pub fn new(config: &Webhook) -> Result<Self, String> {
        let signer = match &config.secret {
            Some(secret) => Some(Signer::new(secret.expose_secret()).map_err(|e| format!("webhook.secret {e}"))?),
            None => None,
        };
        let fetcher = Fetcher::new(USER_AGENT, &config.allow_private).map_err(|e| e.to_string())?;
        Ok(Self { fetcher, signer })
    }

    /// The headers of one request. A signature is made for each anew, since receivers refuse old timestamps.
    fn headers(&self, ctx: &RunContext, mut headers: HeaderMap, body: &[u8]) -> HeaderMap {
        let id = ctx.job_id.to_string();
        let timestamp = Utc::now().timestamp();
        let mut set = |name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        };
        if let Some(signer) = &self.signer {
            set("webhook-signature", signer.sign(&id, timestamp, body));
        }
        set("webhook-timestamp", timestamp.to_string());
        set("webhook-id", id);
        headers
    }

    async fn deliver(&self, ctx: &RunContext, payload: Payload) -> Result<Output, Failure> {
        let permanent = |fault: String| Failure::permanent(fault);
        let mut url = self.fetcher.guard().parse(&payload.url).map_err(|e| permanent(format!("the URL {e}")))?;
        let mut headers =
            headers::read(&payload.headers).map_err(|(name, e)| permanent(format!("header {name} {e}")))?;
        let body = body(payload.body.as_deref(), &mut headers);
        let method = payload.method.method();
        let (started, deadline) = (Instant::now(), answer_by(ctx, RESERVE));
        for _ in 0..=HOPS_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            let headers_now = self.headers(ctx, headers.clone(), body.as_deref().unwrap_or_default());
            let request =
                Request { method: method.clone(), url: &url, headers: headers_now, body: body.clone(), timeout: left };
            let response = self.fetcher.send(request).await.map_err(|e| e.into_failure())?;
            let Some(next) = response.redirect() else { return conclude(response, &url, started).await };
            follow(&response, payload.method, &url, &next)?;
            if next.origin() != url.origin() {
                headers = headers::for_strangers(&headers);
            }
            url = next;
        }
        Err(Failure::retry(format!("more than {HOPS_MAX} redirects, the last one to {}", shown(&url))))
    }
}

impl Handler for WebhookDelivery {
    const TYPE: &'static str = "webhook-delivery";
    const ABOUT: &'static str = "Sends one HTTP request, signed by Standard Webhooks when a secret is set.";
    type Payload = Payload;
    type Output = Output;

    fn check(&self, payload: &Payload, faults: &mut Faults) {
        if let Err(e) = self.fetcher.guard().parse(&payload.url) {
            faults.add("/url", e.to_string());
        }
        headers::check(&payload.headers, faults);
        if payload.method == Verb::Get && payload.body.is_some() {
            faults.add("/body", "a GET request has no body; leave it out or choose another method");
        }
    }

    async fn run(&self, ctx: &RunContext, payload: Payload) -> Result<Output, Failure> {
        tokio::select! {
            result = self.deliver(ctx, payload) => result,
            () = ctx.cancelled() => Err(Failure::retry("stopped before the receiver answered")),
        }
    }
}

/// The bytes to send, and the header that says what they are.
fn body(body: Option<&RawValue>, headers: &mut HeaderMap) -> Option<Vec<u8>> {
    let json = body?.get();
    let (bytes, content_type) = match serde_json::from_str::<String>(json) {
        Ok(text) => (text.into_bytes(), "text/plain; charset=utf-8"),
        Err(_) => (json.as_bytes().to_vec(), "application/json"),
    };
    headers.entry(reqwest::header::CONTENT_TYPE).or_insert(HeaderValue::from_static(content_type));
    Some(bytes)
}

/// May the delivery go where the answer points? 307 and 308 repeat a request as it was. After 301, 302 and 303 a client
/// asks with GET and without the body, which would deliver nothing: only a GET follows those.
fn follow(response: &Response, verb: Verb, from: &Url, to: &Url) -> Result<(), Failure> {
    let status = response.status();
    let refuse = |why: &str| {
        let message = format!("{} answered {status} with a redirect to {}, {why}", shown(from), shown(to));
        Err(Failure::retry(message).after(retry_after(response.headers(), Utc::now())))
    };
    if verb != Verb::Get && !matches!(status.as_u16(), 307 | 308) {
        return refuse("which would drop the body; deliver to the new address instead");
    }
    if from.scheme() == "https" && to.scheme() != "https" {
        return refuse("which is not encrypted");
    }
    Ok(())
}

async fn conclude(response: Response, url: &Url, started: Instant) -> Result<Output, Failure> {
    let status = response.status();
    if status.is_success() {
        // The receiver has taken the delivery; an answer that breaks off is no reason to send it again.
        let body = response.body(ANSWER_MAX).await.map(|body| body.bytes).unwrap_or_default();
        return Ok(Output {
            status: status.as_u16(),
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            body: text(body),
        });
    }
    let message = format!("{} answered {status}", shown(url));
    let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    if status.is_client_error() && !passing.contains(&status) {
        return Err(Failure::permanent(message));
    }
    Err(Failure::retry(message).after(retry_after(response.headers(), Utc::now())))
}

/// Bytes as text; a character that the cap cut in two is left out.
fn text(mut bytes: Vec<u8>) -> String {
    if let Err(e) = std::str::from_utf8(&bytes)
        && e.error_len().is_none()
    {
        bytes.truncate(e.valid_up_to());
    }
    String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests;
