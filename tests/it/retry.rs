//! A failed attempt is followed by another one, on a schedule, until the budget is spent; and again when asked by hand.

use std::time::Duration;

use queue_service::{config::TypeOverrides, job::RetryPolicy};
use serde_json::{Value, json};

use crate::harness::{Place, Running, millis_between, start, time, until};

/// The events of a job that fails all its attempts.
async fn story_of_failing(service: &Running, request: Value) -> (Value, Vec<Value>) {
    let mut events = service.listen("events.probe.*.*").await;
    let id = service.enqueue(request).await;
    let told = events.until_state("failed").await;
    (service.finished(&id).await, told)
}

fn delays(events: &[Value]) -> Vec<f64> {
    let retrying = events.iter().filter(|event| event["state"] == "retrying");
    retrying.map(|event| event["delaySeconds"].as_f64().unwrap()).collect()
}

fn kinds(job: &Value) -> Vec<&str> {
    job["errors"].as_array().unwrap().iter().map(|error| error["kind"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_follow_the_schedule_and_never_come_early() {
    let (place, service) = start().await;
    let request = json!({"type": "probe", "payload": {"fail": 9}, "maxAttempts": 5});
    let (job, events) = story_of_failing(&service, request).await;
    assert_eq!(delays(&events), [0.05, 0.1, 0.2, 0.4]);
    assert_eq!((&job["status"], &job["attempts"]), (&json!("failed"), &json!(5)));
    let failed_at: Vec<Value> = job["errors"].as_array().unwrap().iter().map(|e| e["at"].clone()).collect();
    assert_eq!(failed_at.len(), 5);
    // Each attempt failed at once, so the time between two failures is the delay.
    for (pair, delay) in failed_at.windows(2).zip([50.0, 100.0, 200.0, 400.0]) {
        assert!(millis_between(&pair[0], &pair[1]) >= delay, "{failed_at:?}");
    }
    assert!(time(&job["startedAt"]) >= time(&job["runAt"]));
    let attempts: Vec<(u16, i64)> =
        place.journal.lines().iter().filter(|l| l.what == "start").map(|l| (l.attempt, l.run)).collect();
    assert_eq!(attempts, [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_the_second_attempt_comes_after_a_minute() {
    let mut place = Place::new().await;
    place.config.retry = RetryPolicy::default();
    let service = place.start().await;
    let mut events = service.listen("events.probe.retrying.*").await;
    let id = service.probe(json!({"fail": 1})).await;
    let (_, event) = events.next().await;
    assert_eq!(event["delaySeconds"], 60.0);
    let job = service.job(&id).await;
    assert_eq!(
        (&job["status"], &job["attempts"], &job["error"]),
        (&json!("pending"), &json!(1), &json!("failed attempt 1"))
    );
    let waits = millis_between(&job["errors"][0]["at"], &job["runAt"]);
    assert!((waits - 60_000.0).abs() < 1000.0, "{waits}");
    let retrying = service.call("listJobs", json!({"status": "retrying"})).await;
    assert_eq!(retrying["jobs"][0]["id"], json!(id));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_may_have_a_list_of_delays_of_its_own() {
    let mut place = Place::new().await;
    let retry = "schedule = ['30ms', '70ms']\nmax_attempts = 4".parse().unwrap();
    place.config.types.insert("probe".into(), TypeOverrides { retry, ..TypeOverrides::default() });
    let service = place.start().await;
    let (job, events) = story_of_failing(&service, json!({"type": "probe", "payload": {"fail": 9}})).await;
    assert_eq!(delays(&events), [0.03, 0.07, 0.07]);
    assert_eq!(job["maxAttempts"], 4);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_sides_wish_goes_before_the_schedule() {
    let (_place, service) = start().await;
    let payload = json!({"fail": 9, "retryAfterMs": 120});
    let (_, events) = story_of_failing(&service, json!({"type": "probe", "payload": payload, "maxAttempts": 2})).await;
    assert_eq!(delays(&events), [0.12]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_may_be_tried_once_fails_at_its_first_failure() {
    let (place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {"fail": 9}, "maxAttempts": 1})).await;
    let job = service.finished(&id).await;
    assert_eq!(
        (&job["status"], &job["attempts"], &job["error"]),
        (&json!("failed"), &json!(1), &json!("failed attempt 1"))
    );
    assert_eq!(place.journal.count(&id, "start"), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_failure_is_not_tried_again() {
    let (place, service) = start().await;
    let id = service.probe(json!({"permanent": true})).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], kinds(&job)), (&json!("failed"), vec!["permanent"]));
    assert_eq!(place.journal.count(&id, "start"), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_outlives_its_timeout_is_cut_off_and_tried_again() {
    let (place, service) = start().await;
    let payload = json!({"sleepMs": 60_000});
    let request = json!({"type": "probe", "payload": payload, "timeout": "150ms", "maxAttempts": 2});
    let id = service.enqueue(request).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], kinds(&job)), (&json!("failed"), vec!["timeout", "timeout"]));
    assert!(job["error"].as_str().unwrap().contains("150ms"), "{}", job["error"]);
    assert_eq!(place.journal.count(&id, "end"), 0, "the handler went on");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_failure_that_says_what_the_panic_said() {
    let (_place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {"panic": true}, "maxAttempts": 2})).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], kinds(&job)), (&json!("failed"), vec!["panic", "panic"]));
    assert!(job["error"].as_str().unwrap().contains("the probe was told to panic"), "{}", job["error"]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_too_large_is_a_permanent_failure() {
    let (_place, service) = start().await;
    // The limit is for the JSON text, which has two quotes.
    let fits = service.probe(json!({"resultBytes": 256 * 1024 - 2})).await;
    let too_large = service.probe(json!({"resultBytes": 256 * 1024 - 1})).await;
    assert_eq!(service.finished(&fits).await["status"], "completed");
    let job = service.finished(&too_large).await;
    assert_eq!((&job["status"], kinds(&job)), (&json!("failed"), vec!["permanent"]));
    assert!(job["error"].as_str().unwrap().starts_with("result_too_large"), "{}", job["error"]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_by_hand_gives_a_fresh_budget_and_keeps_the_history() {
    let (place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {"fail": 9}, "maxAttempts": 2})).await;
    service.finished(&id).await;
    let back = service.call("retryJob", json!({"jobId": id})).await;
    assert_eq!(back["id"], json!(id));
    assert!(back["attempts"].as_i64().unwrap() < 2, "{back}");
    let job = service.finished(&id).await;
    let attempts: Vec<&Value> = job["errors"].as_array().unwrap().iter().map(|e| &e["attempt"]).collect();
    assert_eq!(attempts, [1, 2, 1, 2]);
    let runs: Vec<i64> = place.journal.lines().iter().filter(|l| l.what == "start").map(|l| l.run).collect();
    assert_eq!(runs, [1, 2, 3, 4], "the fence goes on");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_runs_after_a_retry_by_hand() {
    let (_place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    service.call("cancelJob", json!({"jobId": id, "reason": "by mistake"})).await;
    // The bare id is a request, too.
    assert_eq!(service.ask("retryJob", id.clone()).await.code(), None);
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], &job["error"]), (&json!("completed"), &Value::Null));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_failed_can_not_be_retried_and_is_told_why() {
    let (place, service) = start().await;
    let waiting = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let running = service.probe(json!({"wait": true})).await;
    place.journal.until(&running, "start").await;
    let done = service.probe(json!({})).await;
    service.finished(&done).await;
    for (id, why) in [
        (&waiting, "is waiting already; there is nothing to retry"),
        (&running, "is running (attempt 1); cancel it first or wait until it ends"),
        (&done, "is completed; enqueue a new job to do the work again"),
    ] {
        let refused = service.ask("retryJob", json!({"jobId": id}).to_string()).await;
        assert_eq!(refused.code(), Some("not_retryable"));
        assert_eq!(refused.body["detail"], format!("job {id} {why}"));
    }
    place.journal.release();
    service.finished(&running).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_blocks_its_thread_holds_up_nobody_else() {
    let (place, service) = start().await;
    let blocking = service.enqueue(json!({"type": "probe", "payload": {"blockMs": 700}, "timeout": "10s"})).await;
    place.journal.until(&blocking, "start").await;
    let began = std::time::Instant::now();
    let other = service.probe(json!({})).await;
    service.finished(&other).await;
    assert!(began.elapsed() < Duration::from_millis(650), "{:?}", began.elapsed());
    assert_eq!(service.finished(&blocking).await["status"], "completed");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_wait_for_their_next_attempt_keep_no_new_ones_from_starting() {
    let mut place = Place::new().await;
    // The broker gives out no more than this, unless some of it is answered.
    place.config.background.max_unanswered = 20;
    // And it is to have all of them.
    place.config.worker.eager = false;
    place.config.retry.base = Duration::from_secs(600);
    place.config.retry.max = Duration::from_secs(600);
    let service = place.start().await;
    let ids = service.enqueue_many(vec![json!({"type": "probe", "payload": {"fail": 1}}); 100]).await;
    for id in &ids {
        until(|| async { (service.job(id).await["attempts"] == 1).then_some(()) }).await;
    }
    let id = service.probe(json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed");
    // Those that wait in Postgres come as well, by way of the outbox, when they are due.
    let waiting: i64 = sqlx::query_scalar("SELECT sum(cardinality(job_ids)) FROM outbox WHERE publish_at > now()")
        .fetch_one(&place.database().await)
        .await
        .unwrap();
    assert!((80..=95).contains(&waiting), "{waiting} wait in the outbox");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_by_hand_goes_on_from_the_checkpoint_and_in_the_same_trace() {
    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (_place, service) = start().await;
    service.call("registerType", json!({"type": "pages", "handler": "pull", "backoff": {"delays": ["1h"]}})).await;
    let fetch = async || {
        let wish = json!({"types": ["pages"], "waitMs": 30_000, "workerId": "w"});
        service.call("work.fetch", wish).await["jobs"][0].clone()
    };
    // How its run ends, and whether the job is cancelled before or after that.
    let ends: [(&str, Value, bool, bool); 3] = [
        ("work.fail", json!({"message": "no", "retry": false}), false, false),
        ("work.release", json!({}), true, false),
        ("work.fail", json!({"message": "no"}), false, true),
    ];
    for (n, (verb, mut end, cancelled_first, cancelled_then)) in ends.into_iter().enumerate() {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("traceparent", CALLER);
        let body = json!({"type": "pages", "payload": {}}).to_string();
        let subject = service.subject("enqueue");
        let made = service.nats.request_with_headers(subject, headers, body.into()).await.unwrap();
        let id = serde_json::from_slice::<Value>(&made.payload).unwrap()["jobId"].as_str().unwrap().to_owned();
        let run = fetch().await;
        assert_eq!((&run["id"], &run["checkpoint"]), (&json!(id), &Value::Null));
        let beat = json!({"jobId": id, "run": 1, "checkpoint": {"page": n}});
        service.call("work.heartbeat", json!({"workerId": "w", "runs": [beat]})).await;
        end["jobId"] = json!(id);
        end["run"] = json!(1);
        if cancelled_first {
            let (_, ended) = tokio::join!(service.call("cancelJob", json!({"jobId": id})), async {
                until(async || (cancel_is_asked(&service, &id).await).then_some(())).await;
                service.call(verb, end.clone()).await
            });
            assert_eq!(ended["status"], "cancelled", "{verb}");
        } else {
            service.call(verb, end).await;
        }
        if cancelled_then {
            service.call("cancelJob", json!({"jobId": id})).await;
        }
        service.call("retryJob", json!({"jobId": id})).await;
        let again = fetch().await;
        assert_eq!((&again["id"], &again["run"], &again["attempts"]), (&json!(id), &json!(2), &json!(1)));
        assert_eq!(again["checkpoint"], json!({"page": n}), "{verb}");
        assert_eq!(again["traceparent"].as_str().unwrap()[..36], CALLER[..36], "{verb}");
        service.call("work.complete", json!({"jobId": id, "run": 2})).await;
    }
    service.stop().await;
}

async fn cancel_is_asked(service: &Running, id: &str) -> bool {
    let beat = json!({"workerId": "w", "runs": [{"jobId": id, "run": 1}]});
    service.call("work.heartbeat", beat).await["runs"][0]["state"] == "cancel"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_retried_by_hand_goes_only_to_those_who_lack_it() {
    use queue_service::dev::sandbox::smtp::{Rules, Sink};

    let sink = Sink::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let mut place = Place::new().await;
    place.config.smtp.url = Some(sink.url().into());
    place.config.retry.base = Duration::from_secs(3600);
    place.config.retry.max = Duration::from_secs(3600);
    let service = place.start().await;
    // For good; and for now, with a cancellation while the job waits for its next attempt.
    for (answer, status) in [("550 no such user", "failed"), ("450 try later", "cancelled")] {
        sink.clear();
        let refuse = [("bob@example.org".to_owned(), answer.to_owned())].into();
        sink.set_rules(Rules { refuse, ..Rules::default() });
        let payload = json!({"to": ["ann@example.org", "bob@example.org"], "subject": "Hello", "body": "It works."});
        let id = service.enqueue(json!({"type": "send-email", "payload": payload})).await;
        if status == "cancelled" {
            until(async || Some(()).filter(|()| sink.mails().len() == 1)).await;
            service.until_status(&id, "pending").await;
            service.call("cancelJob", json!({"jobId": id})).await;
        }
        assert_eq!(service.finished(&id).await["status"], status);
        sink.set_rules(Rules::default());
        service.call("retryJob", json!({"jobId": id})).await;
        assert_eq!(service.finished(&id).await["status"], "completed");
        let to: Vec<Vec<String>> = sink.mails().into_iter().map(|mail| mail.to).collect();
        assert_eq!(to, [["ann@example.org"], ["bob@example.org"]], "{answer}");
    }
    service.stop().await;
}
