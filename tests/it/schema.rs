//! The service describes itself: its types, and the requests and replies of each verb, so that clients can be made of it.

use serde_json::{Value, json};

use crate::harness::{Running, start};

/// The schemas of a verb, as validators of request and reply.
async fn schemas(service: &Running, verb: &str) -> [jsonschema::Validator; 2] {
    let reply = service.call("getSchema", json!({"verb": verb})).await;
    assert_eq!(reply["verb"], verb);
    [&reply["request"], &reply["reply"]].map(|schema| jsonschema::validator_for(schema).expect("a valid schema"))
}

fn fits(schema: &jsonschema::Validator, value: &Value, what: &str) {
    let faults: Vec<String> = schema.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(faults.is_empty(), "{what} does not fit its schema: {faults:?}: {value}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_replies_fit_the_schemas_that_the_service_gives() {
    let (_place, service) = start().await;
    let done = service.probe(json!({"fail": 1, "progress": 3.0, "note": "n"})).await;
    service.finished(&done).await;
    let failed = service.probe(json!({"permanent": true})).await;
    service.finished(&failed).await;
    let waiting = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let full = json!({
        "type": "probe", "payload": {"note": "x"}, "priority": -9, "maxAttempts": 100, "delay": 3600.5,
        "idempotencyKey": "k", "tags": ["a", "b"], "timeout": "1m",
    });
    let timed = json!({"type": "probe", "payload": {}, "runAt": "2020-01-01T00:00:00Z"});
    let unknown = json!({"type": "nobody-does-this", "payload": {}});
    for (verb, request) in [
        ("enqueue", full.clone()),
        ("enqueue", timed.clone()),
        ("enqueueMany", json!({"jobs": [full, timed, unknown]})),
        ("getJob", json!({"jobId": done})),
        ("getJob", json!({"jobId": failed})),
        (
            "listJobs",
            json!({"status": ["scheduled", "completed"], "limit": 1, "include": ["payload", "result", "errors"]}),
        ),
        ("listJobs", json!({"status": "failed", "type": "probe", "offset": 0, "include": "errors"})),
        ("waitJob", json!({"jobId": done, "timeoutMs": 0})),
        ("cancelJob", json!({"jobId": waiting, "reason": "r"})),
        ("retryJob", json!({"jobId": failed})),
        ("getStats", json!({})),
        ("listTypes", json!({})),
        ("pauseType", json!({"type": "probe"})),
        ("resumeType", json!({"type": "probe"})),
        ("getSchema", json!({"verb": "enqueue"})),
    ] {
        let [of_request, of_reply] = schemas(&service, verb).await;
        fits(&of_request, &request, &format!("a request of {verb}"));
        fits(&of_reply, &service.call(verb, request).await, &format!("a reply of {verb}"));
        assert!(!of_request.is_valid(&json!({"colour": "blue"})), "the schema of {verb} takes anything");
        assert!(!of_reply.is_valid(&json!({})), "the schema of {verb}'s reply takes anything");
    }
    let refused = service.ask("getSchema", json!({"verb": "dance"}).to_string()).await;
    assert_eq!((refused.code(), &refused.body["errors"][0]["path"]), (Some("invalid_request"), &json!("/verb")));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_facts_are_null_and_never_missing() {
    let (_place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let [_, of_reply] = schemas(&service, "getJob").await;
    let job = service.job(&id).await;
    let fields = job.as_object().unwrap();
    for name in fields.keys() {
        let mut less = fields.clone();
        less.remove(name);
        assert!(!of_reply.is_valid(&Value::Object(less)), "a job without {name} fits the schema");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_types_says_how_each_is_run_and_what_its_payload_is() {
    let (_place, service) = start().await;
    let types = service.call("listTypes", json!({})).await["types"].clone();
    let names: Vec<&str> = types.as_array().unwrap().iter().map(|t| t["type"].as_str().unwrap()).collect();
    assert!(names.is_sorted());
    for name in ["batch-import", "probe", "send-email", "webhook-delivery"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let probe = service.call("listTypes.probe", json!({})).await["types"].clone();
    assert_eq!(probe.as_array().unwrap().len(), 1);
    let probe = &probe[0];
    assert_eq!(
        (&probe["timeout"], &probe["maxAttempts"], &probe["concurrency"]),
        (&json!("30s"), &json!(3), &json!(100))
    );
    assert_eq!(probe["retryDelays"], json!(["50ms", "100ms"]));
    let payload = jsonschema::validator_for(&probe["schema"]).unwrap();
    assert!(payload.is_valid(&json!({"note": "n"})) && !payload.is_valid(&json!({"note": 1})));
    service.stop().await;
}
