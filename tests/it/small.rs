//! A broker that takes small messages only (`max_payload`): what fits is done, what does not spends nothing, holds up no
//! other, and is told with both numbers.

use serde_json::{Value, json};

use crate::{
    harness::{Place, Running, until},
    outside::Handler,
    own::OwnNats,
};

const LIMIT: usize = 64 * 1024;
const TYPE: &str = "thumbnail";

struct Site {
    service: Running,
    place: Place,
    _nats: OwnNats,
    _folder: tempfile::TempDir,
}

async fn site() -> Site {
    let folder = tempfile::tempdir().unwrap();
    let mut nats = OwnNats::new(folder.path(), "small", &format!("max_payload: {LIMIT}"));
    nats.start().await;
    let mut place = Place::new().await;
    place.config.nats.url = nats.url();
    let service = place.start().await;
    Site { service, place, _nats: nats, _folder: folder }
}

fn text(size: usize) -> Value {
    json!({"text": "x".repeat(size)})
}

async fn register(service: &Running, name: &str, handler: &str) {
    service.call("registerType", json!({"type": name, "handler": handler, "maxAttempts": 2})).await;
}

async fn post(service: &Running, path: &str, body: Value) -> (u16, Value) {
    let answer = reqwest::Client::new().post(service.url(path)).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn enqueue_by_http(service: &Running, name: &str, size: usize) -> String {
    let (status, body) = post(service, "/jobs", json!({"type": name, "payload": text(size)})).await;
    assert_eq!(status, 201, "{body}");
    body["jobId"].as_str().unwrap().to_owned()
}

/// Over NATS it is too large to be shown.
async fn job_by_http(service: &Running, id: &str) -> Value {
    reqwest::get(service.url(&format!("/jobs/{id}"))).await.unwrap().json().await.unwrap()
}

fn wish(max: usize) -> Value {
    json!({"types": [TYPE], "max": max, "waitMs": 20_000, "workerId": "gpu-1", "leaseMs": 60_000})
}

async fn complete(service: &Running, job: &Value) {
    service.call("work.complete", json!({"jobId": job["id"], "run": job["run"], "result": 1})).await;
}

/// Says both numbers.
fn names_both(text: &str, size: usize) {
    assert!(text.contains("max_payload"), "{text}");
    let numbers: Vec<usize> = text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    let is_size = |n: &usize| (size..size + 5000).contains(n);
    assert!(numbers.iter().any(is_size), "no size of about {size}: {text}");
    assert!(numbers.iter().any(|n| (LIMIT - 5000..=LIMIT).contains(n)), "no limit of about {LIMIT}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_do_not_fit_into_one_answer_are_fetched_one_after_the_other() {
    let Site { service, .. } = &site().await;
    register(service, TYPE, "pull").await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(service.enqueue(json!({"type": TYPE, "payload": text(32 * 1024)})).await);
    }
    let mut done = 0;
    while done < 4 {
        let jobs = service.call("work.fetch", wish(4)).await["jobs"].as_array().unwrap().clone();
        for job in &jobs {
            assert_eq!(job["attempts"], 1);
            complete(service, job).await;
        }
        done += jobs.len();
    }
    for id in ids {
        let job = service.finished(&id).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fits_into_no_answer_says_so_and_holds_up_no_other() {
    let Site { service, .. } = &site().await;
    register(service, TYPE, "pull").await;
    let large = enqueue_by_http(service, TYPE, 100_000).await;
    let small = service.enqueue(json!({"type": TYPE, "payload": {}})).await;
    let jobs = service.call("work.fetch", wish(1)).await["jobs"].clone();
    assert_eq!(jobs[0]["id"], small.as_str());
    complete(service, &jobs[0]).await;
    let job = until(async || Some(job_by_http(service, &large).await).filter(|job| job["status"] == "pending")).await;
    assert_eq!((&job["attempts"], &job["errors"]), (&json!(0), &json!([])));
    names_both(job["note"].as_str().unwrap(), 100_000);
    // Over HTTP it fits.
    let jobs = until(async || {
        let (_, body) = post(service, "/work/fetch", wish(1)).await;
        body["jobs"].as_array().filter(|jobs| !jobs.is_empty()).cloned()
    })
    .await;
    assert_eq!((&jobs[0]["id"], &jobs[0]["attempts"]), (&json!(large), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_its_handler_can_not_be_asked_for_is_refused_or_waits() {
    let Site { service, place, .. } = &site().await;
    register(service, "outside", "nats").await;
    let mut handler = Handler::start(service).await;
    let (status, body) = post(service, "/jobs", json!({"type": "outside", "payload": text(100_000)})).await;
    assert_eq!((status, &body["code"]), (413, &json!("payload_too_large")), "{body}");
    names_both(body["detail"].as_str().unwrap(), 100_000);
    // Through SQL, which knows no broker.
    let pool = place.database().await;
    let enqueue = sqlx::query_scalar("SELECT queue.enqueue('outside', $1::json)::text").bind(text(100_000).to_string());
    let large: String = enqueue.fetch_one(&pool).await.unwrap();
    let small = service.enqueue(json!({"type": "outside", "payload": {}})).await;
    let request = handler.next().await;
    handler.reply(&request, &[], "1").await;
    assert_eq!(service.finished(&small).await["status"], "completed");
    let job = until(async || {
        let job = job_by_http(service, &large).await;
        (job["status"] == "pending" && job["note"].is_string()).then_some(job)
    })
    .await;
    assert_eq!((&job["attempts"], &job["errors"]), (&json!(0), &json!([])));
    names_both(job["note"].as_str().unwrap(), 100_000);
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_and_answers_to_many_fit_into_a_message() {
    let Site { service, .. } = &site().await;
    register(service, TYPE, "pull").await;
    let job = json!({"type": TYPE, "payload": {}});
    // Refused before anything is written: the answer would not fit.
    let answer = service.ask("enqueueMany", json!({"jobs": vec![&job; 1000]}).to_string()).await;
    assert_eq!(answer.code(), Some("payload_too_large"), "{}", answer.body);
    assert!(answer.body["detail"].as_str().unwrap().contains("max_payload"), "{}", answer.body);
    assert_eq!(service.call("listJobs", json!({})).await["jobs"], json!([]));
    let mut ids = service.enqueue_many_of(&job, 150).await;
    ids.extend(service.enqueue_many_of(&job, 130).await);
    let (mut seen, mut cursor) = (0, Value::Null);
    loop {
        let mut request = json!({"limit": 1000, "include": ["payload"]});
        if !cursor.is_null() {
            request["cursor"] = cursor;
        }
        let page = service.call("listJobs", request).await;
        seen += page["jobs"].as_array().unwrap().len();
        cursor = page["nextCursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(seen, ids.len());
    // Refusals don't either.
    let bad = json!({"type": TYPE, "payload": {}, "priority": 99});
    let answer = service.call("enqueueMany", json!({"jobs": vec![&bad; 150]})).await;
    assert_eq!(answer["results"].as_array().unwrap().len(), 150);
}

impl Running {
    async fn enqueue_many_of(&self, job: &Value, n: usize) -> Vec<Value> {
        let reply = self.call("enqueueMany", json!({"jobs": vec![job; n]})).await;
        reply["results"].as_array().unwrap().clone()
    }
}
