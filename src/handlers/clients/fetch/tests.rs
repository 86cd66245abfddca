//! Real sockets, bad peers.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;

use super::{super::peer::*, *};
use crate::job::FailureKind;

const SECOND: Duration = Duration::from_secs(1);
const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const PUBLIC: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 8, 8));

fn open() -> Fetcher {
    Fetcher::new("test", &AllowPrivate::All(true)).unwrap()
}

fn closed(names: Names) -> Fetcher {
    Fetcher::with_lookup("test", &AllowPrivate::All(false), Arc::new(names)).unwrap()
}

async fn get(fetcher: &Fetcher, url: &str, timeout: Duration) -> Result<Response, Error> {
    fetcher.send(Request::get(&Url::parse(url).unwrap(), timeout)).await
}

#[tokio::test]
async fn a_literal_private_address_is_never_connected_to() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let error = get(&closed(Names::default()), &url, SECOND).await.err().unwrap();
    assert!(matches!(error, Error::Refused(Refused::Private(LOOPBACK))), "{error}");
    assert_eq!(error.into_failure().kind, FailureKind::Permanent);
    let nobody_came = tokio::time::timeout(Duration::ZERO, listener.accept()).await.is_err();
    assert!(nobody_came);
}

#[tokio::test]
async fn a_name_is_refused_when_any_of_its_addresses_is_private() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
    let names = Names::new(&[
        ("inside.example", &[LOOPBACK]),
        ("mixed.example", &[PUBLIC, LOOPBACK]),
        ("mapped.example", &[mapped]),
    ]);
    let fetcher = closed(names);
    for host in ["inside.example", "mixed.example", "mapped.example"] {
        let error = get(&fetcher, &format!("http://{host}:{port}/"), SECOND).await.err().unwrap();
        assert!(matches!(error, Error::Refused(Refused::Private(LOOPBACK))), "{host}: {error}");
    }
}

#[tokio::test]
async fn a_name_in_an_allowed_network_is_asked_at_the_checked_address() {
    let peer =
        Peer::start(|request| async move { answer(200, &[], request.headers()["host"].to_str().unwrap().to_owned()) })
            .await;
    let names = Arc::new(Names::new(&[("inside.example", &[LOOPBACK])]));
    let allow = AllowPrivate::Only(vec!["127.0.0.0/8".parse().unwrap()]);
    let fetcher = Fetcher::with_lookup("test", &allow, names).unwrap();
    let response = get(&fetcher, &format!("http://inside.example:{}/", peer.port), SECOND).await.unwrap();
    let expected = format!("inside.example:{}", peer.port);
    assert_eq!(response.body(100).await.unwrap().bytes, expected.as_bytes());
}

#[tokio::test]
async fn an_unknown_name_and_a_closed_port_are_worth_another_attempt() {
    let error = get(&closed(Names::default()), "http://nowhere.example/secret?token=1", SECOND).await.err().unwrap();
    assert_eq!(error.to_string(), "the name of http://nowhere.example could not be resolved: no such name");
    assert_eq!(error.into_failure().kind, FailureKind::Error);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let error = get(&open(), &url, SECOND).await.err().unwrap();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert_eq!(error.into_failure().kind, FailureKind::Error);
}

#[tokio::test]
async fn a_server_that_never_answers_costs_no_more_than_the_timeout() {
    let peer = Peer::start(|_| std::future::pending()).await;
    let error = get(&open(), peer.url("/").as_str(), Duration::from_millis(50)).await.err().unwrap();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(error.into_failure().kind, FailureKind::Error);
}

#[tokio::test]
async fn the_timeout_covers_a_body_that_never_ends() {
    let peer = Peer::start(|_| async {
        let dripping = futures_util::stream::pending::<Result<Bytes, io::Error>>();
        answer(200, &[], axum::body::Body::from_stream(dripping))
    })
    .await;
    let response = get(&open(), peer.url("/").as_str(), Duration::from_millis(50)).await.unwrap();
    let error = response.body(10).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_middle_is_worth_another_attempt() {
    let peer = Peer::start(|_| async { answer(200, &[("content-length", "100")], "short") }).await;
    let response = get(&open(), peer.url("/").as_str(), SECOND).await.map(|r| r.status());
    // hyper refuses to send such an answer, so the connection just closes.
    let error = response.err().unwrap();
    assert!(matches!(error, Error::Broken { .. }), "{error}");
}

#[tokio::test]
async fn plain_text_on_a_tls_port_is_a_failed_connection() {
    let peer = Peer::start(|_| async { answer(200, &[], "") }).await;
    let error = get(&open(), &format!("https://127.0.0.1:{}/", peer.port), SECOND).await.err().unwrap();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_body_is_read_up_to_its_cap_and_no_further() {
    let peer = Peer::start(|_| async { answer(200, &[], repeated(Bytes::from_static(&[b'x'; 1024]), 1 << 20)) }).await;
    let body = get(&open(), peer.url("/").as_str(), 5 * SECOND).await.unwrap().body(5000).await.unwrap();
    assert_eq!((body.bytes.len(), body.cut), (5000, true));
}

#[tokio::test]
async fn a_gzip_bomb_is_counted_by_what_it_unpacks_to() {
    let bomb = gzip_bomb(50 << 20);
    assert!(bomb.len() < 400 << 10);
    let peer = Peer::start(move |_| {
        let bomb = bomb.clone();
        async move { answer(200, &[("content-encoding", "gzip")], bomb) }
    })
    .await;
    let body = get(&open(), peer.url("/").as_str(), 5 * SECOND).await.unwrap().body(1 << 20).await.unwrap();
    assert_eq!((body.bytes.len(), body.cut), (1 << 20, true));
    assert!(body.bytes.iter().all(|b| *b == b'x'));
}

#[tokio::test]
async fn redirects_are_told_and_not_followed() {
    let peer = Peer::start(|request| async move {
        match request.uri().path() {
            "/away" => answer(302, &[("location", "http://169.254.169.254/latest/meta-data")], ""),
            "/near" => answer(308, &[("location", "next#part")], ""),
            _ => answer(200, &[("location", "/x")], ""),
        }
    })
    .await;
    let fetcher = open();
    let response = get(&fetcher, peer.url("/away").as_str(), SECOND).await.unwrap();
    let next = response.redirect().unwrap();
    assert_eq!(next.as_str(), "http://169.254.169.254/latest/meta-data");
    assert!(closed(Names::default()).guard().check(&next).is_err());
    let near = get(&fetcher, peer.url("/near").as_str(), SECOND).await.unwrap();
    assert_eq!(near.redirect(), Some(peer.url("/next")));
    assert_eq!(get(&fetcher, peer.url("/ok").as_str(), SECOND).await.unwrap().redirect(), None);
}
