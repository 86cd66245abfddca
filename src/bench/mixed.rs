//! One load beside another. Each row but the first says how a quick load at a fixed rate fares while something else goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::{
    Options,
    load::{BULK, drive_bulk},
    noop::OTHER,
    report::Row,
    scenarios::{self, PATIENCE, until_completed},
    stage::{Client, Stage},
};

/// Jobs that a flood keeps waiting, at least while it is looked at.
const FLOOD: usize = 200_000;
/// Jobs that take ten seconds: ten times what runs of a type at the same time.
const SLOW: usize = 1000;
/// Jobs that wait for their next attempt.
const RETRYING: usize = 10_000;
/// Jobs of the low lane under a flood of the high one.
const LOW: usize = 200;

pub(super) async fn run(stage: &Stage, options: &Options, say: &impl Fn(&str)) -> anyhow::Result<Vec<Row>> {
    let quick = stage.client();
    let other = |payload: Value| quick.of_type(OTHER, payload);
    let look = async |name: &str| {
        say(&format!("{name} …"));
        let mut rows = scenarios::latency(stage, &quick, options.rate, options.seconds).await?;
        rows.iter_mut().for_each(|row| row.name = format!("{name}, {}", row.name));
        anyhow::Ok(rows)
    };
    let mut rows = look("alone").await?;

    let flood = other(json!({}));
    flood.pause().await?;
    hand_in(&flood, FLOOD, None).await?;
    flood.resume().await?;
    rows.extend(look("beside a flood of another type").await?);
    rows.push(left("of the flood still waiting", flood.counts().await?.pending));
    until_completed(&flood, FLOOD as i64).await?;

    let slow = other(json!({"ms": 10_000}));
    hand_in(&slow, SLOW, None).await?;
    rows.extend(look("beside jobs of another type that take 10 s each").await?);
    rows.push(left("of the slow jobs still waiting", slow.counts().await?.pending));
    cancel_all(&slow).await?;

    // Of the very type that is looked at.
    let failing = quick.of_type(super::noop::TYPE, json!({"failures": 1}));
    let before = quick.counts().await?.completed;
    hand_in(&failing, RETRYING, None).await?;
    let all_failed = async {
        loop {
            let retrying =
                failing.ask("listJobs", json!({"status": "retrying", "limit": 1, "offset": RETRYING - 1})).await?;
            if retrying["jobs"].as_array().is_some_and(|jobs| !jobs.is_empty()) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_failed).await.context("not all of them have failed")??;
    say("beside jobs of the same type that wait for a retry …");
    let beside = scenarios::latency_beside(stage, &quick, options.rate, options.seconds).await?;
    rows.extend(beside.into_iter().map(|row| Row { name: format!("beside {RETRYING} retries, {}", row.name), ..row }));
    say("until the retries are done …");
    until_completed(&quick, before + RETRYING as i64 + (options.rate * options.seconds) as i64).await?;

    say("the low lane under a flood of the high one …");
    rows.push(low_lane(&other(json!({}))).await?);
    Ok(rows)
}

/// The time of jobs of the low lane while jobs of the high lane never run out.
async fn low_lane(client: &Client) -> anyhow::Result<Row> {
    let before = client.counts().await?.completed;
    client.pause().await?;
    hand_in(client, FLOOD, Some(9)).await?;
    hand_in(client, LOW, Some(-9)).await?;
    let mut events = client.nats().subscribe(client.events("completed")).await?;
    client.nats().flush().await?;
    let listed = client.ask("listJobs", json!({"type": OTHER, "status": "pending", "limit": LOW})).await?;
    let mut low: std::collections::HashSet<String> = listed["jobs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|job| job["priority"] == -9)
        .filter_map(|job| job["id"].as_str().map(str::to_owned))
        .collect();
    ensure!(low.len() == LOW, "the newest jobs are not those of the low lane");
    let began = Instant::now();
    client.resume().await?;
    let mut done = 0_usize;
    let all = async {
        while let Some(event) = events.next().await {
            done += 1;
            low.remove(event.subject.rsplit('.').next().unwrap_or_default());
            if low.is_empty() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await.context("jobs of the low lane were never done")?;
    let took = began.elapsed();
    until_completed(client, before + (FLOOD + LOW) as i64).await?;
    let name = format!("{LOW} low jobs done after {} high ones of {FLOOD}", done - LOW);
    Ok(Row {
        name,
        jobs: LOW,
        seconds: took.as_secs_f64(),
        per_second: Some(LOW as f64 / took.as_secs_f64()),
        ..Row::default()
    })
}

async fn hand_in(client: &Client, jobs: usize, priority: Option<i64>) -> anyhow::Result<()> {
    let mut request = client.request();
    if let Some(priority) = priority {
        request["priority"] = priority.into();
    }
    let size = BULK.min(jobs);
    drive_bulk(client, &request, size, jobs.div_ceil(size)).await.map(|_| ())
}

/// Ends what would take minutes for nothing.
async fn cancel_all(client: &Client) -> anyhow::Result<()> {
    let jobs =
        client.ask("listJobs", json!({"type": OTHER, "status": ["pending", "processing"], "limit": 1000})).await?;
    let ids: Vec<String> =
        jobs["jobs"].as_array().into_iter().flatten().filter_map(|job| Some(job["id"].as_str()?.to_owned())).collect();
    let cancel = |id: String| async move { client.ask("cancelJob", json!({"jobId": id})).await };
    // A job that is over by now is as good.
    let _: Vec<_> = futures_util::stream::iter(ids).map(cancel).buffer_unordered(50).collect().await;
    let counts = client.counts().await?;
    ensure!(counts.pending + counts.processing == 0, "{counts:?} after all were cancelled");
    Ok(())
}

fn left(name: &str, n: i64) -> Row {
    Row { name: format!("{n} {name}"), ..Row::default() }
}
