//! Whether two answers say the same: as values, whole, and not as texts.

use serde_json::{Number, Value};

/// Where two JSON values differ first, as a JSON pointer; `None`: nowhere. The order of an object's keys says nothing, nor
/// whether a number is written `1` or `1.0`.
pub(super) fn difference(a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let in_both = a.iter().find_map(|(key, value)| match b.get(key) {
                Some(other) => difference(value, other).map(|below| format!("/{}{below}", token(key))),
                None => Some(format!("/{}", token(key))),
            });
            in_both.or_else(|| b.keys().find(|key| !a.contains_key(*key)).map(|key| format!("/{}", token(key))))
        }
        (Value::Array(a), Value::Array(b)) => {
            let below = |(n, (a, b))| difference(a, b).map(|below| format!("/{n}{below}"));
            let in_both = a.iter().zip(b).enumerate().find_map(below);
            in_both.or_else(|| (a.len() != b.len()).then(|| format!("/{}", a.len().min(b.len()))))
        }
        (Value::Number(a), Value::Number(b)) => (!same_number(a, b)).then(String::new),
        (a, b) => (a != b).then(String::new),
    }
}

fn same_number(a: &Number, b: &Number) -> bool {
    match (a.is_f64(), b.is_f64()) {
        // Whole numbers beyond 2^53 are not one another's neighbours.
        (false, false) => a == b,
        _ => a.as_f64() == b.as_f64(),
    }
}

/// A key as part of a pointer (RFC 6901).
fn token(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_compared_whole_and_spellings_are_not() {
        let long = "x".repeat(200);
        for (a, b, differ) in [
            (json!({"from": 0, "sum": 6}), serde_json::from_str(r#"{"sum": 6.0, "from": 0}"#).unwrap(), None),
            (json!([1, {"a/b": format!("{long}1")}]), json!([1, {"a/b": format!("{long}2")}]), Some("/1/a~1b")),
            (json!([1, 2]), json!([1]), Some("/1")),
            (json!({"a": 1}), json!({"a": 1, "b": 2}), Some("/b")),
            (json!(9_007_199_254_740_993_i64), json!(9_007_199_254_740_992_i64), Some("")),
            (json!(null), json!(0), Some("")),
        ] {
            assert_eq!(difference(&a, &b).as_deref(), differ, "{a} and {b}");
        }
    }
}
