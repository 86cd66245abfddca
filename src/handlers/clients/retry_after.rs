//! How long the other side asks to be left alone: the header `Retry-After`, in both of its forms.
//! Source: RFC 9110, section 10.2.3.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};

/// The wish of the other side, or `None` when it has none that can be read. Zero when its time has passed.
///
/// A date is compared with the answer's own `Date`, so that two clocks that disagree don't spoil it; `now` stands in
/// where that header is missing.
pub fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let wish = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = wish.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = DateTime::parse_from_rfc2822(wish).ok()?;
    let sent = date(headers, &DATE).unwrap_or(now);
    Some((at.to_utc() - sent).to_std().unwrap_or_default())
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<DateTime<Utc>> {
    Some(DateTime::parse_from_rfc2822(headers.get(name)?.to_str().ok()?).ok()?.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(pairs: &[(HeaderName, &str)]) -> Option<u64> {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let now = "1994-11-06T08:49:37Z".parse().unwrap();
        retry_after(&headers, now).map(|wish| wish.as_secs())
    }

    #[test]
    fn seconds_and_dates_are_understood_and_anything_else_is_no_wish() {
        assert_eq!(wish(&[(RETRY_AFTER, "120")]), Some(120));
        assert_eq!(wish(&[(RETRY_AFTER, "Sun, 06 Nov 1994 08:50:37 GMT")]), Some(60));
        for text in ["", "-1", "soon", "1.5", "99999999999999999999999"] {
            assert_eq!(wish(&[(RETRY_AFTER, text)]), None, "{text:?}");
        }
        assert_eq!(wish(&[]), None);
    }

    #[test]
    fn a_date_counts_from_the_answers_own_clock_and_a_past_one_means_at_once() {
        let past = (RETRY_AFTER, "Sun, 06 Nov 1994 07:00:00 GMT");
        assert_eq!(wish(std::slice::from_ref(&past)), Some(0));
        assert_eq!(wish(&[past, (DATE, "Sun, 06 Nov 1994 06:59:50 GMT")]), Some(10));
    }
}
