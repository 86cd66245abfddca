//! What several tasks have ready at the same moment, in the hands of one of them.
//!
//! Unlike a [`super::Batcher`] it has no task of its own and gives no answers: it is for what is only sent on. No time passes,
//! only the turn of those tasks that can run at once.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Gathers what tasks bring that were woken together.
pub struct Together<T>(Mutex<Ready<T>>);

struct Ready<T> {
    values: Vec<T>,
    /// Somebody waits to take them.
    awaited: bool,
}

/// Who waits to take what is brought. Dropped with its task, it leaves that to the next one.
struct Taker<'a, T>(&'a Together<T>);

impl<T> Default for Together<T> {
    fn default() -> Self {
        Self(Mutex::new(Ready { values: Vec::new(), awaited: false }))
    }
}

impl<T> Together<T> {
    /// Brings a value. The first to come gets all that were brought until every task that could run has had its turn, in their
    /// order; the others get nothing, and theirs is his to look after.
    pub async fn bring(&self, value: T) -> Vec<T> {
        {
            let mut ready = self.lock();
            ready.values.push(value);
            if std::mem::replace(&mut ready.awaited, true) {
                return Vec::new();
            }
        }
        let taker = Taker(self);
        tokio::task::yield_now().await;
        drop(taker);
        std::mem::take(&mut self.lock().values)
    }

    fn lock(&self) -> MutexGuard<'_, Ready<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Taker<'_, T> {
    fn drop(&mut self) {
        self.0.lock().awaited = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn what_is_ready_at_the_same_moment_goes_to_the_first_and_nothing_to_the_others() {
        let (together, gate) = (Arc::new(Together::default()), Arc::new(Notify::new()));
        let brought: Vec<_> = (0..20)
            .map(|n| {
                let (together, gate) = (together.clone(), gate.clone());
                tokio::spawn(async move {
                    gate.notified().await;
                    together.bring(n).await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        gate.notify_waiters();
        let mut shares = Vec::new();
        for brought in brought {
            shares.push(brought.await.unwrap());
        }
        shares.sort_by_key(Vec::len);
        let mut all = shares.pop().unwrap();
        all.sort_unstable();
        assert_eq!(all, (0..20).collect::<Vec<_>>());
        assert!(shares.iter().all(Vec::is_empty), "{shares:?}");
        assert_eq!(together.bring(20).await, [20], "the next one begins anew");
    }

    #[tokio::test]
    async fn what_a_task_leaves_behind_that_was_stopped_goes_to_the_next() {
        let together = Together::default();
        let mut stopped = Box::pin(together.bring(1));
        assert!(futures_util::poll!(stopped.as_mut()).is_pending());
        drop(stopped);
        assert_eq!(together.bring(2).await, [1, 2]);
    }
}
