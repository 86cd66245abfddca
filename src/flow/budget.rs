//! A cap on what is taken in: so many pieces, so many bytes. What does not fit is refused at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in units of this, since a semaphore's count is 32 bits wide.
const UNIT: usize = 64;

/// Pieces and bytes that may be held at the same time.
#[derive(Clone, Debug)]
pub struct Budget {
    pieces: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A share of the budget; gives itself back on drop.
#[derive(Debug)]
pub struct Share {
    _pieces: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Budget {
    pub fn new(pieces: usize, bytes: usize) -> Self {
        Self { pieces: Arc::new(Semaphore::new(pieces)), bytes: Arc::new(Semaphore::new(bytes / UNIT)) }
    }

    /// Takes a share, or `None` when the budget is used up.
    pub fn try_take(&self, pieces: usize, bytes: usize) -> Option<Share> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        Some(Share {
            _pieces: self.pieces.clone().try_acquire_many_owned(u32::try_from(pieces).ok()?).ok()?,
            _bytes: self.bytes.clone().try_acquire_many_owned(units).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_limit_refuses_and_a_dropped_share_comes_back() {
        let budget = Budget::new(2, 1024);
        let first = budget.try_take(1, 1000).unwrap();
        assert!(budget.try_take(1, 100).is_none(), "no bytes left");
        drop(first);
        let _two = budget.try_take(2, 10).unwrap();
        assert!(budget.try_take(1, 10).is_none(), "no pieces left");
    }
}
