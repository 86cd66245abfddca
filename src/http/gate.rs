//! Who may come in: clear framing, a local Host on loopback binds, no foreign web pages, the token.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Extension, Request, State},
    http::{
        HeaderMap, Method, Uri, Version,
        header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, ORIGIN, TRANSFER_ENCODING},
        uri::Authority,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{guard::Verdict, listen::Peer, refusal::Refusal};
use crate::{
    config,
    ops::{ApiError, Code},
};

/// What probes ask, which have no token.
const OPEN: [&str; 3] = ["/health", "/health/live", "/health/ready"];
/// A wrong token is answered so late, so that guessing on one connection is slow.
const SLOWED: Duration = Duration::from_millis(250);

/// The rules of one door.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Hash of the token, so that comparing takes the same time whatever is presented.
    token: Option<[u8; 32]>,
    /// Only local names are taken as Host: a page anywhere can make a browser reach loopback under the page's own name
    /// (DNS rebinding). With a token there is no need, since the page does not have it.
    local_only: bool,
}

/// The parts of a request that are judged.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    method: &'a Method,
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
}

impl Gate {
    pub fn new(config: &config::Http) -> Self {
        let token = config.token.as_ref().map(|token| Sha256::digest(token.expose_secret()).into());
        Self { local_only: token.is_none() && config.bind.ip().is_loopback(), token }
    }

    fn check(&self, asked: Asked<'_>) -> Result<(), ApiError> {
        let host = host(asked)?;
        if self.local_only && host.as_ref().is_some_and(|host| !is_local(host)) {
            let detail = "this address serves its own machine only, under the names localhost, 127.0.0.1 and [::1]; to \
                use another name set http.token";
            return Err(ApiError::new(Code::Forbidden, detail));
        }
        if !asked.method.is_safe() && is_cross_site(asked.headers, host.as_ref()) {
            let detail =
                "a web page of another site may not do this; ask from a program, or from a page of this service";
            return Err(ApiError::new(Code::Forbidden, detail));
        }
        match &self.token {
            Some(token) if !OPEN.contains(&asked.uri.path()) && !presents(asked.headers, token) => {
                let detail = "send the header Authorization: Bearer <token>, with the token from http.token";
                Err(ApiError::new(Code::Unauthenticated, detail))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Lets a request pass, or answers it.
pub async fn pass(
    State(gate): State<Arc<Gate>>,
    Extension(Peer(peer)): Extension<Peer>,
    Extension(verdict): Extension<Verdict>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(ambiguity) = verdict.ambiguity() {
        let refusal = Refusal::from(ApiError::new(Code::InvalidRequest, ambiguity));
        return last(refusal.into_response());
    }
    let chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let response = judge(&gate, peer, request, next).await;
    if chunked { last(response) } else { response }
}

/// What follows on this connection is not watched, and could be read as another request than it is.
fn last(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn judge(gate: &Gate, peer: SocketAddr, request: Request, next: Next) -> Response {
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    match gate.check(Asked { method, uri, version: request.version(), headers }) {
        Ok(()) => next.run(request).await,
        Err(refused) => {
            if refused.code == Code::Unauthenticated {
                tracing::warn!(%peer, path = uri.path(), "refused a request without the right token");
                tokio::time::sleep(SLOWED).await;
            }
            Refusal::from(refused).into_response()
        }
    }
}

/// The host that a request names; `None` only for HTTP/1.0, which has none.
fn host(asked: Asked<'_>) -> Result<Option<Authority>, ApiError> {
    let refuse = || ApiError::new(Code::InvalidRequest, "a request needs one header Host that names a host");
    let mut named = asked.headers.get_all(HOST).iter();
    let host = match (named.next(), named.next()) {
        (Some(value), None) => {
            Some(value.to_str().ok().and_then(|text| text.parse::<Authority>().ok()).ok_or_else(refuse)?)
        }
        (None, _) if asked.version == Version::HTTP_10 => None,
        (None, _) | (Some(_), Some(_)) => return Err(refuse()),
    };
    // In `GET http://name/path` the name comes before the header (RFC 9112, section 3.2.2); we let them not differ.
    match (asked.uri.authority(), &host) {
        (Some(uri), Some(host)) if uri != host => Err(refuse()),
        (Some(uri), None) => Ok(Some(uri.clone())),
        (Some(_) | None, _) => Ok(host),
    }
}

fn is_local(host: &Authority) -> bool {
    let name = host.host();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// As browsers tell it; programs send neither header. Source: OWASP ASVS 3.5.1, Fetch Metadata.
fn is_cross_site(headers: &HeaderMap, host: Option<&Authority>) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|text| text.split_once("://"));
    match (origin, host) {
        (Some((_, origin)), Some(host)) => !origin.eq_ignore_ascii_case(host.as_str()),
        (_, _) => true,
    }
}

fn presents(headers: &HeaderMap, token: &[u8; 32]) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Some((scheme, presented)) = value.to_str().ok().and_then(|text| text.split_once(' ')) else { return false };
    let presented: [u8; 32] = Sha256::digest(presented.trim()).into();
    scheme.eq_ignore_ascii_case("bearer") && bool::from(presented.ct_eq(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(bind: &str, token: Option<&str>) -> Gate {
        let token = token.map(|token| token.to_owned().into());
        Gate::new(&config::Http { bind: bind.parse().unwrap(), token, ..config::Http::default() })
    }

    fn ask(gate: &Gate, method: Method, uri: &str, headers: &[(&str, &str)]) -> Result<(), Code> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect();
        let uri = uri.parse().unwrap();
        gate.check(Asked { method: &method, uri: &uri, version: Version::HTTP_11, headers: &headers })
            .map_err(|e| e.code)
    }

    #[test]
    fn on_loopback_only_local_names_are_served() {
        let local = gate("127.0.0.1:8080", None);
        let get = |host: &str| ask(&local, Method::GET, "/", &[("host", host)]);
        for good in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.9.9.9", "[::1]:8080", "[::ffff:127.0.0.1]"] {
            assert_eq!(get(good), Ok(()), "{good}");
        }
        for bad in ["example.org", "127.0.0.1.example.org", "localhost.example.org", "10.0.0.1", "0.0.0.0", "[::]"] {
            assert_eq!(get(bad), Err(Code::Forbidden), "{bad}");
        }
        for broken in ["", "a b", "http://localhost", "localhost/../x"] {
            assert_eq!(get(broken), Err(Code::InvalidRequest), "{broken:?}");
        }
        assert_eq!(ask(&local, Method::GET, "/", &[]), Err(Code::InvalidRequest));
        let twice = [("host", "localhost"), ("host", "example.org")];
        assert_eq!(ask(&local, Method::GET, "/", &twice), Err(Code::InvalidRequest));
        let absolute = "http://example.org/";
        assert_eq!(ask(&local, Method::GET, absolute, &[("host", "localhost")]), Err(Code::InvalidRequest));
        assert_eq!(ask(&local, Method::GET, absolute, &[("host", "example.org")]), Err(Code::Forbidden));
    }

    #[test]
    fn elsewhere_and_with_a_token_any_name_is_served() {
        let named = [("host", "queue.example.org"), ("authorization", "Bearer t")];
        for gate in [gate("0.0.0.0:8080", None), gate("127.0.0.1:8080", Some("t"))] {
            assert_eq!(ask(&gate, Method::GET, "/", &named), Ok(()));
        }
    }

    #[test]
    fn pages_of_other_sites_can_change_nothing() {
        let open = gate("0.0.0.0:8080", None);
        let post =
            |name: &str, value: &str| ask(&open, Method::POST, "/jobs", &[("host", "q.example:8080"), (name, value)]);
        for (name, value) in [
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-site", "none"),
            ("origin", "http://q.example:8080"),
            ("origin", "https://Q.example:8080"),
            ("accept", "*/*"),
        ] {
            assert_eq!(post(name, value), Ok(()), "{name}: {value}");
        }
        for (name, value) in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", ""),
            ("origin", "null"),
            ("origin", "http://q.example"),
            ("origin", "http://q.example:8080.evil.example"),
            ("origin", "http://evil.example"),
        ] {
            assert_eq!(post(name, value), Err(Code::Forbidden), "{name}: {value}");
        }
        let headers = [("host", "q.example"), ("sec-fetch-site", "cross-site")];
        assert_eq!(ask(&open, Method::GET, "/docs", &headers), Ok(()), "a link from elsewhere may lead here");
        assert_eq!(ask(&open, Method::DELETE, "/jobs/x", &headers), Err(Code::Forbidden));
    }

    #[test]
    fn the_token_opens_everything_and_probes_need_none() {
        let closed = gate("0.0.0.0:8080", Some("s3cret"));
        let get = |path: &str, given: &str| ask(&closed, Method::GET, path, &[("host", "q"), ("authorization", given)]);
        for good in ["Bearer s3cret", "bearer  s3cret"] {
            assert_eq!(get("/stats", good), Ok(()), "{good}");
        }
        for bad in ["Bearer s3cre", "Bearer s3cret2", "Bearer", "Bearer ", "Basic s3cret", "s3cret", ""] {
            assert_eq!(get("/stats", bad), Err(Code::Unauthenticated), "{bad:?}");
        }
        for path in OPEN {
            assert_eq!(ask(&closed, Method::GET, path, &[("host", "q")]), Ok(()));
        }
        for path in ["/", "/health/", "/healthx", "/metrics", "/openapi.json"] {
            assert_eq!(ask(&closed, Method::GET, path, &[("host", "q")]), Err(Code::Unauthenticated), "{path}");
        }
        let twice = [("host", "q"), ("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")];
        assert_eq!(ask(&closed, Method::GET, "/", &twice), Err(Code::Unauthenticated));
        assert!(!format!("{closed:?}").contains("s3cret"));
    }
}
