//! Which faults come when, made from a seed alone: the same seed is the same plan. Pure.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::proxy::Mode;

/// Points at which a process can be told to die; see `src/faults.rs`.
pub const CRASH_POINTS: [&str; 7] = [
    "before_claim",
    "after_claim",
    "after_effect",
    "after_finish_commit",
    "after_enqueue_commit",
    "after_publish",
    "after_relay_publish",
];

/// One fault. Where it strikes one process, the plan says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`.
    Kill,
    /// SIGSTOP, and SIGCONT when its time is over.
    Freeze,
    /// SIGTERM.
    Stop,
    /// Replaced by a process that dies at this point.
    CrashAt(&'static str),
    KillNats,
    /// Killed, and its whole store with it.
    WipeNats,
    KillPostgres,
    /// All connections of all processes are ended.
    EndConnections,
    ToPostgres(Mode),
    ToNats(Mode),
}

/// A fault, how long it lasts, and how long all is well after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub fault: Fault,
    /// The process that it strikes.
    pub service: usize,
    pub lasts: Duration,
    pub then: Duration,
}

/// Each fault once, in an order and at processes that the seed decides.
pub fn plan(seed: u64, services: usize) -> Vec<Step> {
    let mut rng = StdRng::seed_from_u64(seed);
    let modes =
        [Mode::Cut, Mode::Blackhole, Mode::LostRequests, Mode::LostAnswers, Mode::Slow(Duration::from_millis(30))];
    let mut faults = vec![
        Fault::Kill,
        Fault::Freeze,
        Fault::Stop,
        Fault::KillNats,
        Fault::WipeNats,
        Fault::KillPostgres,
        Fault::EndConnections,
    ];
    faults.extend(CRASH_POINTS.map(Fault::CrashAt));
    faults.extend(modes.map(Fault::ToPostgres));
    faults.extend(modes.map(Fault::ToNats));
    faults.shuffle(&mut rng);
    let mut step = |fault| Step {
        fault,
        service: rng.random_range(0..services),
        lasts: Duration::from_millis(rng.random_range(300..1600)),
        then: Duration::from_millis(rng.random_range(0..500)),
    };
    faults.into_iter().map(&mut step).collect()
}

#[test]
fn a_seed_is_a_plan_that_has_every_fault_once() {
    assert_eq!(plan(7, 3), plan(7, 3));
    assert_ne!(plan(7, 3), plan(8, 3));
    let points = plan(7, 3).iter().filter(|step| matches!(step.fault, Fault::CrashAt(_))).count();
    assert_eq!((plan(7, 3).len(), points), (24, CRASH_POINTS.len()));
    assert!(plan(7, 3).iter().all(|step| step.service < 3));
}
