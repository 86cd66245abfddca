//! A wire between two programs that a test can cut, slow down, or silence in the way a failing network does.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They arrive.
    Pass,
    /// Connections are made and stay open, and nothing arrives any more on any of them: not even later.
    Blackhole,
    /// What is asked never arrives, and the other side goes on talking.
    LostRequests,
    /// What is asked arrives and is carried out; what is answered never arrives.
    LostAnswers,
    /// As that, on the connections that ask for something with this text, from that request on.
    LostAnswersTo(&'static str),
    /// Everything arrives, each piece so much later.
    Slow(Duration),
    /// All connections are closed, and new ones at once.
    Cut,
}

pub struct Proxy {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    target: watch::Sender<SocketAddr>,
    /// Grows at each cut, so that none is missed however short it is.
    cuts: watch::Sender<u32>,
    listener: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, seen) = watch::channel(Mode::Pass);
        let (target, aim) = watch::channel(target);
        let (cuts, cut) = watch::channel(0);
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let target = *aim.borrow();
                let mut cut = cut.clone();
                cut.mark_unchanged();
                tokio::spawn(carry(client, target, seen.clone(), cut));
            }
        });
        Self { address, mode, target, cuts, listener }
    }

    /// Leads new connections elsewhere, as a name or a virtual address does after a failover.
    pub fn lead_to(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
        if mode == Mode::Cut {
            self.cuts.send_modify(|cuts| *cuts += 1);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.set(Mode::Cut);
    }
}

/// Lives as long as the connection; what it once swallowed makes the connection useless for good.
async fn carry(client: TcpStream, target: SocketAddr, mode: watch::Receiver<Mode>, mut cut: watch::Receiver<u32>) {
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let deaf = Arc::new(AtomicBool::new(false));
    tokio::select! {
        _ = copy(from_client, to_server, mode.clone(), Mode::LostRequests, |asked| {
            if let Mode::LostAnswersTo(text) = *mode.borrow()
                && asked.windows(text.len()).any(|part| part == text.as_bytes())
            {
                deaf.store(true, Ordering::SeqCst);
            }
            true
        }) => {}
        _ = copy(from_server, to_client, mode.clone(), Mode::LostAnswers, |_| !deaf.load(Ordering::SeqCst)) => {}
        _ = cut.changed() => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    lost_here: Mode,
    arrives: impl Fn(&[u8]) -> bool,
) {
    let mut bytes = vec![0; 64 * 1024];
    let loses = |mode: Mode| mode == Mode::Blackhole || mode == lost_here;
    let mut swallow = loses(*mode.borrow_and_update());
    loop {
        let n = tokio::select! {
            _ = mode.changed() => {
                swallow |= loses(*mode.borrow_and_update());
                continue;
            }
            read = from.read(&mut bytes) => read.unwrap_or(0),
        };
        if swallow || !arrives(&bytes[..n]) {
            if n == 0 {
                return;
            }
            continue;
        }
        let now = *mode.borrow();
        if let Mode::Slow(delay) = now {
            tokio::time::sleep(delay).await;
        }
        if n == 0 || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}
