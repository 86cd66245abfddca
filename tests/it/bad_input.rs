//! What is wrong is refused with the same words at every door, leaves no trace, and harms nobody else.

use serde_json::{Value, json};

use crate::{
    harness::{Place, Running, start},
    web::ok,
};

/// One bad request: the verb, its body, the code of the refusal, and the pointer of its first fault.
struct Case {
    verb: &'static str,
    body: Vec<u8>,
    code: &'static str,
    /// `None` where the refusal names no faults.
    path: Option<&'static str>,
}

type Path = Option<&'static str>;

fn case(verb: &'static str, body: impl Into<Vec<u8>>, code: &'static str, path: Path) -> Case {
    Case { verb, body: body.into(), code, path }
}

/// An enqueue with some fields besides a good type and payload.
fn with(fields: &str, path: &'static str) -> Case {
    case("enqueue", format!(r#"{{"type":"probe","payload":{{}},{fields}}}"#), "invalid_request", Some(path))
}

/// An enqueue of a type with a payload that does not fit it.
fn payload(job_type: &str, payload: impl std::fmt::Display, path: &'static str) -> Case {
    case("enqueue", format!(r#"{{"type":"{job_type}","payload":{payload}}}"#), "invalid_payload", Some(path))
}

/// No refusal is larger, whatever was asked: it is for people, and has to fit into a message and a log.
const MAX_REFUSAL: usize = 16 * 1024;

/// Asks for everything at both doors, then looks for traces, and sees that the service still does its work.
async fn refused_everywhere(cases: Vec<Case>) {
    let (place, service) = start().await;
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(what) = refused(&service, case).await {
            let body = String::from_utf8_lossy(&case.body);
            wrong.push(format!("{} {body:.150}\n    {what:.600}", case.verb));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    no_trace(&place).await;
    works(&service).await;
    service.stop().await;
}

async fn refused(service: &Running, case: &Case) -> Result<(), String> {
    let asked = service.ask(case.verb, case.body.clone()).await;
    let problem = &asked.body;
    let first = problem["errors"][0]["path"].as_str();
    if asked.code() != Some(case.code) || first != case.path {
        return Err(format!("by RPC: {problem}"));
    }
    let size = problem.to_string().len();
    if size > MAX_REFUSAL || problem["detail"].as_str().is_none_or(str::is_empty) {
        return Err(format!("{size} bytes: {problem}"));
    }
    let status = asked.headers.and_then(|headers| headers.get("Nats-Service-Error-Code")?.as_str().parse().ok());
    let Some(web) = service.web_verb(case.verb, &case.body).await else { return Ok(()) };
    if ok(web.status) || Some(web.status) != status || web.json() != *problem {
        return Err(format!("by RPC {status:?}: {problem}\n    by HTTP {}: {}", web.status, web.text));
    }
    Ok(())
}

async fn no_trace(place: &Place) {
    let pool = place.database().await;
    for table in ["jobs", "finished_jobs", "outbox", "job_keys", "job_count_deltas", "job_counts", "job_types"] {
        // Types are noted that the service knows by itself.
        let of_callers = if table == "job_types" { "definition IS NOT NULL OR paused_at IS NOT NULL" } else { "true" };
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table} WHERE {of_callers}"));
        let rows: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
        assert_eq!(rows, 0, "{table}");
    }
    pool.close().await;
}

async fn works(service: &Running) {
    let id = service.probe(json!({"note": "still here"})).await;
    assert_eq!(service.finished(&id).await["result"]["note"], "still here");
    assert_eq!(service.get("/health/ready").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_json_object_is_told_so() {
    let bad = |body: &[u8]| case("enqueue", body, "invalid_json", None);
    let inside = |note: &[u8]| bad(&[br#"{"type":"probe","payload":{"note":""#, note, br#""}}"#].concat());
    let mut cases = vec![
        bad(b""),
        bad(b" \r\n"),
        bad(b"{"),
        bad(b"nul"),
        bad(b"null"),
        bad(b"[]"),
        bad(b"[{}]"),
        bad(b"\"probe\""),
        bad(b"17"),
        bad(b"{} {}"),
        bad(b"type=probe"),
        bad(br#"{"type":"probe","payload":{}} x"#),
        bad(b"{\"type\":\"probe\",\"payload\":{}}\0"),
        bad(b"\xef\xbb\xbf{\"type\":\"probe\",\"payload\":{}}"),
        bad(b"{\0\"type\":\"probe\",\"payload\":{}}"),
        bad(br#"{"type":"probe","payload":{},}"#),
        bad(br#"{'type':'probe','payload':{}}"#),
        bad(br#"{type:"probe",payload:{}}"#),
        bad(br#"{"type":"probe","payload":{}/**/}"#),
        bad(br#"{"type":"probe","payload":NaN}"#),
        bad(br#"{"type":"probe","payload":-Infinity}"#),
        bad(br#"{"type":"probe","payload":{"progress":01}}"#),
        bad(br#"{"type":"probe","payload":{"progress":0x1}}"#),
        bad(br#"{"type":"probe","payload":{"progress":1.}}"#),
        bad(br#"{"type":"probe","payload":{}"#),
        bad(br#"{"type":"probe","payload"}"#),
        bad(br#"{"type":"probe","payload":{"\ud800":1}}"#),
        bad(br#"{"type":"\udc00probe","payload":{}}"#),
        bad(br#"{"type":"probe","payload":{},"tags":["\ud83d"]}"#),
        bad(br#"{"type":"probe","payload":{},"idempotencyKey":"\ud83d\ud83d"}"#),
        inside(br"\ud800"),
        inside(br"\udc00\ud800"),
        inside(br"\ud83dx"),
        inside(br"\x41"),
        inside(br"\u12"),
        inside(br"\u{41}"),
        inside(b"a\nb"),
        inside(b"a\x1b[2J"),
        inside(b"\xff"),
        inside(b"\xc3("),
        inside(b"\xc0\x80"),
        inside(b"\xed\xa0\x80"),
        inside(b"\xf4\x90\x80\x80"),
        bad("{\"type\":\"probe\",\"payload\":{}}"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<_>>()
            .as_slice()),
    ];
    for body in ["", "{", "[]", "{\"jobs\":[]} x", "[[{\"type\":\"probe\",\"payload\":{}}]]", "\u{feff}{\"jobs\":[]}"] {
        cases.push(case("enqueueMany", body, "invalid_json", None));
    }
    cases.push(case("enqueueMany", b"{\"jobs\":[{\"type\":\"\xff\"}]}", "invalid_json", None));
    for verb in ["listJobs", "getStats", "listTypes", "pauseType", "getSchema"] {
        cases.push(case(verb, "{\"a\":", "invalid_json", None));
        cases.push(case(verb, "[]", "invalid_json", None));
        cases.push(case(verb, b"{\"\xff\":1}", "invalid_json", None));
    }
    for verb in ["getJob", "retryJob", "cancelJob", "waitJob"] {
        cases.push(case(verb, "{\"jobId\":", "invalid_json", None));
        cases.push(case(verb, b"{\"jobId\":\"\xff\"}", "invalid_json", None));
    }
    refused_everywhere(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_a_syntax_error_is_told() {
    let (_place, service) = start().await;
    let body = "{\"type\": \"probe\",\n \"payload\": oops}";
    let told = service.ask("enqueue", body).await.body;
    assert_eq!(told["detail"], "a JSON value is expected at line 2, column 13");
    let told = service.ask("enqueue", "[]").await.body;
    assert_eq!(told["detail"], "a JSON object is expected at line 1, column 1");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_that_no_request_has_are_refused_with_a_pointer() {
    let bad = |body: &str, path| case("enqueue", body, "invalid_request", Some(path));
    refused_everywhere(vec![
        // Twice the same key: parsers differ in which one counts.
        bad(r#"{"type":"probe","type":"send-email","payload":{}}"#, "/type"),
        bad(r#"{"type":"probe","\u0074ype":"send-email","payload":{}}"#, "/type"),
        case("enqueue", r#"{"type":"probe","payload":{},"payload":{"note":"x"}}"#, "invalid_payload", Some("/payload")),
        case(
            "enqueue",
            r#"{"type":"probe","payload":{"note":"a","note":"b"}}"#,
            "invalid_payload",
            Some("/payload/note"),
        ),
        payload(
            "batch-import",
            r#"{"items":[{"id":"a","data":{"x":[{"y":1,"y":1}]}}]}"#,
            "/payload/items/0/data/x/0/y",
        ),
        case("enqueueMany", r#"{"jobs":[],"jobs":[{"type":"probe","payload":{}}]}"#, "invalid_request", Some("")),
        // Wrong types, missing and null.
        bad("{}", ""),
        bad(r#"{"type":"probe"}"#, ""),
        bad(r#"{"payload":{}}"#, "/type"),
        bad(r#"{"type":null,"payload":{}}"#, "/type"),
        bad(r#"{"type":5,"payload":{}}"#, "/type"),
        bad(r#"{"type":["probe"],"payload":{}}"#, "/type"),
        bad(r#"{"type":{},"payload":{}}"#, "/type"),
        payload("probe", "null", "/payload"),
        payload("probe", "\"{}\"", "/payload"),
        payload("probe", "[]", "/payload"),
        payload("probe", r#"[1, false]"#, "/payload"),
        payload("probe", "7", "/payload"),
        payload("probe", r#"{"fail":"1"}"#, "/payload/fail"),
        payload("probe", r#"{"fail":1.5}"#, "/payload/fail"),
        payload("probe", r#"{"fail":-1}"#, "/payload/fail"),
        payload("probe", r#"{"note":null}"#, "/payload/note"),
        payload("probe", r#"{"nope":1}"#, "/payload/nope"),
        payload("probe", r#"{"Note":"x"}"#, "/payload/Note"),
        with(r#""priority":"5""#, "/priority"),
        with(r#""priority":true"#, "/priority"),
        with(r#""tags":"a""#, "/tags"),
        with(r#""tags":[1]"#, "/tags/0"),
        with(r#""tags":[null]"#, "/tags/0"),
        with(r#""tags":{"0":"a"}"#, "/tags"),
        with(r#""idempotencyKey":5"#, "/idempotencyKey"),
        with(r#""idempotencyKey":["a"]"#, "/idempotencyKey"),
        with(r#""delay":true"#, "/delay"),
        with(r#""delay":{}"#, "/delay"),
        with(r#""delay":["1s"]"#, "/delay"),
        with(r#""timeout":[]"#, "/timeout"),
        with(r#""runAt":1700000000"#, "/runAt"),
        with(r#""maxAttempts":"3""#, "/maxAttempts"),
        // Unknown fields, those of a job above all.
        with(r#""id":"0198c5a4-5d5c-7000-8000-000000000000""#, "/id"),
        with(r#""status":"completed""#, "/status"),
        with(r#""Priority":1"#, "/Priority"),
        with(r#""max_attempts":1"#, "/max_attempts"),
        with(r#""__proto__":{}"#, "/__proto__"),
        case("enqueueMany", r#"{}"#, "invalid_request", Some("")),
        case("enqueueMany", r#"{"jobs":null}"#, "invalid_request", Some("/jobs")),
        case("enqueueMany", r#"{"jobs":{}}"#, "invalid_request", Some("/jobs")),
        case(
            "enqueueMany",
            r#"{"jobs":[{"type":"probe","payload":{}}],"atomic":true}"#,
            "invalid_request",
            Some("/atomic"),
        ),
        case("enqueueMany", r#"{"jobs":[]}"#, "invalid_request", Some("/jobs")),
        case("enqueueMany", format!(r#"{{"jobs":[{}1]}}"#, "1,".repeat(1000)), "invalid_request", Some("/jobs")),
        case("getStats", r#"{"type":"probe"}"#, "invalid_request", Some("/type")),
        case("listTypes", r#"{"x":1}"#, "invalid_request", Some("/x")),
        case("pauseType", "{}", "invalid_request", Some("/type")),
        case("pauseType", r#"{"type":7}"#, "invalid_request", Some("/type")),
        case("getSchema", r#"{"verb":"drop"}"#, "invalid_request", Some("/verb")),
        case("getSchema", json!({"verb": "x".repeat(3000)}).to_string(), "invalid_request", Some("/verb")),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_cannot_hold_is_refused_before_it_gets_there() {
    let raw = |body: &[u8], code, path| case("enqueue", body, code, Some(path));
    let nested = |open: &str, close: &str, levels: usize| {
        format!(r#"{{"items":[{{"id":"a","data":{}1{}}}]}}"#, open.repeat(levels), close.repeat(levels))
    };
    let number = |n: &str| format!(r#"{{"items":[{{"id":"a","data":{n}}}]}}"#);
    const DATA: &str = "/payload/items/0/data";
    let mut cases = vec![
        payload("probe", r#"{"note":"a\u0000b"}"#, "/payload/note"),
        payload("probe", r#"{"note":"\u0000"}"#, "/payload/note"),
        payload("probe", r#"{"a\u0000":1}"#, "/payload"),
        payload("batch-import", r#"{"items":[{"id":"a","data":{"x":["\u0000"]}}]}"#, "/payload/items/0/data/x/0"),
        raw(b"{\"type\":\"probe\",\"payload\":{\"note\":\"a\0\"}}", "invalid_payload", "/payload/note"),
        raw(br#"{"type":"pro\u0000be","payload":{}}"#, "invalid_request", "/type"),
        raw(br#"{"type":"probe","payload":{},"x\u0000":1}"#, "invalid_request", ""),
        with(r#""tags":["ok","a\u0000"]"#, "/tags/1"),
        with(r#""idempotencyKey":"a\u0000b""#, "/idempotencyKey"),
        with(r#""runAt":"2026-01-01T00:00:00Z\u0000""#, "/runAt"),
        with(r#""delay":"1s\u0000""#, "/delay"),
        case("listJobs", r#"{"tag":"a\u0000"}"#, "invalid_request", Some("/tag")),
        case("listJobs", r#"{"type":"a\u0000"}"#, "invalid_request", Some("/type")),
        case("listJobs", r#"{"status":"a\u0000"}"#, "invalid_request", Some("/status")),
        case("listJobs", r#"{"cursor":"a\u0000"}"#, "invalid_request", Some("/cursor")),
        case("listJobs", r#"{"include":"\u0000"}"#, "invalid_request", Some("/include")),
        case(
            "cancelJob",
            r#"{"jobId":"0198c5a4-5d5c-7000-8000-000000000000","reason":"\u0000"}"#,
            "invalid_request",
            Some("/reason"),
        ),
        // Too deep: one level more than is taken, and as deep as fits into a request.
        payload("batch-import", nested("[", "]", 61), ""),
        payload("batch-import", nested("[", "]", 10_000), ""),
        payload("batch-import", nested("{\"a\":", "}", 61), ""),
        payload("batch-import", nested("{\"a\":", "}", 50_000), ""),
        payload("batch-import", number("1e131071"), DATA),
        payload("batch-import", number("-1e131071"), DATA),
        payload("batch-import", number("1e309"), DATA),
        payload("batch-import", number(&format!("1{}", "0".repeat(400))), DATA),
        payload("batch-import", number("9223372036854775808"), DATA),
        payload("batch-import", number("-9223372036854775809"), DATA),
        payload("probe", r#"{"sleepMs":18446744073709551616}"#, "/payload/sleepMs"),
        with(r#""priority":1e131071"#, "/priority"),
    ];
    // The pointer of a place so deep is long, so it is told shortened.
    for case in cases.iter_mut().filter(|case| case.path == Some("")) {
        case.path = None;
    }
    let (deep, plain): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.path.is_none());
    let (place, service) = start().await;
    for case in &deep {
        let asked = service.ask("enqueue", case.body.clone()).await;
        let told = asked.body["errors"][0]["path"].as_str().unwrap_or_default();
        let web = service.web_verb("enqueue", &case.body).await.unwrap();
        assert_eq!((web.status, web.json()), (400, asked.body.clone()), "both doors say the same");
        // A NUL in a key of the request itself is not below the payload.
        assert!(asked.body.to_string().len() < MAX_REFUSAL && matches!(told.len(), 0..=400), "{told}");
    }
    no_trace(&place).await;
    service.stop().await;
    refused_everywhere(plain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_with_the_limit() {
    let (place, service) = start().await;
    let job = |bytes: usize| json!({"type": "probe", "payload": {"note": "x".repeat(bytes - r#"{"note":""}"#.len())}});
    let limit = 512 * 1024;
    let case = case("enqueue", job(limit + 1).to_string(), "payload_too_large", None);
    refused(&service, &case).await.unwrap();
    let answer = service.post("/jobs", &job(limit + 1)).await;
    assert!(answer.json()["detail"].as_str().unwrap().contains("524288"), "{answer:?}");
    // Beyond what the broker takes there is only HTTP, and the body is not even read.
    let answer = service.post("/jobs", &job(3 << 20)).await;
    assert_eq!((answer.status, answer.code().as_deref()), (413, Some("payload_too_large")));
    let answer = service.post("/jobs/batch", &json!({"jobs": [job(9 << 20)]})).await;
    assert_eq!((answer.status, answer.code().as_deref()), (413, Some("payload_too_large")));
    no_trace(&place).await;
    // In a bulk request the one row is refused, and exactly the limit is taken.
    let rows = json!({"jobs": [job(limit + 1), job(limit)]});
    let answer = service.post("/jobs/batch", &rows).await.json();
    assert_eq!(answer["results"][0]["error"]["code"], "payload_too_large");
    assert_eq!(answer["results"][1]["status"], "pending");
    service.enqueue(job(limit)).await;
    works(&service).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_out_of_range_are_refused() {
    let mut cases = Vec::new();
    for n in ["10", "-10", "1.5", "1e30", "-1e30", "9223372036854775807", "2147483648", "32768", "\"high\""] {
        cases.push(with(&format!(r#""priority":{n}"#), "/priority"));
    }
    for n in ["0", "-1", "101", "2147483648", "1.5", "1e9"] {
        cases.push(with(&format!(r#""maxAttempts":{n}"#), "/maxAttempts"));
    }
    for span in [
        "-1",
        "-0.5",
        "0",
        "0.05",
        "\"99ms\"",
        "\"24h 1ms\"",
        "86401",
        "1e18",
        "1e300",
        "\"-1s\"",
        "\"5 parsecs\"",
        "\"\"",
        "\"30\"",
        "\"1e3s\"",
        "\"99999999999999999999s\"",
        "9223372036854775807",
    ] {
        cases.push(with(&format!(r#""timeout":{span}"#), "/timeout"));
    }
    for span in [
        "-1",
        "-0.001",
        "1e18",
        "1e300",
        "9223372036854775807",
        "\"-1s\"",
        "\"5 parsecs\"",
        "\"\"",
        "\" \"",
        "\"now\"",
        "\"11years\"",
        "\"99999999999999999999y\"",
        "\"P1D\"",
    ] {
        cases.push(with(&format!(r#""delay":{span}"#), "/delay"));
    }
    for at in [
        "",
        "now",
        "tomorrow",
        "infinity",
        "-infinity",
        "epoch",
        "2026-12-24",
        "2026-12-24T18:00:00",
        "2026-12-24 18:00",
        "2026-12-24T18:00Z",
        "9999-12-31T23:59:59Z",
        "+10000-01-01T00:00:00Z",
        "294277-01-01T00:00:00Z",
        "2099-01-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-12-24T24:00:00Z",
        "2026-12-24T18:00:61Z",
        "2026-12-24T18:00:00+25:00",
        "2026-12-24T18:00:00 Europe/Berlin",
        "1700000000",
        "-0001-01-01T00:00:00Z",
        "２026-12-24T18:00:00Z",
        "2026-12-24T18:00:00Z; DROP TABLE jobs",
    ] {
        cases.push(with(&format!(r#""runAt":{}"#, json!(at)), "/runAt"));
    }
    cases.push(with(r#""delay":"1s","runAt":"2026-12-24T18:00:00Z""#, "/runAt"));
    cases.push(with(r#""delay":0,"runAt":"2026-12-24T18:00:00Z""#, "/runAt"));
    cases.push(with(&format!(r#""tags":{}"#, json!(vec!["x"; 21])), "/tags"));
    cases.push(with(&format!(r#""tags":{}"#, json!(vec!["x"; 10_000])), "/tags"));
    cases.push(with(&format!(r#""tags":{}"#, json!(["a".repeat(64), "ä".repeat(65)])), "/tags/1"));
    cases.push(with(r#""tags":[""]"#, "/tags/0"));
    for key in [
        "".to_owned(),
        "k".repeat(256),
        "ä".repeat(256),
        "k".repeat(10_000),
        "a\nb".into(),
        "\u{7f}".into(),
        "\u{85}".into(),
    ] {
        cases.push(with(&format!(r#""idempotencyKey":{}"#, json!(key)), "/idempotencyKey"));
    }
    // Every fault of a request is told, not just the first.
    cases.push(with(r#""priority":99,"maxAttempts":0,"delay":"x""#, "/maxAttempts"));
    refused_everywhere(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_no_type_are_refused_and_the_known_ones_listed() {
    let mut cases = Vec::new();
    for name in [
        "",
        " ",
        "a.b",
        "*",
        ">",
        "probe.>",
        "a b",
        "probe ",
        " probe",
        "Probe",
        "PROBE",
        "..",
        ".",
        "$SYS",
        "$JS.API.INFO",
        "probe\r\nPUB x 0",
        "probe\n",
        "probe\t",
        "Ａ",
        "ｐｒｏｂｅ",
        "próbe",
        "probe_",
        "-probe",
        "1probe",
        "no-such-type",
        "probe' OR '1'='1",
        "<script>alert(1)</script>",
        "\u{202e}eborp",
        "\u{1b}[2J",
    ] {
        cases.push(case("enqueue", json!({"type": name, "payload": {}}).to_string(), "unknown_type", None));
        // A URL can't say what is resolved before it is sent.
        if !["", ".", ".."].contains(&name) {
            cases.push(case("pauseType", json!({"type": name}).to_string(), "unknown_type", None));
        }
    }
    for length in [64, 300, 5_000, 400_000] {
        let body = json!({"type": "a".repeat(length), "payload": {}}).to_string();
        cases.push(case("enqueue", body, "unknown_type", None));
    }
    refused_everywhere(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_type_in_the_subject_decides_and_the_body_may_not_differ() {
    let (place, service) = start().await;
    let body = r#"{"type":"send-email","payload":{}}"#;
    let refused = service.ask("enqueue.probe", body).await;
    assert_eq!((refused.code(), &refused.body["errors"][0]["path"]), (Some("invalid_request"), &json!("/type")));
    for token in ["no-such-type", "PROBE", "$SYS", "a_b", "Ａ", &"a".repeat(300)] {
        let refused = service.ask(&format!("enqueue.{token}"), r#"{"payload":{}}"#).await;
        assert_eq!(refused.code(), Some("unknown_type"), "{token}");
    }
    let many = json!({"jobs": [{"type": "send-email", "payload": {}}, {"payload": 1}]}).to_string();
    let answer = service.ask("enqueueMany.probe", many).await;
    let codes: Vec<&str> =
        answer.body["results"].as_array().unwrap().iter().map(|r| r["error"]["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["invalid_request", "invalid_payload"]);
    let refused = service.ask("pauseType.probe", r#"{"type":"send-email"}"#).await;
    assert_eq!(refused.code(), Some("invalid_request"));
    no_trace(&place).await;
    // A job of another type is not there for who may see one type only.
    let id = service.enqueue(json!({"type": "probe", "payload": {}})).await;
    service.finished(&id).await;
    for verb in ["getJob", "waitJob", "cancelJob", "retryJob"] {
        let refused = service.ask(&format!("{verb}.send-email"), id.clone()).await;
        assert_eq!(refused.code(), Some("job_not_found"), "{verb}");
    }
    let seen = service.call("listJobs.send-email", json!({"type": "probe"})).await;
    assert_eq!(seen["jobs"], json!([]));
    let stats = service.call("getStats.send-email", json!({})).await;
    assert_eq!((&stats["total"], &stats["byType"]["probe"]), (&json!(0), &Value::Null));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_none_are_refused_and_unknown_ones_not_found() {
    let unknown = "0198c5a4-5d5c-7000-8000-000000000000";
    let mut cases = Vec::new();
    for verb in ["getJob", "retryJob", "cancelJob", "waitJob"] {
        for id in [
            "1",
            " ",
            "null",
            "0198c5a4-5d5c-4000-8000-000000000000",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "0198C5A4-5D5C-7000-8000-00000000000A",
            "0198c5a45d5c70008000000000000000",
            "{0198c5a4-5d5c-7000-8000-000000000000}",
            "urn:uuid:0198c5a4-5d5c-7000-8000-000000000000",
            "0198c5a4-5d5c-7000-8000-000000000000 ",
            "0198c5a4-5d5c-7000-8000-00000000000g",
            "' OR 1=1 --",
            "../stats",
            "%00",
        ] {
            cases.push(case(verb, json!({"jobId": id}).to_string(), "invalid_request", Some("/jobId")));
        }
        let long = "0".repeat(10_000);
        cases.push(case(verb, json!({"jobId": long}).to_string(), "invalid_request", Some("/jobId")));
        cases.push(case(verb, r#"{"jobId":7}"#, "invalid_request", Some("/jobId")));
        cases.push(case(verb, "{}", "invalid_request", Some("")));
        cases.push(case(verb, "", "invalid_request", Some("")));
        for bare in ["1", "\"1\"", "[1]", "x y", "0198C5A4-5D5C-7000-8000-00000000000A", "'; DROP TABLE jobs; --"] {
            cases.push(case(verb, bare, "invalid_request", Some("/jobId")));
        }
        let found =
            if verb == "waitJob" { json!({"jobId": unknown, "timeoutMs": 0}) } else { json!({"jobId": unknown}) };
        cases.push(case(verb, found.to_string(), "job_not_found", None));
        cases.push(case(verb, unknown, "job_not_found", None));
    }
    cases.push(case("getJob", r#"{"jobId":""}"#, "invalid_request", Some("/jobId")));
    for ms in ["-1", "300001", "1.5", "1e30", "\"1s\"", "9223372036854775807"] {
        let body = format!(r#"{{"jobId":"{unknown}","timeoutMs":{ms}}}"#);
        cases.push(case("waitJob", body, "invalid_request", Some("/timeoutMs")));
    }
    let reason = json!({"jobId": unknown, "reason": "x".repeat(501)}).to_string();
    cases.push(case("cancelJob", reason, "invalid_request", Some("/reason")));
    refused_everywhere(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_values_and_pages_have_bounds() {
    let list = |request: &str, path| case("listJobs", request, "invalid_request", Some(path));
    let mut cases = vec![
        list(r#"{"sort":"createdAt"}"#, "/sort"),
        list(r#"{"status":5}"#, "/status"),
        list(r#"{"status":[5]}"#, "/status/0"),
        list(r#"{"status":"DONE"}"#, "/status"),
        list(r#"{"status":"Completed"}"#, "/status"),
        list(r#"{"status":["pending","' OR 1=1 --"]}"#, "/status/1"),
        list(r#"{"type":"probe' OR '1'='1"}"#, "/type"),
        list(r#"{"type":"*"}"#, "/type"),
        list(r#"{"type":""}"#, "/type"),
        list(r#"{"include":"secrets"}"#, "/include"),
        list(r#"{"cursor":7}"#, "/cursor"),
    ];
    for limit in ["0", "-1", "1001", "9223372036854775807", "1.5", "\"ten\"", "1e4"] {
        cases.push(list(&format!(r#"{{"limit":{limit}}}"#), "/limit"));
    }
    for offset in ["-1", "100001", "1000000000", "9223372036854775807", "0.5", "\"\""] {
        cases.push(list(&format!(r#"{{"offset":{offset}}}"#), "/offset"));
    }
    let forged = [
        "",
        "x",
        "AAAA",
        "AgGYxaRdXHAAgAAAAAAAAAAA",
        "' OR 1=1 --",
        "0198c5a4-5d5c-7000-8000-000000000000",
        "AZjFpF1ccA==",
    ];
    for cursor in forged.map(str::to_owned).into_iter().chain(["A".repeat(10_000)]) {
        cases.push(list(&json!({"cursor": cursor}).to_string(), "/cursor"));
    }
    // So many faults as fit into a request are not all told.
    let body = json!({"status": vec!["x"; 100_000]}).to_string();
    cases.push(case("listJobs", body, "invalid_request", Some("/status/0")));
    refused_everywhere(cases).await;
    let (_place, service) = start().await;
    let id = service.probe(json!({})).await;
    service.finished(&id).await;
    for tag in ["' OR '1'='1", "%", "_", "{}", "\\", "x\"); DROP TABLE jobs; --", &"t".repeat(100_000)] {
        let jobs = service.call("listJobs", json!({"tag": tag})).await;
        assert_eq!(jobs["jobs"], json!([]), "{tag:.40}");
    }
    assert_eq!(
        service.call("listJobs", json!({"status": vec!["completed"; 10_000]})).await["jobs"][0]["id"],
        json!(id)
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_names_one_content() {
    let (_place, service) = start().await;
    let first = json!({"type": "probe", "payload": {"note": "a"}, "idempotencyKey": "k", "tags": ["t"], "priority": 1});
    let id = service.enqueue(first.clone()).await;
    let before = service.call("getStats", json!({})).await["total"].clone();
    for (field, other) in [
        ("payload", json!({"note": "b"})),
        ("tags", json!(["t", "u"])),
        ("tags", Value::Null),
        ("priority", json!(2)),
        ("maxAttempts", json!(7)),
        ("timeout", json!("7s")),
        ("delay", json!("1h")),
        ("runAt", json!("2026-12-24T18:00:00Z")),
    ] {
        let mut request = first.clone();
        request[field] = other;
        let bad = case("enqueue", request.to_string(), "idempotency_conflict", None);
        refused(&service, &bad).await.unwrap_or_else(|e| panic!("{field}: {e}"));
    }
    // Another spelling of the same is the same.
    let same = r#"{"priority":1, "tags":["\u0074"],"payload":{"note":"\u0061"},"idempotencyKey":"k","type":"probe"}"#;
    let answer = service.ask("enqueue", same).await;
    assert_eq!((answer.code(), &answer.body["duplicate"], &answer.body["jobId"]), (None, &json!(true), &json!(id)));
    assert_eq!(service.call("getStats", json!({})).await["total"], before);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_header_for_the_key_obeys_the_rules_of_the_field() {
    let (place, service) = start().await;
    let body = r#"{"type":"probe","payload":{}}"#;
    let long = "k".repeat(256);
    for key in ["", &long, "a\tb"] {
        let answer = service.web("POST", "/jobs", &[("idempotency-key", key)], body).await;
        let problem = answer.json();
        assert_eq!((answer.status, &problem["errors"][0]["path"]), (400, &json!("/idempotencyKey")), "{key:.20}");
    }
    let both = r#"{"type":"probe","payload":{},"idempotencyKey":"a"}"#;
    assert_eq!(service.web("POST", "/jobs", &[("idempotency-key", "b")], both).await.status, 400);
    let twice = [("idempotency-key", "a"), ("idempotency-key", "a")];
    assert_eq!(service.web("POST", "/jobs", &twice, body).await.status, 400);
    let bulk = r#"{"jobs":[{"type":"probe","payload":{}}]}"#;
    assert_eq!(service.web("POST", "/jobs/batch", &[("idempotency-key", "a")], bulk).await.status, 400);
    no_trace(&place).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mails_that_would_be_two_are_refused_at_enqueue() {
    let mail = |field: &str, value: Value, path| {
        let mut mail = json!({"to": "ann@example.org", "subject": "Hello", "body": "It works."});
        mail[field] = value;
        payload("send-email", mail, path)
    };
    let mut cases = vec![
        payload("send-email", "{}", "/payload"),
        payload("send-email", r#"["ann@example.org","s","b",null,null,null,null,null]"#, "/payload"),
        mail("subject", json!("Hello\r\nBcc: eve@example.org"), "/payload/subject"),
        mail("subject", json!("Hello\nX: y"), "/payload/subject"),
        mail("subject", json!("Hello\r"), "/payload/subject"),
        mail("subject", json!("a\u{2028}b"), "/payload/subject"),
        mail("subject", json!("a\u{85}b"), "/payload/subject"),
        mail("subject", json!("x".repeat(999)), "/payload/subject"),
        mail("subject", json!(null), "/payload/subject"),
        mail("body", json!(7), "/payload/body"),
        mail("to", json!([]), "/payload/to"),
        mail("to", json!(["ann@example.org", 7]), "/payload/to/1"),
        mail("to", json!({"address": "ann@example.org"}), "/payload/to"),
        mail("to", json!(vec!["ann@example.org"; 51]), "/payload/to"),
        mail("to", json!((0..51).map(|n| format!("a{n}@example.org")).collect::<Vec<_>>()), "/payload/to"),
        mail("to", json!(["ann@example.org", "b@x\r\nBcc: eve@example.org"]), "/payload/to/1"),
        mail("cc", json!(["x"]), "/payload/cc/0"),
        mail("from", json!("Ann <ann@example.org>\r\nSender: eve@example.org"), "/payload/from"),
        mail("replyTo", json!("ann@example.org\r\nBcc: eve@example.org"), "/payload/replyTo"),
        mail("replyTo", json!("a@example.org, b@example.org"), "/payload/replyTo"),
    ];
    let local = format!("{}@example.org", "a".repeat(10_000));
    for to in [
        "",
        "ann",
        "@",
        "a@b\r\nBCC:x",
        "ann@example.org\n",
        "<script>@example.org",
        "friends: ann@example.org, bob@example.org;",
        "ann@example.org,bob@example.org",
        "ann@example.org> SIZE=1 <b@example.org",
        "ann@[127.0.0.1]",
        "ann@localhost\\",
        "ann@example.org.",
        "ann@-",
        &local,
    ] {
        if to != "ann@-" {
            cases.push(mail("to", json!(to), "/payload/to"));
            cases.push(mail("bcc", json!([to]), "/payload/bcc/0"));
        }
    }
    refused_everywhere(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_to_private_places_and_with_borrowed_headers_are_refused_at_enqueue() {
    let hook = |field: &str, value: Value, path| {
        let mut hook = json!({"url": "https://example.org/hook", "body": {}});
        hook[field] = value;
        payload("webhook-delivery", hook, path)
    };
    let mut cases = vec![
        payload("webhook-delivery", "{}", "/payload"),
        hook("url", json!(null), "/payload/url"),
        hook("body2", json!(1), "/payload/body2"),
        hook("headers", json!([["a", "b"]]), "/payload/headers"),
        hook("headers", json!({"a": 1}), "/payload/headers/a"),
        hook(
            "headers",
            json!((0..200).map(|n| (format!("x-{n}"), "v")).collect::<std::collections::BTreeMap<_, _>>()),
            "/payload/headers",
        ),
        hook("headers", json!({"X-A": "1", "x-a": "2"}), "/payload/headers/x-a"),
        hook("headers", json!({"x-a": "x".repeat(5000)}), "/payload/headers/x-a"),
    ];
    for url in [
        "",
        "x",
        "/hook",
        "example.org",
        "//example.org",
        "http://",
        "http:///",
        "file:///etc/passwd",
        "ftp://example.org/",
        "gopher://example.org/",
        "javascript:alert(1)",
        "data:text/plain,x",
        "unix:///run/x",
        "https://user:pw@example.org/",
        "https://user@example.org/",
        "http://example.org:22/",
        "http://example.org:25/",
        "http://example.org:0/",
        "http://example.org:99999/",
        "http://exa mple.org/",
        "http://example.org/\r\nHost: x",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://a.localhost/",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://①②⑦.0.0.1/",
        "http://127。0。0。1/",
        "http://0/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001::1]/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://[fec0::1]/",
        "http://[ff02::1]/",
        "http://[2001:db8::1]/",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://100.64.0.1/",
        "http://192.0.0.1/",
        "http://192.0.2.1/",
        "http://192.88.99.1/",
        "http://198.18.0.1/",
        "http://224.0.0.1/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
    ] {
        cases.push(hook("url", json!(url), "/payload/url"));
    }
    cases.push(hook("url", json!(format!("https://example.org/{}", "a".repeat(2048))), "/payload/url"));
    for method in ["CONNECT", "TRACE", "OPTIONS", "HEAD", "post", "", "POST /x", "GET\r\nX: y", "BREW"] {
        cases.push(hook("method", json!(method), "/payload/method"));
    }
    cases.push(hook("method", json!({"POST": null}), "/payload/method"));
    cases.push(hook("method", json!("GET"), "/payload/body"));
    for (name, path) in [
        ("Host", "/payload/headers/Host"),
        ("content-length", "/payload/headers/content-length"),
        ("Transfer-Encoding", "/payload/headers/Transfer-Encoding"),
        ("Connection", "/payload/headers/Connection"),
        ("Keep-Alive", "/payload/headers/Keep-Alive"),
        ("TE", "/payload/headers/TE"),
        ("Trailer", "/payload/headers/Trailer"),
        ("Upgrade", "/payload/headers/Upgrade"),
        ("Expect", "/payload/headers/Expect"),
        ("Proxy-Authorization", "/payload/headers/Proxy-Authorization"),
        ("proxy-connection", "/payload/headers/proxy-connection"),
        ("webhook-id", "/payload/headers/webhook-id"),
        ("Webhook-Signature", "/payload/headers/Webhook-Signature"),
        ("webhook-timestamp", "/payload/headers/webhook-timestamp"),
        ("", "/payload/headers/"),
        ("a b", "/payload/headers/a b"),
        ("a:", "/payload/headers/a:"),
        ("x\r\ny", "/payload/headers/x\r\ny"),
        (":authority", "/payload/headers/:authority"),
        ("ä", "/payload/headers/ä"),
        ("a/b~c\"", "/payload/headers/a~1b~0c\""),
    ] {
        cases.push(hook("headers", json!({name: "v"}), path));
    }
    for value in ["a\r\nHost: x", "a\nb", "a\rb", "\u{7f}", "ä", "a\u{1b}[2J"] {
        cases.push(hook("headers", json!({"x-a": value}), "/payload/headers/x-a"));
    }
    refused_everywhere(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_and_requests_to_models_are_checked_at_enqueue() {
    let items = |items: Value, path| payload("batch-import", json!({"items": items}), path);
    let content = |fields: &str, path| payload("generate-content", format!(r#"{{"prompt":"p",{fields}}}"#), path);
    let many = |n: usize| (0..n).map(|i| json!({"id": i.to_string(), "data": 0})).collect::<Value>();
    let mut cases = vec![
        payload("batch-import", "{}", "/payload"),
        items(json!([]), "/payload/items"),
        items(many(10_001), "/payload/items"),
        items(json!({}), "/payload/items"),
        items(json!([{"id": "a"}]), "/payload/items/0"),
        items(json!([{"data": 1}]), "/payload/items/0"),
        items(json!([{"id": 1, "data": 1}]), "/payload/items/0/id"),
        items(json!([["a", 1]]), "/payload/items/0"),
        items(json!([{"id": "a", "data": 1, "x": 1}]), "/payload/items/0/x"),
        items(json!([{"id": "", "data": 1}]), "/payload/items/0/id"),
        items(json!([{"id": "x".repeat(256), "data": 1}]), "/payload/items/0/id"),
        items(json!([{"id": "a\nb", "data": 1}]), "/payload/items/0/id"),
        items(json!([{"id": "a", "data": 1}, {"id": "a", "data": 2}]), "/payload/items/1/id"),
        payload("batch-import", json!({"items": [{"id": "a", "data": 1}], "namespace": ""}), "/payload/namespace"),
        payload(
            "batch-import",
            json!({"items": [{"id": "a", "data": 1}], "namespace": "n".repeat(101)}),
            "/payload/namespace",
        ),
        payload("generate-embedding", r#"{"text":""}"#, "/payload/text"),
        payload("generate-embedding", r#"{"text":["a"]}"#, "/payload/text"),
        payload("generate-embedding", r#"["a",null]"#, "/payload"),
        payload("generate-content", "{}", "/payload"),
        payload("generate-content", r#"{"prompt":""}"#, "/payload/prompt"),
        content(r#""type":"""#, "/payload/type"),
        content(r#""type":"a\nb""#, "/payload/type"),
        content(r#""maxTokens":0"#, "/payload/maxTokens"),
        content(r#""maxTokens":-1"#, "/payload/maxTokens"),
        content(r#""maxTokens":4294967296"#, "/payload/maxTokens"),
        content(r#""temperature":2.1"#, "/payload/temperature"),
        content(r#""temperature":-0.1"#, "/payload/temperature"),
    ];
    for model in ["", "a/../b", "..", "a\r\nX: y", "a b", "a?b", "a#b", "ä", &"m".repeat(1000)] {
        let model = json!(model);
        cases.push(content(&format!(r#""model":{model}"#), "/payload/model"));
        cases.push(payload("generate-embedding", format!(r#"{{"text":"t","model":{model}}}"#), "/payload/model"));
    }
    refused_everywhere(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crawls_are_checked_at_enqueue() {
    let crawl = |fields: &str, path| {
        payload("crawl-website", format!(r#"{{"url":"https://example.org/","selectors":{{}},{fields}}}"#), path)
    };
    let select = |name: &str, css: &str, path| {
        payload("crawl-website", json!({"url": "https://example.org/", "selectors": {name: css}}), path)
    };
    let mut cases = vec![
        payload("crawl-website", "{}", "/payload"),
        payload("crawl-website", r#"["https://example.org/",1,{}]"#, "/payload"),
        payload("crawl-website", r#"{"url":"https://example.org/","selectors":["h1"]}"#, "/payload/selectors"),
        payload("crawl-website", r#"{"url":"https://example.org/","selectors":{"a":1}}"#, "/payload/selectors/a"),
        crawl(r#""depth":3"#, "/payload/depth"),
        select("a", "", "/payload/selectors/a"),
        select("a", "h1[", "/payload/selectors/a"),
        select("a", ">>", "/payload/selectors/a"),
        select("a", &"a".repeat(10_000), "/payload/selectors/a"),
        select("", "h1", "/payload/selectors/"),
        select("a\nb", "h1", "/payload/selectors/a\nb"),
        select(
            &"n".repeat(65),
            "h1",
            "/payload/selectors/nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
        ),
    ];
    let many: Value = (0..1000).map(|n| (n.to_string(), json!("h1"))).collect::<serde_json::Map<_, _>>().into();
    cases.push(payload(
        "crawl-website",
        json!({"url": "https://example.org/", "selectors": many}),
        "/payload/selectors",
    ));
    for pages in ["0", "-1", "101", "1.5", "\"10\"", "4294967296"] {
        cases.push(crawl(&format!(r#""maxPages":{pages}"#), "/payload/maxPages"));
    }
    for url in
        ["", "example.org", "file:///etc/passwd", "http://127.0.0.1/", "http://[::1]/", "http://u:p@example.org/"]
    {
        cases.push(payload("crawl-website", json!({ "url": url }), "/payload/url"));
    }
    refused_everywhere(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_row_harms_no_other() {
    let (_place, service) = start().await;
    let bad = [
        "5".to_owned(),
        "[]".into(),
        "null".into(),
        "{}".into(),
        r#"{"type":"nope","payload":{}}"#.into(),
        r#"{"type":"probe","payload":{"note":"\u0000"}}"#.into(),
        r#"{"type":"probe","payload":{"note":"\ud800"}}"#.into(),
        r#"{"type":"probe","payload":{"note":1e999}}"#.into(),
        r#"{"type":"probe","type":"probe","payload":{}}"#.into(),
        r#"{"type":"probe","payload":{},"priority":10}"#.into(),
        r#"{"type":"probe","payload":{},"tags":["\u0000"]}"#.into(),
        r#"{"type":"probe","payload":{},"idempotencyKey":""}"#.into(),
        format!(r#"{{"type":"probe","payload":{}{}}}"#, "[".repeat(100), "]".repeat(100)),
    ];
    let good = |n: usize| format!(r#"{{"type":"probe","payload":{{"note":"{n}"}}}}"#);
    let rows: Vec<String> = bad.iter().enumerate().flat_map(|(n, bad)| [bad.clone(), good(n)]).collect();
    let body = format!(r#"{{"jobs":[{}]}}"#, rows.join(","));
    let by_rpc = service.ask("enqueueMany", body.clone()).await;
    assert_eq!(by_rpc.code(), None, "{}", by_rpc.body);
    let by_http = service.web_verb("enqueueMany", body.as_bytes()).await.unwrap().json();
    for answer in [&by_rpc.body, &by_http] {
        for (n, pair) in answer["results"].as_array().unwrap().chunks(2).enumerate() {
            assert!(pair[0]["error"]["status"].as_u64().is_some_and(|s| s == 400), "{n}: {}", pair[0]);
            let job = service.finished(pair[1]["jobId"].as_str().unwrap_or_else(|| panic!("{}", pair[1]))).await;
            assert_eq!(job["result"]["note"], json!(n.to_string()));
        }
    }
    let codes = |answer: &Value| -> Vec<Value> {
        answer["results"].as_array().unwrap().iter().map(|row| row["error"].clone()).collect()
    };
    assert_eq!(codes(&by_rpc.body), codes(&by_http));
    let total = service.call("getStats", json!({})).await["total"].clone();
    assert_eq!(total, json!(2 * bad.len()));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_between_good_ones_in_a_shared_batch_harm_none() {
    let (_place, service) = start().await;
    let bad = [
        r#"{"type":"probe","payload":{"note":"\u0000"}}"#,
        r#"{"type":"probe","payload":{},"tags":["\u0000"]}"#,
        r#"{"type":"probe","payload":{},"runAt":"infinity"}"#,
        r#"{"type":"probe","payload":{},"idempotencyKey":"other content","priority":3}"#,
    ];
    service.enqueue(json!({"type": "probe", "payload": {}, "idempotencyKey": "other content"})).await;
    let asked = (0..200usize).map(|n| {
        let body = match n % 2 {
            0 => format!(r#"{{"type":"probe","payload":{{"note":"{n}"}}}}"#),
            _ => bad[(n / 2) % bad.len()].to_owned(),
        };
        let service = &service;
        async move { service.ask("enqueue", body).await }
    });
    for (n, answer) in futures_util::future::join_all(asked).await.into_iter().enumerate() {
        match n % 2 {
            0 => {
                let job = service.finished(answer.body["jobId"].as_str().unwrap_or_else(|| panic!("{answer:?}"))).await;
                assert_eq!(job["result"]["note"], json!(n.to_string()));
            }
            _ => assert!(answer.code().is_some(), "{answer:?}"),
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_a_bulk_of_bad_rows_still_fits_into_a_message() {
    let (_place, service) = start().await;
    let faulty =
        format!(r#"{{"type":"batch-import","payload":{{"items":[{}]}}}}"#, vec![r#"{"id":"","data":0}"#; 40].join(","));
    let mut rows = vec![faulty; 999];
    rows.push(r#"{"type":"probe","payload":{}}"#.into());
    let answer = service.ask("enqueueMany", format!(r#"{{"jobs":[{}]}}"#, rows.join(","))).await;
    assert_eq!(answer.code(), None, "{:.300}", answer.body.to_string());
    let results = answer.body["results"].as_array().unwrap();
    assert!(results[..999].iter().all(|row| row["error"]["code"] == "invalid_payload"));
    assert_eq!(results[0]["error"]["errors"].as_array().unwrap().len(), 20);
    service.finished(results[999]["jobId"].as_str().unwrap()).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_but_good_values_are_kept_as_they_were_sent() {
    let (_place, service) = start().await;
    let data =
        r#"[-0,1.0,1E2,1e300,5e-324,-9223372036854775808,9007199254740993,"\u00e4\ud83d\ude00\u007f\u2028",{"":{}}]"#;
    let body =
        format!(r#"{{"type":"batch-import","payload":{{"items":[{{"id":"a","data":{data}}}],"namespace":"ns"}}}}"#);
    let id = service.ask("enqueue", body).await.body["jobId"].as_str().unwrap().to_owned();
    service.finished(&id).await;
    let text = service.get(&format!("/jobs/{id}")).await.text;
    assert!(text.contains(data), "{text}");
    let deep = format!("{}1{}", "[".repeat(60), "]".repeat(60));
    let body = format!(r#"{{"type":"batch-import","payload":{{"items":[{{"id":"b","data":{deep}}}]}}}}"#);
    let id = service.ask("enqueue", body).await.body["jobId"].as_str().unwrap().to_owned();
    assert_eq!(service.finished(&id).await["status"], "completed");
    for (fields, due) in [
        (r#""runAt":"0001-01-01T00:00:00Z""#, true),
        (r#""runAt":"0000-01-01T00:00:00Z""#, true),
        (r#""runAt":"1969-12-31T23:59:60Z""#, true),
        (r#""runAt":"2016-12-31T23:59:60Z""#, true),
        (r#""delay":0"#, true),
        (r#""delay":"0s""#, true),
        (r#""delay":0.25"#, true),
        (r#""runAt":"2030-06-30t23:59:60.5z""#, false),
        (r#""runAt":"2030-06-30T23:59:59.999999999+14:00""#, false),
        (r#""delay":"9years 11months""#, false),
    ] {
        let body = format!(r#"{{"type":"probe","payload":{{}},{fields},"tags":["{}"]}}"#, "ä".repeat(64));
        let answer = service.ask("enqueue", body).await;
        let id = answer.body["jobId"].as_str().unwrap_or_else(|| panic!("{fields}: {}", answer.body)).to_owned();
        if due {
            assert_eq!(service.finished(&id).await["status"], "completed", "{fields}");
        } else {
            let planned = service.job(&id).await;
            assert_eq!(planned["status"], "pending", "{fields}");
            assert!(planned["runAt"].as_str().unwrap() > "2030", "{planned}");
        }
    }
    service.stop().await;
}
