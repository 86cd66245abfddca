//! What is the same: the same site, the same page, the same kind of page. Pure.

use sha2::{Digest, Sha256};
use url::Url;

/// Deepest path that is followed, in segments.
const SEGMENTS_MAX: usize = 16;
/// How often one segment may stand in a path: `/a/b/a/b/a/b` is a link that leads into itself.
const REPEATS_MAX: usize = 3;
/// Most query parameters of an address that is followed.
const PARAMETERS_MAX: usize = 8;
/// Query parameters that name a visit, not a page.
const NOISE: [&str; 11] = [
    "_ga",
    "fbclid",
    "gclid",
    "jsessionid",
    "mc_cid",
    "mc_eid",
    "msclkid",
    "phpsessid",
    "session_id",
    "sessionid",
    "sid",
];
/// Endings of files that are no pages, so that they need not be asked for.
const NOT_PAGES: [&str; 36] = [
    "7z", "avi", "avif", "bmp", "css", "csv", "doc", "docx", "eot", "exe", "gif", "gz", "ico", "iso", "jpeg", "jpg",
    "js", "json", "mov", "mp3", "mp4", "mpeg", "pdf", "png", "ppt", "pptx", "rar", "svg", "tar", "ttf", "webm", "webp",
    "woff", "woff2", "xlsx", "zip",
];

/// A web site: a host, with and without `www.`, over http and https.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    host: String,
    /// `None`: the usual port of its scheme.
    port: Option<u16>,
}

impl Site {
    pub fn of(url: &Url) -> Self {
        Self { host: bare_host(url).to_owned(), port: url.port() }
    }

    pub fn holds(&self, url: &Url) -> bool {
        bare_host(url) == self.host && url.port() == self.port
    }
}

fn bare_host(url: &Url) -> &str {
    let host = url.host_str().unwrap_or_default();
    host.strip_prefix("www.").unwrap_or(host).trim_end_matches('.')
}

/// The short mark by which a page is known, the same for all spellings of its address.
pub fn mark(url: &Url) -> i64 {
    hash(&canonical(url))
}

/// The mark of all pages of a kind: their paths differ in numbers, and their queries in values.
pub fn kind(url: &Url) -> i64 {
    let mut text = String::new();
    let mut digits = false;
    for c in url.path().chars() {
        match c {
            '0'..='9' if digits => continue,
            '0'..='9' => text.push('#'),
            c => text.push(c),
        }
        digits = c.is_ascii_digit();
    }
    // All queries of a path are of one kind: a calendar or a filter makes endlessly many of them.
    if url.query().is_some_and(|query| !query.is_empty()) {
        text.push('?');
    }
    hash(&text)
}

/// Why an address is not followed although it is on the site.
pub fn trap(url: &Url) -> Option<&'static str> {
    let segments: Vec<&str> = url.path().split('/').filter(|segment| !segment.is_empty()).collect();
    if segments.len() > SEGMENTS_MAX {
        return Some("the path is too deep");
    }
    if segments.iter().any(|one| segments.iter().filter(|other| *other == one).count() > REPEATS_MAX) {
        return Some("the path repeats itself");
    }
    if url.query_pairs().count() > PARAMETERS_MAX {
        return Some("too many query parameters");
    }
    None
}

/// Does the address end like a file that is no page?
pub fn is_file(url: &Url) -> bool {
    let name = url.path().rsplit('/').next().unwrap_or_default();
    let Some((_, ending)) = name.rsplit_once('.') else { return false };
    NOT_PAGES.binary_search(&ending.to_ascii_lowercase().as_str()).is_ok()
}

fn canonical(url: &Url) -> String {
    let path = url.path();
    let path = path.find(";jsessionid=").map_or(path, |at| &path[..at]);
    let mut text = format!("{}:{}", bare_host(url), url.port().unwrap_or_default());
    push_uniform(&mut text, path);
    let noise = |name: &str| NOISE.contains(&name) || name.starts_with("utm_");
    let mut pairs: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| !noise(&name.to_ascii_lowercase()))
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    pairs.sort();
    pairs.dedup();
    for (name, value) in pairs {
        text.push_str(&format!("&{name}={value}"));
    }
    text
}

/// Percent-encoding has two spellings of most characters; hexadecimal digits become upper case, and what needs no
/// encoding loses it.
fn push_uniform(text: &mut String, path: &str) {
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        match rest.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                text.push(char::from(byte));
                rest = &rest[at + 3..];
            }
            Some(byte) => {
                text.push_str(&format!("%{byte:02X}"));
                rest = &rest[at + 3..];
            }
            None => {
                text.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    text.push_str(rest);
}

fn hash(text: &str) -> i64 {
    let digest: [u8; 32] = Sha256::digest(text).into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn www_and_the_scheme_make_no_other_site_but_hosts_and_ports_do() {
        let site = Site::of(&url("https://www.example.org/a"));
        for same in
            ["http://example.org/", "https://example.org:443/x", "https://www.example.org/", "https://example.org./"]
        {
            assert!(site.holds(&url(same)), "{same}");
        }
        for other in [
            "https://shop.example.org/",
            "https://example.com/",
            "https://example.org:8443/",
            "https://www.www.example.org/",
        ] {
            assert!(!site.holds(&url(other)), "{other}");
        }
    }

    #[test]
    fn spellings_of_one_page_have_one_mark() {
        let page = mark(&url("https://example.org/a-b?x=1&y=2"));
        for same in [
            "http://www.example.org/a-b?y=2&x=1#part",
            "https://example.org:443/a%2db?x=1&y=2&utm_source=mail",
            "https://example.org/a-b?PHPSESSID=77&x=1&y=2&x=1",
            "https://example.org/c/../a-b;jsessionid=5?x=1&y=2",
        ] {
            assert_eq!(mark(&url(same)), page, "{same}");
        }
        for other in ["https://example.org/a-b/?x=1&y=2", "https://example.org/a-b", "https://example.org/A-b?x=1&y=2"]
        {
            assert_ne!(mark(&url(other)), page, "{other}");
        }
    }

    #[test]
    fn pages_that_differ_in_numbers_or_query_values_are_of_one_kind() {
        assert_eq!(kind(&url("https://example.org/day/2026/11/24")), kind(&url("https://example.org/day/1999/1/1")));
        assert_eq!(kind(&url("https://example.org/list?page=2")), kind(&url("https://example.org/list?sort=up")));
        assert_ne!(kind(&url("https://example.org/list?page=2")), kind(&url("https://example.org/list")));
        assert_ne!(kind(&url("https://example.org/ann")), kind(&url("https://example.org/bob")));
    }

    #[test]
    fn traps_and_files_are_known_by_their_address() {
        assert!(trap(&url("https://example.org/a/b/a/b/a/b/a/b")).is_some());
        assert!(trap(&url(&format!("https://example.org{}", "/x1/y".repeat(9)))).is_some());
        assert!(trap(&url("https://example.org/?a=1&b=1&c=1&d=1&e=1&f=1&g=1&h=1&i=1")).is_some());
        assert_eq!(trap(&url("https://example.org/a/b/a/c?x=1")), None);
        assert!(is_file(&url("https://example.org/a/Photo.JPG?x=1")) && is_file(&url("https://example.org/x.tar.gz")));
        assert!(!is_file(&url("https://example.org/v1.2/page")) && !is_file(&url("https://example.org/a.html")));
        assert!(NOT_PAGES.is_sorted());
    }
}
