//! JSON laid out for reading, without decoding it: numbers, escapes and the order of keys stay as they were sent.

use std::fmt::Write;

use super::text::steers;

/// Lays out `json`, which must be valid; each line but the first begins with `margin` spaces. Characters that would
/// steer the terminal are escaped, which leaves the value as it is: in valid JSON they stand in strings only.
pub fn pretty(json: &str, margin: usize) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let mut depth = 0;
    let mut in_string = false;
    let mut escaped = false;
    let mut chars = json.chars().peekable();
    while let Some(c) = chars.next() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            push_safe(&mut text, c);
            continue;
        }
        match c {
            '"' => {
                in_string = true;
                text.push(c);
            }
            '{' | '[' => {
                while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
                text.push(c);
                if let Some(end) = chars.next_if(|c| matches!(c, '}' | ']')) {
                    text.push(end);
                } else {
                    depth += 1;
                    new_line(&mut text, margin, depth);
                }
            }
            '}' | ']' => {
                depth = usize::saturating_sub(depth, 1);
                new_line(&mut text, margin, depth);
                text.push(c);
            }
            ',' => {
                text.push(c);
                new_line(&mut text, margin, depth);
            }
            ':' => text.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => push_safe(&mut text, c),
        }
    }
    text
}

/// The same value on one line with nothing in it that steers a terminal.
pub fn compact(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    json.chars()
        .for_each(|c| if c == '\n' || c == '\r' || c == '\t' { text.push(' ') } else { push_safe(&mut text, c) });
    text
}

fn new_line(text: &mut String, margin: usize, depth: usize) {
    let _ = write!(text, "\n{:1$}", "", margin + 2 * depth);
}

fn push_safe(text: &mut String, c: char) {
    if steers(c) {
        let _ = write!(text, "\\u{:04x}", u32::from(c));
    } else {
        text.push(c);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn numbers_escapes_and_the_order_of_keys_stay() {
        let json = r#"{"z":1.50,"a":[],"b":{ },"s":"x\"{\\","n":[1,12345678901234567890123]}"#;
        let expected = "{\n  \"z\": 1.50,\n  \"a\": [],\n  \"b\": {},\n  \"s\": \"x\\\"{\\\\\",\n  \"n\": [\n    1,\n    12345678901234567890123\n  ]\n}";
        assert_eq!(pretty(json, 0), expected);
        assert_eq!(pretty("[1]", 4), "[\n      1\n    ]");
    }

    #[test]
    fn strings_can_not_steer_the_terminal_and_keep_their_value() {
        let json = "{\"a\":\"\u{9b}31m\u{202e}x\u{7f}\"}";
        for shown in [pretty(json, 0), compact(json)] {
            assert!(!shown.chars().any(|c| steers(c) && c != '\n'));
            assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), serde_json::from_str::<Value>(json).unwrap());
        }
    }

    proptest! {
        #[test]
        fn the_value_never_changes(keys in proptest::collection::vec(".{0,8}", 0..6), text in ".{0,20}", n: i64) {
            let inner = serde_json::json!({"t": text, "n": n, "list": [keys.clone(), Value::Null, true]});
            let value = Value::Object(keys.into_iter().map(|key| (key, inner.clone())).collect());
            let laid_out = pretty(&value.to_string(), 3);
            prop_assert_eq!(serde_json::from_str::<Value>(&laid_out).unwrap(), value);
        }
    }
}
