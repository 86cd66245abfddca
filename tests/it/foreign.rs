//! Programs that know nothing of this project use the service: the NATS command line and the official Python client.

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use queue_service::{config::AllowPrivate, dev::process::find};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    harness::{PATIENCE, Place, Running},
    receiver::Receiver,
};

/// A tool of script/bootstrap: in the checkout, or on the PATH.
pub fn tool(name: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin").join(name);
    let found = if own.exists() { Some(own) } else { find(name) };
    found.unwrap_or_else(|| panic!("'{name}' is missing: run script/bootstrap --test"))
}

/// The Python that has the client.
pub fn python() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/python/bin/python");
    assert!(own.exists(), "the Python client is missing: run script/bootstrap --test");
    own
}

async fn output(command: &mut Command) -> Output {
    let output = command.kill_on_drop(true).output();
    tokio::time::timeout(PATIENCE * 2, output).await.expect("the program does not end").unwrap()
}

/// What the NATS command line prints, on both outputs.
async fn nats(service: &Running, arguments: &[&str]) -> String {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(tool("nats"));
    command
        .args(["--server", &service.config.nats.url])
        .args(arguments)
        .env("HOME", home.path())
        .env_remove("NATS_URL");
    let output = output(command.env("XDG_CONFIG_HOME", home.path())).await;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "nats {arguments:?}: {text}");
    text
}

async fn request(service: &Running, verb: &str, body: &str) -> Value {
    let text = nats(service, &["req", "--raw", &service.subject(verb), body]).await;
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

async fn start() -> (Place, Running, Receiver) {
    let mut place = Place::new().await;
    place.config.webhook.allow_private = AllowPrivate::All(true);
    let service = place.start().await;
    (place, service, Receiver::start().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nats_command_line_sees_a_micro_service_and_runs_a_job() {
    let (_place, service, receiver) = start().await;
    let name = service.config.nats.prefix.as_str();
    let list = nats(&service, &["micro", "ls"]).await;
    assert!(list.contains(name), "{list}");
    let info = nats(&service, &["micro", "info", name]).await;
    for verb in ["enqueue", "enqueueMany", "getJob", "listJobs", "retryJob", "cancelJob", "getStats", "waitJob"] {
        assert!(info.contains(&format!("{name}.{verb}")), "{verb} in {info}");
    }

    let reply = request(&service, "enqueue", &receiver.slow(0).to_string()).await;
    let id = reply["jobId"].as_str().unwrap();
    assert_eq!(request(&service, "waitJob", &json!({"jobId": id}).to_string()).await["status"], "completed");
    assert_eq!(request(&service, "getJob", id).await["id"], id);
    assert_eq!(request(&service, "listJobs", "{}").await["jobs"][0]["id"], id);
    assert_eq!(request(&service, "getStats", "").await["completed"], 1);

    let refused = nats(&service, &["req", &service.subject("enqueue"), r#"{"type": "nope", "payload": {}}"#]).await;
    assert!(refused.contains("Nats-Service-Error-Code: 400"), "{refused}");
    assert!(refused.contains("Nats-Service-Error: unknown_type"), "{refused}");
    let stats = nats(&service, &["micro", "stats", name]).await;
    assert!(stats.contains("enqueue"), "{stats}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_enqueues_waits_lists_follows_events_and_understands_errors() {
    let (_place, service, receiver) = start().await;
    let webhook = receiver.slow(0)["payload"]["url"].as_str().unwrap().to_owned();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/python_client.py");
    let mut command = Command::new(python());
    command.arg(script).args([&service.config.nats.url, &service.config.nats.prefix, &webhook]);
    let output = output(&mut command).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    service.stop().await;
}
