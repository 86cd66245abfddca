//! Taking turns at a host: at most two requests at the same time from this process, and the pause that it asks for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout_at},
};

/// Requests to one host at the same time, over all crawls of this process.
const PER_HOST: usize = 2;
/// Hosts beyond which those that nobody waits for are forgotten.
const HOSTS_MAX: usize = 1000;

/// All hosts that are crawled at present.
#[derive(Default)]
pub struct Hosts(Mutex<HashMap<String, Arc<Host>>>);

struct Host {
    slots: Arc<Semaphore>,
    next: Mutex<Instant>,
}

/// The right to one request; it ends when this is dropped.
pub struct Turn(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Hosts {
    /// Waits for a turn at `host`; `delay` is the pause until the next one. `None`: it would not come before `deadline`.
    pub async fn turn(&self, host: &str, delay: Duration, deadline: Instant) -> Option<Turn> {
        let host = self.host(host);
        let slot = timeout_at(deadline, host.slots.clone().acquire_owned()).await.ok()?.ok()?;
        let at = {
            let mut next = host.next.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*next).max(Instant::now());
            if at >= deadline {
                return None;
            }
            *next = at + delay;
            at
        };
        sleep_until(at).await;
        Some(Turn(slot))
    }

    fn host(&self, name: &str) -> Arc<Host> {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= HOSTS_MAX {
            let now = Instant::now();
            hosts.retain(|_, host| {
                Arc::strong_count(host) > 1
                    || Arc::strong_count(&host.slots) > 1
                    || *host.next.lock().unwrap_or_else(PoisonError::into_inner) > now
            });
        }
        let fresh = || Arc::new(Host { slots: Arc::new(Semaphore::new(PER_HOST)), next: Mutex::new(Instant::now()) });
        hosts.entry(name.to_owned()).or_insert_with(fresh).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_third_request_waits_until_one_of_two_is_over() {
        let hosts = Hosts::default();
        let soon = Instant::now() + Duration::from_secs(1);
        let first = hosts.turn("a", Duration::ZERO, soon).await.unwrap();
        let _second = hosts.turn("a", Duration::ZERO, soon).await.unwrap();
        assert!(hosts.turn("b", Duration::ZERO, soon).await.is_some());
        assert!(hosts.turn("a", Duration::ZERO, soon).await.is_none());
        drop(first);
        assert!(hosts.turn("a", Duration::ZERO, soon + MINUTE).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_lies_between_the_starts_of_two_requests() {
        let hosts = Hosts::default();
        let start = Instant::now();
        let delay = Duration::from_secs(10);
        for turn in 0..3 {
            assert!(hosts.turn("a", delay, start + MINUTE).await.is_some());
            assert_eq!(start.elapsed(), delay * turn);
        }
        // The next one would be at 30 s: not worth waiting for when the time is over before.
        assert!(hosts.turn("a", delay, start + Duration::from_secs(25)).await.is_none());
        assert_eq!(start.elapsed(), delay * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_that_nobody_waits_for_are_forgotten() {
        let hosts = Hosts::default();
        let soon = Instant::now() + MINUTE;
        let _held = hosts.turn("held", Duration::ZERO, soon).await;
        for n in 0..3 * HOSTS_MAX {
            drop(hosts.turn(&n.to_string(), Duration::ZERO, soon).await);
        }
        let known = hosts.0.lock().unwrap();
        assert!(known.len() <= HOSTS_MAX && known.contains_key("held"));
    }
}
