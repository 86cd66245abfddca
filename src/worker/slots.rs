//! How many jobs of a type may run here at the same time. A slot gives itself back.

use std::sync::Arc;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

#[derive(Clone)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    freed: Arc<Notify>,
    pub size: usize,
}

pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Slots {
    pub fn new(size: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(size)), freed: Arc::new(Notify::new()), size }
    }

    pub fn try_take(&self) -> Option<Slot> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(Slot { permit: Some(permit), freed: self.freed.clone() })
    }

    pub fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// Returns when a slot was given back since the last call.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Back first, so that whoever is woken finds it.
        drop(self.permit.take());
        self.freed.notify_one();
    }
}
