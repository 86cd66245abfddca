//! The command line as people and scripts use it: the built program, against a service that runs here.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};

use crate::harness::{PATIENCE, Place, Running, start, until};

const NO_JOB: &str = "0198c5a4-5d5c-7000-8000-000000000000";

/// What a command said, and how it ended.
#[derive(Debug)]
struct Said {
    out: String,
    err: String,
    code: i32,
}

impl Said {
    /// Demands that it ended with this code.
    #[track_caller]
    fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    #[track_caller]
    fn done(self) -> Self {
        self.code(0)
    }

    /// Standard output as one value.
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }

    /// Standard output as a value per line.
    #[track_caller]
    fn json_lines(&self) -> Vec<Value> {
        let value = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {self:#?}"));
        self.out.lines().map(value).collect()
    }

    /// Standard output without its end of line.
    fn line(&self) -> &str {
        self.out.trim_end()
    }

    #[track_caller]
    fn complains(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not told: {self:#?}");
        }
        assert!(!self.err.contains("panicked"), "{self:#?}");
    }
}

/// A command with no other settings than these.
fn command(arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queue-service"));
    command.args(arguments).env_clear().env("TZ", "UTC").envs(settings.iter().copied());
    // Where there is no queue.toml.
    command.current_dir(env!("CARGO_MANIFEST_DIR")).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
async fn finish(mut command: Command, input: &str) -> Said {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = async move {
        // Some commands end without reading.
        let _ = stdin.write_all(input.as_bytes()).await;
    };
    let ended = tokio::time::timeout(PATIENCE, async { tokio::join!(feed, child.wait_with_output()).1 }).await;
    let output = ended.expect("the command does not end").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { out: text(output.stdout), err: text(output.stderr), code: output.status.code().expect("killed by a signal") }
}

impl Running {
    fn command(&self, arguments: &[&str]) -> Command {
        let settings = [("NATS_URL", &*self.config.nats.url), ("QUEUE__NATS__PREFIX", &*self.config.nats.prefix)];
        command(arguments, &settings)
    }

    async fn cli(&self, arguments: &[&str]) -> Said {
        finish(self.command(arguments), "").await
    }

    async fn cli_with_input(&self, arguments: &[&str], input: &str) -> Said {
        finish(self.command(arguments), input).await
    }
}

/// A command that goes on while its lines are read.
struct Live {
    child: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Live {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> Option<String> {
        tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("no line in time").unwrap()
    }

    async fn json(&mut self) -> Option<Value> {
        Some(serde_json::from_str(&self.line().await?).unwrap())
    }

    /// Returns when standard error says `text`.
    async fn until_told(&mut self, text: &str) {
        let mut lines = BufReader::new(self.child.stderr.as_mut().unwrap()).lines();
        let told = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(text) {
                    return;
                }
            }
            panic!("'{text}' was not told");
        };
        tokio::time::timeout(PATIENCE, told).await.expect("nothing is told in time");
    }

    async fn code(&mut self) -> Option<i32> {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the command does not end").unwrap().code()
    }
}

/// Replaces what differs between runs.
macro_rules! plain {
    ($text:expr, @$snapshot:literal) => {
        let text = $text;
        insta::with_settings!({filters => vec![
            (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "<id>                                "),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<time>                  "),
            (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+00:00 \((now|\d+s ago)\)", "<time>"),
            (r", (now|\d+s ago):", ", <when>:"),
            (r"took [0-9.]+m?s +", "took <span>  "),
            (r"took [0-9.]+m?s", "took <span>"),
            (r"(?m) +$", ""),
        ]}, { insta::assert_snapshot!(text, @$snapshot) })
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_comes_as_an_argument_from_a_file_or_from_standard_input() {
    let (_place, running) = start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), r#"{"note": "from a file"}"#).unwrap();
    let at_file = format!("@{}", file.path().display());
    for (argument, input, note) in [
        (r#"{"note": "as it is"}"#, "", "as it is"),
        (&*at_file, "", "from a file"),
        ("-", "{\"note\":\n\"piped in\"}\n", "piped in"),
    ] {
        let said = running.cli_with_input(&["enqueue", "probe", argument], input).await.done();
        assert_eq!(said.err, "");
        let job = running.finished(said.line()).await;
        assert_eq!((&job["payload"]["note"], &job["result"]["note"]), (&json!(note), &json!(note)));
    }
    let said = running.cli(&["enqueue", "--json", "probe", "{}"]).await.done();
    assert_eq!((&said.json()["status"], &said.json()["duplicate"]), (&json!("pending"), &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_enqueue_option_reaches_the_job_and_the_same_key_names_the_same_job() {
    let (_place, running) = start().await;
    let arguments = [
        &["enqueue", "probe", r#"{"note": "x"}"#, "--priority", "-3", "--max-attempts", "7", "--delay", "2h"][..],
        &["--tag", "a", "--tag", "b", "--key", "once", "--timeout", "1500ms"],
    ]
    .concat();
    let first = running.cli(&arguments).await.done();
    let job = running.job(first.line()).await;
    assert_eq!((&job["priority"], &job["maxAttempts"]), (&json!(-3), &json!(7)));
    assert_eq!((&job["tags"], &job["idempotencyKey"]), (&json!(["a", "b"]), &json!("once")));
    let wait = crate::harness::millis_between(&job["createdAt"], &job["runAt"]);
    assert!((wait - 7_200_000.0).abs() < 1000.0, "{job}");
    let again = running.cli(&arguments).await.done();
    assert_eq!(again.line(), first.line());
    again.complains(&["was used before"]);

    let at = chrono::Utc::now() + chrono::TimeDelta::days(400);
    let here = at.with_timezone(&chrono::FixedOffset::east_opt(3600).unwrap()).to_rfc3339();
    let said = running.cli(&["enqueue", "probe", "{}", "--run-at", &here]).await.done();
    let due = crate::harness::time(&running.job(said.line()).await["runAt"]);
    assert_eq!(due.timestamp_micros(), at.timestamp_micros());
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_job_prints_it_and_its_end_is_the_exit_code() {
    let (place, running) = start().await;
    let said = running.cli(&["enqueue", "--json", "--wait", "probe", r#"{"note": "x"}"#]).await.done();
    assert_eq!((&said.json()["status"], &said.json()["result"]["note"]), (&json!("completed"), &json!("x")));
    let said = running.cli(&["enqueue", "--json", "--wait=60", "probe", r#"{"permanent": true}"#]).await.code(6);
    assert_eq!((&said.json()["status"], &said.json()["error"]), (&json!("failed"), &json!("no hope")));

    let id = running.probe(json!({"wait": true})).await;
    running.cli(&["wait", &id, "--timeout", "100ms"]).await.code(5).complains(&[&id, "not over after 100ms"]);
    let said = running.cli(&["--json", "wait", &id, "--timeout", "50ms"]).await.code(5);
    let problem: Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!((&problem["code"], &problem["job"]["status"]), (&json!("wait_timeout"), &json!("processing")));

    let waiting = Live::start(running.command(&["wait", &id]));
    place.journal.release();
    let output = tokio::time::timeout(PATIENCE, waiting.child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    running.cli(&["wait", NO_JOB]).await.code(3).complains(&[NO_JOB]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_with_bad_lines_enqueues_the_good_ones_and_names_the_others_by_their_number() {
    let (_place, running) = start().await;
    let lines = [
        r#"{"type": "probe", "payload": {"note": "one"}}"#,
        "",
        r#"{"type": "probe", "payload": {"note": "three"#,
        r#"{"type": "probe", "payload": {"fail": "often"}}"#,
        r#"{"type": "no-such-type", "payload": {}}"#,
        r#"{"type": "probe", "payload": {"note": "six"}, "idempotencyKey": "k"}"#,
        r#"{"type": "probe", "payload": {"note": "six"}, "idempotencyKey": "k"}"#,
    ]
    .join("\n");
    let said = running.cli_with_input(&["enqueue", "--jsonl", "-"], &lines).await.code(4);
    assert!(
        said.out.starts_with("3 jobs enqueued (1 already existed: same idempotency key), 3 lines refused in "),
        "{said:#?}"
    );
    let told: Vec<&str> = said.err.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(told, ["line 3", "line 4", "line 5"], "{said:#?}");
    said.complains(&["/payload/fail", "no-such-type"]);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &lines).unwrap();
    let said = running.cli(&["enqueue", "--json", "--jsonl", file.path().to_str().unwrap()]).await.code(4);
    let answers = said.json_lines();
    let outcome = |answer: &Value| (answer["line"].as_u64().unwrap(), answer["error"].is_object());
    let outcomes: Vec<_> = answers.iter().map(outcome).collect();
    assert_eq!(outcomes, [(1, false), (3, true), (4, true), (5, true), (6, false), (7, false)]);
    assert_eq!(answers[4]["duplicate"], true);
    said.complains(&["3 lines refused"]);

    let good = "{\"type\": \"probe\", \"payload\": {}}\n".repeat(2_500);
    let said = running.cli_with_input(&["enqueue", "--jsonl", "-"], &good).await.done();
    assert!(said.out.starts_with("2,500 jobs enqueued in "), "{said:#?}");
    // Two and two (less the one that had been before) of the first files.
    until(|| async {
        let stats = running.call("getStats", json!({})).await;
        (stats["completed"] == 2_500 + 3).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_shown_as_a_card_and_as_the_service_answers_it() {
    let (_place, running) = start().await;
    let request = json!({"type": "probe", "payload": {"note": "x", "fail": 1}, "tags": ["a"], "priority": 2});
    let id = running.enqueue(request).await;
    let job = running.finished(&id).await;
    assert_eq!(running.cli(&["get", "--json", &id]).await.done().json(), job);
    assert_eq!(running.cli(&["get", "--json", &id.to_uppercase()]).await.done().json(), job);
    plain!(running.cli(&["get", &id]).await.done().out, @r#"
    job       <id>
    type      probe
    status    completed, attempt 2 of 3
    priority  2
    tags      a
    created   <time>
    started   <time>
    finished  <time>, took <span>
    attempts  1, <when>: failed attempt 1 (error)
    payload   {
                "fail": 1,
                "note": "x"
              }
    result    {
                "checkpoint": null,
                "note": "x"
              }
    "#);
    running.cli(&["get", NO_JOB]).await.code(3).complains(&["404 job_not_found", NO_JOB]);
    running.cli(&["get", "queue.>"]).await.code(2).complains(&["a job id is a UUID"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_filtered_paged_and_readable_by_people_and_programs() {
    let (_place, running) = start().await;
    let good = running.probe(json!({"note": "good"})).await;
    running.finished(&good).await;
    let bad = running.enqueue(json!({"type": "probe", "payload": {"permanent": true}, "tags": ["t"]})).await;
    running.finished(&bad).await;
    let mail = json!({"to": "ada@example.com", "subject": "Hello", "body": "x"});
    let later = running.enqueue(json!({"type": "send-email", "payload": mail, "delay": "365 days"})).await;

    let ids = |said: Said| -> Vec<String> {
        let jobs = said.done().json()["jobs"].clone();
        jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(running.cli(&["list", "--json"]).await), [&*later, &bad, &good]);
    assert_eq!(ids(running.cli(&["ls", "--json", "--status", "failed,completed"]).await), [&*bad, &good]);
    assert_eq!(ids(running.cli(&["list", "--json", "--status", "scheduled"]).await), [&*later]);
    assert_eq!(ids(running.cli(&["list", "--json", "--type", "send-email"]).await), [&*later]);
    assert_eq!(ids(running.cli(&["list", "--json", "--tag", "t"]).await), [&*bad]);
    assert_eq!(ids(running.cli(&["list", "--json", "--limit", "1", "--offset", "1"]).await), [&*bad]);
    plain!(running.cli(&["list", "--include", "payload"]).await.done().out, @r#"
    ID                                    TYPE        STATUS     ATTEMPTS  CREATED                   TIMING       REMARK   PAYLOAD
    <id>                                  send-email  scheduled  0/3       <time>                    due in 364d  -        {"body":"x","subject":"Hello","to":"ada@example.com"}
    <id>                                  probe       failed     1/3       <time>                    took <span>  no hope  {"permanent":true}
    <id>                                  probe       completed  1/3       <time>                    took <span>  -        {"note":"good"}
    "#);

    let said = running.cli(&["list", "--limit", "2"]).await.done();
    assert_eq!(said.out.lines().count(), 3);
    let cursor = said.err.split_once("--cursor ").unwrap().1.split(',').next().unwrap();
    assert_eq!(ids(running.cli(&["list", "--json", "--cursor", cursor]).await), [&*good]);
    let said = running.cli(&["list", "--tag", "nobody"]).await.done();
    assert_eq!((&*said.out, &*said.err), ("", "no such jobs\n"));
    running.cli(&["list", "--status", "lost"]).await.code(4).complains(&["lost"]);
    running.cli(&["list", "--limit", "5000"]).await.code(4).complains(&["limit"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pages_of_a_list_are_one_table_or_a_job_per_line() {
    let (_place, running) = start().await;
    let job = json!({"type": "probe", "payload": {}, "delay": "1h"});
    for _ in 0..2 {
        running.call("enqueueMany", json!({"jobs": vec![&job; 600]})).await;
    }
    let said = running.cli(&["list", "--all", "--json"]).await.done();
    let ids: std::collections::HashSet<String> =
        said.json_lines().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((said.out.lines().count(), ids.len()), (1200, 1200));
    let said = running.cli(&["list", "--all"]).await.done();
    assert_eq!(said.out.lines().filter(|line| line.starts_with("ID ")).count(), 1);
    assert_eq!(said.out.lines().count(), 1201);

    // `| head -1`: the reader goes away long before the end.
    for arguments in [&["list", "--all", "--json"][..], &["list", "--all"]] {
        let mut live = Live::start(running.command(arguments));
        assert!(live.line().await.is_some());
        drop(live.lines);
        let ended = tokio::time::timeout(PATIENCE, live.child.wait_with_output()).await.unwrap().unwrap();
        assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_a_job_tells_its_events_and_ends_with_it() {
    let (place, running) = start().await;
    let id = running.probe(json!({"wait": true, "progress": 40})).await;
    place.journal.until(&id, "start").await;
    let mut watch = Live::start(running.command(&["watch", "--json", &id]));
    let first = watch.json().await.unwrap();
    assert_eq!(first["id"], json!(id), "the job itself comes first");
    place.journal.release();
    let mut events = Vec::new();
    while let Some(event) = watch.json().await {
        assert_eq!(event["jobId"], json!(id));
        events.push(event["state"].as_str().unwrap().to_owned());
    }
    assert_eq!(events.last().map(String::as_str), Some("completed"), "{events:?}");
    assert_eq!(watch.code().await, Some(0));

    // Over already: one line and the code.
    let said = running.cli(&["watch", "--json", &id]).await.done();
    assert_eq!((said.out.lines().count(), &said.json()["status"]), (1, &json!("completed")));

    let id =
        running.enqueue(json!({"type": "probe", "payload": {"fail": 9}, "maxAttempts": 2, "delay": "300ms"})).await;
    let said = running.cli(&["watch", &id]).await.code(6);
    for part in ["attempt 1 failed: failed attempt 1; again in", "attempt 2: failed attempt 2"] {
        assert!(said.out.contains(part), "{part:?} is missing: {said:#?}");
    }
    assert!(said.out.lines().last().unwrap().contains("failed, attempt 2 of 2"), "{said:#?}");
    running.cli(&["watch", NO_JOB]).await.code(3).complains(&[NO_JOB]);
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_everything_shows_the_chosen_events_of_all_jobs() {
    let (_place, running) = start().await;
    let mut watch =
        Live::start(running.command(&["watch", "--json", "--type", "probe", "--state", "completed,failed"]));
    watch.until_told("watching").await;
    // It listens; whether the broker knows so is seen by what it is told.
    let ids = [running.probe(json!({})).await, running.probe(json!({"permanent": true})).await];
    let mut seen = Vec::new();
    for _ in 0..2 {
        let event = watch.json().await.unwrap();
        seen.push((event["jobId"].as_str().unwrap().to_owned(), event["state"].as_str().unwrap().to_owned()));
    }
    seen.sort();
    assert_eq!(seen, [(ids[0].clone(), "completed".to_owned()), (ids[1].clone(), "failed".to_owned())]);
    // Nobody reads any more: the next event ends it, quietly.
    drop(watch.lines);
    running.probe(json!({})).await;
    let ended = tokio::time::timeout(PATIENCE, watch.child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
    let mut err = String::new();
    watch.child.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
    assert_eq!(err, "");
    running.cli(&["watch", "--state", "lost"]).await.code(2).complains(&["lost", "completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_cancelled_and_given_a_fresh_start_and_one_refusal_keeps_no_other_from_it() {
    let (place, running) = start().await;
    let later = running.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let runs = running.probe(json!({"wait": true})).await;
    place.journal.until(&runs, "start").await;
    let said = running.cli(&["cancel", &later, NO_JOB, &runs, "--reason", "by hand"]).await.code(3);
    let lines: Vec<Vec<&str>> = said.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines, [[&*later, "probe", "cancelled"], [&*runs, "probe", "cancelled"]], "{said:#?}");
    said.complains(&[NO_JOB]);
    assert!(running.job(&later).await["error"].as_str().unwrap().contains("by hand"));
    running.cli(&["cancel", &later]).await.code(4).complains(&["409", "cancelled"]);

    let said = running.cli(&["retry", "--json", &later]).await.done();
    assert_eq!((&said.json()["id"], &said.json()["status"]), (&json!(later), &json!("pending")));
    assert_eq!(running.finished(&later).await["status"], "completed");
    let said = running.cli(&["retry", "--json", &later]).await.code(4);
    assert_eq!(said.out, "");
    assert_eq!(serde_json::from_str::<Value>(&said.err).unwrap()["status"], 409);
    let failed = running.probe(json!({"permanent": true})).await;
    running.finished(&failed).await;
    let said = running.cli(&["retry", "--json", &failed, &runs]).await.done();
    assert_eq!(said.json_lines().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_come_as_a_table_and_as_the_service_answers_them() {
    let (_place, running) = start().await;
    for payload in [json!({}), json!({"permanent": true})] {
        running.finished(&running.probe(payload).await).await;
    }
    running.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let stats = until(|| async {
        let stats = running.cli(&["stats", "--json"]).await.done().json();
        (stats["total"] == 3 && stats["completed"] == 1 && stats["failed"] == 1).then_some(stats)
    })
    .await;
    assert_eq!(stats["byType"]["probe"]["pending"], 1);
    plain!(running.cli(&["stats"]).await.done().out, @"
    TYPE   PENDING  PROCESSING  COMPLETED  FAILED  CANCELLED  TOTAL
    probe        1           0          1       1          0      3
    all          1           0          1       1          0      3
    33.33% completed, 33.33% failed; no due job waits
    ");

    let mut watch = Live::start(running.command(&["stats", "--watch=100ms", "--json"]));
    for _ in 0..2 {
        assert_eq!(watch.json().await.unwrap()["total"], 3);
    }
    drop(watch.lines);
    let ended = tokio::time::timeout(PATIENCE, watch.child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn types_are_listed_paused_and_resumed() {
    let (_place, running) = start().await;
    let all = running.cli(&["types", "--json"]).await.done().json();
    let names: Vec<&str> = all["types"].as_array().unwrap().iter().map(|t| t["type"].as_str().unwrap()).collect();
    assert!(names.contains(&"probe") && names.contains(&"send-email"), "{names:?}");
    let said = running.cli(&["pause", "probe"]).await.done();
    assert!(said.out.starts_with("probe is paused"), "{said:#?}");
    let said = running.cli(&["types", "probe"]).await.done();
    assert!(said.out.contains("state       paused") && said.out.contains("\"sleepMs\""), "{said:#?}");
    let id = running.probe(json!({})).await;
    running.cli(&["wait", &id, "--timeout", "200ms"]).await.code(5);
    assert_eq!(running.cli(&["resume", "probe", "--json"]).await.done().json()["paused"], false);
    running.cli(&["wait", &id]).await.done();
    let table = running.cli(&["types"]).await.done().out;
    let line = table.lines().find(|line| line.starts_with("probe ")).unwrap();
    assert!(line.contains("active") && line.ends_with("Does what a test tells it."), "{line}");
    running.cli(&["types", "no-such-type"]).await.code(2).complains(&["no-such-type", "queue-service types"]);
    running.cli(&["pause", "no-such-type"]).await.code(4).complains(&["no-such-type"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_service_refuses_and_what_can_not_be_asked_have_codes_of_their_own() {
    let (_place, running) = start().await;
    running.cli(&["enqueue", "no-such-type", "{}"]).await.code(4).complains(&["error: ", "no-such-type"]);
    let said = running.cli(&["enqueue", "probe", r#"{"fail": "often"}"#]).await.code(4);
    said.complains(&["400 invalid_payload", "/payload/fail"]);
    let said = running.cli(&["enqueue", "--json", "probe", r#"{"fail": "often"}"#]).await.code(4);
    assert_eq!(serde_json::from_str::<Value>(&said.err).unwrap()["code"], "invalid_payload");
    running.cli(&["enqueue", "probe", "{note: x}"]).await.code(2).complains(&["not valid JSON"]);
    running.cli(&["enqueue", "probe", "@nowhere.json"]).await.code(2).complains(&["nowhere.json"]);
    running.cli(&["enqueue", "--jsonl", "nowhere.jsonl"]).await.code(2).complains(&["nowhere.jsonl"]);
    running.cli(&["enqueue", "probe"]).await.code(2).complains(&["PAYLOAD"]);
    running.cli(&["lsit"]).await.code(2).complains(&["list"]);
    running.cli(&["--help"]).await.done();
    running.cli(&["--version"]).await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_each_command_says_so_and_what_to_do() {
    let place = Place::new().await;
    let nats = &*place.config.nats.url;
    let settings = [("NATS_URL", nats), ("QUEUE__NATS__PREFIX", "nobody-is-here")];
    for arguments in [
        &["enqueue", "probe", "{}"][..],
        &["get", NO_JOB],
        &["list"],
        &["wait", NO_JOB],
        &["watch", NO_JOB],
        &["retry", NO_JOB],
        &["cancel", NO_JOB],
        &["stats"],
        &["stats", "--watch"],
        &["types"],
        &["pause", "probe"],
    ] {
        let said = finish(command(arguments, &settings), "").await.code(1);
        assert_eq!(said.out, "");
        said.complains(&["nobody answers", "nobody-is-here", nats, "queue-service serve"]);
    }
    let line = r#"{"type": "probe", "payload": {}}"#;
    let said = finish(command(&["enqueue", "--jsonl", "-"], &settings), line).await.code(1);
    said.complains(&["no answer for line 1: it was not enqueued", "nobody answers"]);

    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = format!("nats://user:hidden-word@{free}");
    let said = finish(command(&["list"], &[("NATS_URL", &away)]), "").await.code(1);
    said.complains(&["can't connect to NATS at", "is it running?", &free.to_string()]);
    assert!(!said.err.contains("hidden-word"), "{said:#?}");
}

#[tokio::test]
async fn the_configuration_is_shown_with_its_origins_and_without_its_secrets() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), "[http]\ntoken = \"a-very-secret-word-of-mine\"\n\n[worker]\nconcurrency = 7\n")
        .unwrap();
    let settings = [
        ("DATABASE_URL", "postgres://me:secret-of-postgres@db.example:5432/jobs"),
        ("NATS_URL", "nats://me:secret-of-nats@nats.example:4222"),
        ("QUEUE__RETRY__BASE", "5s"),
    ];
    let path = file.path().to_str().unwrap();
    let arguments = ["config", "--config", path, "--prefix", "mine"];
    let said = finish(command(&[&arguments[..], &["--json"]].concat(), &settings), "").await.done();
    let rows = said.json();
    let row = |key: &str| {
        let row = rows.as_array().unwrap().iter().find(|row| row["key"] == key);
        let row = row.unwrap_or_else(|| panic!("{key} is not shown: {said:#?}"));
        (row["value"].to_string(), row["origin"].as_str().unwrap().to_owned())
    };
    assert!(row("worker.concurrency").0.contains('7') && row("worker.concurrency").1.contains(path));
    assert!(row("retry.base").0.contains("5s") && row("retry.base").1.contains("QUEUE__RETRY__BASE"));
    assert!(row("nats.url").0.contains("nats.example") && row("nats.url").1.contains("NATS_URL"));
    assert!(row("database.url").0.contains("db.example") && row("database.url").1.contains("DATABASE_URL"));
    assert!(row("nats.prefix").0.contains("mine") && row("nats.prefix").1 == "flag");
    assert_eq!(row("retry.max").1, "default");
    let table = finish(command(&arguments, &settings), "").await.done();
    for text in [&said.out, &table.out] {
        assert!(!text.contains("secret"), "{text}");
    }

    std::fs::write(file.path(), "[worker]\nconcurency = 7\n").unwrap();
    let said = finish(command(&["config", "--config", path], &[]), "").await.code(2);
    said.complains(&["concurency", path]);
    let said = finish(command(&["config"], &[("QUEUE__WORKER__NOTHING", "1")]), "").await.code(2);
    said.complains(&["QUEUE__WORKER__NOTHING"]);
}

#[tokio::test]
async fn completions_are_scripts_that_the_shell_understands() {
    let said = finish(command(&["completions", "bash"], &[]), "").await.done();
    let mut bash = Command::new("bash");
    bash.arg("-n").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let checked = finish(bash, &said.out).await.done();
    assert_eq!(checked.err, "");
    assert!(said.out.contains("--max-attempts") && said.out.contains("complete "), "{said:#?}");
    for shell in ["zsh", "fish"] {
        assert!(finish(command(&["completions", shell], &[]), "").await.done().out.contains("enqueue"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn get_list_and_stats_say_why_a_job_waits() {
    let (_place, running) = start().await;
    running.call("registerType", json!({"type": "lonely", "handler": "nats"})).await;
    running.call("pauseType", json!({"type": "probe"})).await;
    let (lonely, paused) =
        (running.enqueue(json!({"type": "lonely", "payload": {}})).await, running.probe(json!({})).await);
    until(async || running.job(&lonely).await["note"].is_string().then_some(())).await;
    for (id, why) in [(&lonely, "'lonely' has no handler at the moment"), (&paused, "the type 'probe' is paused")] {
        // For the moment of an offer it runs, and does not wait.
        let said = format!("waits     {why}");
        until(async || running.cli(&["get", id]).await.done().out.contains(&said).then_some(())).await;
        let shown = |list: String| {
            list.lines().any(|line| line.contains(id.as_str()) && line.contains(why) && line.contains("pending"))
        };
        until(async || shown(running.cli(&["list"]).await.done().out).then_some(())).await;
    }
    let stats = running.cli(&["stats"]).await.done().out;
    for told in
        ["the oldest due job waits for", "nobody answers for lonely", "paused, and not counted as waiting: probe"]
    {
        assert!(stats.contains(told), "{told} is missing in\n{stats}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_come_from_standard_input_and_none_is_no_fault() {
    let (_place, running) = start().await;
    let ids = [running.probe(json!({"permanent": true})).await, running.probe(json!({"permanent": true})).await];
    for id in &ids {
        running.until_status(id, "failed").await;
    }
    let said = running.cli_with_input(&["retry", "-"], &format!("{}\n{}\n", ids[0], ids[1])).await.done();
    assert_eq!(said.out.lines().count(), 2, "{said:#?}");
    for verb in ["retry", "cancel"] {
        let said = running.cli_with_input(&[verb, "-"], "").await.done();
        assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""));
        running.cli_with_input(&[verb, "-"], "\nno-id\n").await.code(2).complains(&["line 2 of standard input"]);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_kind_is_refused_in_few_words() {
    let (_place, running) = start().await;
    let lines = "name,email\n".repeat(1_001);
    let said = running.cli_with_input(&["enqueue", "--jsonl", "-"], &lines).await.code(4);
    assert!(said.err.lines().count() < 30, "{said:#?}");
    said.complains(&["line 20: ", "981 lines more were refused"]);
    running.stop().await;
}
