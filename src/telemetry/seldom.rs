//! When to say again what was said before: at once what is new, and the same at a falling rate.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Pause before the first repetition; each further one is twice as long.
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(600);
/// Texts that are kept; beyond, the oldest would be said too often, which is better than to keep any number.
const KEPT: usize = 64;

/// Warns of this, unless it was told just before: then it goes to those who debug.
pub fn warn_seldom(text: &str) {
    static SAID: LazyLock<Mutex<Seldom>> = LazyLock::new(Mutex::default);
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).is_due(text, Instant::now()) {
        tracing::warn!("{text}");
    } else {
        tracing::debug!("{text}");
    }
}

/// What was said lately, and when each of it may be said again.
#[derive(Debug, Default)]
pub struct Seldom(HashMap<String, Said>);

#[derive(Debug)]
struct Said {
    again: Instant,
    pause: Duration,
}

impl Seldom {
    /// Whether `text` is to be said now. It counts as said then.
    pub fn is_due(&mut self, text: &str, now: Instant) -> bool {
        if let Some(said) = self.0.get_mut(text) {
            if now < said.again {
                return false;
            }
            said.pause = (said.pause * 2).min(LONGEST);
            said.again = now + said.pause;
            return true;
        }
        if self.0.len() >= KEPT
            && let Some(oldest) = self.0.iter().min_by_key(|(_, said)| said.again).map(|(text, _)| text.clone())
        {
            self.0.remove(&oldest);
        }
        self.0.insert(text.to_owned(), Said { again: now + FIRST, pause: FIRST });
        true
    }

    /// All is well: whatever comes next is new.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_at_a_falling_rate_and_news_at_once() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        let mut said = Vec::new();
        for second in 0..3600 {
            if seldom.is_due("refused", start + Duration::from_secs(second)) {
                said.push(second);
            }
        }
        assert_eq!(said, [0, 10, 30, 70, 150, 310, 630, 1230, 1830, 2430, 3030]);
        assert!(seldom.is_due("another", start));
        seldom.clear();
        assert!(seldom.is_due("refused", start));
        for n in 0..1000 {
            seldom.is_due(&n.to_string(), start);
        }
        assert_eq!(seldom.0.len(), KEPT);
    }
}
