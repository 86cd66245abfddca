//! Requests, so many in flight: each waits for its answer before the next one goes.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::stage::{Client, Door};

/// How requests fared.
pub(super) struct Outcome {
    pub took: Duration,
    /// Microseconds.
    pub latency: Histogram<u64>,
}

pub(super) fn histogram() -> Histogram<u64> {
    // Three digits up to a minute: constants, so it can't fail.
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap_or_else(|_| unreachable!("constant bounds"))
}

/// Sends `requests` bodies with `concurrency` in flight; every answer must be good for `jobs_each` jobs.
pub(super) async fn drive(
    client: &Client,
    door: Door,
    body: Bytes,
    jobs_each: usize,
    requests: usize,
    concurrency: usize,
) -> anyhow::Result<Outcome> {
    let left = Arc::new(AtomicUsize::new(requests));
    let all = Arc::new(Mutex::new(histogram()));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..concurrency.min(requests) {
        let (left, all, client, body) = (left.clone(), all.clone(), client.clone(), body.clone());
        tasks.spawn(async move {
            let mut latency = histogram();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                let sent = Instant::now();
                let answer = client.send(door, jobs_each > 1, body.clone()).await?;
                latency.saturating_record(sent.elapsed().as_micros() as u64);
                check(&answer, jobs_each)?;
            }
            let _ = all.lock().unwrap_or_else(PoisonError::into_inner).add(latency);
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task of the load")??;
    }
    let took = began.elapsed();
    let latency = all.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Outcome { took, latency })
}

/// Jobs in a bulk request. Source: wire contract, the most that it takes.
pub(super) const BULK: usize = 1000;
const BULK_IN_FLIGHT: usize = 4;

/// Hands in `requests` bulk requests of `size` times the same job.
pub(super) async fn drive_bulk(
    client: &Client,
    request: &Value,
    size: usize,
    requests: usize,
) -> anyhow::Result<Outcome> {
    let body = Bytes::from(json!({"jobs": vec![request; size]}).to_string());
    drive(client, Door::Rpc, body, size, requests, BULK_IN_FLIGHT).await
}

fn check(answer: &[u8], jobs: usize) -> anyhow::Result<()> {
    if jobs == 1 {
        // Looking for the key is enough here; the counts are compared at the end.
        ensure!(answer.starts_with(b"{\"jobId\""), "a request was refused: {}", String::from_utf8_lossy(answer));
        return Ok(());
    }
    let answer: Value = serde_json::from_slice(answer)?;
    let Some(results) = answer["results"].as_array() else { bail!("a bulk was refused: {answer}") };
    let good = results.iter().filter(|result| result["jobId"].is_string()).count();
    ensure!(good == jobs, "{} of {jobs} jobs of a bulk were refused: {answer:.300}", jobs - good);
    Ok(())
}
