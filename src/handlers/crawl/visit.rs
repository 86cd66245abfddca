//! Getting one page: through the guard, robots.txt and the turns of its host, at every hop.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::Utc;
use reqwest::{
    StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::Url;

use super::{
    politeness::Hosts,
    robots::{self, Rules},
    site::Site,
};
use crate::{
    handlers::clients::{
        fetch::{self, Fetcher, Request, Response},
        guard::{Refused, shown},
        retry_after::retry_after,
    },
    job::Failure,
};

/// Largest page that is read, in bytes after decompression.
const PAGE_MAX: usize = 5 * 1024 * 1024;
/// Longest wait for one answer.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Redirects that are followed.
const HOPS_MAX: usize = 5;
/// How far into a page its declared encoding is looked for. Source: HTML standard.
const PRESCAN: usize = 1024;

/// Why an address gave no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Robots,
    RobotsUnavailable,
    PrivateAddress,
    OffSite,
    TooManyRedirects,
    Status,
    NotHtml,
    TooLarge,
    Timeout,
    Unreachable,
    Duplicate,
    Unreadable,
}

/// An address that gave no page.
#[derive(Debug)]
pub struct Skip {
    pub reason: Reason,
    pub detail: String,
    /// What it means for the job when it is the start page; `None`: no failure.
    pub failure: Option<Failure>,
}

#[derive(Debug)]
pub enum Miss {
    Skip(Box<Skip>),
    /// The time of the crawl is over.
    OutOfTime,
}

/// A page as text, from the address where it was found in the end.
#[derive(Debug)]
pub struct Fetched {
    pub url: Url,
    pub status: u16,
    pub html: String,
}

/// Visits the pages of one site.
pub struct Visitor<'a> {
    pub fetcher: &'a Fetcher,
    pub hosts: &'a Hosts,
    /// The name to look for in robots.txt.
    pub agent: &'a str,
    pub site: Site,
    pub deadline: Instant,
    robots: HashMap<String, Robots>,
}

#[derive(Clone)]
enum Robots {
    Known(Arc<Rules>),
    /// The server could not say; the RFC wants that to be taken for a no.
    Unknown(String),
}

impl<'a> Visitor<'a> {
    pub fn new(fetcher: &'a Fetcher, hosts: &'a Hosts, agent: &'a str, site: Site, deadline: Instant) -> Self {
        Self { fetcher, hosts, agent, site, deadline, robots: HashMap::new() }
    }

    /// # Errors
    /// There is no page there, or no time.
    pub async fn visit(&mut self, start: &Url) -> Result<Fetched, Miss> {
        let mut url = start.clone();
        for _ in 0..=HOPS_MAX {
            if !self.site.holds(&url) {
                let detail = format!("redirects to another site, {}", shown(&url));
                return Err(skip(
                    Reason::OffSite,
                    &detail,
                    Some(Failure::permanent(format!("the start page {detail}"))),
                ));
            }
            self.fetcher.guard().check(&url).map_err(|e| unanswered(e.into()))?;
            let rules = self.rules(&url).await?;
            if !rules.allow(&url) {
                let failure = Failure::permanent("robots.txt of the site forbids the start page");
                return Err(skip(Reason::Robots, "forbidden by robots.txt", Some(failure)));
            }
            let (response, _turn) = self.ask(&url, rules.delay()).await?;
            match response.redirect() {
                Some(next) => url = next,
                None => return self.page(url, response).await,
            }
        }
        let detail = format!("more than {HOPS_MAX} redirects");
        Err(skip(Reason::TooManyRedirects, &detail, Some(Failure::retry(format!("the start page has {detail}")))))
    }

    async fn page(&self, url: Url, response: Response) -> Result<Fetched, Miss> {
        let status = response.status();
        if !status.is_success() {
            return Err(refusal(status, response.headers()));
        }
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
        if !matches!(media_type.as_str(), "" | "text/html" | "application/xhtml+xml") {
            let detail: String = media_type.chars().take(80).collect();
            return Err(skip(Reason::NotHtml, &detail, None));
        }
        let body = match response.body(PAGE_MAX).await {
            Ok(body) if body.cut => {
                return Err(skip(Reason::TooLarge, &format!("more than {PAGE_MAX} bytes"), None));
            }
            Ok(body) => body.bytes,
            Err(e) => return Err(self.unanswered(e)),
        };
        if media_type.is_empty() && body.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'<') {
            return Err(skip(Reason::NotHtml, "no content type", None));
        }
        Ok(Fetched { url, status: status.as_u16(), html: decode(&body, &content_type) })
    }

    /// One request in its turn. The turn lasts as long as the answer is read.
    async fn ask(&self, url: &Url, delay: Duration) -> Result<(Response, super::politeness::Turn), Miss> {
        let host = url.host_str().unwrap_or_default();
        let turn = self.hosts.turn(host, delay, self.deadline).await.ok_or(Miss::OutOfTime)?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let mut request = Request::get(url, left.min(PAGE_TIMEOUT));
        request.headers.insert(ACCEPT, HeaderValue::from_static("text/html, application/xhtml+xml, */*;q=0.1"));
        let response = self.fetcher.send(request).await.map_err(|e| self.unanswered(e))?;
        Ok((response, turn))
    }

    fn unanswered(&self, error: fetch::Error) -> Miss {
        if Instant::now() >= self.deadline { Miss::OutOfTime } else { unanswered(error) }
    }

    /// The rules for `url`, asked for once per crawl and origin.
    async fn rules(&mut self, url: &Url) -> Result<Arc<Rules>, Miss> {
        let origin = url.origin().ascii_serialization();
        let robots = match self.robots.get(&origin) {
            Some(robots) => robots.clone(),
            None => {
                let robots = self.read_robots(url).await?;
                self.robots.insert(origin, robots.clone());
                robots
            }
        };
        match robots {
            Robots::Known(rules) => Ok(rules),
            Robots::Unknown(why) => {
                let detail = format!("robots.txt could not be read: {why}");
                Err(skip(Reason::RobotsUnavailable, &detail, Some(Failure::retry(detail.clone()))))
            }
        }
    }

    /// Source: RFC 9309, 2.3.1: 4xx is "no rules", 5xx and silence are "no". It may be redirected to another host.
    async fn read_robots(&self, url: &Url) -> Result<Robots, Miss> {
        let free = Ok(Robots::Known(Arc::default()));
        let Ok(mut url) = url.join("/robots.txt") else { return free };
        for _ in 0..=HOPS_MAX {
            let (response, _turn) = match self.ask(&url, Duration::ZERO).await {
                Ok(answer) => answer,
                Err(Miss::Skip(skip)) => return Ok(Robots::Unknown(skip.detail)),
                Err(Miss::OutOfTime) => return Err(Miss::OutOfTime),
            };
            if let Some(next) = response.redirect() {
                url = next;
                continue;
            }
            let status = response.status();
            // 429 is a 4xx that says nothing about the rules.
            if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
                return Ok(Robots::Unknown(format!("{} answered {status}", shown(&url))));
            }
            if !status.is_success() {
                return free;
            }
            return Ok(match response.body(robots::BODY_MAX).await {
                Ok(body) => Robots::Known(Arc::new(Rules::read(&String::from_utf8_lossy(&body.bytes), self.agent))),
                Err(e) => match self.unanswered(e) {
                    Miss::OutOfTime => return Err(Miss::OutOfTime),
                    Miss::Skip(skip) => Robots::Unknown(skip.detail),
                },
            });
        }
        free
    }
}

fn skip(reason: Reason, detail: &str, failure: Option<Failure>) -> Miss {
    Miss::Skip(Box::new(Skip { reason, detail: detail.to_owned(), failure }))
}

fn unanswered(error: fetch::Error) -> Miss {
    let reason = match &error {
        fetch::Error::Refused(Refused::Private(_)) => Reason::PrivateAddress,
        fetch::Error::Timeout { .. } => Reason::Timeout,
        fetch::Error::Refused(_)
        | fetch::Error::Dns { .. }
        | fetch::Error::Connect { .. }
        | fetch::Error::Certificate { .. }
        | fetch::Error::Broken { .. } => Reason::Unreachable,
    };
    let detail = error.to_string();
    skip(reason, &detail, Some(error.into_failure()))
}

fn refusal(status: StatusCode, headers: &HeaderMap) -> Miss {
    let message = format!("the start page answered {status}");
    let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    let failure = if status.is_client_error() && !passing.contains(&status) {
        Failure::permanent(message)
    } else {
        Failure::retry(message).after(retry_after(headers, Utc::now()))
    };
    skip(Reason::Status, &status.to_string(), Some(failure))
}

/// Bytes to text: by byte order mark, by header, by what the page says, by a look at it.
fn decode(bytes: &[u8], content_type: &str) -> String {
    let named = |text: &str| encoding_rs::Encoding::for_label(charset(text)?.as_bytes());
    let start = &bytes[..bytes.len().min(PRESCAN)];
    let declared = || named(&String::from_utf8_lossy(start).to_ascii_lowercase());
    // A page that can be read as far as its declaration is not in UTF-16, whatever it declares.
    let declared = || declared().map(encoding_rs::Encoding::output_encoding);
    let guessed = if std::str::from_utf8(bytes).is_ok() { encoding_rs::UTF_8 } else { encoding_rs::WINDOWS_1252 };
    let encoding = named(content_type).or_else(declared).unwrap_or(guessed);
    encoding.decode(bytes).0.into_owned()
}

/// The word after `charset=`.
fn charset(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("charset")?;
    let rest = rest.trim_start().strip_prefix('=')?.trim_start().trim_start_matches(['"', '\'']);
    let end = rest.find(|c: char| c.is_whitespace() || "\"';>/".contains(c)).unwrap_or(rest.len());
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_decoded_by_header_declaration_mark_or_a_look_at_it() {
        for (bytes, content_type, expected) in [
            (b"\xe9".as_slice(), "text/html; charset=iso-8859-1", "é"),
            ("é".as_bytes(), "text/html; charset=\"UTF-8\"", "é"),
            (b"<meta charset='windows-1251'>\xef", "text/html", "<meta charset='windows-1251'>п"),
            (
                b"<meta http-equiv=content-type content=\"text/html; charset=shift_jis\">\x82\xa0",
                "",
                "<meta http-equiv=content-type content=\"text/html; charset=shift_jis\">あ",
            ),
            (b"\xff\xfeh\0i\0", "text/html; charset=utf-8", "hi"),
            (b"<meta charset=utf-16>\xc3\xa9", "text/html", "<meta charset=utf-16>é"),
            ("é".as_bytes(), "text/html", "é"),
            (b"\xe9", "text/html; charset=nonsense", "é"),
            (b"", "", ""),
        ] {
            assert_eq!(decode(bytes, content_type), expected, "{content_type}");
        }
    }
}
