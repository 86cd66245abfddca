//! The attack on the whole: faults by a plan that a seed makes, callers who remember every answer, a handler that
//! remembers every run, and a checker that knows the invariants. Its teeth are shown by deliberate bugs.
//!
//! `just chaos 30` goes on for thirty minutes, `just chaos 0 7` repeats the plan of seed 7.

mod checker;
mod crash_points;
mod driver;
mod misbehaviour;
mod mutants;
mod plan;
mod site;
mod world;

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use checker::{Violation, check};
use driver::Driver;
use world::World;

/// The plan that every run of the tests begins with.
const SEED: u64 = 1;
const SERVICES: usize = 3;
/// No process may ever have had more, in MiB; a build without optimisation.
const MEMORY: u64 = 250;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_promise_breaks_whatever_fails_by_plan() {
    let (mut seed, minutes) = (number("QUEUE_CHAOS_SEED").unwrap_or(SEED), number("QUEUE_CHAOS_MINUTES").unwrap_or(0));
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    loop {
        attack(seed).await;
        if Instant::now() >= end {
            return;
        }
        seed += 1;
    }
}

/// One world, one plan, one verdict.
async fn attack(seed: u64) {
    let began = Instant::now();
    let mut world = World::own(SERVICES).await;
    let driver = Driver::new(&world).await;
    let stop = CancellationToken::new();
    let mut callers = driver.start(seed, 4, Duration::from_millis(100), &stop);
    for step in plan::plan(seed, SERVICES) {
        world.carry_out(&step).await;
    }
    stop.cancel();
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    let mut history = world.read(None).await;
    let journal = driver.take();
    history.asked = journal.asked;
    let accepted = history.asked.iter().filter(|asked| !asked.accepted.is_empty()).count();
    let lost = history.rows.iter().filter(|row| row.run > 1).count();
    println!(
        "seed {seed}: {accepted} jobs accepted, {} requests unanswered, {} refused, {} duplicates, {} runs, {lost} jobs ran again, {} s",
        journal.unanswered,
        journal.refused,
        journal.duplicates,
        history.calls.len(),
        began.elapsed().as_secs(),
    );
    let found = check(&history);
    assert_eq!(found, [], "{}", how_to_repeat(seed, &world, &found));
    // A run in which nothing happened proves nothing.
    for step in plan::plan(seed, SERVICES) {
        let name = world::name(step.fault);
        assert!(world.sometimes.contains_key(&name), "{name} was never reached: {:?}", world.sometimes);
    }
    assert!(
        accepted > 100 && lost > 10 && journal.unanswered > 0 && journal.duplicates > 0,
        "hardly anything happened"
    );
    assert!(world.peak_memory() < MEMORY, "a process had {} MiB", world.peak_memory());
}

fn how_to_repeat(seed: u64, world: &World, found: &[Violation]) -> String {
    let file = std::env::temp_dir().join(format!("queue-chaos-{seed}.log"));
    let _ = std::fs::write(&file, world.log());
    format!(
        "{} violations; logs of the last processes: {}; again: QUEUE_CHAOS_SEED={seed} cargo test --test it chaos::no_promise",
        found.len(),
        file.display()
    )
}
