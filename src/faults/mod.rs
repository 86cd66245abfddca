//! Faults on purpose, for the suite that attacks the service: points at which the process dies or a task panics, deliberate bugs, and a
//! handler that misbehaves.
//!
//! Nothing of it is in a program that is built without the feature `faults`, which only this crate's own tests switch on:
//! there, every function here is empty and is compiled away.

/// A deliberate bug. For each the checker of `tests/it/chaos` must find a violation; else it has no teeth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A finished run is recorded whichever run holds the job by now.
    NoFence,
    /// Jobs are taken from workers whose lease is current.
    LeaseIgnored,
    /// Jobs of dead workers are left to them.
    NoTakeOver,
    /// A failed attempt that is repeated leaves no entry in `errors`.
    RetryLosesError,
    /// Whether a key is taken is looked up, and not decided by the unique index.
    KeyBySelect,
    /// A claim does not count the attempt.
    AttemptNotCounted,
    /// A run that a drain cuts off spends its attempt.
    DrainSpends,
    /// A job that ends is still counted as running.
    CountsSkewed,
    /// A dead letter leaves the outbox before the broker has confirmed it.
    DeadLetterUnconfirmed,
    /// A job is accepted though it could not be written.
    AnswerBeforeCommit,
}

#[cfg(feature = "faults")]
mod handler;

#[cfg(feature = "faults")]
mod on {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    use super::Mutant;

    /// `QUEUE_CRASH_AT=name:nth`, counted from 1.
    static CRASH: LazyLock<Option<Point>> = LazyLock::new(|| Point::from_env("QUEUE_CRASH_AT"));
    /// `QUEUE_PANIC_AT=name:nth`, as well.
    static PANIC: LazyLock<Option<Point>> = LazyLock::new(|| Point::from_env("QUEUE_PANIC_AT"));
    static MUTANT: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("QUEUE_MUTANT").ok());

    struct Point {
        name: String,
        nth: u64,
        passed: AtomicU64,
    }

    impl Point {
        fn from_env(variable: &str) -> Option<Self> {
            let text = std::env::var(variable).ok()?;
            let (name, nth) = text.split_once(':').unwrap_or((&text, "1"));
            Some(Self { name: name.to_owned(), nth: nth.parse().ok()?, passed: AtomicU64::new(0) })
        }

        fn is_reached_at(&self, name: &str) -> bool {
            self.name == name && self.passed.fetch_add(1, Ordering::SeqCst) + 1 == self.nth
        }
    }

    /// When the environment says so, the process dies here as by `kill -9`: nothing is unwound, flushed or told. Or the
    /// task panics.
    pub fn crash_point(name: &str) {
        if CRASH.as_ref().is_some_and(|point| point.is_reached_at(name)) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        let panics = PANIC.as_ref().is_some_and(|point| point.is_reached_at(name));
        assert!(!panics, "a test has asked for it at {name}");
    }

    pub use super::handler::with_misbehaviour;

    /// Whether this bug is switched on.
    pub fn has(mutant: Mutant) -> bool {
        MUTANT.as_ref().is_some_and(|name| *name == format!("{mutant:?}"))
    }

    /// A statement, or what the bug makes of it.
    pub fn statement(mutant: Mutant, sql: &'static str, right: &str, wrong: &str) -> &'static str {
        if !has(mutant) {
            return sql;
        }
        assert!(sql.contains(right), "the statement has changed: {sql}");
        Box::leak(sql.replace(right, wrong).into_boxed_str())
    }
}

#[cfg(not(feature = "faults"))]
mod on {
    use super::Mutant;
    use crate::handlers::{Registry, registry};

    #[inline(always)]
    pub fn crash_point(_: &str) {}

    /// # Errors
    /// Never.
    #[inline(always)]
    pub fn with_misbehaviour(registry: Registry) -> Result<Registry, registry::Error> {
        Ok(registry)
    }

    #[inline(always)]
    pub fn has(_: Mutant) -> bool {
        false
    }

    #[inline(always)]
    pub fn statement(_: Mutant, sql: &'static str, _: &str, _: &str) -> &'static str {
        sql
    }
}

pub use on::{crash_point, has, statement, with_misbehaviour};
