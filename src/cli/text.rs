//! Texts for people: what others wrote made harmless, times and numbers made readable. Pure.

use chrono::{DateTime, Local, SecondsFormat, TimeDelta, Utc};

/// Shown where there is nothing, so that columns stay countable for `awk`.
pub const NOTHING: &str = "-";

/// Characters that steer a terminal or turn the direction of writing: what a job says must not move the cursor, set
/// the window's title or make one text look like another.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// One harmless line: line breaks and tabs become spaces, everything else that steers is dropped.
pub fn clean(text: &str) -> String {
    let space = |c: char| if matches!(c, '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}') { ' ' } else { c };
    text.chars().map(space).filter(|c| !steers(*c)).collect()
}

/// [`clean`], or the sign for nothing.
pub fn cell(text: Option<&str>) -> String {
    match text.map(clean) {
        Some(text) if !text.trim().is_empty() => text,
        _ => NOTHING.to_owned(),
    }
}

/// `1,234,567`
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 job`, `2 jobs`
pub fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A span in its two greatest units: `340ms`, `12.3s`, `3m 20s`, `5d 2h`.
pub fn span(delta: TimeDelta) -> String {
    let ms = delta.num_milliseconds().max(0);
    let (s, m, h, d) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    let two = |a: i64, unit_a: &str, b: i64, unit_b: &str| match b {
        0 => format!("{a}{unit_a}"),
        b => format!("{a}{unit_a} {b}{unit_b}"),
    };
    match () {
        () if ms < 1000 => format!("{ms}ms"),
        () if s < 60 => format!("{}.{}s", s, ms % 1000 / 100),
        () if m < 60 => two(m, "m", s % 60, "s"),
        () if h < 24 => two(h, "h", m % 60, "m"),
        () => two(d, "d", h % 24, "h"),
    }
}

/// A distance from now in its greatest unit: `now`, `12s ago`, `in 3m`, `5d ago`.
pub fn relative(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let s = (at - now).num_seconds();
    let size = match s.abs() {
        0 => return "now".to_owned(),
        s @ ..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    };
    if s < 0 { format!("{size} ago") } else { format!("in {size}") }
}

/// For people: the time where they are, with its offset.
pub fn local(at: DateTime<Utc>) -> String {
    at.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// For programs.
pub fn absolute(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        let evil = "a\u{1b}]0;title\u{7}b\u{9b}31mc\r\nd\u{202e}e\u{7f}";
        let shown = clean(evil);
        assert_eq!(shown, "a]0;titleb31mc  de");
        assert!(!shown.chars().any(steers));
        assert_eq!(clean("Grüße 日本 👩‍💻"), "Grüße 日本 👩‍💻");
        assert_eq!((cell(None), cell(Some(" \u{7} "))), ("-".to_owned(), "-".to_owned()));
    }

    #[test]
    fn numbers_and_times_are_readable() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([counted(1, "job"), counted(1200, "job")], ["1 job", "1,200 jobs"]);
        let spans =
            [0, 340, 12_340, 200_000, 180_000, 3_660_000, 439_200_000].map(|ms| span(TimeDelta::milliseconds(ms)));
        assert_eq!(spans, ["0ms", "340ms", "12.3s", "3m 20s", "3m", "1h 1m", "5d 2h"]);
        let now = DateTime::UNIX_EPOCH;
        let at = |s: i64| relative(now + TimeDelta::seconds(s), now);
        assert_eq!([at(0), at(-12), at(200), at(-7200), at(-432_000)], ["now", "12s ago", "in 3m", "2h ago", "5d ago"]);
    }
}
