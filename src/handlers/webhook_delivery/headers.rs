//! Which headers a payload may set.

use std::collections::BTreeMap;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};

use crate::{handlers::Faults, job::json::push_pointer};

/// Most headers of one delivery.
const HEADERS_MAX: usize = 50;
const NAME_MAX: usize = 100;
const VALUE_MAX: usize = 4096;
/// All names and values together; many servers take no more than 8 to 16 KiB.
const TOTAL_MAX: usize = 16 * 1024;

/// Headers of the connection and of the body's framing: two opinions about those are what request smuggling is made of.
/// `accept-encoding` is here because the client unpacks what it asked for and nothing else.
const OURS: [&str; 12] = [
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// Notes every fault with its pointer.
pub(super) fn check(headers: &BTreeMap<String, String>, faults: &mut Faults) {
    if headers.len() > HEADERS_MAX {
        faults.add("/headers", format!("{} headers; at most {HEADERS_MAX} are taken", headers.len()));
    }
    let total: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if total > TOTAL_MAX {
        faults.add("/headers", format!("the headers have {total} bytes; at most {TOTAL_MAX} are taken"));
    }
    let mut seen = HeaderMap::new();
    for (name, value) in headers.iter().take(HEADERS_MAX) {
        if let Err(message) = add(&mut seen, name, value) {
            let mut pointer = "/headers".to_owned();
            push_pointer(&mut pointer, name);
            faults.add(pointer, message);
        }
    }
}

/// # Errors
/// The first bad header, by its name, and what is wrong with it.
pub(super) fn read(headers: &BTreeMap<String, String>) -> Result<HeaderMap, (String, &'static str)> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        add(&mut map, name, value).map_err(|message| (name.chars().take(100).collect(), message))?;
    }
    Ok(map)
}

fn add(map: &mut HeaderMap, name: &str, value: &str) -> Result<(), &'static str> {
    if name.len() > NAME_MAX {
        return Err("has a name of more than 100 bytes");
    }
    let name = HeaderName::try_from(name).map_err(|_| "is no header name")?;
    if OURS.contains(&name.as_str()) || name.as_str().starts_with("proxy-") {
        return Err("belongs to the connection and is set by the service");
    }
    if name.as_str().starts_with("webhook-") {
        return Err("belongs to the signature and is set by the service");
    }
    if value.len() > VALUE_MAX {
        return Err("has a value of more than 4096 bytes");
    }
    let printable = value.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t'));
    let mut value = HeaderValue::from_str(value)
        .ok()
        .filter(|_| printable)
        .ok_or("must have a value of printable ASCII characters")?;
    // Keeps it out of the client's own log.
    value.set_sensitive(true);
    match map.insert(name, value) {
        None => Ok(()),
        Some(_) => Err("is there twice, in different spellings"),
    }
}

/// What may be told to another server than the one the caller named: nothing that could be a credential.
pub(super) fn for_strangers(headers: &HeaderMap) -> HeaderMap {
    let harmless = [ACCEPT, CONTENT_TYPE, USER_AGENT];
    harmless.into_iter().filter_map(|name| headers.get(&name).map(|value| (name, value.clone()))).collect()
}
