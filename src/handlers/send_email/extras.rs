//! What a mail may carry besides its text: files and further headers. Pure.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::handlers::{
    Faults,
    clients::mail::message::{Attachment, LINE_MAX},
};

const FILES_MAX: usize = 50;
const FILENAME_MAX: usize = 255;
const TYPE_MAX: usize = 127;
const HEADERS_MAX: usize = 50;
/// Longest name of a header, in bytes.
const NAME_MAX: usize = 76;
/// Longest value of a header, in bytes.
const VALUE_MAX: usize = 4096;
/// Headers that callers may set, in small letters, besides those that begin with `x-`.
const ALLOWED: [&str; 5] = ["list-unsubscribe", "list-unsubscribe-post", "auto-submitted", "in-reply-to", "references"];

/// A file that goes along with a mail.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    /// Its name without a folder, at most 255 bytes.
    filename: String,
    /// For instance `application/pdf`.
    content_type: String,
    /// The file in base64.
    content: String,
}

pub(super) fn attachments<'a>(files: &'a [File], faults: &mut Faults) -> Vec<Attachment<'a>> {
    if files.len() > FILES_MAX {
        faults.add("/attachments", format!("{} files; at most {FILES_MAX} are taken", files.len()));
        return Vec::new();
    }
    files.iter().enumerate().filter_map(|(i, file)| attachment(file, &format!("/attachments/{i}"), faults)).collect()
}

fn attachment<'a>(file: &'a File, pointer: &str, faults: &mut Faults) -> Option<Attachment<'a>> {
    let before = faults.0.len();
    let name = file.filename.as_str();
    if name.is_empty() || name.len() > FILENAME_MAX || name.contains(['/', '\\']) || name.chars().any(char::is_control)
    {
        let message = format!("must be 1 to {FILENAME_MAX} bytes without '/', '\\' and control characters");
        faults.add(format!("{pointer}/filename"), message);
    }
    if !is_content_type(&file.content_type) {
        let message = "must be like application/pdf; multipart/… and message/… can't be attached: send \
                       application/octet-stream";
        faults.add(format!("{pointer}/contentType"), message);
    }
    let content = BASE64.decode(&file.content);
    if content.is_err() {
        faults.add(format!("{pointer}/content"), "must be base64 with padding, without line breaks");
    }
    let content = content.ok().filter(|_| faults.0.len() == before)?;
    Some(Attachment { filename: name, content_type: &file.content_type, content })
}

/// A type and a subtype of tokens (RFC 2045, 5.1). Parameters are not taken: the file goes as it is.
fn is_content_type(text: &str) -> bool {
    let is_token =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$&^_.+-".contains(c));
    match text.split_once('/') {
        Some((kind, rest)) => {
            let kind = kind.to_ascii_lowercase();
            text.len() <= TYPE_MAX && is_token(&kind) && is_token(rest) && kind != "multipart" && kind != "message"
        }
        None => false,
    }
}

pub(super) fn check_headers(headers: &Option<BTreeMap<String, String>>, faults: &mut Faults) {
    let Some(headers) = headers else { return };
    if headers.len() > HEADERS_MAX {
        return faults.add("/headers", format!("{} headers; at most {HEADERS_MAX} are taken", headers.len()));
    }
    let mut seen = BTreeSet::new();
    for (name, value) in headers {
        let lower = name.to_ascii_lowercase();
        let pointer = format!("/headers/{}", name.replace('~', "~0").replace('/', "~1"));
        if !ALLOWED.contains(&lower.as_str()) && !is_private(&lower) {
            let message = "is not taken; allowed are List-Unsubscribe, List-Unsubscribe-Post, Auto-Submitted, \
                           In-Reply-To, References and names of letters, digits and '-' that begin with X-";
            faults.add(&pointer, message);
        } else if !seen.insert(lower.clone()) {
            faults.add(&pointer, "is there twice, in other capital letters");
        } else if let Some(message) = fault_of(value, is_private(&lower)) {
            faults.add(&pointer, message);
        }
    }
}

fn is_private(name: &str) -> bool {
    let rest = name.strip_prefix("x-").unwrap_or_default();
    !rest.is_empty() && name.len() <= NAME_MAX && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Values of the named headers have a grammar of their own, which knows no encoded words.
fn fault_of(value: &str, any_script: bool) -> Option<String> {
    if value.trim().is_empty() || value.len() > VALUE_MAX {
        Some(format!("must have 1 to {VALUE_MAX} bytes"))
    } else if value.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        Some("must not hold line breaks or other control characters".into())
    } else if !any_script && !value.is_ascii() {
        Some("must be ASCII".into())
    } else if value.split(' ').any(|word| word.len() > LINE_MAX - NAME_MAX) {
        Some(format!("must have no word of more than {} bytes", LINE_MAX - NAME_MAX))
    } else {
        None
    }
}

pub(super) fn pairs(headers: &Option<BTreeMap<String, String>>) -> Vec<(&str, &str)> {
    headers.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}
