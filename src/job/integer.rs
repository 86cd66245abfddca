//! Integers as JSON writes them: `1.0` and `1e3` are integers, too (JSON Schema 2020-12, "integer"), and some languages
//! write all their numbers so.

use serde::{
    Deserializer,
    de::{Error, Unexpected, Visitor},
};

/// Beyond this two integers can be one double.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// For a field: `#[serde(deserialize_with = "integer")]`.
///
/// # Errors
/// It is no integer, or none of 64 bits with sign.
pub fn integer<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    from.deserialize_i64(Integral)
}

/// As [`integer`], for a field that may be null, or left out by `#[serde(default)]`.
///
/// # Errors
/// As [`integer`].
pub fn optional_integer<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    from.deserialize_option(Optional)
}

struct Integral;

impl Visitor<'_> for Integral {
    type Value = i64;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an integer")
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<i64, E> {
        Ok(n)
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<i64, E> {
        i64::try_from(n).map_err(|_| E::invalid_value(Unexpected::Unsigned(n), &"an integer of 64 bits with sign"))
    }

    fn visit_f64<E: Error>(self, n: f64) -> Result<i64, E> {
        match n {
            _ if n.fract() != 0.0 => Err(E::invalid_type(Unexpected::Float(n), &self)),
            _ if n.abs() > EXACT => Err(E::invalid_value(Unexpected::Float(n), &"a smaller number")),
            _ => Ok(n as i64),
        }
    }
}

struct Optional;

impl<'de> Visitor<'de> for Optional {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an integer or null")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        integer(from).map(Some)
    }
}

/// A JSON text with each integer in plain digits, for decoders that take none with a fraction or an exponent. `None`: it
/// has all of them so already.
pub fn in_plain_digits(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let (mut plain, mut taken, mut at) = (String::new(), 0, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' => {
                let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                let end = at + bytes[at..].iter().take_while(|b| is_part(b)).count();
                if let Some(n) = integral(&text[at..end]) {
                    plain.push_str(&text[taken..at]);
                    plain.push_str(&n.to_string());
                    taken = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    (taken > 0).then(|| plain + &text[taken..])
}

/// The place behind a string that begins at `open`.
fn end_of_string(bytes: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// An integer that is not in plain digits.
fn integral(number: &str) -> Option<i64> {
    if !number.contains(['.', 'e', 'E']) {
        return None;
    }
    let n: f64 = number.parse().ok()?;
    (n.fract() == 0.0 && n.abs() <= EXACT).then_some(n as i64)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, Debug, PartialEq)]
    struct Fields {
        #[serde(deserialize_with = "integer")]
        run: i64,
        #[serde(default, deserialize_with = "optional_integer")]
        limit: Option<i64>,
    }

    #[test]
    fn an_integer_may_have_a_fraction_of_nothing_or_an_exponent() {
        let read = |text: &str| serde_json::from_str::<Fields>(text).map(|f| (f.run, f.limit)).ok();
        assert_eq!(read(r#"{"run": 1.0, "limit": 5e1}"#), Some((1, Some(50))));
        assert_eq!(read(r#"{"run": -0.0, "limit": null}"#), Some((0, None)));
        assert_eq!(read(r#"{"run": 9223372036854775807}"#), Some((i64::MAX, None)));
        for bad in ["1.5", "1e300", "9223372036854775808", "\"1\"", "null", "true"] {
            assert_eq!(read(&format!("{{\"run\": {bad}}}")), None, "{bad}");
        }
        assert_eq!(read(r#"{"run": 1, "limit": 0.5}"#), None);
    }

    #[test]
    fn only_integers_outside_of_strings_are_written_anew() {
        assert_eq!(
            in_plain_digits(r#"{"1.0":[1.0,-2.50e2,"a\"3.0",0.5, 1e300],"n":1E2}"#).unwrap(),
            r#"{"1.0":[1,-250,"a\"3.0",0.5, 1e300],"n":100}"#
        );
        assert_eq!(in_plain_digits(r#"{"a":[1,2.5,"1.0\\"]}"#), None);
    }
}
