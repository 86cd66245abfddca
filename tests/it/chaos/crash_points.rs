//! A process dies at one exact point of a job's way, and nothing comes of it.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    checker::{Asked, Wanted, check},
    driver::Driver,
    plan::{CRASH_POINTS, Fault, Step},
    world::World,
};

/// One process dies at `point` while jobs go their way; gives how often each job was begun.
async fn die_at(point: &'static str) -> Vec<usize> {
    let mut world = World::shared(2, &[], |_| ()).await;
    let driver = Driver::new(&world).await;
    let reached = CancellationToken::new();
    let load = async {
        // Until somebody has died of it: a process that starts slowly finds nothing to do after the first ones.
        let going_on = (0..).take_while(|n| *n < 60 || !reached.is_cancelled());
        for n in going_on {
            // Every fourth one comes by way of the outbox.
            let mut request =
                json!({"type": "chaos", "payload": {"ms": 5}, "maxAttempts": 9, "idempotencyKey": n.to_string()});
            if n % 4 == 0 {
                request["delay"] = json!("100ms");
            }
            let accepted = driver.enqueue(&request, true).await;
            let wanted = Wanted::Success { after_failures: 0 };
            driver.note(Asked { key: Some(n.to_string()), wanted, max_attempts: 9, accepted });
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    };
    let lasts = Duration::from_secs(30);
    let step = Step { fault: Fault::CrashAt(point), service: 0, lasts, then: Duration::ZERO };
    let strike = async {
        world.carry_out(&step).await;
        reached.cancel();
    };
    tokio::join!(load, strike);
    assert!(!world.sometimes.is_empty(), "nobody died at {point}");
    let mut history = world.read(None).await;
    history.asked = driver.take().asked;
    assert_eq!(check(&history), [], "after a death at {point}:\n{}", world.log());
    let count = |id: &str| history.calls.iter().filter(|call| call.job == id).count();
    history.rows.iter().map(|row| count(&row.id)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_before_or_after_the_claim_costs_time_and_nothing_else() {
    let (before, after) = tokio::join!(die_at("before_claim"), die_at("after_claim"));
    for runs in [before, after] {
        // Nothing was done for those that were claimed, or it was not yet claimed at all; what the kill of the process
        // before cut off may have run twice.
        assert!(runs.iter().all(|runs| (1..=2).contains(runs)), "{runs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_after_the_side_effect_repeats_it_and_one_after_the_commit_does_not() {
    let (effect, commit) = tokio::join!(die_at("after_effect"), die_at("after_finish_commit"));
    assert!(effect.contains(&2), "nobody can know that it was done: {effect:?}");
    assert!(commit.iter().all(|runs| (1..=2).contains(runs)), "{commit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_between_commit_and_publish_or_after_it_loses_no_wake_up() {
    let (commit, publish, relay) =
        tokio::join!(die_at("after_enqueue_commit"), die_at("after_publish"), die_at("after_relay_publish"));
    for runs in [commit, publish, relay] {
        assert!(runs.iter().all(|runs| *runs >= 1), "{runs:?}");
    }
}

#[test]
fn every_point_is_tried() {
    let source = include_str!("crash_points.rs");
    for point in CRASH_POINTS {
        assert!(source.contains(&format!("die_at(\"{point}\")")), "{point}");
    }
}
