//! How often to tell of something that goes on: at once, then after pauses that grow.

use std::time::{Duration, Instant};

/// First and longest pause between two lines of the log about the same trouble.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);

/// The pace of one trouble. A new one begins with the next trouble.
#[derive(Debug)]
pub struct Pace {
    began: Instant,
    next: Instant,
    pause: Duration,
}

impl Pace {
    pub fn begin() -> Self {
        let now = Instant::now();
        Self { began: now, next: now, pause: FIRST }
    }

    /// Whether it is time to tell of it.
    pub fn is_due(&mut self) -> bool {
        self.is_due_at(Instant::now())
    }

    /// For how long the trouble has lasted.
    pub fn lasted(&self) -> Duration {
        self.began.elapsed()
    }

    fn is_due_at(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.pause;
            self.pause = (self.pause * 2).min(LONGEST);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_of_trouble_is_some_sixty_lines_and_its_first_second_is_one() {
        let mut pace = Pace::begin();
        let began = pace.began;
        let told = |pace: &mut Pace, seconds: std::ops::Range<u64>| {
            (seconds.start * 10..seconds.end * 10)
                .filter(|tenth| pace.is_due_at(began + Duration::from_millis(tenth * 100)))
                .count()
        };
        assert_eq!(told(&mut pace, 0..1), 1);
        assert_eq!(told(&mut pace, 1..60), 4, "after 2, 6, 14 and 30 s");
        assert_eq!(told(&mut pace, 60..3600), 59, "after 62 s and then each minute");
    }
}
