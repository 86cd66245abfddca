//! Hours of mixed load in which something is killed every minute: nothing may be lost, nothing may grow, and the rate must
//! be back soon.
//!
//! A round takes about a minute: load at a fixed rate, a fault in it, and then quiet, in which everything is counted.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio_util::task::TaskTracker;

use super::{
    report::Row,
    stage::{Client, Door, Stage},
};

/// The type that is done outside.
const OUTSIDE: &str = "soak-outside";
/// Jobs handed in per second.
const RATE: u32 = 200;
/// Of a round: load before the fault, and from it on.
const BEFORE: Duration = Duration::from_secs(10);
const AFTER: Duration = Duration::from_secs(25);
/// Longest wait for quiet: a job that a killed process held waits for its lease and for a sweep.
const QUIET: Duration = Duration::from_secs(180);
/// The rate must be back in this time after everything answers again.
const RECOVERY: Duration = Duration::from_secs(10);
/// What a process may have grown by since its first quiet moment. The allocator keeps some of what load has taken.
const GROWTH: u64 = 64 << 20;
/// Each connection is a file, those of callers as well.
const FILES: usize = 50;
/// Each idle connection has some tasks.
const TASKS: usize = 150;
/// Longest wait until idle connections are closed.
const CLOSING: Duration = Duration::from_secs(30);
/// Workers that died stay listed for ten minutes, and one is killed every fourth round.
const WORKERS: i64 = 5;

/// What is killed in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    Nats,
    Postgres,
    Service,
}

/// What was there at the first quiet moment of a process.
#[derive(Clone, Copy, Debug)]
struct Resting {
    memory: u64,
    files: usize,
    threads: usize,
    /// Of the runtime: each subscription and each request has one while it lasts.
    tasks: usize,
}

/// Runs rounds for `minutes`, and says after each how it went.
///
/// # Errors
/// What was lost, has grown, or did not come back in time.
pub(super) async fn run(stage: &Stage, minutes: u32) -> anyhow::Result<Row> {
    let began = Instant::now();
    let sample = stage.sample();
    let accepted = Arc::new(AtomicI64::new(0));
    let completed_before = stage.client().all_counts().await?.completed;
    let outside = stage.client().work_outside(OUTSIDE).await?;
    let mut resting: HashMap<u32, Resting> = HashMap::new();
    let faults = [Fault::Nothing, Fault::Nats, Fault::Postgres, Fault::Service];
    for round in 0.. {
        if began.elapsed() >= Duration::from_secs(60) * minutes && round >= faults.len() {
            break;
        }
        let fault = faults[round % faults.len()];
        let load = TaskTracker::new();
        let recovered = one_round(stage, round, fault, &accepted, &load).await?;
        load.close();
        tokio::time::timeout(QUIET, load.wait()).await.context("requests are still not accepted")?;
        let all = completed_before + accepted.load(Ordering::SeqCst);
        let quiet_after =
            tokio::time::timeout(QUIET, quiet(stage, all)).await.context("the queue does not get quiet")??;
        let now = count(stage, all - completed_before, &mut resting).await?;
        crate::telemetry::say(format!(
            "{:>4} s  round {round} ({fault:?}): {all} completed, rate back after {}, quiet after {:.1} s; \
             {} MiB, {} files, {} threads, {} tasks",
            began.elapsed().as_secs(),
            recovered.map_or("–".to_owned(), |took| format!("{:.1} s", took.as_secs_f64())),
            quiet_after.as_secs_f64(),
            now.memory >> 20,
            now.files,
            now.threads,
            now.tasks
        ));
    }
    outside.abort();
    Ok(Row::rate("soak", accepted.load(Ordering::SeqCst) as usize, began.elapsed(), sample, stage.sample()))
}

/// Load with a fault in it. Gives the time that the rate took to come back.
async fn one_round(
    stage: &Stage,
    round: usize,
    fault: Fault,
    accepted: &Arc<AtomicI64>,
    load: &TaskTracker,
) -> anyhow::Result<Option<Duration>> {
    let (client, ended) = (stage.client(), Instant::now() + BEFORE + AFTER);
    let sender = {
        let (client, accepted, load) = (client.clone(), accepted.clone(), load.clone());
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
            for n in 0_usize.. {
                ticks.tick().await;
                if Instant::now() > ended {
                    return;
                }
                load.spawn(hand_in(client.clone(), request(&client, round, n), accepted.clone()));
            }
        })
    };
    tokio::time::sleep(BEFORE).await;
    let pid = match fault {
        Fault::Nothing => None,
        Fault::Nats => stage.servers().and_then(|servers| servers.nats.pid()),
        Fault::Postgres => stage.servers().and_then(|servers| servers.postgres.pid()),
        Fault::Service => stage.service_pid(),
    };
    let recovered = match pid.and_then(|pid| Pid::from_raw(pid as i32)) {
        None => None,
        Some(pid) => {
            kill_process(pid, Signal::KILL)?;
            Some(recovery(&client).await?)
        }
    };
    sender.await?;
    Ok(recovered)
}

/// Some at once and some later, quick and slow ones, of three types, in all lanes, each with a key, as careful callers do.
fn request(client: &Client, round: usize, n: usize) -> Value {
    let mut request = client.request();
    request["priority"] = json!(n as i64 % 3 - 1);
    request["idempotencyKey"] = json!(format!("soak-{round}-{n}"));
    if n.is_multiple_of(5) {
        request["delay"] = json!("2s");
    }
    match n % 16 {
        0 => request["payload"] = json!({"ms": 1000}),
        1 => {
            request["type"] = json!("batch-import");
            request["payload"] = json!({"items": [{"id": (n % 1000).to_string(), "data": n}], "namespace": "soak"});
        }
        2 => request["type"] = json!(OUTSIDE),
        _ => {}
    }
    request
}

/// Asks until it is accepted.
async fn hand_in(client: Client, request: Value, accepted: Arc<AtomicI64>) {
    let body = Bytes::from(request.to_string());
    loop {
        let answer = tokio::time::timeout(Duration::from_secs(5), client.send(Door::Http, false, body.clone())).await;
        if answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.starts_with(b"{\"jobId\""))) {
            accepted.fetch_add(1, Ordering::SeqCst);
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// From the moment when everything answers again until jobs end at 90 % of the rate at least.
async fn recovery(client: &Client) -> anyhow::Result<Duration> {
    let mut last = answer(client).await?;
    let answered = Instant::now();
    loop {
        let looked = Instant::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = answer(client).await?;
        let rate = (now - last) as f64 / looked.elapsed().as_secs_f64();
        if rate >= 0.9 * f64::from(RATE) {
            return Ok(answered.elapsed());
        }
        ensure!(answered.elapsed() < RECOVERY, "{rate:.0} jobs/s {RECOVERY:?} after everything answered again");
        last = now;
    }
}

/// How many are completed, as soon as somebody can say so.
async fn answer(client: &Client) -> anyhow::Result<i64> {
    let asking = async {
        loop {
            match tokio::time::timeout(Duration::from_secs(2), client.all_counts()).await {
                Ok(Ok(counts)) => return counts.completed,
                Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(QUIET, asking).await.context("the service does not answer any more")
}

/// Returns when everything is over and told, with the time that took.
async fn quiet(stage: &Stage, completed: i64) -> anyhow::Result<Duration> {
    let (client, began) = (stage.client(), Instant::now());
    loop {
        answer(&client).await?;
        let counts = client.all_counts().await.unwrap_or_default();
        let outbox = rows(stage, "SELECT count(*) FROM queue.outbox").await.unwrap_or(-1);
        if counts.completed == completed && counts.pending + counts.processing == 0 && outbox == 0 {
            return Ok(began.elapsed());
        }
        ensure!(counts.completed <= completed, "{} jobs are completed of {completed} accepted", counts.completed);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn rows(stage: &Stage, sql: &'static str) -> anyhow::Result<i64> {
    let servers = stage.servers().context("a soak needs servers of its own")?;
    let mut connection = PgConnection::connect(&servers.postgres.url("queue")).await?;
    let n = sqlx::query_scalar(sql).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(n)
}

/// Demands that nothing is left behind, and that no process has grown since it was quiet for the first time.
async fn count(stage: &Stage, accepted: i64, resting: &mut HashMap<u32, Resting>) -> anyhow::Result<Resting> {
    let keys = rows(stage, "SELECT count(*) FROM queue.job_keys").await?;
    ensure!(keys == accepted, "{keys} keys for {accepted} jobs");
    let odd = rows(stage, "SELECT count(*) FROM queue.finished_jobs WHERE status <> 'completed'").await?;
    ensure!(odd == 0, "{odd} jobs ended otherwise than completed");
    let workers = rows(stage, "SELECT count(*) FROM queue.workers").await?;
    ensure!(workers <= WORKERS, "{workers} rows of workers, of which one is alive");
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'queue-service'";
    let connections = rows(stage, connections).await?;
    ensure!(connections <= 12, "{connections} connections to Postgres, of at most 12");
    let pid = stage.service_pid().context("the service does not run")?;
    let mut now = rest(stage, pid).await?;
    let first = *resting.entry(pid).or_insert(now);
    // Connections of callers who had to wait are closed when they have been idle for some seconds.
    let looked = Instant::now();
    while (now.files > first.files + FILES || now.tasks > first.tasks + TASKS) && looked.elapsed() < CLOSING {
        tokio::time::sleep(Duration::from_secs(1)).await;
        now = rest(stage, pid).await?;
    }
    ensure!(now.memory <= first.memory + GROWTH, "memory has grown from {} to {} bytes", first.memory, now.memory);
    ensure!(now.files <= first.files + FILES, "open files have grown from {} to {}", first.files, now.files);
    ensure!(now.threads <= first.threads + 16, "threads have grown from {} to {}", first.threads, now.threads);
    ensure!(now.tasks <= first.tasks + TASKS, "tasks have grown from {} to {}", first.tasks, now.tasks);
    Ok(now)
}

async fn rest(stage: &Stage, pid: u32) -> anyhow::Result<Resting> {
    let entries = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    let tasks = stage.client().metric("queue_alive_tasks").await?;
    Ok(Resting { memory: stage.sample().service.memory, files: entries("fd"), threads: entries("task"), tasks })
}
