//! The input rules that hold for every JSON text from outside, checked in one pass over the bytes.
//!
//! serde alone is not enough: raw values skip escapes unchecked, nesting has no limit there, duplicate keys pass
//! silently, and Postgres refuses what JSON allows (NUL) or blows it up (`1e131071` in jsonb). Source of the rules: wire
//! contract, "Input rules".

use std::{borrow::Cow, collections::HashSet};

use super::settle::Failure;

/// Deepest nesting of objects and arrays that is taken.
pub const MAX_DEPTH: usize = 64;
/// Levels in which a request may have members that are judged later.
pub const ENVELOPE: usize = 3;

const TOO_LARGE: &str = "a number is out of range (double precision, up to 1.8e308)";
const TOO_LARGE_INTEGER: &str = "a number is out of range (integers: 64 bits with sign, others: double precision)";

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is no JSON at all, or no object.
    Syntax { line: usize, column: usize, message: String },
    /// It is JSON that we do not take; `pointer` says where (RFC 6901).
    Rule { pointer: String, message: String },
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Syntax { line, column, message } => write!(f, "{message} at line {line}, column {column}"),
            Fault::Rule { pointer, message } if pointer.is_empty() => f.write_str(message),
            Fault::Rule { pointer, message } => write!(f, "{message} at {pointer}"),
        }
    }
}

/// Checks that `bytes` hold exactly one JSON object that keeps all the rules.
///
/// # Errors
/// The first fault found, from the start of the text.
pub fn check_object(bytes: &[u8]) -> Result<(), Fault> {
    check_object_but(bytes, &[])
}

/// As [`check_object`], but for the members of these names in the outer [`ENVELOPE`] levels: of them the nesting is judged,
/// and the rest by [`super::kept::keep`] later.
///
/// # Errors
/// As [`check_object`].
pub fn check_object_but(bytes: &[u8], judged_later: &'static [&'static str]) -> Result<(), Fault> {
    let mut scan = Scan { judged_later, ..Scan::new(bytes)? };
    scan.space();
    if scan.peek() != Some(b'{') {
        // A text that is no JSON at all is reported as that.
        let stop = scan.syntax("a JSON object is expected");
        scan.value(0).map_err(|stop| scan.fault(stop))?;
        return Err(scan.fault(stop));
    }
    scan.value(0).and_then(|()| scan.end()).map_err(|stop| scan.fault(stop))
}

/// Checks that `bytes` hold exactly one JSON value of any kind that keeps all the rules.
///
/// # Errors
/// The first fault found, from the start of the text.
pub fn check_value(bytes: &[u8]) -> Result<(), Fault> {
    Scan::new(bytes)?.whole()
}

/// As [`check_value`], by the rules for what runs hand over: integers may be as large as a double, as other numbers.
///
/// # Errors
/// As [`check_value`].
pub fn check_kept(bytes: &[u8]) -> Result<(), Fault> {
    Scan { long_integers: true, ..Scan::new(bytes)? }.whole()
}

/// How a job ends whose payload breaks a rule; `None`: it may be handed out. Every door but SQL refuses such payloads, and
/// SQL can't look for all of them.
pub fn failure_of_payload(payload: &str) -> Option<Failure> {
    let fault = check_value(payload.as_bytes()).err()?;
    Some(Failure::permanent(format!("the payload breaks a rule, so nobody was given it: {fault}")))
}

/// Appends one segment to an RFC 6901 pointer.
pub fn push_pointer(pointer: &mut String, segment: &str) {
    pointer.push('/');
    pointer.push_str(&segment.replace('~', "~0").replace('/', "~1"));
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Whether integers may be longer than 64 bits.
    long_integers: bool,
    /// In a value that is judged later: whatever can be cleaned then, or refused with its place.
    lenient: bool,
    /// Names of members in the outer levels whose values are judged later.
    judged_later: &'static [&'static str],
}

/// Why the scan stopped; path segments are collected innermost first, on the way out.
struct Stop {
    syntax: bool,
    at: usize,
    message: Cow<'static, str>,
    path: Vec<String>,
}

type Step = Result<(), Stop>;

impl<'a> Scan<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Fault> {
        let scan = Self { bytes, at: 0, long_integers: false, lenient: false, judged_later: &[] };
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(scan),
            Err(e) => Err(scan.fault(Stop {
                syntax: true,
                at: e.valid_up_to(),
                message: "the text is not valid UTF-8".into(),
                path: Vec::new(),
            })),
        }
    }

    fn whole(mut self) -> Result<(), Fault> {
        self.space();
        self.value(0).and_then(|()| self.end()).map_err(|stop| self.fault(stop))
    }

    fn fault(&self, stop: Stop) -> Fault {
        if stop.syntax {
            let before = &self.bytes[..stop.at.min(self.bytes.len())];
            let line = 1 + before.iter().filter(|b| **b == b'\n').count();
            let column = 1 + before.iter().rev().take_while(|b| **b != b'\n').count();
            return Fault::Syntax { line, column, message: stop.message.into_owned() };
        }
        let mut pointer = String::new();
        stop.path.iter().rev().for_each(|segment| push_pointer(&mut pointer, segment));
        Fault::Rule { pointer, message: stop.message.into_owned() }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn syntax(&self, message: impl Into<Cow<'static, str>>) -> Stop {
        Stop { syntax: true, at: self.at, message: message.into(), path: Vec::new() }
    }

    fn rule(&self, message: impl Into<Cow<'static, str>>) -> Stop {
        Stop { syntax: false, at: self.at, message: message.into(), path: Vec::new() }
    }

    fn end(&mut self) -> Step {
        self.space();
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.syntax("unexpected text after the JSON value")) }
    }

    fn value(&mut self, depth: usize) -> Step {
        match self.peek() {
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.array(depth + 1),
            Some(b'"') => self.string().map(|_| ()),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => Err(self.syntax("a JSON value is expected")),
            None => Err(self.syntax("the JSON text ends too early")),
        }
    }

    fn deeper(&self, depth: usize) -> Step {
        if depth <= MAX_DEPTH {
            return Ok(());
        }
        Err(self.rule(format!("nesting is deeper than {MAX_DEPTH} levels")))
    }

    fn object(&mut self, depth: usize) -> Step {
        self.deeper(depth)?;
        self.at += 1;
        let mut seen = Keys::default();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.syntax("a key in double quotes is expected"));
            }
            let key = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.syntax("':' is expected"));
            }
            self.at += 1;
            self.space();
            let inside = |mut stop: Stop| {
                stop.path.push(key.clone().into_owned());
                stop
            };
            if !seen.insert(key.clone()) && !self.lenient {
                return Err(inside(self.rule("the key stands here twice")));
            }
            let later = depth <= ENVELOPE && self.judged_later.contains(&&*key);
            if later { self.judged_later(depth) } else { self.value(depth) }.map_err(inside)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.syntax("',' or '}' is expected")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Step {
        self.deeper(depth)?;
        self.at += 1;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        for index in 0usize.. {
            self.space();
            self.value(depth).map_err(|mut stop| {
                stop.path.push(index.to_string());
                stop
            })?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.syntax("',' or ']' is expected")),
            }
        }
        Ok(())
    }

    /// A value that is judged later, but for its depth and its spelling.
    fn judged_later(&mut self, depth: usize) -> Step {
        let before = std::mem::replace(&mut self.lenient, true);
        let step = self.value(depth);
        self.lenient = before;
        step
    }

    fn word(&mut self, word: &'static str) -> Step {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.syntax("a JSON value is expected"));
        }
        self.at += word.len();
        Ok(())
    }

    /// Returns the text with escapes resolved.
    fn string(&mut self) -> Result<Cow<'a, str>, Stop> {
        let open = self.at;
        let mut escaped = false;
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                Some(0) => return Err(self.rule("a NUL character can't be stored")),
                Some(b) if b < 0x20 => return Err(self.syntax("a control character must be escaped in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.syntax("the JSON text ends inside a string")),
            }
        }
        self.at += 1;
        let bytes: &'a [u8] = self.bytes;
        if !escaped {
            let text = std::str::from_utf8(&bytes[open + 1..self.at - 1]).map_err(|_| self.syntax("invalid UTF-8"))?;
            return Ok(Cow::Borrowed(text));
        }
        // Escapes are rare, so the well-tried decoder does them; it refuses lone surrogates.
        let text: String = serde_json::from_slice(&bytes[open..self.at]).map_err(|_| Stop {
            syntax: true,
            at: open,
            message: "a string with an invalid escape (lone surrogates are none)".into(),
            path: Vec::new(),
        })?;
        if text.contains('\0') && !self.lenient {
            return Err(self.rule("a NUL character can't be stored"));
        }
        Ok(Cow::Owned(text))
    }

    fn digits(&mut self) -> Step {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.syntax("a digit is expected"));
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Step {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        let mut integer = true;
        if self.peek() == Some(b'.') {
            integer = false;
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            integer = false;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default();
        let double = || text.parse::<f64>().is_ok_and(f64::is_finite);
        match self.long_integers || !integer {
            _ if self.lenient => Ok(()),
            true if !double() => Err(self.rule(TOO_LARGE)),
            false if text.parse::<i64>().is_err() => Err(self.rule(TOO_LARGE_INTEGER)),
            _ => Ok(()),
        }
    }
}

/// The keys of one object: a list while there are few, a set beyond, so that a million keys cost no square.
#[derive(Default)]
struct Keys<'a> {
    few: Vec<Cow<'a, str>>,
    many: HashSet<Cow<'a, str>>,
}

impl<'a> Keys<'a> {
    fn insert(&mut self, key: Cow<'a, str>) -> bool {
        const FEW: usize = 16;
        if self.many.is_empty() && self.few.len() < FEW {
            let new = !self.few.contains(&key);
            self.few.push(key);
            return new;
        }
        self.many.extend(self.few.drain(..));
        self.many.insert(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(text: &str) -> (String, String) {
        match check_object(text.as_bytes()) {
            Err(Fault::Rule { pointer, message }) => (pointer, message),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_is_no_json_is_told_with_line_and_column() {
        for bad in [
            "",
            " ",
            "{",
            "}",
            "{]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{} x",
            "{}{}",
            "\u{feff}{}",
            "{'a':1}",
            "{\"a\":01}",
            "{\"a\":+1}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\n\"}",
            "nul",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":\"",
            "{\"a\":\"\\",
            "[1,]",
            "{\"a\":NaN}",
            "{\"a\":tru}",
            "[1]",
            "\"x\"",
        ] {
            assert!(matches!(check_object(bad.as_bytes()), Err(Fault::Syntax { .. })), "{bad:?}");
        }
        let fault = check_object(b"{\n  \"a\": oops}").unwrap_err();
        assert_eq!(fault.to_string(), "a JSON value is expected at line 2, column 8");
        let fault = check_object(b"\n [1]").unwrap_err();
        assert_eq!(fault.to_string(), "a JSON object is expected at line 2, column 2");
        assert!(matches!(check_object(b"{\"a\":\"\xff\"}"), Err(Fault::Syntax { .. })));
    }

    #[test]
    fn rules_beyond_json_are_told_with_a_pointer() {
        assert_eq!(rule(r#"{"a":{"b":[1,"x\u0000"]}}"#).0, "/a/b/1");
        assert_eq!(rule(r#"{"a":1,"b":2,"\u0061":3}"#), ("/a".into(), "the key stands here twice".into()));
        assert_eq!(rule(r#"{"a/b~c":[1e400]}"#).0, "/a~1b~0c/0");
        assert_eq!(rule(r#"{"n":9223372036854775808}"#).0, "/n");
        assert!(check_object(br#"{"n":-9223372036854775808,"f":1e308,"g":1e20,"z":-0}"#).is_ok());
    }

    #[test]
    fn nesting_is_limited_and_a_hostile_depth_does_not_overflow_the_stack() {
        let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert!(check_object(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(rule(&nested(MAX_DEPTH + 1)).1.contains("64"));
        assert!(rule(&format!("{{\"a\":{}", "[".repeat(500_000))).1.contains("64"));
    }

    #[test]
    fn what_is_judged_later_is_passed_over_and_nothing_else() {
        let check = |text: &str| check_object_but(text.as_bytes(), &["result"]);
        let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
        assert!(check(&format!(r#"{{"a":1,"result" : {deep} ,"b":2}}"#)).is_err());
        assert_eq!(check(r#"{"result":{"n":1e400,"n":"\u0000"}}"#), Ok(()));
        assert_eq!(check(r#"{"runs":[{"result":1e400}]}"#), Ok(()));
        assert!(check(r#"{"a":{"b":{"c":{"result":1e400}}}}"#).is_err());
        assert!(check(r#"{"result":1,"result":2}"#).is_err());
        assert!(check(r#"{"result":{"n":1e400},"n":1e400}"#).is_err());
        for broken in [r#"{"result":}"#, r#"{"result":[1,}"#, r#"{"result":1 2}"#, r#"{"result":"#] {
            assert!(matches!(check(broken), Err(Fault::Syntax { .. })), "{broken}");
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[^\u{0}]*".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::hash_map("[^\u{0}]{0,6}", inner, 0..8)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_serde_writes_is_taken(value in json(), pretty in any::<bool>()) {
            let value = serde_json::json!({ "v": value });
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            prop_assert_eq!(check_object(text.unwrap().as_bytes()), Ok(()));
        }

        #[test]
        fn whatever_is_taken_can_be_read_by_serde(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let text = [b"{\"a\":".as_slice(), &bytes, b"}"].concat();
            if check_object(&text).is_ok() {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
            }
        }

        #[test]
        fn a_damaged_text_is_judged_as_serde_judges_it(value in json(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut text = serde_json::to_vec(&serde_json::json!({ "v": value })).unwrap();
            let at = at.index(text.len());
            text[at] = byte;
            let ours = check_object(&text);
            if matches!(ours, Err(Fault::Syntax { .. })) {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&text).is_err(), "{:?}", ours);
            }
        }
    }
}
