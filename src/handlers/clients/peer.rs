//! Servers that tests speak with: anything that axum can answer, on a free port of the loopback.

use std::{collections::BTreeMap, future::Future, io, net::IpAddr, pin::Pin, sync::Arc};

use axum::{Router, body::Body, extract::Request, response::Response};
use bytes::Bytes;
use url::Url;

use super::fetch::Lookup;

/// A server that lives as long as the test's runtime.
pub(crate) struct Peer {
    pub(crate) port: u16,
}

impl Peer {
    /// Answers every request by `answer`.
    pub(crate) async fn start<F, A>(answer: F) -> Self
    where
        F: Fn(Request) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Response> + Send,
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Router::new().fallback(move |request: Request| answer(request));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { port }
    }

    /// The URL of `path` on this server.
    pub(crate) fn url(&self, path: &str) -> Url {
        Url::parse(&format!("http://127.0.0.1:{}{path}", self.port)).unwrap()
    }
}

/// An answer with a text as body.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

/// A body of `count` times `chunk`, made while it is read.
pub(crate) fn repeated(chunk: Bytes, count: usize) -> Body {
    Body::from_stream(futures_util::stream::iter((0..count).map(move |_| Ok::<_, io::Error>(chunk.clone()))))
}

/// The start of a gzip stream that unpacks to about `unpacked` bytes of `x` and then breaks off; 160 times smaller.
pub(crate) fn gzip_bomb(unpacked: usize) -> Vec<u8> {
    // Header, then one deflate block with fixed codes: the literal 'x' once, then "258 bytes from one byte back".
    let mut bits: Vec<bool> = vec![true, true, false];
    let mut code = |value: u16, len: u32| (0..len).rev().for_each(|bit| bits.push(value >> bit & 1 == 1));
    code(0x30 + u16::from(b'x'), 8);
    for _ in 0..unpacked / 258 {
        code(0b1100_0101, 8);
        code(0, 5);
    }
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    bytes.extend(bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |acc, bit| acc << 1 | u8::from(*bit))));
    bytes
}

/// Names with fixed addresses; any other is unknown.
#[derive(Clone, Default)]
pub(crate) struct Names(Arc<BTreeMap<String, Vec<IpAddr>>>);

impl Names {
    pub(crate) fn new(names: &[(&str, &[IpAddr])]) -> Self {
        Self(Arc::new(names.iter().map(|(name, ips)| ((*name).to_owned(), ips.to_vec())).collect()))
    }
}

impl Lookup for Names {
    fn lookup(&self, name: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        let found = self.0.get(&name).cloned();
        Box::pin(async move { found.ok_or_else(|| io::Error::other("no such name")) })
    }
}
