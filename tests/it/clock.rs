//! The clock of a process jumps while it works. What is due, dead or old, only the database's clock decides.

use std::time::Duration;

use queue_service::config::AllowPrivate;
use serde_json::json;

use crate::{
    books,
    child::Program,
    harness::{PATIENCE, Place, millis_between, until},
    receiver::Receiver,
};

const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;

/// A clock that the test moves, for processes that are started with its variables.
struct Clock {
    folder: tempfile::TempDir,
}

impl Clock {
    /// Compiles what is preloaded: a C compiler is there, since Rust links with it.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/clock.c");
        let made = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(folder.path().join("clock.so"))
            .arg(source)
            .status()
            .unwrap();
        assert!(made.success());
        let clock = Self { folder };
        clock.jump(0);
        clock
    }

    /// All or nothing, so that nobody reads half a number.
    fn jump(&self, seconds: i64) {
        let half = self.folder.path().join("half");
        std::fs::write(&half, seconds.to_string()).unwrap();
        std::fs::rename(half, self.folder.path().join("offset")).unwrap();
    }

    fn variables(&self) -> [(&'static str, std::path::PathBuf); 2] {
        [("LD_PRELOAD", self.folder.path().join("clock.so")), ("CLOCK_OFFSET", self.folder.path().join("offset"))]
    }
}

/// Whether the process that made this id was wrong about the time.
fn is_far_from_now(id: &str) -> bool {
    let (seconds, _) = uuid::Uuid::parse_str(id).unwrap().get_timestamp().unwrap().to_unix();
    (seconds as i64 - chrono::Utc::now().timestamp()).abs() > HOUR / 2
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_clock_jumps_runs_nothing_early_and_takes_nothing_over() {
    let mut place = Place::new().await;
    place.config.webhook.allow_private = AllowPrivate::All(true);
    place.config.worker.types = vec!["webhook-delivery".into()];
    place.config.worker.lease = Duration::from_secs(5);
    let receiver = Receiver::start().await;
    let clock = Clock::new();
    // Both answer requests and run jobs; one of them is right about the time.
    let wrong = Program::serve_with(&place.config, &clock.variables()).await;
    let right = Program::serve(&place.config).await;
    let nats = async_nats::connect(&place.config.nats.url).await.unwrap();
    let ask = async |verb: &str, body: serde_json::Value| -> serde_json::Value {
        let subject = format!("{}.{verb}", place.config.nats.prefix);
        let request = async_nats::Request::new().payload(body.to_string().into()).timeout(Some(PATIENCE));
        serde_json::from_slice(&nats.send_request(subject, request).await.unwrap().payload).unwrap()
    };
    let mut ids = Vec::new();
    for offset in [HOUR, -HOUR, 10 * YEAR, -10 * YEAR, 0] {
        clock.jump(offset);
        for n in 0..30 {
            let mut request = receiver.slow(n % 3 * 20);
            request["delay"] = json!(if n % 2 == 0 { "700ms" } else { "0s" });
            let answer = ask("enqueue", request).await;
            ids.push(answer["jobId"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned());
        }
        let batch = &ids[ids.len() - 30..];
        let moved = batch.iter().filter(|id| is_far_from_now(id)).count();
        assert!(offset == 0 || moved > 0, "no id was made by the clock that is off by {offset} s");
        for id in batch {
            let answer = until(async || {
                let job = ask("getJob", json!({"jobId": id})).await;
                (job["status"] == "completed").then_some(job)
            })
            .await;
            assert!(millis_between(&answer["runAt"], &answer["startedAt"]) >= 0.0, "early: {answer}");
            assert_eq!(answer["attempts"], 1, "{answer}");
            assert_eq!(receiver.deliveries(id), 1, "{answer}");
        }
    }
    assert!(!wrong.log().contains("lost the lease"), "{}", wrong.log());
    wrong.stop().await;
    right.stop().await;
    // The books need somebody to ask for the statistics.
    place.config.worker.enabled = false;
    let door = place.start().await;
    books::all_completed_once(&place, &door, &ids).await;
    door.stop().await;
}
