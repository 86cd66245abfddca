//! Spans of time as people read them.

use std::time::Duration;

/// A span in its two greatest units and no finer than a tenth of a second: `40ms`, `3.7s`, `2m 5s`, `1h 30m`, `3d`.
pub fn rounded(span: Duration) -> String {
    // Each from what was measured: rounded twice, 3.7499 would be 3.8.
    let in_units_of = |nanos: u128| (span.as_nanos() + nanos / 2) / nanos;
    let (ms, tenths, s) = (in_units_of(1_000_000), in_units_of(100_000_000), in_units_of(1_000_000_000));
    let two = |a: u128, unit_a: &str, b: u128, unit_b: &str| match b {
        0 => format!("{a}{unit_a}"),
        b => format!("{a}{unit_a} {b}{unit_b}"),
    };
    match () {
        () if ms < 1000 => format!("{ms}ms"),
        () if tenths < 600 && tenths.is_multiple_of(10) => format!("{}s", tenths / 10),
        () if tenths < 600 => format!("{}.{}s", tenths / 10, tenths % 10),
        () if s < 3600 => two(s / 60, "m", s % 60, "s"),
        () if s < 86_400 => two(s / 3600, "h", s % 3600 / 60, "m"),
        () => two(s / 86_400, "d", s % 86_400 / 3600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_rounded_to_what_a_person_reads() {
        let spans = [
            (Duration::from_nanos(3_749_915_706), "3.7s"),
            (Duration::from_micros(999_600), "1s"),
            (Duration::from_millis(300), "300ms"),
            (Duration::from_millis(59_960), "1m"),
            (Duration::from_secs(30), "30s"),
            (Duration::from_millis(125_400), "2m 5s"),
            (Duration::from_secs(5400), "1h 30m"),
            (Duration::from_secs(3 * 86_400), "3d"),
            (Duration::ZERO, "0ms"),
        ];
        for (span, text) in spans {
            assert_eq!(rounded(span), text, "{span:?}");
        }
    }
}
