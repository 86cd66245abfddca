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
async fn a_client_can_ask_what_verbs_and_fields_there_are() {
    let (_place, service) = start().await;
    let all = service.call("getSchema", json!({})).await;
    assert_eq!(all["apiVersion"], "v1");
    let verbs = all["verbs"].as_array().unwrap();
    let of = |name: &str| verbs.iter().find(|verb| verb["verb"] == name).unwrap_or_else(|| panic!("no {name}: {all}"));
    assert!(of("enqueue")["fields"].as_array().unwrap().contains(&json!("idempotencyKey")));
    assert_eq!(of("enqueue")["required"], json!(["payload"]));
    assert_eq!((&of("getStats")["fields"], &of("getStats")["required"]), (&json!([]), &json!([])));
    for verb in verbs {
        let name = verb["verb"].as_str().unwrap();
        let one = service.call("getSchema", json!({"verb": name})).await;
        let fields: Vec<&String> =
            one["request"]["properties"].as_object().into_iter().flatten().map(|(k, _)| k).collect();
        assert_eq!(verb["fields"], json!(fields), "{name}");
        // A field that the list does not have is refused, and named.
        let refused = service.ask(name, json!({"colour": "blue"}).to_string()).await;
        assert_eq!(refused.code(), Some("invalid_request"), "{name}: {}", refused.body);
        let named = refused.body["errors"].as_array().unwrap().iter().any(|fault| fault["path"] == "/colour");
        assert!(named, "{name}: {}", refused.body);
    }
    let [_, of_reply] = schemas(&service, "getSchema").await;
    fits(&of_reply, &all, "the list of verbs");
    let over_http = reqwest::get(service.url("/schemas")).await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(over_http, all);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_is_shown_in_the_words_of_its_definition() {
    let (_place, service) = start().await;
    let backoff = json!({"base": "1s", "factor": 3.0, "max": "1m", "jitter": 0.5, "delays": ["2s", "5s"]});
    let schema = json!({"type": "object", "required": ["n"]});
    let asked =
        json!({"type": "shown", "handler": "pull", "payloadSchema": schema, "backoff": backoff, "maxAttempts": 4});
    let shown = service.call("registerType", asked).await;
    assert_eq!((&shown["payloadSchema"], &shown["backoff"]), (&schema, &backoff), "{shown}");
    // The names that it had before stay until the next version of the contract.
    assert_eq!((&shown["schema"], &shown["retryDelays"]), (&schema, &json!(["2s", "5s", "5s"])));
    let reply = service.call("getSchema", json!({"verb": "registerType"})).await["reply"].clone();
    for old in ["schema", "retryDelays"] {
        assert_eq!(reply["properties"][old]["deprecated"], true, "{reply}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_schemas_say_what_is_taken_and_where() {
    let (_place, service) = start().await;
    let schema = json!({
        "additionalProperties": false,
        "properties": {
            "size": {"anyOf": [{"type": "integer", "minimum": 1}, {"enum": ["small", "large"]}]},
            "side": {"oneOf": [{"const": "left"}, {"const": "right"}]},
            "wait": {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]},
            "page": {"anyOf": [{"type": "object", "required": ["url"]}, {"type": "string"}]},
        },
    });
    service.call("registerType", json!({"type": "formed", "handler": "pull", "payloadSchema": schema})).await;
    let payload = |payload: Value| json!({"type": "formed", "payload": payload});
    for (verb, request, path, told) in [
        ("enqueue", json!({"type": "probe", "payload": {}, "delay": -5}), "/delay", "-5 is less than the minimum of 0"),
        (
            "enqueue",
            json!({"type": "probe", "payload": {}, "delay": true}),
            "/delay",
            r#"of type "string" or "number""#,
        ),
        ("enqueue", json!({"type": "probe", "payload": {}, "colour": 1}), "/colour", "'colour' was unexpected"),
        ("enqueue", json!({"type": "probe", "payload": {"nope": 1}}), "/payload/nope", "'nope' was unexpected"),
        ("enqueue", payload(json!({"a/b": 1})), "/payload/a~1b", "'a/b' was unexpected"),
        ("enqueue", payload(json!({"wait": -1})), "/payload/wait", "-1 is less than the minimum of 0"),
        ("enqueue", payload(json!({"side": "up"})), "/payload/side", r#"must be "left" or "right""#),
        ("enqueue", payload(json!({"page": {}})), "/payload/page", r#""url" is a required property"#),
        ("enqueue", payload(json!({"page": 1})), "/payload/page", r#"must be of type "object" or "string""#),
        ("enqueue", payload(json!({"size": 0})), "/payload/size", "0 is less than the minimum of 1"),
        ("registerType", json!({"type": "x", "handler": "carrier-pigeon"}), "/handler", r#""pull""#),
    ] {
        let refused = service.ask(verb, request.to_string()).await;
        let fault = refused.body["errors"][0].clone();
        let message = fault["message"].as_str().unwrap_or_default();
        assert!(fault["path"] == path && message.contains(told), "{request}: {}", refused.body);
        assert!(!message.contains("anyOf") && !message.contains("oneOf"), "{message}");
    }
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
