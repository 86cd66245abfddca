//! How a run outside has ended is kept: the same end is answered the same again, any other one is refused, and nobody ends a
//! run that is not outside.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    harness::{Running, start, until},
    outside::Handler,
};

/// By which door an end comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Door {
    Nats,
    Http,
}

const DOORS: [Door; 2] = [Door::Nats, Door::Http];

/// The new status of the job, or the code of the refusal.
async fn end(service: &Running, door: Door, run: &Value, (verb, with): &(&str, Value)) -> String {
    let mut body = with.clone();
    body["run"] = run["run"].clone();
    let id = run["id"].as_str().unwrap();
    let (is_refused, answer) = match door {
        Door::Nats => {
            body["jobId"] = json!(id);
            let answer = service.ask(verb, body.to_string()).await;
            (answer.code().is_some(), answer.body)
        }
        Door::Http => {
            let path = match *verb {
                "finish" => format!("/jobs/{id}/finish"),
                verb => {
                    body["jobId"] = json!(id);
                    format!("/{}", verb.replace('.', "/"))
                }
            };
            let answer = reqwest::Client::new().post(service.url(&path)).json(&body).send().await.unwrap();
            let status = answer.status();
            assert!(matches!(status, StatusCode::OK | StatusCode::CONFLICT), "{verb} {body}: {status}");
            (status != StatusCode::OK, answer.json().await.unwrap())
        }
    };
    let told = if is_refused { &answer["code"] } else { &answer["status"] };
    assert!(is_refused || answer["jobId"] == run["id"], "{answer}");
    told.as_str().unwrap().to_owned()
}

/// A type that is fetched, whose failures are tried again after an hour.
async fn register(service: &Running) {
    let definition = json!({"type": "pulled", "handler": "pull", "timeout": "1h", "backoff": {"delays": ["1h"]},
                            "resultSchema": {"type": ["object", "integer", "null"]}});
    service.call("registerType", definition).await;
}

async fn fetch(service: &Running) -> Value {
    let wish = json!({"types": ["pulled"], "waitMs": 30_000, "workerId": "w", "leaseMs": 60_000});
    service.call("work.fetch", wish).await["jobs"][0].clone()
}

async fn begin(service: &Running) -> Value {
    let id = service.enqueue(json!({"type": "pulled", "payload": {}})).await;
    let run = fetch(service).await;
    assert_eq!(run["id"], json!(id));
    run
}

fn complete(result: Value) -> (&'static str, Value) {
    ("work.complete", json!({"result": result}))
}

fn fail(message: &str) -> (&'static str, Value) {
    ("work.fail", json!({"message": message}))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_end_is_answered_the_same_again_and_any_other_is_refused() {
    let (_place, service) = start().await;
    register(&service).await;
    let for_good = ("work.fail", json!({"message": "no", "retry": false}));
    let release = ("work.release", json!({"delay": "1h"}));
    // How it ends, the status then, and another way to say the same.
    let ends = [
        (
            complete(json!({"n": [1, 2.5], "a": "é"})),
            "completed",
            ("finish", json!({"result": {"a": "\u{e9}", "n": [1.0, 2.5]}})),
        ),
        (complete(Value::Null), "completed", ("finish", json!({}))),
        // Breaks the schema of results.
        (complete(json!([1])), "failed", ("finish", json!({"result": [1]}))),
        (fail("no"), "pending", ("finish", json!({"error": {"message": "no", "retry": true}}))),
        (for_good.clone(), "failed", ("finish", json!({"error": {"message": "no", "retry": false}}))),
        (release.clone(), "pending", ("finish", json!({"release": true, "delay": 3600}))),
    ];
    let others = [
        complete(json!(7)),
        fail("another"),
        ("work.fail", json!({"message": "no", "retryAfter": "5s"})),
        ("work.fail", json!({"message": "another", "retry": false})),
        ("work.release", json!({})),
    ];
    for door in DOORS {
        for (first, status, again) in &ends {
            let run = begin(&service).await;
            for said in [first, first, again] {
                assert_eq!(end(&service, door, &run, said).await, *status, "{said:?}");
            }
            for other in &others {
                assert_eq!(end(&service, door, &run, other).await, "lease_lost", "{other:?} after {first:?}");
            }
            for later in ends.iter().map(|(other, ..)| other).filter(|other| *other != first) {
                assert_eq!(end(&service, door, &run, later).await, "lease_lost", "{later:?} after {first:?}");
            }
            assert_eq!(service.job(run["id"].as_str().unwrap()).await["status"], *status);
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_answered_again_until_the_next_run_begins() {
    let (_place, service) = start().await;
    register(&service).await;
    let for_good = ("work.fail", json!({"message": "no", "retry": false}));
    for (said, status) in [(for_good, "failed"), (fail("no"), "pending")] {
        let run = begin(&service).await;
        let id = run["id"].as_str().unwrap().to_owned();
        assert_eq!(end(&service, Door::Nats, &run, &said).await, status);
        if status == "pending" {
            service.call("cancelJob", json!({"jobId": id})).await;
            assert_eq!(end(&service, Door::Nats, &run, &said).await, status, "cancelled since");
            assert_eq!(end(&service, Door::Nats, &run, &complete(json!(1))).await, "lease_lost");
        }
        service.call("retryJob", json!({"jobId": id})).await;
        assert_eq!(end(&service, Door::Http, &run, &said).await, status, "retried by hand since");
        let next = fetch(&service).await;
        assert_eq!((&next["id"], &next["run"]), (&run["id"], &json!(2)));
        assert_eq!(end(&service, Door::Http, &run, &said).await, "lease_lost", "the next run has begun");
        assert_eq!(end(&service, Door::Nats, &next, &complete(json!(1))).await, "completed");
        assert_eq!(end(&service, Door::Nats, &run, &said).await, "lease_lost");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ends_at_once_of_one_run_have_one_winner() {
    let (_place, service) = start().await;
    register(&service).await;
    for _ in 0..5 {
        let run = begin(&service).await;
        let said = [complete(json!(1)), fail("no"), complete(json!(2)), ("work.release", json!({"delay": "1h"}))];
        let (service, run) = (&service, &run);
        let told = futures_util::future::join_all((0..24).map(|n| {
            let said = said[n % said.len()].clone();
            async move { end(service, DOORS[n % 2], run, &said).await }
        }))
        .await;
        let winners: Vec<usize> = (0..24).filter(|n| told[*n] != "lease_lost").map(|n| n % said.len()).collect();
        assert!(!winners.is_empty() && winners.iter().all(|n| *n == winners[0]), "{told:?}");
    }
    service.stop().await;
}

async fn is_to_stop(service: &Running, run: &Value) -> bool {
    let beat = json!({"workerId": "w", "runs": [{"jobId": run["id"], "run": run["run"]}]});
    service.call("work.heartbeat", beat).await["runs"][0]["state"] == "cancel"
}

#[tokio::test(flavor = "multi_thread")]
async fn while_its_job_is_cancelled_any_end_of_a_run_is_answered_so_and_its_result_is_dropped() {
    let mut place = crate::harness::Place::new().await;
    // Nobody ends it but its holder.
    place.config.worker.cancel_grace = std::time::Duration::from_secs(60);
    let service = place.start().await;
    register(&service).await;
    let ends = [
        complete(json!({"n": 1})),
        fail("told to stop"),
        ("work.fail", json!({"message": "told to stop", "retry": false})),
        ("work.release", json!({})),
        ("finish", json!({"result": 1})),
        ("finish", json!({"error": {"message": "told to stop"}})),
        ("finish", json!({"release": true})),
    ];
    for (n, said) in ends.iter().enumerate() {
        let (door, run) = (DOORS[n % 2], begin(&service).await);
        let id = run["id"].as_str().unwrap();
        let (_, ()) = tokio::join!(service.call("cancelJob", json!({"jobId": id, "reason": "enough"})), async {
            until(async || is_to_stop(&service, &run).await.then_some(())).await;
            assert_eq!(end(&service, door, &run, said).await, "cancelled", "{said:?}");
        });
        let job = service.job(id).await;
        assert_eq!(
            (&job["status"], &job["result"], &job["error"]),
            (&json!("cancelled"), &Value::Null, &json!("enough")),
            "{said:?}"
        );
        assert_eq!(end(&service, door, &run, said).await, "cancelled", "{said:?} again");
        assert_eq!(end(&service, door, &run, &complete(json!(99))).await, "lease_lost");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_called_handler_answers_after_a_cancellation_is_dropped_as_well() {
    let mut place = crate::harness::Place::new().await;
    place.config.worker.cancel_grace = std::time::Duration::from_secs(60);
    let service = place.start().await;
    service.call("registerType", json!({"type": "outside", "handler": "nats", "timeout": "1h"})).await;
    let mut handler = Handler::start(&service).await;
    for accepted in [false, true] {
        let id = service.enqueue(json!({"type": "outside", "payload": {}})).await;
        let request = handler.next().await;
        if accepted {
            handler.reply(&request, &[("Job-Accepted", "true")], "").await;
        }
        let mut told = service.listen("control.cancel.outside.*").await;
        tokio::join!(service.call("cancelJob", json!({"jobId": id})), async {
            told.next().await;
            if accepted {
                let run = json!({"id": id, "run": 1});
                assert_eq!(end(&service, Door::Nats, &run, &("finish", json!({"result": 7}))).await, "cancelled");
            } else {
                handler.reply(&request, &[], "7").await;
            }
        });
        let job = service.finished(&id).await;
        assert_eq!((&job["status"], &job["result"]), (&json!("cancelled"), &Value::Null), "accepted: {accepted}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_comes_after_the_run_was_ended_for_its_holder_is_refused() {
    let (_place, service) = start().await;
    register(&service).await;
    let run = begin(&service).await;
    let id = run["id"].as_str().unwrap();
    // It does not stop, and is held to be stopped after the grace.
    service.call("cancelJob", json!({"jobId": id})).await;
    assert_eq!(service.finished(id).await["status"], "cancelled");
    for (n, said) in [complete(json!(1)), fail("no"), ("work.release", json!({}))].iter().enumerate() {
        assert_eq!(end(&service, DOORS[n % 2], &run, said).await, "lease_lost", "{said:?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_and_what_is_finished_after_it_with_the_same_value_are_one_end() {
    let (_place, service) = start().await;
    service.call("registerType", json!({"type": "outside", "handler": "nats", "backoff": {"delays": ["1h"]}})).await;
    let mut handler = Handler::start(&service).await;
    let failed = [("Nats-Service-Error-Code", "500"), ("Nats-Service-Error", "no")];
    for (headers, body, status, same, other) in [
        (&[][..], r#"{"pages": 3}"#, "completed", json!({"result": {"pages": 3.0}}), json!({"result": {"pages": 4}})),
        (&failed[..], "", "pending", json!({"error": {"message": "500: no"}}), json!({"result": 1})),
    ] {
        let id = service.enqueue(json!({"type": "outside", "payload": {}})).await;
        let request = handler.next().await;
        handler.reply(&request, headers, body).await;
        service.until_status(&id, status).await;
        let run = json!({"id": id, "run": 1});
        for door in DOORS {
            assert_eq!(end(&service, door, &run, &("finish", same.clone())).await, status);
            assert_eq!(end(&service, door, &run, &("finish", other.clone())).await, "lease_lost");
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_the_service_does_itself_is_ended_by_nobody_else() {
    let (place, service) = start().await;
    let id = service.probe(json!({"wait": true, "note": "mine"})).await;
    place.journal.until(&id, "start").await;
    let run = json!({"id": id, "run": 1});
    for door in DOORS {
        for said in
            [complete(json!("forged")), fail("forged"), ("work.release", json!({})), ("finish", json!({"result": 1}))]
        {
            assert_eq!(end(&service, door, &run, &said).await, "lease_lost", "{said:?}");
        }
    }
    // As to a process that is gone, and as a sign of life.
    for (subject, body) in [
        (format!("reply.gone.probe.{id}.1"), json!("forged")),
        (format!("progress.probe.{id}"), json!({"run": 1, "percent": 99, "checkpoint": 666})),
    ] {
        service.nats.publish(service.subject(&subject), body.to_string().into()).await.unwrap();
    }
    let beat = json!({"workerId": "w", "runs": [{"jobId": id, "run": 1, "checkpoint": 666}]});
    assert_eq!(service.call("work.heartbeat", beat).await["runs"][0]["state"], "lost");
    place.journal.release();
    let job = service.finished(&id).await;
    assert_eq!(
        (&job["status"], &job["result"]["note"], &job["progress"]),
        (&json!("completed"), &json!("mine"), &Value::Null)
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_counts_only_on_the_subject_of_its_jobs_type() {
    let (_place, service) = start().await;
    register(&service).await;
    let run = begin(&service).await;
    let id = run["id"].as_str().unwrap();
    let reply = async |job_type: &str, id: &str, result: &'static str| {
        let subject = service.subject(&format!("reply.gone.{job_type}.{id}.1"));
        service.nats.publish(subject, result.into()).await.unwrap();
    };
    for stranger in ["probe", "nobody"] {
        reply(stranger, id, "99").await;
    }
    // They were looked at by the time a later one has counted.
    let other = begin(&service).await;
    let other = other["id"].as_str().unwrap();
    reply("pulled", other, "8").await;
    assert_eq!(service.finished(other).await["result"], 8);
    reply("pulled", id, "7").await;
    let job = service.finished(id).await;
    assert_eq!((&job["status"], &job["result"]), (&json!("completed"), &json!(7)));
    service.stop().await;
}
