//! The last few things that happened: bounded, so that a sandbox may run for weeks.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Keeps the newest `max` items, each with a number that is never used twice.
pub(super) struct Ring<T> {
    max: usize,
    kept: Mutex<Kept<T>>,
}

struct Kept<T> {
    next: u64,
    items: VecDeque<(u64, Arc<T>)>,
}

impl<T> Ring<T> {
    pub fn new(max: usize) -> Self {
        Self { max, kept: Mutex::new(Kept { next: 1, items: VecDeque::new() }) }
    }

    /// Adds what `make` returns; it sees what is there already, oldest first, and its own number.
    pub fn push_with(&self, make: impl FnOnce(&mut dyn Iterator<Item = &T>, u64) -> T) -> (u64, Arc<T>) {
        let mut kept = self.lock();
        let id = kept.next;
        let item = Arc::new(make(&mut kept.items.iter().map(|(_, item)| item.as_ref()), id));
        kept.next += 1;
        kept.items.push_back((id, item.clone()));
        if kept.items.len() > self.max {
            kept.items.pop_front();
        }
        (id, item)
    }

    /// Everything that is kept, newest first.
    pub fn newest(&self) -> Vec<(u64, Arc<T>)> {
        self.lock().items.iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept<T>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_it_is_full_and_numbers_are_never_used_twice() {
        let ring = Ring::new(2);
        for n in 10..13 {
            ring.push_with(|before, id| (n, id, before.count()));
        }
        let kept: Vec<_> = ring.newest().iter().map(|(id, item)| (*id, **item)).collect();
        assert_eq!(kept, [(3, (12, 3, 2)), (2, (11, 2, 1))]);
    }
}
