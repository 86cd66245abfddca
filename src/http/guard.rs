//! A connection's bytes with deadlines: a head must arrive in time, an answer must be read in time.
//!
//! hyper's own timer counts the idle time between requests as well, so it can't be short.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::framing::{Ambiguity, Framing};

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a head, from its first byte (or, for the first request, from the connection) to its end.
    pub head: Duration,
    /// Without taking anything of an answer.
    pub stall: Duration,
}

/// What the bytes of a connection gave away; shared with the service that answers its requests.
#[derive(Clone, Debug, Default)]
pub struct Verdict(Arc<OnceLock<Ambiguity>>);

impl Verdict {
    pub fn ambiguity(&self) -> Option<Ambiguity> {
        self.0.get().copied()
    }
}

/// A stream that is watched.
pub struct Guard<S> {
    stream: S,
    framing: Framing,
    verdict: Verdict,
    patience: Patience,
    head: Option<Pin<Box<Sleep>>>,
    stall: Option<Pin<Box<Sleep>>>,
}

impl<S> Guard<S> {
    pub fn new(stream: S, patience: Patience) -> (Self, Verdict) {
        let verdict = Verdict::default();
        let guard = Self {
            stream,
            framing: Framing::default(),
            verdict: verdict.clone(),
            patience,
            head: Some(Box::pin(sleep(patience.head))),
            stall: None,
        };
        (guard, verdict)
    }

    fn seen(&mut self, bytes: &[u8]) {
        if let Err(ambiguity) = self.framing.feed(bytes) {
            let _ = self.verdict.0.set(ambiguity);
        }
        if !self.framing.in_head() {
            self.head = None;
        } else if self.head.is_none() {
            self.head = Some(Box::pin(sleep(self.patience.head)));
        }
    }

    /// Passes on what a write said, unless it has been pending for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let patience = self.patience.stall;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(late("the peer reads nothing of the answer")))
    }
}

fn late(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                self.seen(&buf.filled()[before..]);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                if let Some(head) = &mut self.head {
                    ready!(head.as_mut().poll(cx));
                    return Poll::Ready(Err(late("the head of a request did not arrive in time")));
                }
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const SHORT: Patience = Patience { head: Duration::from_millis(50), stall: Duration::from_millis(50) };

    #[tokio::test]
    async fn a_head_that_drips_is_cut_off_although_bytes_keep_coming() {
        let (mut client, server) = duplex(64);
        let (mut guard, _) = Guard::new(server, SHORT);
        let dripping = tokio::spawn(async move {
            while client.write_all(b"a").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let error = loop {
            if let Err(e) = guard.read_u8().await {
                break e;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(guard);
        dripping.await.unwrap();
    }

    #[tokio::test]
    async fn between_requests_there_is_no_deadline_here() {
        let (mut client, server) = duplex(64);
        let (mut guard, verdict) = Guard::new(server, SHORT);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        guard.read_exact(&mut [0; 18]).await.unwrap();
        let idle = tokio::time::timeout(SHORT.head * 3, guard.read_u8()).await;
        assert!(idle.is_err(), "not open any more: {idle:?}");
        assert_eq!(verdict.ambiguity(), None);
    }

    #[tokio::test]
    async fn a_peer_that_reads_nothing_is_let_go() {
        let (_client, server) = duplex(8);
        let (mut guard, _) = Guard::new(server, SHORT);
        let error = guard.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
