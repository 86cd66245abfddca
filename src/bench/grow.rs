//! A service with millions of jobs and one that is new, side by side on the same servers: enqueue, claim and finish must
//! not be slower, and no read may be slow.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Options, database,
    load::{BULK, drive_bulk, histogram},
    report::Row,
    scenarios,
    stage::{Client, Door, Sample, Stage},
};
use crate::{config::Config, job::Status, store::Store};

/// The type whose jobs nobody fetches.
const WAITING: &str = "grow-waiting";
/// Times that each hot path is measured on each side, alternating.
const ROUNDS: usize = 3;
/// Requests per kind of read.
const READS: usize = 300;
/// The busy sides of the comparison, in flight.
const IN_FLIGHT: usize = 64;

pub(super) async fn run(
    stage: &Stage,
    config: &Config,
    options: &Options,
    say: &impl Fn(&str),
) -> anyhow::Result<Vec<Row>> {
    let servers = stage.servers().context("a twin can't grow")?;
    let url = servers.postgres.url("queue");
    say(&format!("writing {} finished jobs …", options.finished));
    let bar = bar(options.finished, options.quiet);
    database::finished(&url, stage.schema(), options.finished, &bar).await?;
    bar.finish_and_clear();
    say(&format!("handing in {} jobs that wait …", options.waiting));
    waiting(&stage.client(), options.waiting).await?;

    let twin = stage.twin("grow_twin").await?;
    let measured = compare(stage, &twin, &url, options, say).await;
    twin.end().await;
    let mut rows = measured?;
    say("reads …");
    rows.extend(reads(&stage.client(), &url, stage.schema()).await?);
    say("the end of a day's retention …");
    let mut database = config.database.clone();
    (database.url, database.schema) = (url, stage.schema().to_owned());
    rows.extend(retention(stage, &Store::open(&database)?, options).await?);
    Ok(rows)
}

fn bar(jobs: u64, quiet: bool) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{bar:30} {human_pos} of {human_len}, {eta} left {msg}");
    ProgressBar::with_draw_target(Some(jobs), target).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

async fn waiting(client: &Client, jobs: usize) -> anyhow::Result<()> {
    client.ask("registerType", json!({"type": WAITING, "handler": "pull"})).await?;
    let client = client.of_type(WAITING, json!({"n": 1}));
    let requests = jobs.div_ceil(BULK);
    drive_bulk(&client, &client.request(), BULK, requests).await?;
    ensure!(client.counts().await?.pending == (requests * BULK) as i64, "not all jobs wait");
    Ok(())
}

/// Hot paths on both sides, alternating; the median of each, and the share of the full side in the empty one.
async fn compare(
    full: &Stage,
    empty: &Stage,
    url: &str,
    options: &Options,
    say: &impl Fn(&str),
) -> anyhow::Result<Vec<Row>> {
    let stop = CancellationToken::new();
    let locks = tokio::spawn(database::watch_locks(url.to_owned(), stop.clone()));
    // The new side has to be warm, too.
    scenarios::lifecycle(empty, 2_000.min(options.jobs), IN_FLIGHT).await?;
    let mut measured: Vec<(&str, [Vec<Row>; 2])> = Vec::new();
    for path in ["enqueue", "drain", "lifecycle"] {
        let mut sides = [Vec::new(), Vec::new()];
        for round in 1..=ROUNDS {
            say(&format!("{path} beside nothing and beside millions, round {round} of {ROUNDS} …"));
            for (side, stage) in [empty, full].into_iter().enumerate() {
                sides[side].push(match path {
                    "enqueue" => scenarios::enqueue(stage, Door::Rpc, options.jobs, IN_FLIGHT).await?,
                    "drain" => scenarios::drain(stage, options.jobs).await?,
                    _ => scenarios::lifecycle(stage, options.jobs, IN_FLIGHT).await?,
                });
            }
        }
        measured.push((path, sides));
    }
    stop.cancel();
    let waits = locks.await??;
    let mut rows = Vec::new();
    for (path, [empty, full]) in measured {
        let (empty, mut full) = (median(empty), median(full));
        full.share = full.per_second.zip(empty.per_second).map(|(full, empty)| full / empty);
        rows.push(Row { name: format!("{path}, new"), ..empty });
        rows.push(Row { name: format!("{path}, grown"), ..full });
    }
    rows.push(Row { name: waits.to_string(), ..Row::default() });
    Ok(rows)
}

fn median(mut rows: Vec<Row>) -> Row {
    rows.sort_by(|a, b| a.per_second.unwrap_or_default().total_cmp(&b.per_second.unwrap_or_default()));
    rows.swap_remove(rows.len() / 2)
}

/// Each read alone, one after the other.
async fn reads(client: &Client, url: &str, schema: &str) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, table) in [("getJob, finished", "finished_jobs"), ("getJob, waiting", "jobs")] {
        let ids = database::some_ids(url, schema, table).await?;
        let requests = ids.iter().cycle().take(2000.max(READS)).map(|id| json!({"jobId": id}));
        rows.push(time(client, name, "getJob", requests.collect()).await?);
    }
    rows.push(time(client, "getStats", "getStats", vec![json!({}); READS]).await?);
    // Pages in the middle of everything, as somebody who leafs comes to them.
    let mut ids = database::some_ids(url, schema, "finished_jobs").await?;
    ids.truncate(READS);
    let all = ["pending", "processing", "completed", "failed", "cancelled", "scheduled", "retrying"];
    let mut filters: Vec<(String, Value)> = vec![("all".into(), json!({}))];
    filters.extend(all.map(|status| (status.to_owned(), json!({"status": status}))));
    filters.extend([
        ("a type".into(), json!({"type": database::TYPES[0]})),
        ("a type that waits".into(), json!({"type": WAITING})),
        ("a type and completed".into(), json!({"type": database::TYPES[0], "status": "completed"})),
        ("a type and failed".into(), json!({"type": database::TYPES[1], "status": "failed"})),
        ("a tag".into(), json!({"tag": database::TAG})),
        ("a tag that nobody has".into(), json!({"tag": "nobody"})),
        ("a tag and failed".into(), json!({"tag": database::TAG, "status": "failed"})),
        ("a type without jobs".into(), json!({"type": "send-email"})),
        ("two statuses".into(), json!({"status": ["failed", "cancelled"]})),
    ]);
    for (name, filter) in filters {
        let first = vec![filter.clone(); READS / 10];
        rows.push(time(client, &format!("listJobs, {name}"), "listJobs", first).await?);
        let deep = ids.iter().take(READS / 10).map(|id| {
            let mut request = filter.clone();
            request["cursor"] = crate::ops::cursor_of(*id).into();
            request
        });
        rows.push(time(client, &format!("listJobs, {name}, a page in the middle"), "listJobs", deep.collect()).await?);
    }
    Ok(rows)
}

async fn time(client: &Client, name: &str, verb: &str, requests: Vec<Value>) -> anyhow::Result<Row> {
    let mut times = histogram();
    let (n, began, mut refused) = (requests.len(), Instant::now(), 0);
    for request in requests {
        let asked = Instant::now();
        // One that takes too long is refused, which is slow as well and no reason to measure nothing else.
        refused += usize::from(client.ask(verb, request).await.is_err());
        times.saturating_record(asked.elapsed().as_micros() as u64);
    }
    let name = if refused == 0 { name.to_owned() } else { format!("{name}: {refused} OF {n} REFUSED") };
    Ok(Row::rate(&name, n, began.elapsed(), Sample::default(), Sample::default()).latency(&times))
}

/// Drops the day of the finished jobs while others hand jobs in.
async fn retention(stage: &Stage, store: &Store, options: &Options) -> anyhow::Result<Vec<Row>> {
    store.migrate(stage.schema()).await?;
    let client = stage.client();
    let quiet = hand_in(&client, CancellationToken::new(), Some(2000)).await?;
    let stop = CancellationToken::new();
    let load = tokio::spawn({
        let (client, stop) = (client.clone(), stop.clone());
        async move { hand_in(&client, stop, None).await }
    });
    let before = client.all_counts().await?.completed;
    let began = Instant::now();
    let keep = Duration::from_secs(24 * 3600 * (database::DAYS_AGO as u64 - 1));
    let dropped = store.drop_expired(Status::Completed, keep).await?;
    let took = began.elapsed();
    stop.cancel();
    let busy = load.await??;
    ensure!(dropped.len() == 1, "{} days were dropped, not one", dropped.len());
    let gone = before - client.all_counts().await?.completed;
    ensure!(gone > options.finished as i64 / 2, "only {gone} jobs are gone");
    store.close().await;
    Ok(vec![
        Row { name: format!("a day of {gone} completed jobs dropped"), seconds: took.as_secs_f64(), ..Row::default() }
            .latency(&once(took)),
        Row { name: "enqueue, one at a time".into(), ..Row::default() }.latency(&quiet),
        Row { name: "enqueue, while the day is dropped".into(), ..Row::default() }.latency(&busy),
    ])
}

fn once(took: Duration) -> hdrhistogram::Histogram<u64> {
    let mut times = histogram();
    times.saturating_record(took.as_micros() as u64);
    times
}

async fn hand_in(
    client: &Client,
    stop: CancellationToken,
    most: Option<usize>,
) -> anyhow::Result<hdrhistogram::Histogram<u64>> {
    let (mut times, body) = (histogram(), Bytes::from(client.request().to_string()));
    let mut n = 0;
    while !stop.is_cancelled() && most.is_none_or(|most| n < most) {
        let asked = Instant::now();
        let answer: Value = serde_json::from_slice(&client.send(Door::Rpc, false, body.clone()).await?)?;
        times.saturating_record(asked.elapsed().as_micros() as u64);
        ensure!(answer["jobId"].as_str().is_some_and(|id| id.parse::<Uuid>().is_ok()), "refused: {answer}");
        n += 1;
    }
    Ok(times)
}
