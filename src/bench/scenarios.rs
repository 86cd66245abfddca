//! The scenarios. Each measures, and then sees that every job is where it should be, exactly once.

use std::{
    collections::HashMap,
    num::NonZeroU64,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use chrono::Utc;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    database,
    load::{BULK, drive, drive_bulk, histogram},
    report::Row,
    stage::{Client, Door, Sample, Stage},
};

/// Longest wait for jobs to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);
/// Shortest and longest pause before it is asked again whether all have ended.
const LOOK: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(500)];

/// What happens to jobs while they are enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meanwhile {
    Nothing,
    Run,
}

/// Memory before there is any load.
pub(super) fn idle(stage: &Stage) -> Row {
    Row::memory("idle", stage.sample())
}

pub(super) async fn enqueue(stage: &Stage, door: Door, jobs: usize, concurrency: usize) -> anyhow::Result<Row> {
    let client = stage.client();
    client.pause().await?;
    let before = client.counts().await?;
    let sample = stage.sample();
    let body = Bytes::from(client.request().to_string());
    let outcome = drive(&client, door, body, 1, jobs, concurrency).await?;
    let row = Row::rate(&format!("enqueue {door:?} {concurrency}"), jobs, outcome.took, sample, stage.sample());
    let waiting = client.counts().await?.pending - before.pending;
    ensure!(waiting == jobs as i64, "{jobs} jobs were accepted, {waiting} are waiting");
    run_all(&client, before.completed + before.pending + jobs as i64).await?;
    Ok(row.latency(&outcome.latency))
}

pub(super) async fn bulk(stage: &Stage, jobs: usize, meanwhile: Meanwhile) -> anyhow::Result<Row> {
    let client = stage.client();
    if meanwhile == Meanwhile::Nothing {
        client.pause().await?;
    }
    let before = client.counts().await?;
    let sample = stage.sample();
    let requests = jobs.div_ceil(BULK);
    let jobs = requests * BULK;
    let began = Instant::now();
    let outcome = drive_bulk(&client, &client.request(), BULK, requests).await?;
    let (name, took) = match meanwhile {
        Meanwhile::Nothing => ("bulk enqueue", outcome.took),
        Meanwhile::Run => {
            until_completed(&client, before.completed + jobs as i64).await?;
            ("bulk enqueue and run", began.elapsed())
        }
    };
    let row = Row::rate(name, jobs, took, sample, stage.sample());
    run_all(&client, before.completed + before.pending + jobs as i64).await?;
    Ok(row.latency(&outcome.latency))
}

pub(super) async fn drain(stage: &Stage, jobs: usize) -> anyhow::Result<Row> {
    let client = stage.client();
    client.pause().await?;
    let before = client.counts().await?;
    let requests = jobs.div_ceil(BULK);
    let jobs = requests * BULK;
    drive_bulk(&client, &client.request(), BULK, requests).await?;
    let sample = stage.sample();
    let began = Instant::now();
    client.resume().await?;
    until_completed(&client, before.completed + before.pending + jobs as i64).await?;
    let row = Row::rate("drain", jobs, began.elapsed(), sample, stage.sample());
    run_all(&client, before.completed + before.pending + jobs as i64).await?;
    Ok(row)
}

pub(super) async fn lifecycle(stage: &Stage, jobs: usize, concurrency: usize) -> anyhow::Result<Row> {
    let client = stage.client();
    let before = client.counts().await?;
    let sample = stage.sample();
    let began = Instant::now();
    let body = Bytes::from(client.request().to_string());
    let outcome = drive(&client, Door::Rpc, body, 1, jobs, concurrency).await?;
    until_completed(&client, before.completed + jobs as i64).await?;
    let row = Row::rate(&format!("lifecycle {concurrency}"), jobs, began.elapsed(), sample, stage.sample());
    run_all(&client, before.completed + jobs as i64).await?;
    Ok(row.latency(&outcome.latency))
}

/// At a fixed rate, whatever the answers: a slow answer delays no later request, and each is measured from the moment
/// when it should have gone (Gil Tene's coordinated omission).
pub(super) async fn latency(stage: &Stage, client: &Client, rate: u32, seconds: u32) -> anyhow::Result<Vec<Row>> {
    let before = client.counts().await?;
    let rows = latency_beside(stage, client, rate, seconds).await?;
    run_all(client, before.completed + i64::from(rate * seconds)).await?;
    Ok(rows)
}

/// As [`latency`], while there are other jobs of the type that are not to be waited for.
pub(super) async fn latency_beside(
    stage: &Stage,
    client: &Client,
    rate: u32,
    seconds: u32,
) -> anyhow::Result<Vec<Row>> {
    let started = client.nats().subscribe(client.events("started")).await?;
    let completed = client.nats().subscribe(client.events("completed")).await?;
    client.nats().flush().await?;
    let jobs = (rate * seconds) as usize;
    let seen = |events: async_nats::Subscriber| {
        tokio::spawn(async move {
            let times = events.take(jobs).map(|event| {
                let id = event.subject.rsplit('.').next().unwrap_or_default().to_owned();
                (id, Instant::now())
            });
            times.collect::<HashMap<String, Instant>>().await
        })
    };
    let (started, completed) = (seen(started), seen(completed));
    let sample = stage.sample();
    let mut request = client.request();
    // Where the answer can be read.
    if stage.servers().is_some() {
        request["payload"]["when"] = true.into();
    }
    let body = Bytes::from(request.to_string());
    let first = Instant::now();
    let asking = client.clone();
    let mut asked = at_rate(Duration::from_secs(1) / rate, jobs, move |due| {
        let (client, body) = (asking.clone(), body.clone());
        async move {
            let began = Instant::now();
            let answer = client.send(Door::Rpc, false, body).await?;
            let answered = Instant::now();
            let answer: Value = serde_json::from_slice(&answer)?;
            let id = answer["jobId"].as_str().context("a request was refused")?.to_owned();
            anyhow::Ok(Asked { id, due, began, answered })
        }
    });
    let mut sent = Vec::with_capacity(jobs);
    while let Some(asked) = asked.recv().await {
        sent.push(asked?);
    }
    ensure!(sent.len() == jobs, "only {} of {jobs} requests were made", sent.len());
    let took = first.elapsed();
    let in_time = tokio::time::timeout(PATIENCE, async { (started.await, completed.await) });
    let (started, completed) = in_time.await.context("events are missing")?;
    let (started, completed) = (started?, completed?);
    let after = stage.sample();
    let at = |of: fn(&Asked) -> Instant| sent.iter().map(|asked| (asked.id.clone(), of(asked))).collect();
    let began = began(stage, sent.iter().map(|asked| &asked.id)).await?;
    let mut rows = Vec::new();
    let seen = [
        // What the load itself is late by.
        ("asked", Some(at(|asked| asked.began))),
        ("answered", Some(at(|asked| asked.answered))),
        ("started", began),
        ("told of the start", Some(started)),
        ("told of the end", Some(completed)),
    ];
    for (name, times) in seen.into_iter().filter_map(|(name, times)| Some((name, times?))) {
        let mut latency = histogram();
        for Asked { id, due, .. } in &sent {
            let at = times.get(id).with_context(|| format!("job {id}: {name} is missing"))?;
            latency.saturating_record(at.saturating_duration_since(*due).as_micros() as u64);
        }
        rows.push(Row::rate(&format!("{rate}/s: {name}"), jobs, took, sample, after).latency(&latency));
    }
    Ok(rows)
}

/// When the handlers began, by what they say themselves: whoever listens hears of it later. `None`: not our handlers.
async fn began<'a>(
    stage: &Stage,
    ids: impl Iterator<Item = &'a String>,
) -> anyhow::Result<Option<HashMap<String, Instant>>> {
    let Some(servers) = stage.servers() else { return Ok(None) };
    let ids: Vec<Uuid> = ids.map(|id| id.parse()).collect::<Result<_, _>>()?;
    let (now, by_clock) = (Instant::now(), Utc::now().timestamp_micros());
    let began = database::began(&servers.postgres.url("queue"), stage.schema(), &ids).await?;
    let at = |us: i64| now - Duration::from_micros((by_clock - us).max(0) as u64);
    Ok(Some(began.into_iter().map(|(id, us)| (id.to_string(), at(us))).collect()))
}

/// One request of a load at a fixed rate.
struct Asked {
    id: String,
    due: Instant,
    began: Instant,
    answered: Instant,
}

/// Carries out what `ask` makes of each time at which a request is due. From a thread of its own, since the runtime's timers come
/// up to a millisecond late, which is as long as what is measured.
fn at_rate<T, F>(period: Duration, n: usize, ask: impl Fn(Instant) -> F + Send + 'static) -> mpsc::UnboundedReceiver<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (tell, asked) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        // Else the kernel adds up to 50 µs, to wake several threads together. Source: prctl(2), PR_SET_TIMERSLACK.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let began = Instant::now();
        for i in 0..n {
            let due = began + period * i as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // A request has failed, and nobody looks at the others.
            if tell.is_closed() {
                return;
            }
            let (asking, tell) = (ask(due), tell.clone());
            runtime.spawn(async move {
                let _ = tell.send(asking.await);
            });
        }
    });
    asked
}

/// Lets everything run, and sees that exactly `completed` jobs are completed and nothing else has happened.
async fn run_all(client: &Client, completed: i64) -> anyhow::Result<()> {
    client.resume().await?;
    until_completed(client, completed).await?;
    let counts = client.counts().await?;
    ensure!(
        counts.completed == completed && counts.pending == 0 && counts.processing == 0,
        "{completed} jobs should be completed; the service says {counts:?}"
    );
    Ok(())
}

pub(super) async fn until_completed(client: &Client, completed: i64) -> anyhow::Result<()> {
    let waiting = async {
        let (first, began) = (client.counts().await?.completed, Instant::now());
        let mut now = first;
        while now < completed {
            // Half of what it will still take at this pace: to count has its price, which is not the load's.
            let left = (completed - now) as f64 / (now - first).max(1) as f64;
            let pause = began.elapsed().mul_f64(left / 2.0);
            tokio::time::sleep(pause.clamp(LOOK[0], LOOK[1])).await;
            now = client.counts().await?.completed;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, waiting).await.context("not all jobs were done in time: some are lost")?
}

impl Row {
    fn memory(name: &str, sample: Sample) -> Self {
        Row { name: name.to_owned(), memory: Some(sample.into()), ..Row::default() }
    }
}
