//! Many callers, one statement: whatever waits is carried out together.
//!
//! No delay is added: while one batch is under way the next one gathers, so a lone item goes at once and a flood goes in
//! large batches. Only what is about to come from tasks that can run already is waited for. Used by intake, claim and finish.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use crate::supervise::{Name, Tasks};

/// How often all other tasks have their turn, and what the network has brought is read, before a batch begins with what waits: the
/// callers who were answered last are about to ask again. A lone item waits some microseconds for it, while statements for 20 jobs
/// became ones for 30 (measured, see docs/laboratory.md; more turns bring no more).
const TURNS: usize = 3;

/// How much goes into one batch.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// A batch is full when the weights of its items add up to this. A single heavier item goes alone.
    pub weight: usize,
    /// How many batches may be under way at once.
    pub lanes: usize,
    /// While another batch is under way, a further one begins only at this weight: two small ones cost twice the statements
    /// of one, and take no less time.
    pub enough: usize,
    /// How many items may wait. Callers beyond it wait themselves; put a [`super::Budget`] before it to refuse instead.
    pub waiting: usize,
}

struct Item<T, R> {
    value: T,
    reply: oneshot::Sender<R>,
}

/// Hands items to a function that carries out many at once, and each answer back to its caller.
pub struct Batcher<T, R> {
    queue: mpsc::Sender<Item<T, R>>,
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

/// Why an item has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The lanes have ended; it was not carried out.
    #[error("the service is stopping")]
    Stopping,
    /// The lane panicked with it; it may have been carried out.
    #[error("the task that carried it out has failed")]
    Failed,
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Starts the lanes on `tasks`; they end, with everything that waits carried out, when the last clone is dropped.
    /// `run` must return one answer per item, in order. A lane that panics goes on with the next batch.
    pub fn start<F, Fut>(name: &'static str, size: Size, weigh: fn(&T) -> usize, tasks: &Tasks, run: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
    {
        let (queue, waiting) = mpsc::channel(size.waiting);
        let (waiting, run, busy) = (Arc::new(Mutex::new(waiting)), Arc::new(run), Arc::new(Busy::default()));
        for lane in 1..=size.lanes {
            let (waiting, run, busy) = (waiting.clone(), run.clone(), busy.clone());
            let name = if size.lanes == 1 { name.into() } else { Name::of(name, lane) };
            tasks.keep_until_done(name, move || {
                let (waiting, run, busy) = (waiting.clone(), run.clone(), busy.clone());
                async move {
                    while let Some((values, replies, _at_work)) = gather(&waiting, size, weigh, &busy).await {
                        let answers = run(values).await;
                        debug_assert_eq!(answers.len(), replies.len());
                        for (reply, answer) in replies.into_iter().zip(answers) {
                            // A caller that has gone away no longer wants its answer.
                            let _ = reply.send(answer);
                        }
                    }
                }
            });
        }
        Self { queue }
    }

    /// Carries out one item together with others.
    ///
    /// # Errors
    /// [`Unanswered`]: the lanes have ended, or one has panicked.
    pub async fn submit(&self, value: T) -> Result<R, Unanswered> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Item { value, reply }).await.map_err(|_| Unanswered::Stopping)?;
        // Lanes that end carry out all that waits; so one that answers nothing has panicked.
        answer.await.map_err(|_| Unanswered::Failed)
    }
}

/// How many batches are under way.
#[derive(Default)]
struct Busy {
    lanes: AtomicUsize,
    ended: Notify,
}

/// One batch that is under way.
struct AtWork(Arc<Busy>);

impl AtWork {
    fn begin(busy: &Arc<Busy>) -> Self {
        busy.lanes.fetch_add(1, Ordering::SeqCst);
        Self(busy.clone())
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.lanes.fetch_sub(1, Ordering::SeqCst);
        self.0.ended.notify_one();
    }
}

type Gathered<T, R> = (Vec<T>, Vec<oneshot::Sender<R>>, AtWork);

async fn gather<T, R>(
    waiting: &Mutex<mpsc::Receiver<Item<T, R>>>,
    size: Size,
    weigh: fn(&T) -> usize,
    busy: &Arc<Busy>,
) -> Option<Gathered<T, R>> {
    // Its holder is the one lane that gathers, so only those that are at work can be counted meanwhile.
    let mut waiting = waiting.lock().await;
    let (mut values, mut replies, mut weight, mut turns) = (Vec::new(), Vec::new(), 0, 0);
    loop {
        let next = if values.is_empty() { Some(waiting.recv().await?) } else { waiting.try_recv().ok() };
        let next = match next {
            None if weight < size.enough && busy.lanes.load(Ordering::SeqCst) > 0 => {
                tokio::select! {
                    next = waiting.recv() => next,
                    // A permit may be left of a batch that ended earlier; then it is looked once more.
                    () = busy.ended.notified() => continue,
                }
            }
            None if turns < TURNS => {
                turns += 1;
                tokio::task::yield_now().await;
                continue;
            }
            next => next,
        };
        let Some(item) = next else { return Some((values, replies, AtWork::begin(busy))) };
        // Nobody waits for it any more: its caller was told that it failed, so it must not happen behind his back.
        if item.reply.is_closed() {
            continue;
        }
        weight += weigh(&item.value);
        values.push(item.value);
        replies.push(item.reply);
        if weight >= size.weight {
            return Some((values, replies, AtWork::begin(busy)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const SIZE: Size = Size { weight: 10, lanes: 1, enough: 1, waiting: 100 };

    #[tokio::test]
    async fn items_that_wait_go_together_and_each_gets_its_own_answer() {
        let batches = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let (count, door) = (batches.clone(), gate.clone());
        let batcher = Batcher::start(
            "test",
            SIZE,
            |_| 1,
            &Tasks::default(),
            move |items: Vec<u32>| {
                let (count, door) = (count.clone(), door.clone());
                async move {
                    door.acquire().await.unwrap().forget();
                    count.fetch_add(1, Ordering::SeqCst);
                    items.into_iter().map(|n| n * 2).collect()
                }
            },
        );
        let calls: Vec<_> = (0..11u32)
            .map(|n| {
                let batcher = batcher.clone();
                tokio::spawn(async move { batcher.submit(n).await.unwrap() })
            })
            .collect();
        tokio::task::yield_now().await;
        gate.add_permits(100);
        for (n, call) in (0u32..).zip(calls) {
            assert_eq!(call.await.unwrap(), n * 2);
        }
        assert!(batches.load(Ordering::SeqCst) <= 3, "one alone at most, then ten, then the rest");
    }

    #[tokio::test]
    async fn what_is_about_to_come_goes_along() {
        let batcher = Batcher::start(
            "test",
            SIZE,
            |_| 1,
            &Tasks::default(),
            |items: Vec<u32>| async move { vec![items.len(); items.len()] },
        );
        let first = tokio::spawn({
            let batcher = batcher.clone();
            async move { batcher.submit(1).await.unwrap() }
        });
        let next = tokio::spawn(async move {
            // Meanwhile the first one is there.
            tokio::task::yield_now().await;
            batcher.submit(2).await.unwrap()
        });
        assert_eq!((first.await.unwrap(), next.await.unwrap()), (2, 2));
    }

    #[tokio::test]
    async fn a_second_batch_begins_beside_the_first_only_when_it_is_large_enough() {
        let (sizes, mut begun) = mpsc::unbounded_channel();
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let door = gate.clone();
        let size = Size { lanes: 2, enough: 3, ..SIZE };
        let batcher = Batcher::start(
            "test",
            size,
            |_| 1,
            &Tasks::default(),
            move |items: Vec<u32>| {
                let (sizes, door) = (sizes.clone(), door.clone());
                async move {
                    sizes.send(items.len()).unwrap();
                    door.acquire().await.unwrap().forget();
                    items
                }
            },
        );
        let call = |n| {
            let batcher = batcher.clone();
            tokio::spawn(async move { batcher.submit(n).await.unwrap() })
        };
        let mut calls = vec![call(0)];
        assert_eq!(begun.recv().await, Some(1));
        calls.extend([call(1), call(2)]);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(begun.try_recv().is_err(), "two are not enough");
        calls.push(call(3));
        assert_eq!(begun.recv().await, Some(3));
        // Both lanes are at work; what comes now goes when one of them is free, and alone when both are.
        calls.push(call(4));
        gate.add_permits(2);
        assert_eq!(begun.recv().await, Some(1));
        gate.add_permits(1);
        for (n, call) in (0u32..).zip(calls) {
            assert_eq!(call.await.unwrap(), n);
        }
    }

    #[tokio::test]
    async fn what_waits_is_carried_out_after_the_last_handle_is_gone() {
        let tasks = Tasks::default();
        let batcher = Batcher::start("test", SIZE, |_| 1, &tasks, |items: Vec<u32>| async move { items });
        let call = tokio::spawn({
            let batcher = batcher.clone();
            async move { batcher.submit(1).await }
        });
        drop(batcher);
        assert_eq!(call.await.unwrap().unwrap(), 1);
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_panics_answers_its_callers_and_goes_on() {
        let tasks = Tasks::default();
        let batcher = Batcher::start(
            "test",
            SIZE,
            |_| 1,
            &tasks,
            |items: Vec<u32>| async move {
                assert!(!items.contains(&13), "unlucky");
                items
            },
        );
        assert_eq!(batcher.submit(13).await, Err(Unanswered::Failed));
        assert_eq!(batcher.submit(1).await, Ok(1));
        assert_eq!(tasks.supervisor().report()[0].restarts, 1);
        drop(batcher);
        tasks.close();
        tasks.wait().await;
    }
}
