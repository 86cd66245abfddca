//! Requests, so many in flight: each waits for its answer before the next one goes.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
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
    let (left, latency) = (Cell::new(requests), RefCell::new(histogram()));
    let began = Instant::now();
    // All in one task, so that requests which may go at the same moment share a packet: the load takes its time from the same
    // processors as what it measures.
    let callers = (0..concurrency.min(requests)).map(|_| async {
        while let Some(rest) = left.get().checked_sub(1) {
            left.set(rest);
            let sent = Instant::now();
            let answer = client.send(door, jobs_each > 1, body.clone()).await?;
            latency.borrow_mut().saturating_record(sent.elapsed().as_micros() as u64);
            check(&answer, jobs_each)?;
        }
        anyhow::Ok(())
    });
    try_join_all(callers).await?;
    Ok(Outcome { took: began.elapsed(), latency: latency.into_inner() })
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
