//! The conformance kit: our own examples keep the protocol, and whoever breaks a rule is told which.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use async_nats::{Client, HeaderMap, Message};
use futures_util::StreamExt;
use queue_service::{
    config,
    conformance::{self, Examinee, Options, Report, Verdict},
    job::JobType,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    examples::{Language, example},
    foreign::{python, tool},
    harness::servers,
};

const WORDS: &str = "word-count";

/// A corner of the broker where no service is.
async fn corner(name: &str) -> config::Nats {
    let url = servers().await.nats.url();
    config::Nats { url, prefix: format!("conformance-{name}"), ..config::Nats::default() }
}

fn options(examinee: Examinee, payload: Value) -> Options {
    let (bad, slow, large, command) = (None, None, None, Vec::new());
    let patience = Duration::from_secs(30);
    Options { examinee, payload: raw(payload), bad, slow, large, patience, command }
}

fn raw(value: Value) -> Box<serde_json::value::RawValue> {
    serde_json::value::to_raw_value(&value).unwrap()
}

fn handler(nats: &config::Nats) -> Examinee {
    Examinee::Handler { subject: format!("{}.handlers.{WORDS}", nats.prefix) }
}

fn puller() -> Examinee {
    Examinee::Puller { job_type: JobType::new("square").unwrap() }
}

async fn examine(nats: &config::Nats, options: &Options) -> Report {
    conformance::run(nats, options, |_| {}).await.unwrap()
}

fn of(report: &Report, verdict: Verdict) -> Vec<String> {
    let told = report.findings.iter().filter(|finding| finding.verdict == verdict);
    told.map(|finding| format!("{}: {}", finding.check, finding.detail)).collect()
}

/// Fails with what the kit has found, unless only `skipped` checks could not be made.
fn assert_kept(report: &Report, skipped: usize) {
    assert_eq!(of(report, Verdict::Failed), Vec::<String>::new());
    assert_eq!(of(report, Verdict::Warned), Vec::<String>::new());
    assert_eq!(report.count(Verdict::Skipped), skipped, "{:?}", of(report, Verdict::Skipped));
}

async fn keeps_the_protocol(name: &str, language: Language, skipped: usize) {
    let nats = corner(name).await;
    let mut options = options(handler(&nats), json!({"texts": ["to be", "or not to be"]}));
    options.bad = Some(raw(json!({"texts": [""]})));
    options.slow = Some(raw(json!({"texts": ["a", "b", "c", "d", "e", "f", "g", "h"], "pauseMs": 1000})));
    options.command = vec![language.program.display().to_string()];
    options.command.extend(language.handler);
    // No example has results of such a size, and TypeScript registers its type by a request.
    assert_kept(&examine(&nats, &options).await, skipped);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_handler_keeps_the_protocol() {
    keeps_the_protocol("python", Language::python(), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_typescript_handler_keeps_the_protocol() {
    keeps_the_protocol("typescript", Language::typescript(), 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_handler_keeps_the_protocol() {
    keeps_the_protocol("go", Language::go(), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_java_handler_keeps_the_protocol() {
    keeps_the_protocol("java", Language::java(), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handler_of_the_shell_keeps_the_protocol_as_far_as_it_can() {
    let nats = corner("shell").await;
    let subject = format!("{}.handlers.shout", nats.prefix);
    let mut options = options(Examinee::Handler { subject }, json!({"text": "hello"}));
    // The script looks for the command line on its path.
    let path = format!("PATH={}:{}", tool("nats").parent().unwrap().display(), std::env::var("PATH").unwrap());
    options.command = vec!["env".into(), path, example("shell/handler.sh").display().to_string()];
    let report = examine(&nats, &options).await;
    assert_eq!(of(&report, Verdict::Failed), Vec::<String>::new());
    assert!(report.count(Verdict::Passed) >= 7, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_pull_worker_keeps_the_protocol() {
    let nats = corner("puller").await;
    let mut options = options(puller(), json!({"n": 3}));
    options.bad = Some(raw(json!({"n": "x"})));
    options.slow = Some(raw(json!({"n": 3, "pauseMs": 12_000})));
    let program: PathBuf = python();
    options.command = vec![program.display().to_string(), example("python/puller.py").display().to_string()];
    assert_kept(&examine(&nats, &options).await, 1);
}

/// A handler of the test's own, which does with each request what it is told to.
async fn misbehaving<F, Fut>(nats: &config::Nats, work: F) -> Client
where
    F: Fn(Client, Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let client = async_nats::connect(&nats.url).await.unwrap();
    let mut requests =
        client.queue_subscribe(format!("{}.handlers.{WORDS}", nats.prefix), "workers".into()).await.unwrap();
    client.flush().await.unwrap();
    let own = client.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            tokio::spawn(work(own.clone(), request));
        }
    });
    client
}

async fn reply(client: &Client, request: &Message, headers: &[(&str, &str)], body: impl Into<bytes::Bytes>) {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    client.publish_with_headers(request.reply.clone().unwrap(), map, body.into()).await.unwrap();
}

/// The payload of a request, `null` for one that is no JSON.
fn payload(request: &Message) -> Value {
    serde_json::from_slice::<Value>(&request.payload).map(|job| job["payload"].clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_answers_garbage_or_twice_or_for_others_is_told_so() {
    let nats = corner("garbage").await;
    let _client = misbehaving(&nats, async |client, request| match payload(&request).as_str() {
        Some("garbage") => reply(&client, &request, &[], "no JSON").await,
        Some("twice") => {
            reply(&client, &request, &[], "1").await;
            reply(&client, &request, &[], "2").await;
        }
        Some("other") => reply(&client, &request, &[("Job-Id", "another one")], "1").await,
        _ => {}
    })
    .await;
    for (what, check, detail) in [
        ("garbage", "a job is answered with its result, once", "the handler's answer is no JSON"),
        ("twice", "a job is answered with its result, once", "a second answer came"),
        ("other", "jobs that come together get each their own answer", "names another job"),
    ] {
        let report = examine(&nats, &options(handler(&nats), json!(what))).await;
        let failed = of(&report, Verdict::Failed).join("\n");
        assert!(failed.contains(check) && failed.contains(detail), "{what}: {failed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_compared_as_values_and_whole() {
    let long = "x".repeat(200);
    let of_long = |end: &str| format!(r#"{{"text": "{long}{end}"}}"#);
    for (name, results, differs) in [
        ("order", [r#"{"from": 0, "sum": 6}"#.to_owned(), r#"{"sum": 6.0, "from": 0}"#.to_owned()], None),
        ("length", [of_long("a"), of_long("b")], Some("with another result at /text")),
    ] {
        let nats = corner(name).await;
        let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let _client = misbehaving(&nats, move |client, request| {
            let result = results[runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 2].clone();
            async move { reply(&client, &request, &[], result).await }
        })
        .await;
        let report = examine(&nats, &options(handler(&nats), json!({}))).await;
        let again = report.findings.iter().find(|finding| finding.check == "a job that comes again is done again");
        let again = again.unwrap();
        match differs {
            None => assert_eq!((again.verdict, again.detail.as_str()), (Verdict::Passed, "with the same result")),
            Some(told) => assert!(again.verdict == Verdict::Warned && again.detail.contains(told), "{again:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_fails_for_good_what_comes_twice_is_told_so() {
    let nats = corner("twin").await;
    let at_work = Arc::new(std::sync::Mutex::new(HashSet::new()));
    let _client = misbehaving(&nats, move |client, request| {
        let run = request.headers.as_ref().unwrap().get("Job-Id").unwrap().to_string();
        let first = at_work.lock().unwrap().insert(run.clone());
        let at_work = at_work.clone();
        async move {
            if !first {
                let refusal =
                    [("Nats-Service-Error-Code", "409"), ("Nats-Service-Error", "a twin"), ("Job-Retry", "false")];
                return reply(&client, &request, &refusal, "").await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            at_work.lock().unwrap().remove(&run);
            reply(&client, &request, &[], "1").await;
        }
    })
    .await;
    let report = examine(&nats, &options(handler(&nats), json!({}))).await;
    let failed = of(&report, Verdict::Failed).join("\n");
    assert!(
        failed.contains("a message that comes twice does no harm: the first answer was a failure for good"),
        "{failed}"
    );
    assert!(!failed.contains("done again"), "{failed}");
}

/// A handler that takes jobs with Job-Accepted and tells `queue.finish` how they ended, until it is answered; `keeps`: as it
/// should.
async fn accepting(nats: &config::Nats, keeps: bool) -> Client {
    misbehaving(nats, move |client, request| async move {
        let Ok(job) = serde_json::from_slice::<Value>(&request.payload) else {
            let refusal = [("Nats-Service-Error-Code", "400"), ("Nats-Service-Error", "no JSON"), ("Job-Retry", "false")];
            return reply(&client, &request, &refusal, "").await;
        };
        let headers = request.headers.clone().unwrap();
        let header = |name: &str| headers.get(name).unwrap().to_string();
        let (id, run) = (header("Job-Id"), header("Job-Run").parse::<i64>().unwrap());
        let deadline: chrono::DateTime<chrono::Utc> = header("Job-Deadline").parse().unwrap();
        let prefix = request.subject.split_once(".handlers.").unwrap().0.to_owned();
        let mut cancels = client.subscribe(format!("{prefix}.control.cancel.{WORDS}.{id}")).await.unwrap();
        client.flush().await.unwrap();
        reply(&client, &request, &[("Job-Accepted", "true")], "").await;
        if !keeps {
            return;
        }
        let mut end = json!({"jobId": id, "run": run, "result": {"words": 3}});
        let because = |message: &str, retry: bool| {
            json!({"jobId": id, "run": run, "error": {"message": message, "retry": retry}})
        };
        match job["payload"].as_str() {
            Some("bad") => end = because("no words", false),
            Some("slow") => {
                let left = (deadline - chrono::Utc::now()).to_std().unwrap_or_default();
                let sign = json!({"run": run, "percent": 10, "checkpoint": {"done": 1}}).to_string();
                client.publish(format!("{prefix}.progress.{WORDS}.{id}"), sign.into()).await.unwrap();
                tokio::select! {
                    _ = cancels.next() => end = because("cancelled", true),
                    () = tokio::time::sleep(left) => return,
                    () = tokio::time::sleep(Duration::from_secs(12)) => {}
                }
            }
            _ => {}
        }
        for _ in 0..10 {
            let asked = client.request(format!("{prefix}.finish"), end.to_string().into());
            if tokio::time::timeout(Duration::from_secs(1), asked).await.is_ok_and(|answer| answer.is_ok()) {
                return;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_accepts_and_finishes_later_is_checked_by_what_it_finishes() {
    let nats = corner("accepts").await;
    let _client = accepting(&nats, true).await;
    let mut options = options(handler(&nats), json!("fine"));
    options.bad = Some(raw(json!("bad")));
    options.slow = Some(raw(json!("slow")));
    let report = examine(&nats, &options).await;
    assert_kept(&report, 4);
    let passed = of(&report, Verdict::Passed).join("\n");
    for check in [
        "a job is answered with its result, once",
        "what can't succeed is told as a failure for good: no words",
        "it stops when the job is cancelled",
        "a checkpoint is taken up again",
        "a finish that gets no answer is told again",
    ] {
        assert!(passed.contains(check), "{check} is missing in\n{passed}");
    }

    let nats = corner("forgets").await;
    let _client = accepting(&nats, false).await;
    let mut options = self::options(handler(&nats), json!("fine"));
    options.patience = Duration::from_secs(2);
    let failed = of(&examine(&nats, &options).await, Verdict::Failed).join("\n");
    assert!(failed.contains("a job is answered with its result, once: the answer was a promise"), "{failed}");
    assert!(failed.contains("no queue.finish in time"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_ignores_cancellation_deadline_and_sizes_is_told_so() {
    let nats = corner("deaf").await;
    let _client = misbehaving(&nats, async |client, request| match payload(&request).as_str() {
        Some("slow") => {
            let id = request.headers.as_ref().unwrap().get("Job-Id").unwrap().as_str().to_owned();
            let (prefix, _) = request.subject.split_once(".handlers.").unwrap();
            for percent in [10, 200] {
                let news = json!({"percent": percent, "run": 1}).to_string();
                client.publish(format!("{prefix}.progress.{WORDS}.{id}"), news.into()).await.unwrap();
            }
            // As one that is blocked: it hears nothing until its work is done.
            tokio::time::sleep(Duration::from_secs(4)).await;
            reply(&client, &request, &[], "1").await;
        }
        Some("bad") => reply(&client, &request, &[("Nats-Service-Error-Code", "oops")], "").await,
        Some("large") => reply(&client, &request, &[], format!("\"{}\"", "x".repeat(300_000))).await,
        _ => reply(&client, &request, &[], "1").await,
    })
    .await;
    let mut options = options(handler(&nats), json!("fine"));
    options.bad = Some(raw(json!("bad")));
    options.slow = Some(raw(json!("slow")));
    options.large = Some(raw(json!("large")));
    let report = examine(&nats, &options).await;
    let (failed, warned) = (of(&report, Verdict::Failed).join("\n"), of(&report, Verdict::Warned).join("\n"));
    for detail in [
        "it has to be a number from 100 to 599",
        "no result is larger than 256 KiB: the result has 300002 bytes",
        "its result came after Job-Deadline",
        "`percent` has to be 0 to 100",
    ] {
        assert!(failed.contains(detail), "{detail} is missing in\n{failed}");
    }
    for detail in ["it was done all the same", "a request that is no JSON"] {
        assert!(warned.contains(detail), "{detail} is missing in\n{warned}");
    }
    assert!(!report.is_good());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_is_not_there_fails_at_once_and_a_wrong_subject_is_an_error() {
    let nats = corner("nobody").await;
    let report = examine(&nats, &options(handler(&nats), json!({}))).await;
    assert!(of(&report, Verdict::Failed)[0].contains("start the handler first"), "{report:?}");
    assert_eq!(report.findings.len(), 1);
    let wrong = options(Examinee::Handler { subject: "nonsense".into() }, json!({}));
    let refused = conformance::run(&nats, &wrong, |_| {}).await.unwrap_err();
    assert!(refused.to_string().contains("no <prefix>.handlers.<type>"), "{refused}");
    let mut gone = options(handler(&nats), json!({}));
    gone.command = vec!["false".into()];
    let report = examine(&nats, &gone).await;
    assert!(of(&report, Verdict::Failed)[0].contains("ended by itself"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_worker_that_breaks_rules_is_told_which() {
    let nats = corner("rude-puller").await;
    let client = async_nats::connect(&nats.url).await.unwrap();
    let (prefix, stop) = (nats.prefix.clone(), Arc::new(Notify::new()));
    let stopped = stop.clone();
    let worker = tokio::spawn(async move {
        let ask = async |verb: &str, body: Value| {
            let request = client.request(format!("{prefix}.work.{verb}"), body.to_string().into());
            let answered = tokio::time::timeout(Duration::from_secs(3), request).await.ok()?.ok()?;
            serde_json::from_slice::<Value>(&answered.payload).ok()
        };
        let mut seen = HashSet::new();
        let work = async {
            loop {
                let wish = json!({"types": ["square"], "max": 1, "waitMs": 100, "workerId": "rude", "leaseMs": 2000});
                let Some(fetched) = ask("fetch", wish).await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                for job in fetched["jobs"].as_array().into_iter().flatten() {
                    let run = json!({"jobId": job["id"], "run": job["run"]});
                    // Told in a form that nobody knows.
                    ask("heartbeat", json!({"worker": "rude", "runs": [run]})).await;
                    match job["payload"].as_str() {
                        // Silent until it is done, and it takes longer than its lease.
                        Some("slow") => tokio::time::sleep(Duration::from_secs(3)).await,
                        Some("bad") => {
                            ask("fail", json!({"jobId": job["id"], "run": job["run"], "message": "no"})).await;
                            continue;
                        }
                        _ => {}
                    }
                    // What was done once is not done again; and an answer that gets lost is not missed.
                    if seen.insert(job["id"].clone()) {
                        ask("complete", json!({"jobId": job["id"], "run": job["run"], "result": 1})).await;
                    }
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = stopped.notified() => {}
        }
    });
    let mut options = options(puller(), json!("fine"));
    options.patience = Duration::from_secs(4);
    options.bad = Some(raw(json!("bad")));
    options.slow = Some(raw(json!("slow")));
    let report = examine(&nats, &options).await;
    stop.notify_one();
    worker.await.unwrap();
    let (failed, warned) = (of(&report, Verdict::Failed).join("\n"), of(&report, Verdict::Warned).join("\n"));
    for detail in [
        "a job that comes again is done again: nothing is told of the job",
        "it gives signs of life: no heartbeat",
        "every request has the form of the protocol: work.heartbeat",
    ] {
        assert!(failed.contains(detail), "{detail} is missing in\n{failed}");
    }
    for detail in ["for want of \"retry\": false", "the job would run again when its lease ends"] {
        assert!(warned.contains(detail), "{detail} is missing in\n{warned}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kit_does_not_mix_with_a_service_that_answers() {
    let (_place, service) = crate::harness::start().await;
    let refused = conformance::run(&service.config.nats, &options(puller(), json!({})), |_| {}).await.unwrap_err();
    assert!(refused.to_string().contains("a service answers under the prefix"), "{refused}");
    service.stop().await;
}
