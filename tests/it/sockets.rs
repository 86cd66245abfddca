//! Peers that take their time, or come in masses, cost the others nothing.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use crate::harness::{PATIENCE, Running, start};

/// As in `src/http/listen.rs`.
const MAX_CONNECTIONS: usize = 1024;

async fn connect(service: &Running) -> TcpStream {
    TcpStream::connect(service.service.http_address().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_cap_wait_until_another_ends() {
    // Both ends of every connection are in this process.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let (_place, service) = start().await;
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        open.push(connect(&service).await);
    }
    let mut late = connect(&service).await;
    late.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    assert!(timeout(Duration::from_millis(300), late.read_to_string(&mut answer)).await.is_err(), "{answer}");
    // NATS is another door.
    let id = service.probe(json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed");
    open.pop();
    timeout(PATIENCE, late.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(open);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_or_reads_nothing_any_more_is_let_go_after_half_a_minute() {
    let (_place, service) = start().await;
    let began = Instant::now();
    let body_that_stops = async {
        let mut stream = connect(&service).await;
        stream.write_all(b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{").await.unwrap();
        let mut answer = vec![0; 4096];
        let n = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("did not arrive within 30 s"), "{answer}");
        assert!((30..36).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    };
    let reader_that_stops = async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(service.service.http_address().unwrap()).await.unwrap();
        // More answers than any buffers on the way can hold.
        const ASKED: usize = 500;
        let requests = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(ASKED);
        let sent = timeout(Duration::from_secs(34), stream.write_all(&requests)).await;
        sleep(Duration::from_secs(34).saturating_sub(began.elapsed())).await;
        let mut answers = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut answers)).await;
        assert!(ended.is_ok(), "still open after {:?}; sent: {sent:?}", began.elapsed());
        let got = answers.windows(9).filter(|w| w == b"HTTP/1.1 ").count();
        assert!(got < ASKED, "{got} answers were sent to nobody");
    };
    let others = async {
        while began.elapsed() < Duration::from_secs(30) {
            assert_eq!(service.get("/health/live").await.status, 200);
            sleep(Duration::from_secs(2)).await;
        }
    };
    tokio::join!(body_that_stops, reader_that_stops, others);
    service.stop().await;
}
