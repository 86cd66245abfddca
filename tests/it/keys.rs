//! One key, one job of its type: the same at every door, for keys of every version, and nobody waits for another's key.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use queue_service::job::content::{Asked, are_equal};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::{
    books,
    harness::{Place, Running, start, until},
    values::known_to_sql,
};

async fn register(service: &Running, name: &str) {
    service.call("registerType", json!({"type": name, "handler": "pull"})).await;
}

/// A service with two types of jobs that nobody does, and its database.
async fn begin() -> (Place, Running, PgPool) {
    let (place, service) = start().await;
    register(&service, "one").await;
    register(&service, "two").await;
    let database = known_to_sql(&place, &["one", "two", "probe"]).await;
    (place, service, database)
}

/// What a door said of a request: the job and whether it was there before; or the refusal.
type Said = Result<(String, bool), String>;

fn said(answer: &Value) -> Said {
    match answer["jobId"].as_str() {
        Some(id) => Ok((id.to_owned(), answer["duplicate"] == true)),
        None => Err(answer["code"].as_str().unwrap_or_default().to_owned()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Door {
    Nats,
    Http,
    Sql,
}

const DOORS: [Door; 3] = [Door::Nats, Door::Http, Door::Sql];

/// A request as both kinds of callers write it.
#[derive(Clone, Copy, Debug)]
struct Request {
    json: &'static str,
    sql: &'static str,
}

async fn ask(door: Door, service: &Running, database: &PgPool, key: &str, request: Request) -> Said {
    let body = format!(r#"{{"idempotencyKey":"{key}",{}}}"#, request.json);
    match door {
        Door::Nats => said(&service.ask("enqueue", body).await.body),
        Door::Http => said(&service.web("POST", "/jobs", &[], body).await.json()),
        Door::Sql => {
            let sql = format!("SELECT queue.enqueue({}, idempotency_key => '{key}')", request.sql);
            match sqlx::query_scalar::<_, Uuid>(AssertSqlSafe(sql)).fetch_one(database).await {
                Ok(id) => Ok((id.to_string(), false)),
                Err(e) => Err(e.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned()),
            }
        }
    }
}

/// Requests that ask for one thing, whatever the door; each line for another thing.
const SAME: &[&[Request]] = &[
    &[
        Request {
            json: r#""type":"one","payload":{"a":1,"b":[0.5,"ä"]}"#,
            sql: r#"'one', '{"b":[5e-1,"\u00e4"],"a":1.0}'"#,
        },
        Request {
            json: r#""type":"one","payload":{"b":[0.50,"\u00e4"], "a":1e0},"priority":0.0,"tags":[]"#,
            sql: r#"'one', '{"a": 1, "b": [0.5, "ä"]}', tags => '{}'"#,
        },
    ],
    &[
        Request { json: r#""type":"one","payload":{},"delay":"1m""#, sql: "'one', '{}', delay => interval '1 minute'" },
        Request { json: r#""type":"one","payload":{},"delay":60"#, sql: "'one', '{}', delay => '60 s'" },
    ],
    &[
        Request { json: r#""type":"one","payload":{},"timeout":"1m""#, sql: "'one', '{}', timeout => '1 minute'" },
        Request { json: r#""type":"one","payload":{},"timeout":60.0"#, sql: "'one', '{}', timeout => '00:01:00'" },
    ],
    &[
        Request {
            json: r#""type":"one","payload":{},"runAt":"2034-12-24T18:00:00Z""#,
            sql: "'one', '{}', run_at => '2034-12-24T18:00:00Z'",
        },
        Request {
            json: r#""type":"one","payload":{},"runAt":"2034-12-24T19:00:00.000+01:00""#,
            sql: "'one', '{}', run_at => '2034-12-24 13:00:00-05'",
        },
    ],
    &[Request {
        json: r#""type":"one","payload":"x","maxAttempts":3,"priority":-2,"tags":["a","b"]"#,
        sql: r#"'one', '"x"', max_attempts => 3, priority => -2, tags => array['a','b']"#,
    }],
    &[Request {
        json: r#""type":"one","payload":"x","maxAttempts":3,"priority":-2,"tags":["b","a"]"#,
        sql: r#"'one', '"x"', max_attempts => 3, priority => -2, tags => array['b','a']"#,
    }],
    &[Request { json: r#""type":"one","payload":[[],{"":null}]"#, sql: r#"'one', '[ [ ], {"": null} ]'"# }],
    &[Request { json: r#""type":"one","payload":"C:\\u0000\\x""#, sql: r#"'one', '"C:\\u0000\\x"'"# }],
];

#[tokio::test(flavor = "multi_thread")]
async fn one_key_is_one_job_whatever_the_doors_it_is_asked_for_at() {
    let (_place, service, database) = begin().await;
    for (n, same) in SAME.iter().enumerate() {
        for first in DOORS {
            let key = format!("{n}-{first:?}");
            let (id, duplicate) = ask(first, &service, &database, &key, same[0]).await.unwrap();
            assert!(!duplicate);
            for again in DOORS {
                for request in *same {
                    let (same_id, duplicate) = ask(again, &service, &database, &key, *request).await.unwrap();
                    assert_eq!(same_id, id, "{request:?} at {first:?}, then {again:?}");
                    assert!(duplicate || again == Door::Sql);
                }
                // Anything else is something else.
                for other in SAME.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, other)| other[0]) {
                    let refused = ask(again, &service, &database, &key, other).await.unwrap_err();
                    assert!(["idempotency_conflict", "23505"].contains(&refused.as_str()), "{other:?}: {refused}");
                }
            }
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_is_a_door_like_the_others() {
    let (_place, service, database) = begin().await;
    let stream = async_nats::jetstream::new(service.nats.clone());
    for (n, same) in SAME.iter().enumerate() {
        let key = format!("{n}");
        let (id, _) = ask(DOORS[n % 3], &service, &database, &key, same[0]).await.unwrap();
        let body = format!(r#"{{"idempotencyKey":"{key}",{}}}"#, same[same.len() - 1].json);
        stream.publish(service.subject("inbox.one"), body.into()).await.unwrap().await.unwrap();
        let of_two = format!(r#"{{"idempotencyKey":"{key}","payload":{{"n":{n}}}}}"#);
        stream.publish(service.subject("inbox.two"), of_two.into()).await.unwrap().await.unwrap();
        assert_eq!(service.job(&id).await["idempotencyKey"], json!(key));
    }
    let mut inbox = service.stream("background-jobs-inbox").await;
    until(async || (inbox.info().await.unwrap().state.messages == 0).then_some(())).await;
    let set_aside = service.stream("background-jobs-inbox-dlq").await.info().await.unwrap().state.messages;
    let stats = service.call("getStats", json!({})).await;
    let pending = |name: &str| stats["byType"][name]["pending"].clone();
    assert_eq!((set_aside, pending("one"), pending("two")), (0, json!(SAME.len()), json!(SAME.len())));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_not_depend_on_the_settings_of_a_session() {
    let (_place, service, database) = begin().await;
    let ask = "SELECT queue.enqueue('one', '{}', idempotency_key => 'k', run_at => '2034-12-24T18:00:00Z', timeout => '90 s')";
    let mut ids = Vec::new();
    for settings in [
        "",
        "SET LOCAL timezone = 'Asia/Kolkata'",
        "SET LOCAL datestyle = 'German'",
        "SET LOCAL intervalstyle = 'iso_8601'",
    ] {
        let mut transaction = database.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut *transaction).await.unwrap();
        ids.push(sqlx::query_scalar::<_, Uuid>(ask).fetch_one(&mut *transaction).await.unwrap());
        transaction.commit().await.unwrap();
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_two_ways_to_hash_a_payload_are_one() {
    let (_place, service, database) = begin().await;
    let deep = format!("{}1{}", "[".repeat(64), "]".repeat(64));
    let wide =
        format!("[{}]", (0..300).map(|n| format!("{{\"{}\":{n}e{}}}", n % 7, n % 5)).collect::<Vec<_>>().join(","));
    let payloads = [
        "null",
        "true",
        "0",
        "-0",
        "-0.0e9",
        "100",
        "-100",
        "1.10",
        "0.001",
        "12e-30",
        "1e308",
        "9223372036854775807",
        "5e-324",
        "1e-400",
        "123456789012345678901234567890.5",
        r#""""#,
        r#""\"\\\/\b\f\n\r\t\u007f\ud83d\ude00""#,
        r#"{"b":{"c":[]},"a":[{}],"B":"","ä":1,"a1":2,"":3}"#,
        r#"[1,[2,[3]],"a\nb",{"k":"1\n2#3"}]"#,
        " [ 1 , { \"a\" : null } ] ",
        &deep,
        &wide,
    ];
    for payload in payloads {
        let asked = Asked {
            job_type: "one",
            payload,
            priority: -3,
            max_attempts: Some(4),
            delay: Some(Duration::from_millis(1500)),
            run_at: None,
            tags: &["a".to_owned(), "ä:b".to_owned()],
            timeout: Some(Duration::from_secs(3)),
        };
        let sql =
            "SELECT content_hash('one', $1::json, -3, 4, interval '1.5 s', NULL, array['a', 'ä:b'], interval '3 s')";
        let hash: Vec<u8> = sqlx::query_scalar(sql).bind(payload).fetch_one(&database).await.unwrap();
        assert_eq!(hash, asked.hash(), "{payload}");
    }
    assert!(!are_equal("[1,2]", "[2,1]"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_in_two_types_is_two_jobs_and_neither_is_told_of_the_other() {
    let (_place, service, database) = begin().await;
    let request = |job_type: &str, note: &str| json!({"type": job_type, "payload": {"note": note}, "idempotencyKey": "invoice-7"});
    let one = service.enqueue(request("one", "a")).await;
    let two = service.enqueue(request("two", "b")).await;
    let by_sql = "SELECT queue.enqueue('probe', '{\"note\":\"c\"}', idempotency_key => 'invoice-7')";
    let three = sqlx::query_scalar::<_, Uuid>(by_sql).fetch_one(&database).await.unwrap().to_string();
    assert!(one != two && two != three && one != three);
    for (job_type, note, id) in [("one", "a", &one), ("two", "b", &two), ("probe", "c", &three)] {
        assert_eq!(&service.enqueue(request(job_type, note)).await, id);
        assert_eq!(service.job(id).await["idempotencyKey"], "invoice-7");
        let refused = service.ask(&format!("enqueue.{job_type}"), request(job_type, "other").to_string()).await;
        assert_eq!(refused.code(), Some("idempotency_conflict"));
        let detail = refused.body["detail"].as_str().unwrap();
        for known in [&one, &two, &three] {
            assert_eq!(detail.contains(known.as_str()), known == id, "{detail}");
        }
    }
    // Also those of one request.
    let both = json!({"jobs": [request("one", "new"), request("two", "new"), {"type": "one", "payload": {}, "idempotencyKey": "k2"},
                               {"type": "two", "payload": {}, "idempotencyKey": "k2"}]});
    let results = service.call("enqueueMany", both).await["results"].clone();
    assert_eq!(results[0]["error"]["code"], "idempotency_conflict");
    assert_eq!(results[1]["error"]["code"], "idempotency_conflict");
    assert_eq!((&results[2]["duplicate"], &results[3]["duplicate"]), (&json!(false), &json!(false)));
    assert_ne!(results[2]["jobId"], results[3]["jobId"]);
    service.stop().await;
}

/// As versions wrote their hashes that knew no other: the service's own, and SQL's by the settings of its session.
pub async fn older_hashes(database: &PgPool, job_type: &str, payload: &str) -> [Vec<u8>; 2] {
    let value: Value = serde_json::from_str(payload).unwrap();
    let rest = json!([job_type, 0, null, null, null, null, null]).to_string();
    let own = Sha256::new().chain_update(rest).chain_update(value.to_string()).finalize().to_vec();
    let by_sql = "SELECT sha256(convert_to(concat_ws(E'\\x1f', $1::text, $2::json::jsonb::text, 0, NULL::interval, NULL::timestamptz,
                                                    NULL::integer, NULL::text[]::text, NULL::interval), 'UTF8'))";
    [own, sqlx::query_scalar(by_sql).bind(job_type).bind(payload).fetch_one(database).await.unwrap()]
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_older_versions_still_name_their_jobs() {
    let (_place, service, database) = begin().await;
    const PAYLOAD: &str = r#"{"b": 1, "a": [0.5, "x"]}"#;
    let request =
        Request { json: r#""type":"one","payload":{"a":[0.5,"x"],"b":1}"#, sql: r#"'one', '{"a":[0.5,"x"],"b":1}'"# };
    let other =
        Request { json: r#""type":"one","payload":{"a":[0.5,"y"],"b":1}"#, sql: r#"'one', '{"a":[0.5,"y"],"b":1}'"# };
    let of_two =
        Request { json: r#""type":"two","payload":{"a":[0.5,"x"],"b":1}"#, sql: r#"'two', '{"a":[0.5,"x"],"b":1}'"# };
    for (n, hash) in older_hashes(&database, "one", PAYLOAD).await.into_iter().enumerate() {
        for ended in [false, true] {
            for door in DOORS {
                let key = format!("{n}-{ended}-{door:?}");
                let id = service
                    .enqueue(json!({"type": "one", "payload": serde_json::from_str::<Value>(PAYLOAD).unwrap()}))
                    .await;
                if ended {
                    service.call("cancelJob", json!({"jobId": id})).await;
                }
                let write = "INSERT INTO job_keys (key, job_id, content_hash) VALUES ($1, $2, $3)";
                let write = sqlx::query(write).bind(&key).bind(id.parse::<Uuid>().unwrap()).bind(&hash);
                write.execute(&database).await.unwrap();
                let refused = ask(door, &service, &database, &key, other).await.unwrap_err();
                assert!(["idempotency_conflict", "23505"].contains(&refused.as_str()), "{key}: {refused}");
                // First the other type, then its own: neither is in the other's way.
                let (foreign, duplicate) = ask(door, &service, &database, &key, of_two).await.unwrap();
                assert!(foreign != id && !duplicate, "{key}");
                for again in DOORS {
                    assert_eq!(
                        ask(again, &service, &database, &key, request).await.map(|said| said.0),
                        Ok(id.clone()),
                        "{key}"
                    );
                    assert_eq!(
                        ask(again, &service, &database, &key, of_two).await.map(|said| said.0),
                        Ok(foreign.clone()),
                        "{key}"
                    );
                }
            }
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_whose_jobs_are_gone_are_free_again_in_one_request() {
    let (_place, service, database) = begin().await;
    let stale = "INSERT INTO job_keys (key, job_id, content_hash, type, name)
                 SELECT 'k' || n, uuid_v7(), '', CASE WHEN n % 2 = 0 THEN 'one' END, CASE WHEN n % 2 = 0 THEN 'k' || n END
                 FROM generate_series(1, 1000) AS n";
    sqlx::raw_sql(stale).execute(&database).await.unwrap();
    let job = |n: usize| json!({"type": "one", "payload": {}, "idempotencyKey": format!("k{n}")});
    let reply = service.call("enqueueMany", json!({"jobs": (1..=1000).map(job).collect::<Vec<_>>()})).await;
    let made = reply["results"].as_array().unwrap().iter().filter(|result| result["duplicate"] == false).count();
    assert_eq!(made, 1000, "{}", reply["results"][0]);
    service.stop().await;
}

/// A transaction that has asked for a job with a key and has not ended.
async fn holder(database: &PgPool, key: &str) -> (sqlx::Transaction<'static, sqlx::Postgres>, String) {
    let mut holder = database.begin().await.unwrap();
    let sql = format!("SELECT queue.enqueue('probe', '{{}}', idempotency_key => '{key}')");
    let id: Uuid = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *holder).await.unwrap();
    (holder, id.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_an_open_transaction_holds_delays_no_other_request() {
    let (place, service, database) = begin().await;
    // One is new, the other was of a job that is gone.
    sqlx::raw_sql("INSERT INTO job_keys (key, job_id, content_hash) VALUES ('k2', uuid_v7(), '')")
        .execute(&database)
        .await
        .unwrap();
    let (first, id) = holder(&database, "k1").await;
    let (second, second_id) = holder(&database, "k2").await;
    let probe = |key: Option<String>| json!({"type": "probe", "payload": {}, "idempotencyKey": key});
    let held = |key: &str| probe(Some(key.to_owned())).to_string();
    let unavailable = async |said: Value| {
        assert_eq!((&said["code"], said["retryAfterSeconds"].is_u64()), (&json!("unavailable"), true), "{said}");
        assert!(said["detail"].as_str().unwrap().contains("idempotency key"), "{said}");
    };
    // Those who want the keys come again and again, all the time.
    let wanting = async {
        for _ in 0..3 {
            let (over_nats, over_http, other) = tokio::join!(
                service.ask("enqueue", held("k1")),
                service.web("POST", "/jobs", &[], held("k1")),
                service.ask("enqueue", held("k2")),
            );
            unavailable(over_nats.body).await;
            unavailable(over_http.json()).await;
            unavailable(other.body).await;
        }
    };
    let unrelated = async {
        let mut ids = Vec::new();
        for round in 0..10 {
            let ask = async |n: usize| {
                let key = n.is_multiple_of(2).then(|| format!("other-{round}-{n}"));
                let began = Instant::now();
                (service.enqueue(probe(key)).await, began.elapsed())
            };
            for (id, took) in join_all((0..80).map(ask)).await {
                assert!(took < Duration::from_millis(1500), "{took:?}");
                ids.push(id);
            }
            let mut beside: Vec<Value> =
                (0..20).map(|n| probe((n % 2 == 0).then(|| format!("beside-{round}-{n}")))).collect();
            beside.insert(10, probe(Some("k1".into())));
            let reply = service.call("enqueueMany", json!({"jobs": beside})).await;
            for (n, result) in reply["results"].as_array().unwrap().iter().enumerate() {
                match n {
                    10 => unavailable(result["error"].clone()).await,
                    _ => ids.push(result["jobId"].as_str().unwrap_or_else(|| panic!("{result}")).to_owned()),
                }
            }
        }
        ids
    };
    let ((), mut ids) = tokio::join!(wanting, unrelated);
    assert_eq!(ids.len(), 1000);
    let open = "SELECT count(*) FROM jobs WHERE id = $1";
    let seen: i64 = sqlx::query_scalar(open).bind(id.parse::<Uuid>().unwrap()).fetch_one(&database).await.unwrap();
    assert_eq!(seen, 0, "the holder has not ended yet");
    // Whoever still asks when it ends has the answer.
    let waiting = {
        let (nats, subject, body) = (service.nats.clone(), service.subject("enqueue"), held("k1"));
        tokio::spawn(async move { nats.request(subject, body.into()).await.unwrap() })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.commit().await.unwrap();
    let answer: Value = serde_json::from_slice(&waiting.await.unwrap().payload).unwrap();
    assert_eq!((&answer["jobId"], &answer["duplicate"]), (&json!(id), &json!(true)), "{answer}");
    // One that is given up leaves the key free.
    second.rollback().await.unwrap();
    let free = service.call("enqueue", probe(Some("k2".into()))).await;
    assert_eq!(free["duplicate"], false);
    assert_ne!(free["jobId"], json!(second_id));
    ids.extend([id, free["jobId"].as_str().unwrap().to_owned()]);
    books::all_completed_once(&place, &service, &ids).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_keys_of_one_open_transaction_delay_no_other_key() {
    let (_place, service, database) = begin().await;
    let mut holder = database.begin().await.unwrap();
    let many =
        "SELECT queue.enqueue('probe', '{}', idempotency_key => 'held-' || n) FROM generate_series(1, 1000) AS n";
    sqlx::raw_sql(many).execute(&mut *holder).await.unwrap();
    let job = |n: usize| {
        let key = if n.is_multiple_of(2) { format!("held-{n}") } else { format!("free-{n}") };
        json!({"type": "probe", "payload": {}, "idempotencyKey": key})
    };
    let reply = service.call("enqueueMany", json!({"jobs": (1..=100).map(job).collect::<Vec<_>>()})).await;
    for (n, result) in (1..).zip(reply["results"].as_array().unwrap()) {
        match n % 2 {
            0 => assert_eq!(result["error"]["code"], "unavailable", "{result}"),
            _ => assert_eq!(result["duplicate"], false, "{result}"),
        }
    }
    holder.commit().await.unwrap();
    let reply = service.call("enqueueMany", json!({"jobs": (1..=100).map(job).collect::<Vec<_>>()})).await;
    assert!(reply["results"].as_array().unwrap().iter().all(|result| result["duplicate"] == true), "{reply}");
    until(async || (service.call("getStats", json!({})).await["completed"] == 1050).then_some(())).await;
    service.stop().await;
}
