//! The one place where a request to an address from a payload leaves the process.
//!
//! Invariant: no byte is sent to an address that [`Guard`] has not passed. Literal hosts are checked before a request,
//! names by the resolver that is built into the client, and the client connects to the addresses it was given: there is
//! no second lookup that could answer differently. Redirects are never followed by themselves; each hop is a request of
//! its own, through the same gate. No proxy of the environment is used, since it would resolve names again.

use std::{
    error::Error as _,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use reqwest::{
    Client, Method, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{HeaderMap, LOCATION},
};
use url::Url;

use super::guard::{Guard, Refused, shown};
use crate::{config::AllowPrivate, job::Failure};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections to one host that are kept for the next request.
const IDLE_PER_HOST: usize = 4;
/// Most addresses of one name that are looked at; a name with more is refused.
const ADDRESSES_MAX: usize = 64;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the address {0}")]
    Refused(#[from] Refused),
    #[error("the name of {host} could not be resolved: {message}")]
    Dns { host: String, message: String },
    #[error("no connection to {host}: {message}")]
    Connect { host: String, message: String },
    /// Kept apart for its text. It is retried like the others: certificates expire and are renewed within hours, and a
    /// job that was given up cannot know.
    #[error("the TLS certificate of {host} was refused: {message}")]
    Certificate { host: String, message: String },
    #[error("{host} did not answer within {}", crate::job::span::rounded(*.after))]
    Timeout { host: String, after: Duration },
    #[error("the exchange with {host} broke off: {message}")]
    Broken { host: String, message: String },
}

impl Error {
    /// What it means for a job: only a refused address is beyond cure.
    pub fn into_failure(self) -> Failure {
        match self {
            Error::Refused(_) => Failure::permanent(self.to_string()),
            Error::Dns { .. }
            | Error::Connect { .. }
            | Error::Certificate { .. }
            | Error::Timeout { .. }
            | Error::Broken { .. } => Failure::retry(self.to_string()),
        }
    }
}

/// Turns a name into addresses. The system's own unless a test brings another.
pub trait Lookup: Send + Sync + 'static {
    fn lookup(&self, name: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
}

/// The system's resolver.
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, name: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
    }
}

/// What a client can't be built for.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client can't be set up: {0}")]
pub struct SetupError(String);

/// A guarded HTTP client. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    client: Client,
    guard: Arc<Guard>,
}

/// One request.
pub struct Request<'a> {
    pub method: Method,
    pub url: &'a Url,
    pub headers: HeaderMap,
    pub body: Option<Vec<u8>>,
    /// From the connect to the last byte of the answer's body.
    pub timeout: Duration,
}

impl<'a> Request<'a> {
    pub fn get(url: &'a Url, timeout: Duration) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), body: None, timeout }
    }
}

impl Fetcher {
    /// # Errors
    /// A user agent that can't stand in a header.
    pub fn new(user_agent: &str, allow: &AllowPrivate) -> Result<Self, SetupError> {
        Self::with_lookup(user_agent, allow, Arc::new(SystemLookup))
    }

    /// As [`Fetcher::new`], with another way to resolve names.
    ///
    /// # Errors
    /// As [`Fetcher::new`].
    pub fn with_lookup(user_agent: &str, allow: &AllowPrivate, lookup: Arc<dyn Lookup>) -> Result<Self, SetupError> {
        super::install_crypto();
        let guard = Arc::new(Guard::new(allow));
        let builder = || {
            Client::builder()
                .user_agent(user_agent)
                .dns_resolver(GuardedResolver { guard: guard.clone(), lookup: lookup.clone() })
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .no_proxy()
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_max_idle_per_host(IDLE_PER_HOST)
        };
        let client = match builder().build() {
            Ok(client) => client,
            // A container without certificate authorities must still reach plain http; https says so per request.
            Err(first) => {
                let client = builder().tls_certs_only([]).build().map_err(|_| SetupError(deepest(&first)))?;
                tracing::warn!(
                    "no certificate authorities were found; https addresses can't be reached: {}",
                    deepest(&first)
                );
                client
            }
        };
        Ok(Self { client, guard })
    }

    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Sends one request and waits for the head of its answer. Redirects are answers as others are.
    ///
    /// # Errors
    /// See [`Error`]; an answer with any status is none.
    pub async fn send(&self, request: Request<'_>) -> Result<Response, Error> {
        let Request { method, url, headers, body, timeout } = request;
        self.guard.check(url)?;
        let mut builder = self.client.request(method, url.clone()).headers(headers).timeout(timeout);
        if let Some(body) = body {
            builder = builder.body(body);
        }
        let answer = builder.send().await.map_err(|e| explain(&e, url, timeout))?;
        // The client may have changed nothing but the fragment; the caller's URL is the one that was checked.
        Ok(Response { answer, url: url.clone(), timeout })
    }
}

/// The head of an answer.
pub struct Response {
    answer: reqwest::Response,
    url: Url,
    timeout: Duration,
}

/// As much of a body as was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Body {
    pub bytes: Vec<u8>,
    /// There was more.
    pub cut: bool,
}

impl Response {
    pub fn status(&self) -> StatusCode {
        self.answer.status()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.answer.headers()
    }

    /// Where the answer sends the asker, not yet checked. `None`: it is no redirect, or has no readable target.
    pub fn redirect(&self) -> Option<Url> {
        if !matches!(self.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return None;
        }
        let target = self.headers().get(LOCATION)?;
        let mut next = self.url.join(std::str::from_utf8(target.as_bytes()).ok()?).ok()?;
        next.set_fragment(None);
        Some(next)
    }

    /// Reads the body up to `max` bytes, counted after decompression, and leaves the rest unread.
    ///
    /// # Errors
    /// The connection broke or the time was over.
    pub async fn body(mut self, max: usize) -> Result<Body, Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.answer.chunk().await.map_err(|e| explain(&e, &self.url, self.timeout))? {
            let room = max - bytes.len();
            if chunk.len() > room {
                bytes.extend_from_slice(&chunk[..room]);
                return Ok(Body { bytes, cut: true });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Body { bytes, cut: false })
    }
}

struct GuardedResolver {
    guard: Arc<Guard>,
    lookup: Arc<dyn Lookup>,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.guard.clone();
        let answer = self.lookup.lookup(name.as_str().to_owned());
        Box::pin(async move {
            let addresses = answer.await.map_err(LookupFailed)?;
            if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
                let message = format!("the name has {} addresses", addresses.len());
                return Err(LookupFailed(io::Error::other(message)).into());
            }
            // One private answer among public ones is what an attack on the check looks like: all must pass.
            for address in &addresses {
                guard.check_ip(*address)?;
            }
            Ok(Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

/// Marks an error of the lookup, so that it is found again among the client's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct LookupFailed(io::Error);

fn explain(error: &reqwest::Error, url: &Url, timeout: Duration) -> Error {
    let host = shown(url);
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return Error::Refused(refused.clone());
        }
        if let Some(LookupFailed(e)) = inner.downcast_ref::<LookupFailed>() {
            return Error::Dns { host, message: e.to_string() };
        }
        if let Some(rustls::Error::InvalidCertificate(e)) = tls_error(inner) {
            return Error::Certificate { host, message: e.to_string() };
        }
        cause = inner.source();
    }
    let message = deepest(error);
    if error.is_timeout() {
        let after = if error.is_connect() { timeout.min(CONNECT_TIMEOUT) } else { timeout };
        Error::Timeout { host, after }
    } else if error.is_connect() {
        Error::Connect { host, message }
    } else {
        Error::Broken { host, message }
    }
}

/// TLS errors travel inside one or two `io::Error`s, whose `source()` skips what they hold.
fn tls_error<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    while let Some(held) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        error = held;
    }
    error.downcast_ref()
}

/// The innermost cause: the outer ones repeat the URL, which may hold secrets, and say little.
fn deepest(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    if text.is_empty() { "the client gave up".to_owned() } else { text }
}

#[cfg(test)]
mod tests;
