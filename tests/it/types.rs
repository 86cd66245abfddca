//! Types that are registered while the service runs: known to all replicas, checked by their schemas, kept across
//! restarts.

use serde_json::{Value, json};

use crate::harness::{Place, Running, start, until};

fn thumbnail() -> Value {
    json!({
        "type": "thumbnail",
        "handler": "pull",
        "description": "Makes small pictures.",
        "timeout": "2m",
        "maxAttempts": 5,
        "backoff": {"delays": ["1s", "5s"]},
        "concurrency": 7,
        "payloadSchema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "pattern": "^s3://"}, "width": {"type": "integer", "minimum": 1}},
            "additionalProperties": false,
        },
        "resultSchema": {"type": "string"},
    })
}

async fn paths(service: &Running, definition: Value) -> Vec<String> {
    let refused = service.ask("registerType", definition.to_string()).await;
    assert_eq!(refused.code(), Some("invalid_request"), "{definition}: {}", refused.body);
    let errors = refused.body["errors"].as_array().unwrap().iter();
    errors.map(|error| error["path"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_type_is_known_to_all_replicas_and_across_restarts() {
    let place = Place::new().await;
    let (first, second) = (place.start().await, place.start().await);
    let info = first.call("registerType", thumbnail()).await;
    insta::assert_json_snapshot!("registered", info);
    assert_eq!(first.call("registerType.thumbnail", thumbnail()).await, info, "a repetition changed something");
    // Its first job need not wait for the consumers.
    let stream = first.stream("background-jobs").await;
    stream.consumer_info("thumbnail-normal").await.unwrap();
    let job = json!({"type": "thumbnail", "payload": {"image": "s3://a"}});
    first.enqueue(job.clone()).await;
    // The other replica is told, and need not be waited for long.
    let id = until(|| async {
        let answer = reqwest::Client::new().post(second.url("/jobs")).json(&job).send().await.unwrap();
        (answer.status() == 201).then_some(())?;
        Some(answer.json::<Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned())
    })
    .await;
    assert_eq!(second.job(&id).await["maxAttempts"], 5);
    first.stop().await;
    second.stop().await;

    let third = place.start().await;
    assert_eq!(third.call("listTypes.thumbnail", json!({})).await["types"][0], info);
    third.enqueue(job).await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_held_to_the_schema_with_a_pointer_for_each_fault() {
    let (_place, service) = start().await;
    service.call("registerType", thumbnail()).await;
    let payload = json!({"image": "http://a", "width": 0, "colour": "red"});
    let refused = service.ask("enqueue", json!({"type": "thumbnail", "payload": payload}).to_string()).await;
    assert_eq!(refused.code(), Some("invalid_payload"));
    let mut paths: Vec<_> =
        refused.body["errors"].as_array().unwrap().iter().map(|e| e["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/payload/colour", "/payload/image", "/payload/width"], "{}", refused.body);

    // Without a schema anything goes, and a new definition takes the place of the old one.
    service.call("registerType", json!({"type": "thumbnail", "handler": "pull"})).await;
    service.enqueue(json!({"type": "thumbnail", "payload": payload})).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_with_unfinished_jobs_stays_and_one_without_goes() {
    let (_place, service) = start().await;
    service.call("registerType", thumbnail()).await;
    let id = service.enqueue(json!({"type": "thumbnail", "payload": {"image": "s3://a"}})).await;
    let refused = service.ask("unregisterType.thumbnail", "").await;
    assert_eq!(refused.code(), Some("type_in_use"));
    assert!(refused.body["detail"].as_str().unwrap().contains("1 unfinished"), "{}", refused.body);
    service.call("cancelJob", json!({"jobId": id})).await;
    let gone = service.call("unregisterType", json!({"type": "thumbnail"})).await;
    assert_eq!(gone, json!({"type": "thumbnail", "removed": true}));
    for verb in ["unregisterType", "pauseType"] {
        let refused = service.ask(verb, json!({"type": "thumbnail"}).to_string()).await;
        assert_eq!(refused.code(), Some("unknown_type"), "{verb}");
    }
    assert_eq!(service.job(&id).await["status"], "cancelled", "its jobs are still there to be read");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_types_of_the_program_and_of_the_configuration_cannot_be_replaced() {
    let mut place = Place::new().await;
    let section =
        toml::from_str("handler = 'pull'\ntimeout = '2m'\npayload_schema = '{\"type\": \"object\"}'").unwrap();
    place.config.types.insert("render".into(), section);
    let service = place.start().await;
    let info = &service.call("listTypes.render", json!({})).await["types"][0];
    assert_eq!((&info["origin"], &info["timeout"]), (&json!("configuration"), &json!("2m")));
    let refused = service.ask("enqueue", json!({"type": "render", "payload": 1}).to_string()).await;
    assert_eq!(refused.code(), Some("invalid_payload"));
    for name in ["send-email", "render"] {
        let definition = json!({"type": name, "handler": "pull"}).to_string();
        assert_eq!(service.ask("registerType", definition).await.code(), Some("type_conflict"));
        assert_eq!(service.ask(&format!("unregisterType.{name}"), "").await.code(), Some("type_conflict"));
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_definition_is_named_with_its_limit() {
    let (_place, service) = start().await;
    let with = |key: &str, value: Value| {
        let mut definition = json!({"type": "x", "handler": "nats"});
        definition[key] = value;
        definition
    };
    for (key, value, path) in [
        ("type", json!("Über"), "/type"),
        ("timeout", json!("10ms"), "/timeout"),
        ("heartbeat", json!("2h"), "/heartbeat"),
        ("maxAttempts", json!(101), "/maxAttempts"),
        ("concurrency", json!(0), "/concurrency"),
        ("url", json!("https://example.org"), "/url"),
        ("secret", json!("whsec_x"), "/secret"),
        ("description", json!("x".repeat(501)), "/description"),
        ("backoff", json!({"factor": 0.5}), "/backoff/factor"),
        ("backoff", json!({"delays": ["25h"]}), "/backoff/delays"),
        ("payloadSchema", json!({"type": "nonsense"}), "/payloadSchema"),
        ("payloadSchema", json!({"$ref": "https://example.org/schema.json"}), "/payloadSchema"),
        ("resultSchema", json!({"$ref": "file:///etc/passwd"}), "/resultSchema"),
        ("payloadSchema", json!({"const": "x".repeat(65536)}), "/payloadSchema"),
    ] {
        assert_eq!(paths(&service, with(key, value)).await, [path]);
    }
    assert_eq!(paths(&service, json!({"handler": "pull"})).await, ["/type"]);
    assert_eq!(paths(&service, json!({"type": "x", "handler": "http"})).await, ["/url"]);
    let all = json!({"type": "x", "handler": "pull", "timeout": "2d", "maxAttempts": 0, "concurrency": 10_001});
    assert_eq!(paths(&service, all).await, ["/timeout", "/maxAttempts", "/concurrency"]);
    for definition in [json!({"type": "x", "handler": "builtin"}), json!({"type": "x", "handler": "pull", "more": 1})] {
        let refused = service.ask("registerType", definition.to_string()).await;
        assert_eq!(refused.code(), Some("invalid_request"), "{definition}");
    }
    let other = service.ask("registerType.y", json!({"type": "x", "handler": "pull"}).to_string()).await;
    assert_eq!(other.code(), Some("invalid_request"));
    assert_eq!(service.ask("enqueue", r#"{"type": "x", "payload": {}}"#).await.code(), Some("unknown_type"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_are_made_shown_and_forgotten_over_http() {
    let (_place, service) = start().await;
    let http = reqwest::Client::new();
    let url = service.url("/types/thumbnail");
    let made = http.put(&url).json(&thumbnail()).send().await.unwrap();
    assert_eq!(made.status(), 200);
    let info: Value = made.json().await.unwrap();
    assert_eq!(http.get(&url).send().await.unwrap().json::<Value>().await.unwrap(), info);
    let other = http.put(service.url("/types/other")).json(&thumbnail()).send().await.unwrap();
    assert_eq!(other.status(), 400, "the path and the body name two types");
    assert_eq!(http.delete(&url).send().await.unwrap().status(), 200);
    for answer in [http.get(&url).send().await.unwrap(), http.delete(&url).send().await.unwrap()] {
        assert_eq!(answer.status(), 400);
        assert_eq!(answer.json::<Value>().await.unwrap()["code"], "unknown_type");
    }
    service.stop().await;
}

/// Answers `$SRV.INFO` as the micro-service of a client library does.
async fn introduce(service: &Running, subject: String, metadata: Value) -> tokio::task::JoinHandle<()> {
    let nats = service.nats.clone();
    let mut questions = nats.subscribe("$SRV.INFO").await.unwrap();
    nats.flush().await.unwrap();
    let info = json!({
        "type": "io.nats.micro.v1.info_response", "name": "thumbs", "id": "1", "version": "1.0.0",
        "endpoints": [{"name": "thumbnail", "subject": subject, "queue_group": "q", "metadata": metadata}],
    });
    tokio::spawn(async move {
        while let Some(question) = futures_util::StreamExt::next(&mut questions).await {
            nats.publish(question.reply.unwrap(), info.to_string().into()).await.unwrap();
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_introduces_itself_becomes_a_type_without_anyone_configuring_it() {
    let (_place, service) = start().await;
    let subject = service.subject("handlers.thumbnail");
    let metadata = json!({
        "queue.type": "thumbnail", "queue.timeout": "2m", "queue.maxAttempts": "7", "queue.description": "Small pictures.",
        "queue.payloadSchema": r#"{"type": "object"}"#,
    });
    let handler = introduce(&service, subject.clone(), metadata).await;
    // At once when somebody asks for it, in a bulk request, too.
    let job = json!({"type": "thumbnail", "payload": {}});
    let many = service.call("enqueueMany", json!({"jobs": [job, {"type": "nobody", "payload": {}}, job]})).await;
    assert_eq!(many["results"][1]["error"]["code"], "unknown_type");
    let id = many["results"][2]["jobId"].as_str().unwrap().to_owned();
    assert_eq!(service.job(&id).await["maxAttempts"], 7);
    let info = service.call("listTypes.thumbnail", json!({})).await["types"][0].clone();
    assert_eq!(
        (&info["origin"], &info["handler"], &info["timeout"], &info["description"]),
        (&json!("discovered"), &json!("nats"), &json!("2m"), &json!("Small pictures."))
    );
    let refused = service.ask("enqueue", json!({"type": "thumbnail", "payload": 1}).to_string()).await;
    assert_eq!(refused.code(), Some("invalid_payload"));
    handler.abort();
    // What somebody asks for goes before what was found.
    service.call("registerType", json!({"type": "thumbnail", "handler": "nats", "maxAttempts": 2})).await;
    let handler = introduce(&service, subject, json!({"queue.type": "thumbnail", "queue.maxAttempts": "9"})).await;
    service.ask("enqueue", json!({"type": "nobody", "payload": 1}).to_string()).await;
    let info = &service.call("listTypes.thumbnail", json!({})).await["types"][0];
    assert_eq!((&info["origin"], &info["maxAttempts"]), (&json!("registered"), &json!(2)));
    handler.abort();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_of_other_subjects_and_with_bad_descriptions_are_left_alone() {
    let mut place = Place::new().await;
    let service = place.start().await;
    let elsewhere = introduce(&service, "elsewhere.x".into(), json!({"queue.type": "x"})).await;
    let bad =
        introduce(&service, service.subject("handlers.y"), json!({"queue.type": "y", "queue.timeout": "9d"})).await;
    let builtin = introduce(&service, service.subject("handlers.probe"), json!({"queue.type": "probe"})).await;
    for name in ["x", "y"] {
        let refused = service.ask("enqueue", json!({"type": name, "payload": 1}).to_string()).await;
        assert_eq!(refused.code(), Some("unknown_type"));
    }
    assert_eq!(service.call("listTypes.probe", json!({})).await["types"][0]["origin"], "builtin");
    service.stop().await;
    place.config.nats.discovery = false;
    let service = place.start().await;
    let good = introduce(&service, service.subject("handlers.z"), json!({"queue.type": "z"})).await;
    let refused = service.ask("enqueue", json!({"type": "z", "payload": 1}).to_string()).await;
    assert_eq!(refused.code(), Some("unknown_type"));
    for task in [elsewhere, bad, builtin, good] {
        task.abort();
    }
    service.stop().await;
}
