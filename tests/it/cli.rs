//! The command line against a running service: what scripts and people see, and how commands end.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::harness::{PATIENCE, Running, start};

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queue-service"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where there is no queue.toml, and with no variable that changes what is shown.
    command.env_clear().env("PATH", path).current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).kill_on_drop(true);
    command
}

async fn ended(mut command: Command, input: &str) -> Ended {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = child.stdin.take().unwrap();
    let (input, waiting) = (input.to_owned(), tokio::time::timeout(PATIENCE, child.wait_with_output()));
    let writing = tokio::spawn(async move {
        // A command that reads nothing may have ended already.
        let _ = stdin.write_all(input.as_bytes()).await;
    });
    let Output { status, stdout, stderr } = waiting.await.expect("it ends").unwrap();
    writing.await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}

impl Running {
    async fn cli_with(&self, arguments: &[&str], input: &str) -> Ended {
        let mut command = program();
        command.args(arguments);
        command.env("NATS_URL", &self.config.nats.url).env("QUEUE__NATS__PREFIX", &self.config.nats.prefix);
        ended(command, input).await
    }

    async fn cli(&self, arguments: &[&str]) -> Ended {
        self.cli_with(arguments, "").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn enqueue_prints_the_id_alone_and_takes_every_option() {
    let (_place, service) = start().await;
    let all = ["enqueue", "probe", r#"{"note":"x"}"#, "--priority", "3", "--max-attempts", "7", "--key", "k1"];
    let more = ["--tag", "a", "--tag", "b", "--timeout", "5s", "--delay", "1h"];
    let id = service.cli(&[&all[..], &more[..]].concat()).await.ok().out.trim().to_owned();
    let job = service.job(&id).await;
    assert_eq!((&job["priority"], &job["maxAttempts"], &job["tags"]), (&json!(3), &json!(7), &json!(["a", "b"])));
    assert_eq!((&job["idempotencyKey"], &job["status"]), (&json!("k1"), &json!("pending")));
    let again = service.cli(&[&["--json"], &all[..], &more[..]].concat()).await.ok().json();
    assert_eq!((&again["jobId"], &again["duplicate"]), (&json!(id), &json!(true)));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_comes_from_a_file_or_from_standard_input_too() {
    let (_place, service) = start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), r#"{"note":"from a file"}"#).unwrap();
    let from_file = service.cli(&["enqueue", "probe", &format!("@{}", file.path().display())]).await.ok();
    let from_input = service.cli_with(&["enqueue", "probe", "-", "--wait", "--json"], r#"{"note":"piped"}"#).await.ok();
    assert_eq!(service.finished(from_file.out.trim()).await["result"]["note"], "from a file");
    assert_eq!(
        (&from_input.json()["status"], &from_input.json()["result"]["note"]),
        (&json!("completed"), &json!("piped"))
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_keeps_the_good_lines_and_names_the_bad_ones() {
    let (_place, service) = start().await;
    let mut lines: Vec<String> =
        (0..2500).map(|n| json!({"type": "probe", "payload": {"note": n.to_string()}}).to_string()).collect();
    lines[1233] = r#"{"type":"nope","payload":{}}"#.into();
    lines[2001] = "{bad".into();
    let bulk = service.cli_with(&["enqueue", "--jsonl", "-"], &lines.join("\n")).await;
    assert_eq!(bulk.code, 4, "{bulk:?}");
    assert!(bulk.err.contains("line 1234: ") && bulk.err.contains("unknown_type"), "{}", bulk.err);
    assert!(bulk.err.contains("line 2002: not valid JSON"), "{}", bulk.err);
    let said = format!("{}{}", bulk.out, bulk.err);
    assert!(said.contains("2,498 jobs enqueued, 2 lines refused"), "{said}");
    assert_eq!(service.call("getStats", json!({})).await["total"], 2498);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn get_list_stats_and_types_show_what_the_service_says() {
    let (_place, service) = start().await;
    let good = service.probe(json!({"note": "shown"})).await;
    let bad = service.probe(json!({"permanent": true})).await;
    service.finished(&good).await;
    service.finished(&bad).await;

    assert_eq!(service.cli(&["get", &good, "--json"]).await.ok().json(), service.job(&good).await);
    let shown = service.cli(&["get", &good]).await.ok().out;
    assert!(shown.contains(&good) && shown.contains("completed, attempt 1 of 3"), "{shown}");

    let failed = service.cli(&["list", "--status", "failed", "--json"]).await.ok().json();
    assert_eq!((failed["jobs"].as_array().unwrap().len(), &failed["jobs"][0]["id"]), (1, &json!(bad)));
    let table = service.cli(&["list"]).await.ok().out;
    assert!(table.starts_with("ID ") && table.lines().count() == 3 && table.contains("no hope"), "{table}");
    let all = service.cli(&["list", "--all", "--json"]).await.ok().out;
    assert!(all.contains(&good) && all.contains(&bad), "{all}");

    let stats = service.cli(&["stats", "--json"]).await.ok().json();
    assert_eq!(
        (&stats["completed"], &stats["failed"], &stats["failureRate"]),
        (&json!(1), &json!(1), &json!("50.00%"))
    );
    assert!(service.cli(&["stats"]).await.ok().out.contains("50.00% completed, 50.00% failed"));
    let types = service.cli(&["types"]).await.ok().out;
    assert!(types.contains("send-email") && types.contains("probe"), "{types}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_watch_retry_and_cancel_follow_a_job() {
    let (place, service) = start().await;
    let id = service.probe(json!({"wait": true})).await;
    service.until_status(&id, "processing").await;
    assert_eq!(service.cli(&["wait", &id, "--timeout", "100ms"]).await.code, 5);
    service.cli(&["cancel", &id, "--reason", "not wanted"]).await.ok();
    let waited = service.cli(&["wait", &id]).await;
    assert_eq!(waited.code, 6, "{waited:?}");
    assert!(waited.out.contains("cancelled") && waited.out.contains("not wanted"), "{waited:?}");

    service.cli(&["retry", &id]).await.ok();
    let arguments = ["watch", &id, "--json"];
    let watching = service.cli(&arguments);
    let releasing = async {
        service.until_status(&id, "processing").await;
        place.journal.release();
    };
    let (watched, ()) = tokio::join!(watching, releasing);
    let last: Value = serde_json::from_str(watched.ok().out.lines().last().unwrap()).unwrap();
    assert!(last["state"] == "completed" || last["status"] == "completed", "{last}");
    assert_eq!(service.cli(&["retry", &id]).await.code, 4, "a completed job is not retried");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_type_is_told_and_resumed() {
    let (_place, service) = start().await;
    let paused = service.cli(&["pause", "probe"]).await.ok();
    assert!(format!("{}{}", paused.out, paused.err).contains("probe is paused"), "{paused:?}");
    assert!(service.cli(&["types"]).await.ok().out.lines().any(|l| l.starts_with("probe") && l.contains("paused")));
    service.cli(&["resume", "probe"]).await.ok();
    assert_eq!(service.cli(&["pause", "nope"]).await.code, 4);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do_and_scripts_can_tell_them_apart() {
    let (_place, service) = start().await;
    let unknown = service.cli(&["get", "01a210d5-1e4d-763b-8127-c07856050ce7"]).await;
    assert_eq!(unknown.code, 3, "{unknown:?}");
    assert!(unknown.err.contains("job_not_found"), "{unknown:?}");
    let refused = service.cli(&["--json", "enqueue", "send-email", r#"{"to":1}"#]).await;
    assert_eq!(refused.code, 4, "{refused:?}");
    let problem: Value = serde_json::from_str(&refused.err).unwrap();
    assert_eq!(problem["code"], "invalid_payload");
    assert_eq!(service.cli(&["frobnicate"]).await.code, 2);
    service.stop().await;

    let mut nowhere = program();
    nowhere.args(["stats"]).env("NATS_URL", "nats://127.0.0.1:1");
    let alone = ended(nowhere, "").await;
    assert_eq!(alone.code, 1);
    assert!(alone.err.contains("queue-service dev"), "{alone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_is_no_error() {
    let (_place, service) = start().await;
    for n in 0..200 {
        service.probe(json!({"note": n.to_string()})).await;
    }
    let mut command = Command::new("bash");
    let line = format!("set -o pipefail; '{}' list --all | head -n 1", env!("CARGO_BIN_EXE_queue-service"));
    command.args(["-c", &line]).env("NATS_URL", &service.config.nats.url);
    command.env("QUEUE__NATS__PREFIX", &service.config.nats.prefix).kill_on_drop(true);
    let head = ended(command, "").await.ok();
    assert!(head.out.starts_with("ID ") && head.err.is_empty(), "{head:?}");
    service.stop().await;
}

#[tokio::test]
async fn the_configuration_in_force_is_shown_without_its_secrets() {
    let mut command = program();
    command.args(["config"]).env("QUEUE__HTTP__TOKEN", "canary").env("DATABASE_URL", "postgres://u:canary@h/d");
    let shown = ended(command, "").await.ok().out;
    assert!(!shown.contains("canary") && shown.contains("QUEUE__HTTP__TOKEN"), "{shown}");
    assert!(shown.lines().any(|line| line.starts_with("database.url") && line.contains("DATABASE_URL")), "{shown}");
    let mut wrong = program();
    wrong.args(["config"]).env("QUEUE__HTTP__PROT", "1");
    let wrong = ended(wrong, "").await;
    assert_eq!(wrong.code, 2, "{wrong:?}");
    assert!(wrong.err.contains("prot"), "{wrong:?}");
}

#[tokio::test]
async fn completions_are_scripts_that_a_shell_takes() {
    let mut command = program();
    command.args(["completions", "bash"]);
    let script = ended(command, "").await.ok().out;
    let mut bash = Command::new("bash");
    bash.arg("-n").kill_on_drop(true);
    ended(bash, &script).await.ok();
}
