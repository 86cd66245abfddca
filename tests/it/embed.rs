//! The crate as a library: a worker inside another program, the typed client, and the test kit.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use queue_service::{
    Client, Enqueue, Worker,
    client::{CallError, ListJobs},
    config::Config,
    embed::Error,
    handlers::{Ended, Faults, Handler, Next, RunContext, layer},
    job::Failure,
    service::Service,
    testing::{Harness, Inline, run_inline},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::harness::{PATIENCE, Place, until};

struct Halve;

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Number {
    n: u32,
}

impl Handler for Halve {
    const TYPE: &'static str = "halve";
    const ABOUT: &'static str = "Halves numbers.";
    type Payload = Number;
    type Output = u32;

    fn check(&self, payload: &Number, faults: &mut Faults) {
        if payload.n == 0 {
            faults.add("/n", "must not be 0");
        }
    }

    async fn run(&self, ctx: &RunContext, payload: Number) -> Result<u32, Failure> {
        match payload.n {
            13 if ctx.attempt == 1 => Err(Failure::retry("not yet")),
            n if n % 2 == 1 && n != 13 => Err(Failure::permanent(format!("{n} is odd"))),
            n => Ok(n / 2),
        }
    }
}

/// The service as it is elsewhere: it takes requests and knows nothing of types in other programs.
async fn doors(config: &Config) -> Service {
    let service = Service::start(config.clone()).await.unwrap();
    assert!(service.ready().await);
    service
}

async fn client(config: &Config) -> Client {
    Client::open(&config.nats, None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_inside_a_program_does_jobs_that_the_service_takes_for_it() {
    let place = Place::new().await;
    let service = doors(&place.config).await;
    let client = client(&place.config).await;
    let unknown = client.enqueue(&Enqueue::of::<Halve>(&Number { n: 8 }).unwrap()).await.unwrap_err();
    assert!(matches!(&unknown, CallError::Refused(refusal) if refusal.code == "unknown_type"), "{unknown}");

    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = told.clone();
    let outer = layer(move |ctx: &RunContext, next: Next<'_>| {
        let (heard, what) = (heard.clone(), format!("{} {}", ctx.job_type, next.payload()));
        Box::pin(async move {
            let ended = next.run().await;
            heard.lock().unwrap().push(format!("{what} done: {}", matches!(ended, Ended::Done(_))));
            ended
        })
    });
    let stingy = layer(|_: &RunContext, next: Next<'_>| {
        let free = next.payload().get() == r#"{"n":100}"#;
        Box::pin(
            async move { if free { Ended::Failed(Failure::permanent("not for nothing")) } else { next.run().await } },
        )
    });
    let worker = Worker::builder()
        .config(place.config.clone())
        .handler(Halve)
        .state(Arc::new(AtomicU32::new(0)))
        .function("count", "Counts its runs.", async |_: RunContext, runs: Arc<AtomicU32>, by: u32| {
            Ok::<_, Failure>(runs.fetch_add(by, Ordering::Relaxed) + by)
        })
        .layer(outer)
        .layer(stingy)
        .start()
        .await
        .unwrap();

    // Every replica learns of them.
    let known = client.types().await.unwrap();
    let halve = known.iter().find(|known| known.r#type == "halve").unwrap();
    assert_eq!((halve.handler.as_str(), halve.description.as_str()), ("embedded", "Halves numbers."));

    let run = async |n: u32| {
        let id = client.enqueue(&Enqueue::of::<Halve>(&Number { n }).unwrap()).await.unwrap().job_id;
        client.wait(id, PATIENCE).await.unwrap().unwrap()
    };
    assert_eq!(run(8).await.output::<u32>().unwrap(), 4);
    let twice = run(13).await;
    assert_eq!((twice.output::<u32>().unwrap(), twice.attempts), (6, 2));
    assert_eq!(run(9).await.output::<u32>().unwrap_err().to_string(), "the job is failed: 9 is odd");
    assert_eq!(run(100).await.error.as_deref(), Some("not for nothing"));
    let lines = told.lock().unwrap().clone();
    assert_eq!(lines[0], r#"halve {"n":8} done: true"#);
    assert!(lines.contains(&r#"halve {"n":100} done: false"#.to_owned()), "{lines:?}");

    let bad = client.enqueue(&Enqueue::new("halve", &json!({"n": "x"})).unwrap()).await.unwrap_err();
    assert!(bad.to_string().contains("/payload/n"), "{bad}");
    let many = [Enqueue::new("count", &5).unwrap(), Enqueue::new("count", &"five").unwrap()];
    let many = client.enqueue_many(&many).await.unwrap();
    assert_eq!(many[1].as_ref().unwrap_err().code, "invalid_payload");
    let counted = client.wait(many[0].as_ref().unwrap().job_id, PATIENCE).await.unwrap().unwrap();
    assert_eq!(counted.output::<u32>().unwrap(), 5);

    worker.stop(CancellationToken::new()).await.unwrap();
    // Its types stay known: jobs wait for the next one that has them.
    let waits = client.enqueue(&Enqueue::new("count", &1).unwrap()).await.unwrap().job_id;
    assert_eq!(client.job(waits).await.unwrap().status, "pending");
    service.stop(CancellationToken::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_typed_client_has_a_method_for_what_programs_ask() {
    let place = Place::new().await;
    let service = place.start().await;
    let client = client(&place.config).await;
    let probe = |payload: Value| Enqueue::new("probe", &payload).unwrap();
    let job = probe(json!({})).key("k1").tag("red").priority(3);
    let first = client.enqueue(&job).await.unwrap();
    let again = client.enqueue(&job).await.unwrap();
    assert_eq!((again.job_id, again.duplicate), (first.job_id, true));
    let mut events = client.follow(None).await.unwrap();
    let later = client.enqueue(&probe(json!({})).delay(Duration::from_secs(3600))).await.unwrap().job_id;
    let ours = async {
        loop {
            let event = events.next().await.unwrap();
            if event.job_id == later.to_string() {
                return event.state;
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, ours).await.unwrap(), "enqueued");
    assert!(client.wait(later, Duration::from_millis(50)).await.unwrap().is_none());
    let cancelled = client.cancel(later, Some("not needed")).await.unwrap();
    assert_eq!((cancelled.status.as_str(), cancelled.error.as_deref()), ("cancelled", Some("not needed")));
    assert_eq!(client.retry(later).await.unwrap().status, "pending");
    let done = client.wait(first.job_id, PATIENCE).await.unwrap().unwrap();
    assert_eq!((done.status.as_str(), done.priority, done.tags), ("completed", 3, vec!["red".to_owned()]));
    let page = client.list(&ListJobs { tag: Some("red".into()), ..ListJobs::default() }).await.unwrap();
    assert_eq!(page.jobs.len(), 1);
    assert!(client.set_paused("probe", true).await.unwrap().paused);
    assert!(!client.set_paused("probe", false).await.unwrap().paused);
    let made = client.register_type(&json!({"type": "elsewhere", "handler": "pull"})).await.unwrap();
    assert_eq!(made.origin, "registered");
    until(|| async { (client.stats().await.unwrap().all.completed >= 2).then_some(()) }).await;
    let missing = client.job(uuid::Uuid::now_v7()).await.unwrap_err();
    assert!(matches!(&missing, CallError::Refused(refusal) if refusal.code == "job_not_found"), "{missing}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_a_worker_are_told_before_it_starts() {
    let refused = async |worker: Result<Worker, Error>| worker.err().unwrap().to_string();
    let place = Place::new().await;
    let builder = || Worker::builder().config(place.config.clone());
    assert!(refused(builder().start().await).await.contains("needs at least one handler"));
    let twice = builder().handler(Halve).handler(Halve).start().await;
    assert!(refused(twice).await.contains("two handlers have the type 'halve'"));
    let work = async |_: RunContext, (): (), (): ()| Ok::<_, Failure>(());
    let bad_name = builder().function("Bad Name", "", work).start().await;
    assert!(refused(bad_name).await.contains("begins with a letter"));
    let bad_setting = builder().handler(Halve).concurrency(0).start().await;
    assert!(refused(bad_setting).await.contains("worker.concurrency"));
    let taken = builder().function("send-email", "Sends otherwise.", work).start().await;
    assert!(refused(taken).await.contains("two handlers have the type 'send-email'"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_hands_back_what_it_can_not_end_in_time() {
    let mut place = Place::new().await;
    place.config.worker.drain = Duration::from_millis(200);
    let service = doors(&place.config).await;
    let sleeps = async |_: RunContext, (): (), (): ()| {
        std::future::pending::<()>().await;
        Ok::<_, Failure>(())
    };
    let builder = Worker::builder().config(place.config.clone()).function("sleep", "Sleeps.", sleeps);
    let worker = builder.start().await.unwrap();
    let client = client(&place.config).await;
    assert!(client.types().await.unwrap().iter().any(|known| known.r#type == "sleep"));
    let id = client.enqueue(&Enqueue::new("sleep", &()).unwrap()).await.unwrap().job_id;
    until(|| async { (client.job(id).await.unwrap().status == "processing").then_some(()) }).await;
    worker.stop(CancellationToken::new()).await.unwrap();
    let job = client.job(id).await.unwrap();
    assert_eq!((job.status.as_str(), job.attempts), ("pending", 0));
    service.stop(CancellationToken::new()).await.unwrap();
}

/// Says when it is dropped.
struct Told(Arc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_dropped_ends_as_by_a_crash_and_its_jobs_are_taken_over() {
    let place = Place::new().await;
    let service = doors(&place.config).await;
    let client = client(&place.config).await;
    let mut config = place.config.clone();
    config.http.enabled = true;
    let (begun, dropped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let start = async || {
        let told = (begun.clone(), dropped.clone());
        let sleeps = async |ctx: RunContext, (begun, dropped): (Arc<Notify>, Arc<Notify>), (): ()| {
            if ctx.attempt == 1 {
                let _told = Told(dropped);
                begun.notify_one();
                std::future::pending::<()>().await;
            }
            Ok::<_, Failure>(())
        };
        let builder = Worker::builder().config(config.clone()).state(told).function("sleep", "Sleeps.", sleeps);
        builder.start().await.unwrap()
    };
    let worker = start().await;
    let id = client.enqueue(&Enqueue::new("sleep", &()).unwrap()).await.unwrap().job_id;
    begun.notified().await;
    let tasks = worker.supervisor().clone();
    assert!(tasks.report().len() > 10);
    drop(worker);
    dropped.notified().await;
    until(async || tasks.report().is_empty().then_some(())).await;
    let next = start().await;
    let job = client.wait(id, PATIENCE).await.unwrap().unwrap();
    assert_eq!((job.status.as_str(), job.attempts), ("completed", 2));
    next.stop(CancellationToken::new()).await.unwrap();
    service.stop(CancellationToken::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_dropped_lets_go_of_its_address() {
    let place = Place::new().await;
    let service = doors(&place.config).await;
    let address = service.http_address().unwrap();
    drop(service);
    until(async || tokio::net::TcpStream::connect(address).await.err()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_test_kit_runs_a_handler_by_itself_and_the_whole_way() {
    assert_eq!(run_inline::<_, u32>(Halve, &Number { n: 8 }).await.unwrap(), 4);
    let failed = run_inline::<_, u32>(Halve, &Number { n: 9 }).await.unwrap_err();
    assert!(matches!(failed, Inline::Failed(failure) if failure.message == "9 is odd"));
    let refused = run_inline::<_, u32>(Halve, &json!({"n": 0})).await.unwrap_err();
    assert!(refused.to_string().contains("must not be 0"), "{refused}");
    let refused = run_inline::<_, u32>(Halve, &json!({})).await.unwrap_err();
    assert!(refused.to_string().contains("\"n\" is a required property"), "{refused}");

    let harness = Harness::start(Worker::builder().handler(Halve)).await.unwrap();
    let job = harness.run(&Enqueue::of::<Halve>(&Number { n: 13 }).unwrap()).await.unwrap();
    assert_eq!((job.output::<u32>().unwrap(), job.attempts), (6, 2));
    // Its own doors know the rules beyond the shape.
    let refused = harness.run(&Enqueue::of::<Halve>(&Number { n: 0 }).unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("must not be 0"), "{refused}");
    harness.stop().await.unwrap();
}
