//! The door on a real socket, with nothing behind it: neither Postgres nor NATS answers. What holds even then.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{
    broker::{Broker, Publisher},
    config::Config,
    handlers::Registry,
    outside::Callers,
    store::Store,
    types::Types,
};

struct Lonely {
    address: SocketAddr,
    stop: CancellationToken,
    tasks: Tasks,
}

async fn lonely(http: config::Http) -> Lonely {
    let mut config = Config { http, ..Config::default() };
    // Port 1 refuses at once.
    config.database.url = "postgres://127.0.0.1:1/queue".into();
    config.nats.url = "nats://127.0.0.1:1".into();
    config.http.bind.set_port(0);
    let config = Arc::new(config);
    let (stop, tasks) = (CancellationToken::new(), Tasks::default());
    let store = Store::open(&config.database).unwrap();
    let broker = Broker::connect(&config.nats, &config.background).await.unwrap();
    let publisher = Publisher::start(&broker, tasks.supervisor()).await.unwrap();
    let callers = Callers::new(&store, &broker, &config, "lonely").unwrap();
    let types = Types::new(config.clone(), &Registry::default(), callers).unwrap();
    let deps = crate::ops::Deps { store, broker, publisher, config: config.clone(), types, relay: Arc::default() };
    let ops = Ops::new(deps, Default::default(), &tasks);
    let panics = Router::new().route("/panics", axum::routing::get(async || -> &'static str { panic!("on purpose") }));
    let address = start(ops, &config.http, panics, stop.clone(), &tasks).await.unwrap();
    Lonely { address, stop, tasks }
}

/// Sends bytes and reads all that comes until the connection ends.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await.expect("it ends");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn ask(lonely: &Lonely, head: &str) -> String {
    let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
    let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
    raw(lonely.address, format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n").as_bytes())
        .await
}

fn is(answer: &str, status: u16, code: &str) -> bool {
    answer.starts_with(&format!("HTTP/1.1 {status} "))
        && answer.contains("content-type: application/problem+json\r\n")
        && answer.contains(&format!("\"code\":\"{code}\""))
}

#[tokio::test]
async fn every_refusal_is_a_problem() {
    let door = lonely(config::Http::default()).await;
    for (head, status, code) in [
        ("GET /nowhere", 404, "not_found"),
        ("GET /jobs/%ff", 400, "invalid_request"),
        ("GET /jobs/1", 400, "invalid_request"),
        ("GET /jobs/", 400, "invalid_request"),
        ("GET /jobs?limt=1", 400, "invalid_request"),
        ("PUT /jobs", 405, "method_not_allowed"),
        ("POST /stats", 405, "method_not_allowed"),
        ("GET /problems/none", 404, "not_found"),
        ("GET /panics", 500, "internal"),
        ("GET /stats", 503, "unavailable"),
        ("GET /metrics", 503, "unavailable"),
        ("POST /jobs\nContent-Length: 0", 400, "invalid_json"),
        ("POST /jobs\nContent-Type: text/plain\nContent-Length: 0", 400, "invalid_request"),
        ("POST /jobs\nSec-Fetch-Site: cross-site\nContent-Length: 0", 403, "forbidden"),
        ("POST /jobs\nContent-Length: 900000000\nExpect: 100-continue", 413, "payload_too_large"),
    ] {
        let answer = ask(&door, head).await;
        assert!(is(&answer, status, code), "{head}: {answer}");
        assert!(answer.contains("x-content-type-options: nosniff") && answer.contains("cache-control: no-store"));
    }
    let answer = ask(&door, "PUT /jobs").await;
    let allow = answer.lines().find_map(|line| line.strip_prefix("allow: ")).expect("Allow is there");
    assert!(["GET", "HEAD", "POST"].iter().all(|method| allow.contains(method)), "{allow}");
    assert!(ask(&door, "GET /stats").await.contains("retry-after: 2\r\n"));
    assert!(!ask(&door, "GET /panics").await.contains("on purpose"));
}

#[tokio::test]
async fn pages_and_probes_answer_without_the_others() {
    let door = lonely(config::Http::default()).await;
    for (path, status, text) in [
        ("/health/live", 200, "\"ok\""),
        ("/health/ready", 503, "Postgres"),
        ("/health", 503, "\"unavailable\""),
        ("/openapi.json", 200, "\"3.1.0\""),
        ("/docs", 200, "enqueueMany"),
        ("/style.css", 200, "color-scheme"),
        ("/schemas/enqueue", 200, "idempotencyKey"),
        ("/problems/not-found", 303, "location: /docs#not-found"),
        ("/", 200, "unavailable"),
    ] {
        let answer = ask(&door, &format!("GET {path}")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text), "{path}: {answer}");
        let head = ask(&door, &format!("HEAD {path}")).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")) && head.ends_with("\r\n\r\n"), "{path}: {head}");
    }
}

#[tokio::test]
async fn with_a_token_only_probes_answer_without_it() {
    let token = Some("s3cret".to_owned().into());
    let door = lonely(config::Http { token, ..config::Http::default() }).await;
    assert!(ask(&door, "GET /health/live").await.starts_with("HTTP/1.1 200 "));
    let refused = ask(&door, "GET /openapi.json").await;
    assert!(is(&refused, 401, "unauthenticated") && refused.contains("www-authenticate: Bearer"), "{refused}");
    let answer = ask(&door, "GET /openapi.json\nAuthorization: Bearer s3cret").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn what_two_servers_could_read_differently_is_refused_and_the_connection_ends() {
    let door = lonely(config::Http::default()).await;
    let hidden = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for headers in [
        "Content-Length: 4\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 40",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Content-Length: 4\nX: y",
        "X: a\r\n b",
    ] {
        let request = format!("POST /jobs HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n0\r\n\r\n{hidden}");
        let answer = raw(door.address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{headers:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {answer}");
    }
    // Chunks are fine, and several requests on one connection as well.
    let twice = format!("{hidden}GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(raw(door.address, twice.as_bytes()).await.matches("HTTP/1.1 200 ").count(), 2);
    let chunked = "POST /jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    assert!(is(&raw(door.address, chunked.as_bytes()).await, 400, "invalid_request"));
}

#[tokio::test]
async fn a_request_that_was_chunked_is_the_last_one_on_its_connection() {
    let door = lonely(config::Http::default()).await;
    let request = "POST /jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
        GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = raw(door.address, request.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test]
async fn other_names_than_local_ones_are_refused() {
    let door = lonely(config::Http::default()).await;
    for (host, status) in [("evil.example", 403), ("127.0.0.1", 200), ("[::1]:80", 200), ("", 400)] {
        let request = format!("GET /health/live HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = raw(door.address, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
}

#[tokio::test]
async fn a_large_body_is_refused_and_the_refusal_is_seen() {
    let door = lonely(config::Http::default()).await;
    let size = 3 << 20;
    let mut request = format!("POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n").into_bytes();
    request.resize(request.len() + size, b'x');
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let mut answer = vec![0; 2048];
    let n = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
    assert!(is(&answer, 413, "payload_too_large") && answer.contains("the limit is 1048576 bytes"), "{answer}");
}

#[tokio::test]
async fn a_head_must_arrive_in_time() {
    let door = lonely(config::Http::default()).await;
    let began = Instant::now();
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    let slow = async {
        for byte in b"GET /health/live HTTP/1.1\r\nX-Slow: ".iter().cycle() {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), slow).await.expect("the connection ends");
    assert!(began.elapsed() > Duration::from_secs(9), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stop_ends_idle_connections_at_once_and_lets_open_requests_finish() {
    let door = lonely(config::Http::default()).await;
    let _fresh = TcpStream::connect(door.address).await.unwrap();
    let mut idle = TcpStream::connect(door.address).await.unwrap();
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut buffer = [0; 4096];
    assert!(idle.read(&mut buffer).await.unwrap() > 0);
    // Without a database this takes a while.
    let mut open = TcpStream::connect(door.address).await.unwrap();
    open.write_all(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    door.stop.cancel();
    door.tasks.close();
    let began = Instant::now();
    let mut answer = String::new();
    open.read_to_string(&mut answer).await.unwrap();
    assert!(is(&answer, 503, "unavailable"), "{answer}");
    tokio::time::timeout(Duration::from_secs(3), door.tasks.wait()).await.expect("every task ends, none holds Ops");
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(idle.read(&mut buffer).await.unwrap(), 0);
    assert!(TcpStream::connect(door.address).await.is_err(), "nobody listens any more");
}
