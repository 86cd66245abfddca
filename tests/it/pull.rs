//! Programs that come and fetch their work: leases, signs of life, ends, over NATS and HTTP, from any process.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    books,
    child::Program,
    harness::{Place, Running, start, time, until},
};

const TYPE: &str = "thumbnail";

async fn register(service: &Running, more: Value) {
    let mut definition = json!({"type": TYPE, "handler": "pull", "backoff": {"base": "20ms"}});
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    service.call("registerType", definition).await;
}

async fn with_type(more: Value) -> (Place, Running) {
    let (place, service) = start().await;
    register(&service, more).await;
    (place, service)
}

async fn enqueue(service: &Running, n: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for i in 0..n {
        ids.push(service.enqueue(json!({"type": TYPE, "payload": {"n": i}, "maxAttempts": 3})).await);
    }
    ids
}

fn wish(max: usize) -> Value {
    json!({"types": [TYPE], "max": max, "waitMs": 30_000, "workerId": "gpu-1", "leaseMs": 1000})
}

async fn fetch(service: &Running, max: usize) -> Vec<Value> {
    service.call("work.fetch", wish(max)).await["jobs"].as_array().unwrap().clone()
}

fn run_of(job: &Value) -> Value {
    json!({"jobId": job["id"], "run": job["run"]})
}

fn with(job: &Value, key: &str, value: Value) -> Value {
    let mut request = run_of(job);
    request[key] = value;
    request
}

async fn state(service: &Running, job: &Value) -> Value {
    let beat = json!({"workerId": "gpu-1", "runs": [run_of(job)]});
    service.call("work.heartbeat", beat).await["runs"][0]["state"].clone()
}

async fn lost(service: &Running, verb: &str, request: Value) {
    let answer = service.ask(verb, request.to_string()).await;
    assert_eq!(answer.code(), Some("lease_lost"), "{verb} {request}: {}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_fetched_kept_alive_and_completed() {
    let (_place, service) = with_type(json!({"timeout": "1h"})).await;
    let mut events = service.listen(&format!("events.{TYPE}.*.*")).await;
    // Who waits is there before the job is.
    let (jobs, id) = tokio::join!(fetch(&service, 5), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        enqueue(&service, 1).await.remove(0)
    });
    assert_eq!(jobs.len(), 1);
    let job = &jobs[0];
    assert_eq!(
        (&job["id"], &job["status"], &job["workerId"], &job["run"], &job["attempts"], &job["leaseMs"]),
        (&json!(id), &json!("processing"), &json!("gpu-1"), &json!(1), &json!(1), &json!(1000))
    );
    assert_eq!((&job["payload"], &job["checkpoint"]), (&json!({"n": 0}), &Value::Null));
    let left = time(&job["deadline"]) - time(&job["startedAt"]);
    assert!((3599..=3601).contains(&left.num_seconds()), "{left}");
    // Longer than the lease, which the signs of life renew.
    for percent in [25, 50, 75] {
        tokio::time::sleep(Duration::from_millis(600)).await;
        let mut beat = run_of(job);
        beat["percent"] = json!(percent);
        beat["checkpoint"] = json!({"done": percent});
        let told = service.call("work.heartbeat", json!({"workerId": "gpu-1", "runs": [beat]})).await;
        assert_eq!(told, json!({"runs": [{"jobId": id, "run": 1, "state": "held"}]}));
    }
    assert_eq!(service.job(&id).await["progress"]["percent"], 75.0);
    let done = with(job, "result", json!({"url": "s3://1"}));
    let ended = service.call("work.complete", done.clone()).await;
    assert_eq!(ended, json!({"jobId": id, "status": "completed"}));
    assert_eq!(service.call("work.complete", done.clone()).await, ended, "a repetition is answered in the same way");
    let shown = service.job(&id).await;
    assert_eq!((&shown["result"], &shown["attempts"]), (&json!({"url": "s3://1"}), &json!(1)));
    lost(&service, "work.fail", with(job, "message", json!("changed my mind"))).await;
    assert_eq!(state(&service, job).await, "lost");
    let told = events.until_state("completed").await;
    let states: Vec<&str> = told.iter().map(|event| event["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["enqueued", "started", "progress", "progress", "progress", "completed"]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_tried_again_released_ones_spend_nothing_and_the_last_is_a_dead_letter() {
    let (place, service) = with_type(json!({})).await;
    let id = enqueue(&service, 1).await.remove(0);
    let first = fetch(&service, 1).await.remove(0);
    let failed = json!({"jobId": id, "run": 1, "message": "out of memory", "retryAfter": 0.1});
    let pending = json!({"jobId": id, "status": "pending"});
    assert_eq!(service.call("work.fail", failed.clone()).await, pending);
    assert_eq!(service.call("work.fail", failed).await, pending);
    let second = fetch(&service, 1).await.remove(0);
    assert!((time(&second["startedAt"]) - time(&first["startedAt"])).num_milliseconds() >= 100);
    assert_eq!((&second["run"], &second["attempts"]), (&json!(2), &json!(2)));
    let beat = json!({"jobId": id, "run": 2, "checkpoint": {"page": 4}});
    service.call("work.heartbeat", json!({"workerId": "gpu-1", "runs": [beat]})).await;
    assert_eq!(service.call("work.release", with(&second, "delay", json!("10ms"))).await, pending);
    let third = fetch(&service, 1).await.remove(0);
    assert_eq!((&third["run"], &third["attempts"]), (&json!(3), &json!(2)), "a release has spent an attempt");
    assert_eq!(third["checkpoint"], json!({"page": 4}));
    lost(&service, "work.complete", run_of(&second)).await;
    let last = json!({"jobId": id, "run": 3, "message": "no such image", "retry": false});
    assert_eq!(service.call("work.fail", last).await["status"], "failed");
    let job = service.job(&id).await;
    let kinds: Vec<_> = job["errors"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!((kinds, &job["error"]), (vec!["error", "permanent"], &json!("no such image")));
    let mut letters = service.stream("background-jobs-dlq").await;
    until(async || (letters.info().await.unwrap().state.messages == 1).then_some(())).await;
    let stats = service.call("getStats", json!({})).await;
    books::numbers_add_up(&place.database().await, &stats).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_worker_loses_its_job_and_an_attempt_to_the_next() {
    let (_place, service) = with_type(json!({})).await;
    let id = enqueue(&service, 1).await.remove(0);
    let silent = fetch(&service, 1).await.remove(0);
    let next = fetch(&service, 1).await.remove(0);
    assert_eq!((&next["id"], &next["run"], &next["attempts"]), (&json!(id), &json!(2), &json!(2)));
    assert!(
        (time(&next["startedAt"]) - time(&silent["startedAt"])).num_milliseconds() >= 1000,
        "before its lease was over"
    );
    for (verb, request) in [
        ("work.complete", run_of(&silent)),
        ("work.fail", with(&silent, "message", json!("x"))),
        ("work.release", run_of(&silent)),
        ("finish", run_of(&silent)),
    ] {
        lost(&service, verb, request).await;
    }
    assert_eq!(state(&service, &silent).await, "lost");
    assert_eq!(state(&service, &next).await, "held");
    service.call("work.complete", run_of(&next)).await;
    let job = service.job(&id).await;
    assert_eq!((&job["status"], &job["errors"][0]["kind"]), (&json!("completed"), &json!("lost")));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_outside_do_not_care_which_process_of_the_service_is_there() {
    let mut place = Place::new().await;
    place.config.types.insert(TYPE.into(), toml::from_str("handler = 'pull'").unwrap());
    place.config.worker.types = vec![TYPE.into()];
    let mut first = Program::serve(&place.config).await;
    let second = place.start().await;
    let ids = enqueue(&second, 6).await;
    let mut jobs = Vec::new();
    let mut request = wish(6);
    request["leaseMs"] = json!(20_000);
    while jobs.len() < 6 {
        jobs.extend(second.call("work.fetch", request.clone()).await["jobs"].as_array().unwrap().clone());
    }
    // Whichever of them has claimed them: one is killed, the other one stopped, and the runs go on.
    first.kill().await;
    second.stop().await;
    let third = place.start().await;
    for job in &jobs {
        assert_eq!(state(&third, job).await, "held", "{job}");
        third.call("work.complete", run_of(job)).await;
    }
    let attempts = books::all_completed_once(&place, &third, &ids).await;
    assert!(attempts.values().all(|n| *n == 1), "{attempts:?}");
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_is_told_to_stop_and_is_cancelled_even_if_it_does_not() {
    let (_place, service) = with_type(json!({})).await;
    enqueue(&service, 2).await;
    let mut request = wish(2);
    request["leaseMs"] = json!(60_000);
    let mut jobs = Vec::new();
    while jobs.len() < 2 {
        jobs.extend(service.call("work.fetch", request.clone()).await["jobs"].as_array().unwrap().clone());
    }
    let (obedient, deaf) = (&jobs[0], &jobs[1]);
    let cancel = async |job: &Value| service.call("cancelJob", json!({"jobId": job["id"], "reason": "enough"})).await;
    let (answer, ()) = tokio::join!(cancel(obedient), async {
        until(|| async { (state(&service, obedient).await == "cancel").then_some(()) }).await;
        let ended = service.call("work.release", run_of(obedient)).await;
        assert_eq!(ended["status"], "cancelled");
    });
    assert_eq!((&answer["status"], &answer["error"]), (&json!("cancelled"), &json!("enough")));
    cancel(deaf).await;
    let id = deaf["id"].as_str().unwrap();
    assert_eq!(service.finished(id).await["status"], "cancelled");
    lost(&service, "finish", json!({"jobId": id, "run": 7})).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_wait_share_the_jobs_and_nobody_gets_one_twice() {
    let (place, service) = with_type(json!({})).await;
    let other = place.start().await;
    let fetchers = async {
        let mut seen = Vec::new();
        let mut waiting = futures_util::stream::FuturesUnordered::new();
        for n in 0..20 {
            let service = if n % 2 == 0 { &service } else { &other };
            waiting.push(async move {
                let mut mine = Vec::new();
                loop {
                    let mut request = wish(4);
                    request["waitMs"] = json!(3000);
                    request["leaseMs"] = json!(30_000);
                    let jobs = service.call("work.fetch", request).await["jobs"].as_array().unwrap().clone();
                    if jobs.is_empty() {
                        return mine;
                    }
                    for job in &jobs {
                        service.call("work.complete", run_of(job)).await;
                    }
                    mine.extend(jobs);
                }
            });
        }
        while let Some(mine) = futures_util::StreamExt::next(&mut waiting).await {
            seen.extend(mine);
        }
        seen
    };
    let (seen, ids) = tokio::join!(fetchers, enqueue(&service, 100));
    assert_eq!(seen.len(), 100);
    assert!(seen.iter().all(|job| job["run"] == 1), "a job was given out twice");
    books::all_completed_once(&place, &service, &ids).await;
    other.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_type_gives_nothing_until_it_is_resumed() {
    let (_place, service) = with_type(json!({})).await;
    service.call("pauseType", json!({"type": TYPE})).await;
    let id = enqueue(&service, 1).await.remove(0);
    let mut now = wish(1);
    now["waitMs"] = json!(200);
    assert_eq!(service.call("work.fetch", now).await["jobs"], json!([]));
    service.call("resumeType", json!({"type": TYPE})).await;
    assert_eq!(fetch(&service, 1).await[0]["id"], json!(id));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_gets_nothing_of_a_type_whose_work_is_others_by_now() {
    let (_place, service) = with_type(json!({})).await;
    for (definition, path) in [
        (json!({"type": TYPE, "handler": "nats"}), "work.fetch"),
        (json!({"type": TYPE, "handler": "http", "url": "https://example.org/"}), "work.fetch"),
    ] {
        let mut patient = wish(1);
        patient["waitMs"] = json!(2000);
        let (answer, id) = tokio::join!(service.ask(path, patient.to_string()), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            service.call("registerType", definition).await;
            enqueue(&service, 1).await.remove(0)
        });
        // Nothing in time, or a refusal as for one who asks now.
        match answer.code() {
            None => assert_eq!(answer.body, json!({"jobs": []})),
            Some(code) => assert_eq!((code, &answer.body["errors"][0]["path"]), ("invalid_request", &json!("/types"))),
        }
        service.call("cancelJob", json!({"jobId": id})).await;
        register(&service, json!({})).await;
    }
    service.stop().await;
}

/// Lanes are consumers of their own, which answer when they can: single jobs may overtake, most don't.
#[tokio::test(flavor = "multi_thread")]
async fn higher_lanes_go_first() {
    const EACH: usize = 40;
    let (_place, service) = with_type(json!({})).await;
    let lane = |priority: i64| vec![json!({"type": TYPE, "payload": {}, "priority": priority}); EACH];
    for priority in [-5, 5] {
        service.call("enqueueMany", json!({"jobs": lane(priority)})).await;
    }
    let mut waiting = service.stream("background-jobs").await;
    until(async || (waiting.info().await.unwrap().state.messages == 2 * EACH as u64).then_some(())).await;
    let mut four = wish(4);
    four["leaseMs"] = json!(60_000);
    let mut order = Vec::new();
    while order.len() < 2 * EACH {
        let fetched = service.call("work.fetch", four.clone()).await;
        for job in fetched["jobs"].as_array().unwrap() {
            service.call("work.complete", run_of(job)).await;
            order.push(job["priority"].as_i64().unwrap());
        }
    }
    let high = order[..EACH].iter().filter(|priority| **priority == 5).count();
    assert!(high > EACH / 2, "{order:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_over_http_and_per_type() {
    let (_place, service) = with_type(json!({})).await;
    let ids = enqueue(&service, 3).await;
    let http = reqwest::Client::new();
    let post = async |path: &str, body: Value| {
        let answer = http.post(service.url(path)).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let mut jobs = Vec::new();
    while jobs.len() < 2 {
        jobs.extend(post("/work/fetch", wish(1)).await.1["jobs"].as_array().unwrap().clone());
    }
    let beat = json!({"workerId": "gpu-1", "runs": [run_of(&jobs[0])]});
    assert_eq!(post("/work/heartbeat", beat).await.1["runs"][0]["state"], "held");
    let finish = format!("/jobs/{}/finish", jobs[0]["id"].as_str().unwrap());
    let (status, ended) = post(&finish, json!({"run": jobs[0]["run"], "result": 7})).await;
    assert_eq!((status, &ended["status"]), (200, &json!("completed")));
    let (status, refusal) = post(&finish, json!({"run": 99})).await;
    assert_eq!((status, &refusal["code"]), (409, &json!("lease_lost")));
    let (status, _) = post(&finish, json!({"jobId": jobs[1]["id"], "run": 1})).await;
    assert_eq!(status, 400, "the path and the body name two jobs");
    assert_eq!(post("/work/complete", run_of(&jobs[1])).await.1["status"], "completed");
    // On the subject of its type alone.
    let third = service.call(&format!("work.fetch.{TYPE}"), json!({"waitMs": 30_000, "workerId": "w"})).await;
    let third = &third["jobs"][0];
    assert!(ids.contains(&third["id"].as_str().unwrap().to_owned()));
    let stranger = service.ask("work.complete.send-email", run_of(third).to_string()).await;
    assert_eq!(stranger.code(), Some("job_not_found"));
    service.call(&format!("work.complete.{TYPE}"), run_of(third)).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_name_their_limits_and_bad_results_end_the_job() {
    let (_place, service) = with_type(json!({"resultSchema": {"type": "object"}})).await;
    for (key, value, text) in [
        ("max", json!(101), "1 to 100"),
        ("max", json!(0), "1 to 100"),
        ("waitMs", json!(30_001), "0 to 30000"),
        ("leaseMs", json!(999), "1000 to 3600000"),
        ("workerId", json!("no spaces"), "1 to 100"),
        ("types", json!([]), "1 to 20"),
        ("types", json!(["send-email"]), "builtin"),
    ] {
        let mut request = wish(1);
        request[key] = value;
        let refused = service.ask("work.fetch", request.to_string()).await;
        assert_eq!(
            (refused.code(), &refused.body["errors"][0]["path"]),
            (Some("invalid_request"), &json!(format!("/{key}")))
        );
        assert!(refused.body["errors"][0]["message"].as_str().unwrap().contains(text), "{}", refused.body);
    }
    let unknown = json!({"types": ["nobody-does-this"], "workerId": "w"}).to_string();
    assert_eq!(service.ask("work.fetch", unknown).await.code(), Some("unknown_type"));
    let nobody = json!({"jobId": "0198c5a4-5d5c-7000-8000-000000000000", "run": 1});
    assert_eq!(service.ask("work.complete", nobody.to_string()).await.code(), Some("job_not_found"));
    let id = enqueue(&service, 1).await.remove(0);
    let job = fetch(&service, 1).await.remove(0);
    let two = json!({"jobId": id, "run": 1, "result": {}, "release": true}).to_string();
    assert_eq!(service.ask("finish", two).await.code(), Some("invalid_request"));
    assert_eq!(service.call("work.complete", with(&job, "result", json!([1]))).await["status"], "failed");
    assert!(service.job(&id).await["error"].as_str().unwrap().contains("result schema"));
    let large = enqueue(&service, 1).await.remove(0);
    let job = fetch(&service, 1).await.remove(0);
    let ended = service.call("work.complete", with(&job, "result", json!({"x": "y".repeat(300 << 10)}))).await;
    assert_eq!(ended["status"], "failed");
    assert!(service.job(&large).await["error"].as_str().unwrap().contains("result_too_large"));
    service.stop().await;
}
