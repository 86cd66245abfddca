//! `queue-service dev` as people and scripts use it: one command, everything there, and nothing left behind.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use queue_service::handlers::clients::install_crypto;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    child::{Program, descendants, is_alive},
    harness::{PATIENCE, until},
    load::post,
};

/// A child that is killed sooner is held to be unable to start, and not started again.
const STARTED_WELL: Duration = Duration::from_millis(2_200);

/// A `dev` that has written its ready file, and what the file says.
struct Dev {
    program: Program,
    ready: Value,
    client: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Dev {
    async fn start(arguments: &[&str]) -> Self {
        install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ready.json");
        let always = ["dev", "--http", "127.0.0.1:0", "--ready-file", file.to_str().unwrap()];
        let program = Program::start(&[&always, arguments].concat(), None);
        program.logged("queue-service is ready").await;
        let ready = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        Self { program, ready, client: reqwest::Client::new(), _folder: folder }
    }

    fn text(&self, key: &str) -> &str {
        self.ready[key].as_str().unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.text("httpUrl"))).timeout(PATIENCE).send().await.unwrap();
        answer.json().await.unwrap()
    }

    async fn enqueue(&self, request: Value) -> String {
        let (status, answer) = post(&self.client, self.text("httpUrl"), &request).await;
        assert_eq!(status, 201, "{answer}");
        answer["jobId"].as_str().unwrap().to_owned()
    }

    async fn finished(&self, id: &str) -> Value {
        until(|| async {
            Some(self.get(&format!("/jobs/{id}?wait=20s")).await).filter(|job| job["finishedAt"].is_string())
        })
        .await
    }

    fn child(&self, name: &str) -> u32 {
        let is_it =
            |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        let found = descendants(self.program.pid()).into_iter().find(is_it);
        found.unwrap_or_else(|| panic!("no {name} below {}", self.program.pid()))
    }
}

async fn all_gone(pids: &[u32]) {
    assert!(pids.len() >= 2, "Postgres and nats-server at least: {pids:?}");
    until(|| async { (!pids.iter().any(|pid| is_alive(*pid))).then_some(()) }).await;
}

fn mail() -> Value {
    json!({"type": "send-email", "payload": {"to": "ada@example.com", "subject": "Hello", "body": "It works."}})
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_answers_when_the_ready_file_is_there_and_ctrl_c_leaves_nothing_behind() {
    let mut dev = Dev::start(&["--ephemeral"]).await;
    assert_eq!(dev.ready["pid"], dev.program.pid());
    let folder = Path::new(dev.text("dataDir")).to_owned();
    assert!(folder.is_dir());
    let keys: Vec<&String> = dev.ready.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["dataDir", "databaseUrl", "httpUrl", "natsUrl", "pid"]);

    let nats = async_nats::connect(dev.text("natsUrl")).await.unwrap();
    let answer = nats.request("queue.enqueue", mail().to_string().into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    let job = dev.finished(answer["jobId"].as_str().unwrap()).await;
    assert_eq!(job["status"], "completed", "{job}");
    let database = sqlx::PgPool::connect(dev.text("databaseUrl")).await.unwrap();
    let n: i64 = sqlx::query_scalar("SELECT count(*) FROM queue.finished_jobs").fetch_one(&database).await.unwrap();
    assert_eq!(n, 1);
    database.close().await;
    assert_eq!(dev.get("/health").await["status"], "ok");

    let children = descendants(dev.program.pid());
    dev.program.signal(Signal::INT);
    let status = dev.program.ended().await;
    assert!(status.success(), "{status}:\n{}", dev.program.log());
    all_gone(&children).await;
    assert!(!folder.exists(), "a throw-away folder is thrown away");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_all_in_good_order_though_nobody_reads_the_log_any_more() {
    let mut dev = Dev::start(&["--ephemeral"]).await;
    let folder = Path::new(dev.text("dataDir")).to_owned();
    let children = descendants(dev.program.pid());
    // As `dev 2>&1 | tee log` at Ctrl-C, which ends `tee` as well.
    dev.program.stop_reading().await;
    dev.program.signal(Signal::INT);
    let status = dev.program.ended().await;
    assert!(status.success(), "{status}");
    all_gone(&children).await;
    assert!(!folder.exists(), "a throw-away folder is thrown away");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_shows_every_status_within_ten_seconds() {
    let dev = Dev::start(&["--ephemeral", "--demo"]).await;
    let began = Instant::now();
    until(|| async {
        let stats = dev.get("/stats").await;
        let statuses = ["pending", "processing", "completed", "failed", "cancelled"];
        statuses.iter().all(|status| stats[status].as_i64().unwrap() > 0).then_some(())
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert!(!dev.program.log().contains("was refused"), "{}", dev.program.log());
    // Some of its jobs would run for half a minute; who asks twice does not want to wait for them.
    dev.program.signal(Signal::INT);
    dev.program.logged("Stopping").await;
    dev.program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_serves_one_dev_at_a_time_and_a_broker_that_dies_is_started_again() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(&["--data", data.path().to_str().unwrap()]).await;
    let well = tokio::time::Instant::now() + STARTED_WELL;
    let mut second = Program::start(&["dev", "--data", data.path().to_str().unwrap()], None);
    let status = second.ended().await;
    assert!(!status.success());
    let said = second.log();
    assert!(said.contains("another `queue-service dev` uses") && said.contains("--data"), "{said}");

    tokio::time::sleep_until(well).await;
    let first = dev.child("nats-server");
    kill_process(Pid::from_raw(first as i32).unwrap(), Signal::KILL).unwrap();
    let job = dev.finished(&dev.enqueue(mail()).await).await;
    assert_eq!(job["status"], "completed", "{job}");
    assert_ne!(dev.child("nats-server"), first);
    dev.program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dev_that_is_killed_hard_takes_its_children_along_and_the_next_one_keeps_its_jobs() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let mut dev = Dev::start(&["--data", folder]).await;
    let done = dev.enqueue(mail()).await;
    dev.finished(&done).await;
    let mut later = mail();
    later["delay"] = json!("1h");
    let later = dev.enqueue(later).await;
    let children = descendants(dev.program.pid());
    dev.program.kill().await;
    all_gone(&children).await;

    let dev = Dev::start(&["--data", folder]).await;
    assert_eq!(dev.get(&format!("/jobs/{done}")).await["status"], "completed");
    assert_eq!(dev.get(&format!("/jobs/{later}")).await["status"], "pending");
    let job = dev.finished(&dev.enqueue(mail()).await).await;
    assert_eq!(job["status"], "completed", "{job}");
    dev.program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_ran_well_may_fail_to_start_some_times_before_it_runs_again() {
    use queue_service::dev::process::{Kept, Program, find};
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    // The first run lasts, the next three end at once, as a Postgres does whose predecessor's last process still goes.
    let script = format!(
        "echo >> {0}; n=$(wc -l < {0}); [ $n = 1 ] && exec sleep 2.2; [ $n -lt 5 ] && exit 1; exec sleep 60",
        starts.display()
    );
    let kept = Kept::start(Program {
        name: "a script",
        path: find("sh").unwrap(),
        arguments: vec!["-c".into(), script],
        log: folder.path().join("log"),
        user: None,
        stop_signal: Signal::KILL,
    })
    .unwrap();
    until(|| async { (std::fs::read_to_string(&starts).unwrap_or_default().lines().count() == 5).then_some(()) }).await;
    assert!(!kept.has_ended());
    tokio::task::spawn_blocking(move || drop(kept)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_over_http_may_be_on_the_same_machine() {
    let dev = Dev::start(&["--ephemeral"]).await;
    let routes = axum::Router::new().route("/", axum::routing::post(async || "7"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
    let made = dev.client.put(format!("{}/types/seven", dev.text("httpUrl")));
    let made = made.json(&json!({"handler": "http", "url": url})).send().await.unwrap();
    assert!(made.status().is_success(), "{}", made.text().await.unwrap());
    let job = dev.enqueue(json!({"type": "seven", "payload": {}})).await;
    let job = dev.finished(&job).await;
    assert_eq!((&job["status"], &job["result"]), (&json!("completed"), &json!(7)), "{job}");
    serving.abort();
}
