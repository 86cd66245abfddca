//! The header `Retry-After`: how long the other side wants to be left alone.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// A wish below this is raised to it: "at once" from a server that has just refused is not to be taken at its word.
const LEAST: Duration = Duration::from_secs(1);

/// The three forms of a date that HTTP knows. Source: RFC 9110, 5.6.7.
const DATES: [&str; 3] = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

/// The wish in `headers`, if there is a readable one.
pub fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are still a number: a very long time. Whoever waits has a cap of its own.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))).max(LEAST));
    }
    let at = DATES.iter().find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())?.and_utc();
    Some((at - now).to_std().unwrap_or(Duration::ZERO).max(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(text: &str) -> Option<u64> {
        let now = "2026-11-24T12:00:00Z".parse().unwrap();
        let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
        retry_after(&headers, now).map(|d| d.as_secs())
    }

    #[test]
    fn seconds_and_all_forms_of_dates_are_read() {
        assert_eq!(wish("120"), Some(120));
        assert_eq!(wish("Tue, 24 Nov 2026 12:01:30 GMT"), Some(90));
        assert_eq!(wish("Tuesday, 24-Nov-26 12:01:30 GMT"), Some(90));
        assert_eq!(wish("Tue Nov 24 12:01:30 2026"), Some(90));
    }

    #[test]
    fn zero_and_the_past_mean_a_second() {
        assert_eq!(wish("0"), Some(1));
        assert_eq!(wish("Tue, 24 Nov 2020 12:00:00 GMT"), Some(1));
    }

    #[test]
    fn nonsense_is_no_wish() {
        for text in ["", "soon", "-5", "1.5", "Wed, 99 Nov 2026 12:00:00 GMT"] {
            assert_eq!(wish(text), None, "{text}");
        }
        assert_eq!(wish("99999999999999999999999"), Some(u64::from(u32::MAX)));
    }
}
