//! What runs hand over, results and checkpoints: kept as they were written as far as that is possible.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::json::{Fault, MAX_DEPTH, check_kept};

/// A text as it is kept: with U+FFFD in place of U+0000, which Postgres can't store, and of a key that stands twice the
/// last value. Numbers stay as they were written.
///
/// # Errors
/// What can't be kept at all: a number that no double holds, too deep a nesting, half of a surrogate pair.
pub fn keep(text: Box<RawValue>) -> Result<Box<RawValue>, Fault> {
    let Err(fault) = check_kept(text.get().as_bytes()) else { return Ok(text) };
    let cleaned = cleaned(&text, 0).and_then(RawValue::from_string).map_err(|_| fault)?;
    check_kept(cleaned.get().as_bytes()).map(|()| cleaned)
}

/// The value written anew from `depth` on. Deeper than is kept it stays as it is, and is refused after that.
fn cleaned(text: &RawValue, depth: usize) -> Result<String, serde_json::Error> {
    let whole = text.get();
    match whole.as_bytes().first() {
        Some(b'"') => serde_json::to_string(&without_nul(serde_json::from_str(whole)?)),
        Some(b'[') if depth < MAX_DEPTH => {
            let items: Vec<&RawValue> = serde_json::from_str(whole)?;
            let items: Result<Vec<_>, _> = items.into_iter().map(|item| cleaned(item, depth + 1)).collect();
            Ok(format!("[{}]", items?.join(",")))
        }
        Some(b'{') if depth < MAX_DEPTH => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(whole)?;
            let member = |(key, value)| {
                let key = serde_json::to_string(&without_nul(key))?;
                Ok(format!("{key}:{}", cleaned(value, depth + 1)?))
            };
            let members: Result<Vec<String>, serde_json::Error> = members.into_iter().map(member).collect();
            Ok(format!("{{{}}}", members?.join(",")))
        }
        _ => Ok(whole.to_owned()),
    }
}

fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> Result<String, String> {
        let raw = RawValue::from_string(text.to_owned()).unwrap();
        keep(raw).map(|kept| kept.get().to_owned()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn numbers_stay_as_they_were_written() {
        for text in
            ["18446744073709551615", "18446744073709551616", "1e-400", "1.10", "-0", "[1E+5, 100000000000000000000000]"]
        {
            assert_eq!(kept(text).as_deref(), Ok(text));
        }
        let beside = r#"{"n":18446744073709551616,"text":"a\u0000b","n2":1.0}"#;
        assert_eq!(kept(beside).as_deref(), Ok("{\"n\":18446744073709551616,\"n2\":1.0,\"text\":\"a\u{fffd}b\"}"));
    }

    #[test]
    fn what_can_not_be_kept_says_where() {
        assert!(kept(r#"{"a":[0,1e400],"b":"\u0000"}"#).unwrap_err().ends_with(" at /a/1"));
        let long = format!("{{\"n\":{}}}", "9".repeat(400));
        assert!(kept(&long).unwrap_err().ends_with(" at /n"));
        assert!(kept(r#"{"a":"\ud800"}"#).is_err());
        let deep = format!("{}\"\\u0000\"{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(kept(&deep).unwrap_err().contains("64"));
    }

    #[test]
    fn of_a_key_that_stands_twice_the_last_value_counts() {
        assert_eq!(kept(r#"{"a":1,"b":{"c":1,"c":2},"a":3}"#).as_deref(), Ok(r#"{"a":3,"b":{"c":2}}"#));
        assert!(kept(r#"{"\u0000":1,"\ufffd":2}"#).unwrap_err().contains("twice"));
    }
}
