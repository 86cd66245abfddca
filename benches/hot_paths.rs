//! What every job passes through, without any server: checks, batching, the rules of its end, its wake-up.
//!
//!     cargo bench
//!
//! How fast the whole service is says `queue-service bench`.

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use queue_service::{
    broker::pull::wake_up_body,
    flow::{Batcher, batcher::Size},
    handlers::{AnyHandler, RunContext},
    job::{Failure, Outcome, RetryPolicy, Trace, json, settle},
    supervise::Tasks,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // Decoding it is what is measured.
struct Mail {
    to: Vec<String>,
    subject: String,
    body: String,
}

fn mail(words: usize) -> String {
    let body = "word ".repeat(words);
    serde_json::json!({"to": ["ada@example.org"], "subject": "A subject", "body": body}).to_string()
}

fn checks(c: &mut Criterion) {
    let mut group = c.benchmark_group("check a request");
    for words in [10, 2000] {
        let request = format!(r#"{{"type":"send-email","payload":{},"tags":["a","b"]}}"#, mail(words));
        group.throughput(Throughput::Bytes(request.len() as u64));
        group.bench_function(format!("general rules, {} bytes", request.len()), |b| {
            b.iter(|| json::check_object(black_box(request.as_bytes())));
        });
    }
    let handler = AnyHandler::function("mail", "", (), async |_: RunContext, (): (), _: Mail| Ok::<_, Failure>(()));
    let handler = handler.expect("a good type");
    for (what, payload) in [("good", mail(10)), ("bad", r#"{"to": "ada", "subject": 1}"#.to_owned())] {
        let payload = RawValue::from_string(payload).expect("JSON");
        group.bench_function(format!("the type's rules, a {what} payload"), |b| {
            b.iter(|| handler.check(black_box(&payload)));
        });
    }
    group.finish();
}

fn rules(c: &mut Criterion) {
    let policy = RetryPolicy::default();
    c.bench_function("settle a failure", |b| {
        let fail = || Outcome::Failed(Failure::retry("the other side is busy"));
        b.iter_batched(fail, |outcome| settle(2, 5, &policy, outcome, 0.5), BatchSize::SmallInput);
    });
    c.bench_function("an id", |b| b.iter(uuid::Uuid::now_v7));
    let id = uuid::Uuid::now_v7();
    c.bench_function("a wake-up's body", |b| b.iter(|| wake_up_body(black_box(id), "send-email.normal")));
    c.bench_function("a run's traceparent", |b| b.iter(|| Trace::of_job(black_box(id)).of_run(id, 3).to_string()));
}

/// Callers that all wait for the same batcher: what gathering and answering costs each of them.
fn batching(c: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut group = c.benchmark_group("batcher");
    for callers in [1_u64, 64, 1024] {
        let _inside = runtime.enter();
        let size = Size { weight: 500, lanes: 1, enough: 1, waiting: 4096 };
        let batcher = Batcher::start("bench", size, |_| 1, &Tasks::default(), |items: Vec<u64>| async move { items });
        group.throughput(Throughput::Elements(callers));
        group.bench_function(format!("{callers} callers"), |b| {
            b.to_async(&runtime).iter(|| async {
                let calls = (0..callers).map(|n| {
                    let batcher = batcher.clone();
                    async move { batcher.submit(n).await.expect("it runs") }
                });
                futures_util::future::join_all(calls).await
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(50);
    targets = checks, rules, batching
}
criterion_main!(benches);
