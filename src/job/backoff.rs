//! How long a failed attempt waits for the next one.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The retry schedule of a type. By default `min(60 s · 2^(n-1), 3600 s)` after failed attempt n: 60, 120, 240 …
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// Delay after the first failed attempt.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::config::takes::Span", extend("x-least" = "0s", "x-greatest" = "30d"))]
    pub base: Duration,
    /// What each further delay is multiplied with.
    #[schemars(range(min = 1, max = 100))]
    pub factor: f64,
    /// No delay is longer than this.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::config::takes::Span", extend("x-least" = "0s", "x-greatest" = "30d"))]
    pub max: Duration,
    /// How many attempts a job gets unless its request says otherwise.
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: u16,
    /// Share of the delay that is random, from 0 (none) to 1: a delay d becomes d · (1 ± jitter/2).
    #[schemars(range(min = 0, max = 1))]
    pub jitter: f64,
    /// Explicit delays, first to last, instead of base and factor; the last one repeats.
    #[serde(with = "crate::config::duration_list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<crate::config::takes::Delay>", length(max = 100))]
    pub schedule: Vec<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(60),
            factor: 2.0,
            max: Duration::from_secs(3600),
            max_attempts: 3,
            jitter: 0.0,
            schedule: Vec::new(),
        }
    }
}

impl RetryPolicy {
    /// The delay after failed attempt `attempt` (from 1). `dice` is a random number in 0..1 that the caller brings; it
    /// matters only with jitter.
    pub fn delay(&self, attempt: u16, dice: f64) -> Duration {
        let step = u32::from(attempt.max(1)) - 1;
        let plain = match self.schedule.get(step as usize).or(self.schedule.last()) {
            Some(listed) => listed.as_secs_f64(),
            None => self.base.as_secs_f64() * self.factor.max(1.0).powi(step.min(i32::MAX as u32) as i32),
        };
        let cap = self.max.as_secs_f64();
        let spread = 1.0 + self.jitter.clamp(0.0, 1.0) * (dice - 0.5);
        // The cap comes last, so that jitter never exceeds it; min() also turns an infinite power into the cap.
        Duration::from_secs_f64((plain * spread).min(cap).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_schedule_doubles_from_a_minute_to_an_hour() {
        let policy = RetryPolicy::default();
        let seconds: Vec<_> = (1..=8).map(|n| policy.delay(n, 0.5).as_secs()).collect();
        assert_eq!(seconds, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
    }

    #[test]
    fn an_explicit_list_is_followed_and_its_last_entry_repeats() {
        let schedule = [5, 10, 7].map(Duration::from_millis).to_vec();
        let policy = RetryPolicy { schedule, ..RetryPolicy::default() };
        let millis: Vec<_> = (1..=4).map(|n| policy.delay(n, 0.5).as_millis()).collect();
        assert_eq!(millis, [5, 10, 7, 7]);
    }

    proptest! {
        #[test]
        fn a_delay_is_never_above_the_cap_and_jitter_stays_in_its_band(
            base_ms in 1u64..100_000, factor in 1.0f64..10.0, max_ms in 1u64..10_000_000,
            jitter in 0.0f64..1.0, attempt in 1u16..200, dice in 0.0f64..1.0,
        ) {
            let policy = RetryPolicy {
                base: Duration::from_millis(base_ms), factor, max: Duration::from_millis(max_ms), jitter,
                ..RetryPolicy::default()
            };
            let (delay, plain) = (policy.delay(attempt, dice), policy.delay(attempt, 0.5));
            prop_assert!(delay <= policy.max);
            prop_assert!(delay.as_secs_f64() >= plain.as_secs_f64() * (1.0 - jitter / 2.0) - 1e-6);
        }

        #[test]
        fn without_jitter_delays_never_shrink(attempt in 1u16..100, dice in 0.0f64..1.0) {
            let policy = RetryPolicy::default();
            prop_assert!(policy.delay(attempt + 1, dice) >= policy.delay(attempt, dice));
        }
    }
}
