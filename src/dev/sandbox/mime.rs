//! Reads a mail well enough to show it: decoded headers and the text and HTML parts. For the eyes of a developer only;
//! anything it doesn't understand is shown as it came.

use base64::{Engine, alphabet, engine};

/// How deep parts may be nested, and how many there may be; what is beyond is not shown.
const DEPTH_MAX: usize = 8;
const PARTS_MAX: usize = 100;
/// Forgiving about padding, as mail programs are.
const BASE64: engine::GeneralPurpose = engine::GeneralPurpose::new(
    &alphabet::STANDARD,
    engine::GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(engine::DecodePaddingMode::Indifferent),
);

/// A mail as people read it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Mail {
    pub headers: Vec<(String, String)>,
    pub text: Option<String>,
    pub html: Option<String>,
}

impl Mail {
    pub fn read(raw: &[u8]) -> Self {
        let (headers, _) = split(raw);
        let mut mail = Mail { headers, ..Mail::default() };
        mail.take_part(raw, 0, &mut PARTS_MAX.clone());
        mail
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    fn take_part(&mut self, raw: &[u8], depth: usize, left: &mut usize) {
        if depth > DEPTH_MAX || *left == 0 {
            return;
        }
        *left -= 1;
        let (headers, body) = split(raw);
        let kind = find(&headers, "content-type").unwrap_or("text/plain").to_owned();
        let lower = kind.to_ascii_lowercase();
        if lower.starts_with("multipart/") {
            if let Some(boundary) = parameter(&kind, "boundary") {
                parts(body, &boundary).into_iter().for_each(|part| self.take_part(part, depth + 1, left));
            }
            return;
        }
        let place = match lower.split(';').next().map(str::trim) {
            Some("text/plain") => &mut self.text,
            Some("text/html") => &mut self.html,
            _ => return,
        };
        if place.is_none() {
            let bytes =
                match find(&headers, "content-transfer-encoding").map(|e| e.trim().to_ascii_lowercase()).as_deref() {
                    Some("base64") => base64(body),
                    Some("quoted-printable") => quoted_printable(body),
                    _ => body.to_vec(),
                };
            *place = Some(decode(&bytes, parameter(&kind, "charset").as_deref().unwrap_or("utf-8")));
        }
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Headers, unfolded and decoded, and the body.
fn split(raw: &[u8]) -> (Vec<(String, String)>, &[u8]) {
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut rest = raw;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1);
        let (line, after) = rest.split_at(end);
        rest = after;
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            break;
        }
        match (line.starts_with([' ', '\t']), headers.last_mut(), line.split_once(':')) {
            (true, Some((_, value)), _) => {
                value.push(' ');
                value.push_str(line.trim_start());
            }
            (_, _, Some((name, value))) => headers.push((name.trim().to_owned(), value.trim().to_owned())),
            _ => {}
        }
    }
    headers.iter_mut().for_each(|(_, value)| *value = words(value));
    (headers, rest)
}

/// The parts between the boundary's lines.
fn parts<'a>(body: &'a [u8], boundary: &str) -> Vec<&'a [u8]> {
    let mark = format!("--{boundary}");
    let (mut found, mut start, mut at) = (Vec::new(), None, 0);
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        let bare = line.trim_ascii_end();
        if bare == mark.as_bytes() || bare.strip_suffix(b"--") == Some(mark.as_bytes()) {
            if let Some(start) = start {
                // The line break before a boundary belongs to the boundary.
                let part = &body[start..at];
                let part = part.strip_suffix(b"\n").unwrap_or(part);
                found.push(part.strip_suffix(b"\r").unwrap_or(part));
            }
            start = (bare == mark.as_bytes()).then_some(at + line.len());
        }
        at += line.len();
    }
    found
}

/// `name=value` or `name="value"` behind the semicolons of a header.
fn parameter(header: &str, name: &str) -> Option<String> {
    header.split(';').skip(1).find_map(|piece| {
        let (key, value) = piece.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// Decodes `=?charset?B?…?=` and `=?charset?Q?…?=`. Source: RFC 2047.
fn words(value: &str) -> String {
    let (mut out, mut rest, mut after_word) = (String::new(), value, false);
    while let Some(start) = rest.find("=?") {
        let (before, from) = rest.split_at(start);
        let mut fields = from[2..].splitn(4, '?');
        let word = match (fields.next(), fields.next(), fields.next(), fields.next()) {
            (Some(charset), Some(how), Some(text), Some(tail)) if tail.starts_with('=') => {
                let bytes = match how {
                    "B" | "b" => Some(base64(text.as_bytes())),
                    "Q" | "q" => Some(quoted_printable(text.replace('_', " ").as_bytes())),
                    _ => None,
                };
                bytes.map(|bytes| (decode(&bytes, charset), &tail[1..]))
            }
            _ => None,
        };
        match word {
            Some((text, tail)) => {
                // Blanks between two words only separate them.
                if !(after_word && before.trim().is_empty()) {
                    out.push_str(before);
                }
                out.push_str(&text);
                (rest, after_word) = (tail, true);
            }
            None => {
                out.push_str(before);
                out.push_str("=?");
                (rest, after_word) = (&from[2..], false);
            }
        }
    }
    out + rest
}

fn base64(body: &[u8]) -> Vec<u8> {
    let dense: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(dense).unwrap_or_else(|_| body.to_vec())
}

fn quoted_printable(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'=' {
            out.push(*byte);
        } else if let Some(next) = after.strip_prefix(b"\r\n").or_else(|| after.strip_prefix(b"\n")) {
            rest = next;
        } else {
            let digits = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
            match digits
                .filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()))
                .map(|pair| u8::from_str_radix(pair, 16))
            {
                Some(Ok(decoded)) => {
                    out.push(decoded);
                    rest = &after[2..];
                }
                _ => out.push(b'='),
            }
        }
    }
    out
}

fn decode(bytes: &[u8], charset: &str) -> String {
    match charset.to_ascii_lowercase().as_str() {
        "iso-8859-1" | "latin1" => bytes.iter().copied().map(char::from).collect(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mail_builder::MessageBuilder;
    use proptest::prelude::*;

    #[test]
    fn a_mail_of_text_and_html_is_read_back_as_it_was_written() {
        let html = "<p>Grüße</p>";
        // Quoted-printable for the first, base64 for the second.
        for text in ["Grüße,\r\n=20 and a long line: ".to_owned() + &"a".repeat(300), "ä".repeat(300) + "\r\n"] {
            let subject = "Ein sehr langer Betreff über Grüße, der umbrochen werden muss, weil er so lang ist – ja";
            let mut raw = Vec::new();
            MessageBuilder::new()
                .from(("Jörg", "a@example.com"))
                .to("b@example.com")
                .subject(subject)
                .text_body(text.as_str())
                .html_body(html)
                .serialize(&mut raw);
            let mail = Mail::read(&raw);
            assert_eq!(mail.text.as_deref(), Some(text.as_str()));
            assert_eq!(mail.html.as_deref(), Some(html));
            assert_eq!(mail.header("subject"), Some(subject));
            assert!(mail.header("From").unwrap().contains("Jörg"));
        }
    }

    #[test]
    fn a_plain_mail_and_one_without_headers_are_shown_as_they_are() {
        let mail = Mail::read(b"Subject: =?iso-8859-1?Q?Caf=E9_?= =?utf-8?B?w6k=?= =?x\n\nHello\n");
        assert_eq!(mail.header("subject"), Some("Café é =?x"));
        assert_eq!(mail.text.as_deref(), Some("Hello\n"));
        assert_eq!(Mail::read(b"\r\nno headers").text.as_deref(), Some("no headers"));
        assert_eq!(Mail::read(b"").headers, []);
    }

    #[test]
    fn parts_in_parts_in_parts_end() {
        let mut raw = String::from("x");
        for _ in 0..200 {
            raw = format!("Content-Type: multipart/mixed; boundary=b\n\n--b\n{raw}\n--b--\n");
        }
        assert_eq!(Mail::read(raw.as_bytes()).text, None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(raw in proptest::collection::vec(any::<u8>(), 0..400)) {
            Mail::read(&raw);
        }

        #[test]
        fn no_text_of_the_right_sort_makes_it_panic(pieces in proptest::collection::vec(
            prop_oneof![Just("=?"), Just("?="), Just("utf-8?Q?"), Just("=4"), Just("="), Just("\n"), Just("--b"), Just("--"),
                Just("Content-Type: multipart/x; boundary=b"), Just(":"), Just("é"), Just(" ")], 0..60)) {
            Mail::read(pieces.concat().as_bytes());
        }
    }
}
