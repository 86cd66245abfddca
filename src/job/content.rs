//! What was asked for with an idempotency key, as a hash of values: the same for every spelling of them, and at every door.
//! `content_hash` in migrations/0015_keys.sql makes the same one in SQL; a test holds the two together.
//!
//! What is hashed is a text with a line per fact. A payload has a line per value, from the outside in: how deep it is, its key
//! in an object, and the value. Keys are in the order of their bytes, texts have their length before them.

use std::{borrow::Cow, time::Duration};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::json;

/// Of the formula. Stored beside each hash; those of other versions are not compared with.
pub const VERSION: i16 = 2;

/// What was asked for.
#[derive(Debug)]
pub struct Asked<'a> {
    pub job_type: &'a str,
    /// JSON.
    pub payload: &'a str,
    pub priority: i16,
    /// `None`: what the type says.
    pub max_attempts: Option<u16>,
    pub delay: Option<Duration>,
    pub run_at: Option<DateTime<Utc>>,
    pub tags: &'a [String],
    pub timeout: Option<Duration>,
}

impl Asked<'_> {
    pub fn hash(&self) -> [u8; 32] {
        let mut lines =
            format!("queue-service content {VERSION}\ntype {}\npriority {}\n", text(self.job_type), self.priority);
        let mut add = |what: &str, value: Option<String>| {
            if let Some(value) = value {
                lines.push_str(&format!("{what} {value}\n"));
            }
        };
        add("max_attempts", self.max_attempts.map(|n| n.to_string()));
        add("delay", self.delay.map(|span| span.as_micros()).filter(|us| *us > 0).map(|us| us.to_string()));
        add("run_at", self.run_at.map(|at| at.timestamp_micros().to_string()));
        self.tags.iter().for_each(|tag| add("tag", Some(text(tag))));
        add("timeout", self.timeout.map(|span| span.as_micros().to_string()));
        lines.push_str("payload\n");
        lines.push_str(&lines_of(self.payload));
        Sha256::digest(lines).into()
    }
}

/// Whether two payloads have the same values.
pub fn are_equal(one: &str, other: &str) -> bool {
    one == other || lines_of(one) == lines_of(other)
}

/// A text for a value, the same for every spelling of it.
pub(super) fn lines_of(payload: &str) -> String {
    // Only SQL takes others, and nobody is given them.
    if json::check_kept(payload.as_bytes()).is_err() {
        return format!("raw {payload}\n");
    }
    let mut lines = String::with_capacity(payload.len() + 64);
    Reader { json: payload.as_bytes(), at: 0 }.value().write(0, "", &mut lines);
    lines
}

fn text(text: &str) -> String {
    format!("s{}:{text}", text.len())
}

/// A number without its spelling: sign, digits that neither begin nor end with zero, and a power of ten.
fn plain(number: &str) -> String {
    let (sign, digits) = number.strip_prefix('-').map_or(("", number), |rest| ("-", rest));
    let (mantissa, exponent) = digits.split_once(['e', 'E']).unwrap_or((digits, "0"));
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [integer, fraction].concat();
    let all = all.trim_start_matches('0');
    let short = all.trim_end_matches('0');
    match exponent.parse::<i128>() {
        _ if short.is_empty() => "0".to_owned(),
        Ok(exponent) => {
            let exponent = exponent - fraction.len() as i128 + (all.len() - short.len()) as i128;
            format!("{sign}{short}e{exponent}")
        }
        Err(_) => number.to_owned(),
    }
}

enum Node<'a> {
    /// `null`, `true` and `false`.
    Word(&'a str),
    Number(&'a str),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl Node<'_> {
    fn write(self, depth: usize, label: &str, lines: &mut String) {
        lines.push_str(&depth.to_string());
        lines.push_str(label);
        match self {
            Node::Word(word) => lines.push_str(word),
            Node::Number(number) => {
                lines.push('#');
                lines.push_str(&plain(number));
            }
            Node::Text(ref string) => lines.push_str(&text(string)),
            Node::List(_) => lines.push('['),
            Node::Object(_) => lines.push('{'),
        }
        lines.push('\n');
        match self {
            Node::List(items) => items.into_iter().for_each(|item| item.write(depth + 1, "", lines)),
            Node::Object(mut members) => {
                members.sort_by(|a, b| a.0.cmp(&b.0));
                for (key, value) in members {
                    value.write(depth + 1, &format!("k{}:{key}", key.len()), lines);
                }
            }
            Node::Word(_) | Node::Number(_) | Node::Text(_) => {}
        }
    }
}

/// Reads a text that has been checked.
struct Reader<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&mut self) -> u8 {
        while matches!(self.json.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n' | b',' | b':')) {
            self.at += 1;
        }
        self.json.get(self.at).copied().unwrap_or_default()
    }

    fn value(&mut self) -> Node<'a> {
        match self.peek() {
            b'{' => {
                self.at += 1;
                let mut members = Vec::new();
                while self.peek() == b'"' {
                    members.push((self.string(), self.value()));
                }
                self.at += 1;
                Node::Object(members)
            }
            b'[' => {
                self.at += 1;
                let mut items = Vec::new();
                while !matches!(self.peek(), b']' | 0) {
                    items.push(self.value());
                }
                self.at += 1;
                Node::List(items)
            }
            b'"' => Node::Text(self.string()),
            b'-' | b'0'..=b'9' => Node::Number(self.word()),
            _ => Node::Word(self.word()),
        }
    }

    fn word(&mut self) -> &'a str {
        let rest = &self.json[self.at..];
        let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'.')).count();
        self.at += length.max(1);
        std::str::from_utf8(&rest[..length]).unwrap_or_default()
    }

    fn string(&mut self) -> Cow<'a, str> {
        let (open, mut escaped) = (self.at, false);
        self.at += 1;
        while let Some(byte) = self.json.get(self.at).filter(|byte| **byte != b'"') {
            escaped |= *byte == b'\\';
            self.at += if *byte == b'\\' { 2 } else { 1 };
        }
        self.at = (self.at + 1).min(self.json.len());
        let whole = &self.json[open..self.at];
        if escaped {
            return Cow::Owned(serde_json::from_slice(whole).unwrap_or_default());
        }
        Cow::Borrowed(std::str::from_utf8(whole).unwrap_or_default().trim_matches('"'))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ASKED: Asked<'_> = Asked {
        job_type: "probe",
        payload: "{}",
        priority: 0,
        max_attempts: None,
        delay: None,
        run_at: None,
        tags: &[],
        timeout: None,
    };

    #[test]
    fn values_count_and_not_their_spelling() {
        for (one, other) in [
            (r#"{"b":1, "a":[ 2 ]}"#, r#"{"a":[2.0],"b":1e0}"#),
            (r#"{"a":1000,"b":0.5}"#, "{\"b\":50E-2,\n\"a\":1e3}"),
            (r#"{"a":"\u00e4\/","b":-0}"#, r#"{"a":"ä/","b":0.0}"#),
            (r#"[{},[],"",null,true]"#, r#" [ { } , [ ] , "" , null , true ] "#),
            ("1e300", "1000e297"),
        ] {
            assert!(are_equal(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("1", "\"1\""),
            ("[1]", "[[1]]"),
            ("[[],1]", "[[1]]"),
            (r#"{"a":1}"#, r#"{"a":2}"#),
            (r#"{"a":{"b":1}}"#, r#"{"a":{},"b":1}"#),
            (r#"["a\nb"]"#, r#"["a","b"]"#),
            ("9007199254740993", "9007199254740992"),
            ("null", "\"null\""),
            ("-1", "1"),
        ] {
            assert!(!are_equal(one, other), "{one} {other}");
        }
    }

    #[test]
    fn spans_of_one_length_in_two_places_are_two_things() {
        let minute = Some(Duration::from_secs(60));
        let (delay, timeout) = (Asked { delay: minute, ..ASKED }.hash(), Asked { timeout: minute, ..ASKED }.hash());
        assert_ne!(delay, timeout);
        assert_eq!(Asked { delay: Some(Duration::ZERO), ..ASKED }.hash(), ASKED.hash());
        let time = |text: &str| Asked { run_at: Some(text.parse().unwrap()), ..ASKED }.hash();
        assert_eq!(time("2026-12-24T18:00:00Z"), time("2026-12-24T19:00:00.000+01:00"));
        assert_ne!(time("2026-12-24T18:00:00Z"), time("2026-12-24T18:00:01Z"));
        let tags =
            |tags: &[&str]| Asked { tags: &tags.iter().map(|t| t.to_string()).collect::<Vec<_>>(), ..ASKED }.hash();
        assert_ne!(tags(&["a", "b"]), tags(&["a\ntag s1:b"]));
    }

    proptest! {
        #[test]
        fn what_is_checked_is_read_to_its_end(text in "[\\[\\]{}\",:0-9eE.+\\\\a-u -]{0,40}") {
            let _ = lines_of(&text);
        }

        #[test]
        fn a_text_that_was_written_anew_is_the_same(n in any::<i64>(), f in -1e6..1e6f64, key in "[^\u{0}]{0,5}", word in "[^\u{0}]{0,9}") {
            let value = serde_json::json!({ "n": n, "list": [f, { key: word }] });
            let (short, long) = (value.to_string(), serde_json::to_string_pretty(&value).unwrap());
            prop_assert!(are_equal(&short, &long));
        }
    }
}
