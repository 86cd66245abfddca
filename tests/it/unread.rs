//! Nobody reads what a program writes, as when the other end of its pipe has ended: it does its work all the same.

use std::process::Stdio;

use queue_service::config::AllowPrivate;
use rustix::process::Signal;
use serde_json::json;
use tokio::process::Command;

use crate::{
    child::Program,
    harness::{PATIENCE, Place},
    receiver::Receiver,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_log_nobody_reads_drains_in_full() {
    let mut place = Place::new().await;
    place.config.webhook.allow_private = AllowPrivate::All(true);
    let mut worker = place.config.clone();
    worker.http.enabled = false;
    worker.rpc.enabled = false;
    place.config.worker.enabled = false;
    let (door, mut receiver) = (place.start().await, Receiver::start().await);
    let mut program = Program::serve(&worker).await;
    let id = door.enqueue(receiver.held()).await;
    let call = receiver.call().await;

    program.stop_reading().await;
    program.signal(Signal::TERM);
    // Told in the same moment, on an output without a reader.
    let may_end = std::time::Duration::from_millis(500);
    assert!(!program.ends_within(may_end).await, "it ended with a job in hand");
    call.answer("in time");

    let status = program.ended().await;
    assert!(status.success(), "{status}");
    let job = door.finished(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)), "{job}");
    assert_eq!(receiver.deliveries(&id), 1);
    door.stop().await;
}

/// Runs a command whose outputs nobody reads, and gives its exit code.
async fn unread(arguments: &[&str]) -> i32 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queue-service"));
    command.args(arguments).env_clear().current_dir(env!("CARGO_MANIFEST_DIR")).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("the command does not end");
    ended.unwrap().code().expect("killed by a signal")
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end_as_ever_when_nobody_reads_their_outputs() {
    // Nobody answers there.
    let nats = ["--nats-url", "nats://127.0.0.1:1"];
    let payload = r#"{"to": "a@example.com"}"#;
    let commands: [(&[&str], i32); 8] = [
        (&["get", "0198c5a4-5d5c-7000-8000-000000000000"], 1),
        (&["enqueue", "send-email", payload], 1),
        (&["enqueue", "send-email", "{"], 2),
        (&["list", "--json"], 1),
        (&["config"], 0),
        (&["completions", "bash"], 0),
        (&["serve", "--http", "no address"], 2),
        (&["--config", "/nowhere.toml", "serve"], 2),
    ];
    for (arguments, code) in commands {
        let all = [&nats, arguments].concat();
        assert_eq!(unread(&all).await, code, "{arguments:?}");
    }
}
