//! One provider: sends a request, reads a bounded answer, judges it.

use std::{
    error::Error as _,
    fmt::Write,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{CONTENT_TYPE, DATE, HeaderValue, LOCATION},
    redirect,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Semaphore;

use super::{Error, SetupError, wire};
use crate::{config, handlers::clients::retry_after::retry_after, job::span::rounded};

/// Longest wait for a connection; an address where nobody is must not take the whole timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of an error's body is read.
const ERROR_BODY_MAX: usize = 64 * 1024;
/// How much of a provider's own words goes into a message, in bytes; the message as a whole ends at 2 KiB.
const WORDS_MAX: usize = 1600;

pub(super) struct Provider {
    pub name: String,
    /// Without a slash at its end.
    base_url: String,
    key: Option<SecretString>,
    http: Client,
    /// Requests that may be under way.
    slots: Semaphore,
    timeout: Duration,
}

impl Provider {
    /// `section` is the part of the configuration to name in errors.
    pub fn new(
        name: &str,
        section: &str,
        base_url: &str,
        key: Option<&SecretString>,
        config: &config::Ai,
    ) -> Result<Self, SetupError> {
        let fault = |key: &str, message: String| SetupError { key: format!("{section}.{key}"), message };
        let url = Url::parse(base_url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.filter(|url| url.has_host() && url.query().is_none() && url.fragment().is_none());
        let url = url.ok_or_else(|| {
            fault(
                "base_url",
                "must be an http or https address without query, such as https://api.openai.com/v1".into(),
            )
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(fault("base_url", "must hold no user and password: put the key into api_key".into()));
        }
        let builder = || {
            // No redirects: the key must go nowhere but to the address that was configured.
            let http = Client::builder().redirect(redirect::Policy::none()).connect_timeout(CONNECT_TIMEOUT);
            // A proxy may be the only way to a provider, but never the way to this machine.
            if is_loopback(&url) { http.no_proxy() } else { http }
        };
        // A machine without certificate authorities must still reach plain http; https says so per request.
        let http = builder().build().or_else(|_| builder().tls_certs_only([]).build());
        let http = http.map_err(|e| fault("base_url", format!("can't be used: {}", chain(&e))))?;
        let key = key.filter(|key| !key.expose_secret().is_empty()).cloned();
        if let Some(key) = &key
            && HeaderValue::from_str(key.expose_secret()).is_err()
        {
            return Err(fault("api_key", "holds characters that no header can carry, a line break perhaps".into()));
        }
        Ok(Self {
            name: name.to_owned(),
            base_url: url.as_str().trim_end_matches('/').to_owned(),
            key,
            http,
            slots: Semaphore::new(config.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            timeout: config.timeout,
        })
    }

    /// Asks once. Waits for a free slot first; the timeout counts from then.
    pub async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
        limit: usize,
    ) -> Result<A, Error> {
        // The semaphore is never closed; the result is kept, as the permit lives in it.
        let _slot = self.slots.acquire().await;
        let mut request = self.http.post(format!("{}/{path}", self.base_url)).json(body).timeout(self.timeout);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose_secret());
        }
        let started = Instant::now();
        let response = request.send().await.map_err(|e| self.no_answer(&e))?;
        tracing::debug!(
            provider = self.name,
            status = response.status().as_u16(),
            duration_ms = started.elapsed().as_millis() as u64,
            "the AI provider {} answered {path}",
            self.name
        );
        if !response.status().is_success() {
            return Err(self.judge(response).await);
        }
        let html = is_html(&response);
        let body = match self.read(response, limit).await? {
            (_, Cut::Yes) => return Err(Error::TooLarge { provider: self.name.clone(), limit }),
            (body, Cut::No) => body,
        };
        serde_json::from_slice(&body).map_err(|e| match html || body.trim_ascii_start().starts_with(b"<") {
            true => Error::Html { provider: self.name.clone() },
            false => self.bad_answer(&e.to_string()),
        })
    }

    /// What an answer other than 2xx means.
    async fn judge(&self, response: Response) -> Error {
        let status = response.status();
        // A date is measured by the answer's own clock, where it shows one: two clocks seldom agree.
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        let now =
            date.and_then(|date| DateTime::parse_from_rfc2822(date).ok()).map_or_else(Utc::now, |now| now.to_utc());
        let retry_after = retry_after(response.headers(), now);
        let message = match response.headers().get(LOCATION).filter(|_| status.is_redirection()) {
            Some(to) => {
                format!("it points to {}; put the final address into base_url", String::from_utf8_lossy(to.as_bytes()))
            }
            None if is_html(&response) => "an HTML page; look whether base_url is right".to_owned(),
            None => match self.read(response, ERROR_BODY_MAX).await {
                Ok((body, _)) => wire::error_sentence(&body).unwrap_or_else(|| plain(&body)),
                Err(_) => "its explanation did not arrive".to_owned(),
            },
        };
        let (provider, message) = (self.name.clone(), self.tidy(&message));
        match status {
            // Too early, too slow, too many: said of this moment, not of the request.
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                Error::Unavailable { provider, status: status.as_u16(), message, retry_after }
            }
            s if s.is_server_error() => Error::Unavailable { provider, status: s.as_u16(), message, retry_after },
            s => Error::Refused { provider, status: s.as_u16(), message },
        }
    }

    /// Reads up to `limit` bytes after decompression.
    async fn read(&self, mut response: Response, limit: usize) -> Result<(Vec<u8>, Cut), Error> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.no_answer(&e))? {
            if body.len() + chunk.len() > limit {
                body.extend_from_slice(&chunk[..limit - body.len()]);
                return Ok((body, Cut::Yes));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((body, Cut::No))
    }

    fn no_answer(&self, error: &reqwest::Error) -> Error {
        let message = match error.is_timeout() && !error.is_connect() {
            true => format!("none within {}", rounded(self.timeout)),
            false => self.tidy(&chain(error)),
        };
        Error::NoAnswer { provider: self.name.clone(), message }
    }

    pub fn bad_answer(&self, message: &str) -> Error {
        Error::BadAnswer { provider: self.name.clone(), message: self.tidy(message) }
    }

    pub fn refusal(&self, message: &str) -> Error {
        Error::Declined { provider: self.name.clone(), message: self.tidy(message) }
    }

    /// Makes a stranger's words fit for a job's error: no key, no control characters, not endless.
    fn tidy(&self, words: &str) -> String {
        // Before the cut, which could leave half a key.
        let words = match &self.key {
            Some(key) => words.replace(key.expose_secret(), "(key)"),
            None => words.to_owned(),
        };
        let mut words = words.replace(is_unsafe, " ").trim().to_owned();
        if words.len() > WORDS_MAX {
            words.truncate(words.floor_char_boundary(WORDS_MAX));
            words.push('…');
        }
        words
    }
}

/// Whether the end of a body was reached.
enum Cut {
    Yes,
    No,
}

/// Characters that would break a line of a log, move a terminal's cursor or turn its direction.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

fn plain(body: &[u8]) -> String {
    match String::from_utf8_lossy(body).trim() {
        "" => "no explanation".to_owned(),
        text => text.to_owned(),
    }
}

fn is_html(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// reqwest says only "error sending request"; the reason is further down.
fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_connect() { "no connection".to_owned() } else { "the exchange broke off".to_owned() };
    let mut source = error.source();
    while let Some(inner) = source {
        source = inner.source();
        // The ends of the chain are the informative ones; the middle repeats them.
        if source.is_none() {
            let _ = write!(text, ": {inner}");
        }
    }
    text
}
