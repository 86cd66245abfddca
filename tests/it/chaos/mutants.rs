//! Deliberate bugs, switched on in the processes that are tested: for each the checker finds the promise that it breaks,
//! and without it the very same course of events breaks none.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    checker::{Asked, History, Wanted, check},
    driver::Driver,
    plan::{Fault, Step},
    world::World,
};
use crate::{harness::until, proxy::Mode};

/// How long a world with a bug is waited for that may never be quiet.
const PATIENCE: Duration = Duration::from_secs(6);

/// A course of events, with a bug and without it. `invariant`: what has to break.
async fn shows(mutant: &str, invariant: u8, course: impl AsyncFn(&mut World, &Driver)) {
    let with_bug = history(&[("QUEUE_MUTANT", mutant)], Some(PATIENCE), &course).await;
    let found = check(&with_bug);
    assert!(found.iter().any(|violation| violation.invariant == invariant), "{mutant} was not noticed: {found:?}");
    let without = history(&[], None, &course).await;
    assert_eq!(check(&without), [], "the same without {mutant}");
}

async fn history(
    variables: &[(&'static str, &str)],
    patience: Option<Duration>,
    course: &impl AsyncFn(&mut World, &Driver),
) -> History {
    let mut world = World::shared(2, variables, |_| ()).await;
    let driver = Driver::new(&world).await;
    course(&mut world, &driver).await;
    let mut history = world.read(patience).await;
    history.asked = driver.take().asked;
    history
}

/// Hands in `n` equal jobs, and gives their ids.
async fn enqueue(driver: &Driver, n: usize, payload: Value, wanted: Wanted, max_attempts: i16) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..n {
        let request = json!({"type": "chaos", "payload": payload, "maxAttempts": max_attempts});
        let accepted = driver.enqueue(&request, false).await;
        ids.extend(accepted.clone());
        driver.note(Asked { key: None, wanted, max_attempts, accepted });
    }
    ids
}

const WELL: Wanted = Wanted::Success { after_failures: 0 };

/// So many runs have begun.
async fn begun(world: &World, n: usize) {
    until(|| async { (world.site.journal.count() >= n).then_some(()) }).await;
}

fn step(fault: Fault, ms: u64) -> Step {
    Step { fault, service: 0, lasts: Duration::from_millis(ms), then: Duration::ZERO }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_fence_is_noticed() {
    shows("NoFence", 2, async |world, driver| {
        enqueue(driver, 12, json!({"ms": 1600}), WELL, 9).await;
        begun(world, 12).await;
        // Longer than the lease: the other one begins anew, and the first one's results come in the middle of that.
        world.carry_out(&step(Fault::Freeze, 1200)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_taken_from_workers_that_are_alive_are_noticed() {
    shows("LeaseIgnored", 5, async |world, driver| {
        enqueue(driver, 6, json!({"ms": 1500}), WELL, 9).await;
        begun(world, 6).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_left_to_the_dead_are_noticed() {
    shows("NoTakeOver", 1, async |world, driver| {
        enqueue(driver, 8, json!({"ms": 1000}), WELL, 9).await;
        begun(world, 8).await;
        world.carry_out(&step(Fault::Kill, 0)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_error_is_noticed() {
    shows("RetryLosesError", 4, async |_, driver| {
        enqueue(driver, 2, json!({"failures": 1}), WELL, 5).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_only_looked_up_is_noticed() {
    shows("KeyBySelect", 7, async |_, driver| {
        for n in 0..20 {
            let key = format!("key-{n}");
            let request = json!({"type": "chaos", "payload": {}, "maxAttempts": 3, "idempotencyKey": key});
            let all = (0..4).map(|_| driver.enqueue(&request, true));
            let accepted = futures_util::future::join_all(all).await.concat();
            driver.note(Asked { key: Some(key), wanted: WELL, max_attempts: 3, accepted });
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_are_not_counted_are_noticed() {
    shows("AttemptNotCounted", 4, async |world, driver| {
        enqueue(driver, 2, json!({"failures": 1}), WELL, 3).await;
        begun(world, 2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_spends_attempts_is_noticed() {
    shows("DrainSpends", 4, async |world, driver| {
        enqueue(driver, 8, json!({"ms": 1500}), WELL, 9).await;
        begun(world, 8).await;
        world.carry_out(&step(Fault::Stop, 0)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_that_are_off_are_noticed() {
    shows("CountsSkewed", 11, async |_, driver| {
        enqueue(driver, 2, json!({}), WELL, 3).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_nobody_has_confirmed_is_noticed() {
    shows("DeadLetterUnconfirmed", 8, async |world, driver| {
        let payload = json!({"ms": 400, "failures": 9, "forGood": true});
        enqueue(driver, 8, payload, Wanted::Failure, 3).await;
        begun(world, 8).await;
        // The broker hears nothing of what is published, and says nothing about it.
        let silent = world.disturb_nats_of_all(Mode::LostRequests, Duration::from_millis(2500));
        silent.await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_commit_is_noticed() {
    shows("AnswerBeforeCommit", 1, async |world, driver| {
        let silent = world.disturb_postgres_of_all(Mode::Cut, Duration::from_millis(2500));
        let (_, ()) = tokio::join!(enqueue(driver, 6, json!({}), WELL, 3), silent);
    })
    .await;
}
