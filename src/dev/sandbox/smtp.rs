//! A mail server that keeps what it is sent, and that can be told to misbehave.
//!
//! It is as lenient as the worst real server: a bare CR or LF ends a line too, so that a mail that could smuggle
//! commands anywhere does so here, where tests see it.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::supervise;

/// Mails that are kept; older ones make room.
const MAILS_MAX: usize = 500;
/// Bytes of them all together.
const MAILS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest mail that is taken, in bytes.
const MAIL_MAX: usize = 16 * 1024 * 1024;
const LINE_MAX: usize = 64 * 1024;
const RECIPIENTS_MAX: usize = 100;
const IDLE_MAX: Duration = Duration::from_secs(300);

/// A mail as it came in.
#[derive(Clone, Debug)]
pub struct Mail {
    /// From 1, in the order in which mails came in; never used twice.
    pub id: u64,
    pub at: SystemTime,
    /// The envelope: from `MAIL FROM` and `RCPT TO`, without angle brackets.
    pub from: String,
    pub to: Vec<String>,
    /// Headers and body, lines ended by CRLF, marking dots removed.
    pub text: String,
    /// Lines that ended in a bare CR or LF. A well-behaved client sends none.
    pub bare_line_ends: usize,
}

/// How the server misbehaves; by default it takes everything.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Said in place of a welcome, `421 busy` for instance; the connection ends then.
    pub greeting: Option<String>,
    /// Answers to `MAIL FROM`.
    pub refuse_sender: Option<String>,
    /// Answers to `RCPT TO` by address.
    pub refuse: BTreeMap<String, String>,
    /// Answer after a mail's end, in place of taking it.
    pub refuse_mail: Option<String>,
    /// Hang up after the first line of a mail.
    pub drop_in_data: bool,
    /// Take the mail, then hang up without an answer.
    pub drop_after_data: bool,
    /// Never say a word.
    pub silent: bool,
}

/// A running server; it ends with the runtime it was started on, or when the last handle is dropped.
#[derive(Clone)]
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: Arc<AbortOnDrop>,
}

#[derive(Default)]
struct Shared {
    mails: Mutex<VecDeque<Mail>>,
    last_id: AtomicU64,
    rules: Mutex<Rules>,
    /// Every command as it came in, the latest last; for tests.
    commands: Mutex<VecDeque<String>>,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sink {
    /// Listens on `address`; port 0 takes any free one.
    ///
    /// # Errors
    /// The address can't be listened on.
    pub async fn start(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let accepting = {
            let shared = shared.clone();
            async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => {
                            drop(supervise::spawn("mail session", Session::serve(stream, shared.clone())))
                        }
                        // Out of file descriptors, most likely: others must come free first.
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
            }
        };
        let task = supervise::spawn("mail server", accepting);
        Ok(Self { address, shared, _stop: Arc::new(AbortOnDrop(task)) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For `smtp.url`.
    pub fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }

    /// All mails that are kept, the oldest first.
    pub fn mails(&self) -> Vec<Mail> {
        lock(&self.shared.mails).iter().cloned().collect()
    }

    pub fn clear(&self) {
        lock(&self.shared.mails).clear();
    }

    /// The commands of all sessions, the oldest first.
    pub fn commands(&self) -> Vec<String> {
        lock(&self.shared.commands).iter().cloned().collect()
    }

    /// Changes how the server behaves, at once.
    pub fn set_rules(&self, rules: Rules) {
        *lock(&self.shared.rules) = rules;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Drops the oldest mails until the rest has no more than `max` bytes.
    fn make_room(&self, max: usize) {
        let mut mails = lock(&self.mails);
        let mut bytes: usize = mails.iter().map(|mail| mail.text.len()).sum();
        while bytes > max
            && let Some(oldest) = mails.pop_front()
        {
            bytes -= oldest.text.len();
        }
    }
}

fn push<T>(list: &Mutex<VecDeque<T>>, value: T) {
    let mut list = lock(list);
    if list.len() >= MAILS_MAX {
        list.pop_front();
    }
    list.push_back(value);
}

/// One connection.
struct Session {
    stream: TcpStream,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
    /// The last line ended in CR; a LF right after it belongs to that end.
    after_cr: bool,
    from: Option<String>,
    to: Vec<String>,
}

struct Line {
    text: Vec<u8>,
    bare: bool,
}

impl Session {
    async fn serve(stream: TcpStream, shared: Arc<Shared>) {
        let mut session = Session { stream, shared, buffer: Vec::new(), after_cr: false, from: None, to: Vec::new() };
        // A client that breaks off is none of our concern.
        let _ = session.converse().await;
    }

    async fn converse(&mut self) -> io::Result<()> {
        let rules = self.rules();
        if rules.silent {
            return std::future::pending().await;
        }
        if let Some(greeting) = rules.greeting {
            return self.say(&greeting).await;
        }
        self.say("220 sandbox ESMTP").await?;
        while let Some(line) = self.line().await? {
            let command = String::from_utf8_lossy(&line.text).into_owned();
            push(&self.shared.commands, command.clone());
            let verb = command.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" => self.say("250-sandbox\r\n250-8BITMIME\r\n250 SMTPUTF8").await?,
                "HELO" => self.say("250 sandbox").await?,
                "MAIL" => self.mail(&command).await?,
                "RCPT" => self.rcpt(&command).await?,
                "DATA" if self.to.is_empty() => self.say("503 no recipients").await?,
                "DATA" => {
                    if !self.data().await? {
                        return Ok(());
                    }
                }
                "RSET" => {
                    self.reset();
                    self.say("250 ok").await?;
                }
                "NOOP" => self.say("250 ok").await?,
                "VRFY" => self.say("252 try and see").await?,
                "QUIT" => return self.say("221 bye").await,
                _ => self.say("500 what?").await?,
            }
        }
        Ok(())
    }

    fn rules(&self) -> Rules {
        lock(&self.shared.rules).clone()
    }

    fn reset(&mut self) {
        self.from = None;
        self.to.clear();
    }

    async fn mail(&mut self, command: &str) -> io::Result<()> {
        self.reset();
        match (self.rules().refuse_sender, path(command)) {
            (Some(refusal), _) => self.say(&refusal).await,
            (None, Some(from)) => {
                self.from = Some(from);
                self.say("250 ok").await
            }
            (None, None) => self.say("501 MAIL FROM:<address>").await,
        }
    }

    async fn rcpt(&mut self, command: &str) -> io::Result<()> {
        let Some(to) = path(command).filter(|to| !to.is_empty()) else {
            return self.say("501 RCPT TO:<address>").await;
        };
        if self.from.is_none() {
            return self.say("503 MAIL first").await;
        }
        if self.to.len() >= RECIPIENTS_MAX {
            return self.say("452 too many recipients").await;
        }
        if let Some(refusal) = self.rules().refuse.get(&to) {
            return self.say(refusal).await;
        }
        self.to.push(to);
        self.say("250 ok").await
    }

    /// Takes a mail. `false`: the connection is to end.
    async fn data(&mut self) -> io::Result<bool> {
        self.say("354 go on").await?;
        let rules = self.rules();
        let mut text = Vec::new();
        let mut bare_line_ends = 0;
        loop {
            let Some(line) = self.line().await? else { return Ok(false) };
            if rules.drop_in_data {
                return Ok(false);
            }
            bare_line_ends += usize::from(line.bare);
            if line.text == b"." {
                break;
            }
            text.extend_from_slice(line.text.strip_prefix(b".").unwrap_or(&line.text));
            text.extend_from_slice(b"\r\n");
            if text.len() > MAIL_MAX {
                self.say("552 too large").await?;
                return Ok(false);
            }
        }
        if let Some(refusal) = rules.refuse_mail {
            self.reset();
            self.say(&refusal).await?;
            return Ok(true);
        }
        let mail = Mail {
            id: self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            at: SystemTime::now(),
            from: self.from.take().unwrap_or_default(),
            to: std::mem::take(&mut self.to),
            text: String::from_utf8_lossy(&text).into_owned(),
            bare_line_ends,
        };
        push(&self.shared.mails, mail);
        self.shared.make_room(MAILS_BYTES_MAX);
        if rules.drop_after_data {
            return Ok(false);
        }
        self.say("250 2.0.0 taken").await?;
        Ok(true)
    }

    async fn say(&mut self, answer: &str) -> io::Result<()> {
        self.stream.write_all(format!("{answer}\r\n").as_bytes()).await
    }

    /// The next line without its end; `None` when the client has gone.
    async fn line(&mut self) -> io::Result<Option<Line>> {
        let mut seen = 0;
        loop {
            if self.after_cr && self.buffer.first() == Some(&b'\n') {
                self.buffer.remove(0);
            }
            if !self.buffer.is_empty() {
                self.after_cr = false;
            }
            if let Some(at) = self.buffer[seen..].iter().position(|b| matches!(b, b'\r' | b'\n')) {
                let at = seen + at;
                let mut text: Vec<u8> = self.buffer.drain(..=at).collect();
                let cr = text.pop() == Some(b'\r');
                let lf_follows = self.buffer.first() == Some(&b'\n');
                // When the LF is still on its way it is dropped before the next line, and this one counts as well ended.
                self.after_cr = cr && self.buffer.is_empty();
                if cr && lf_follows {
                    self.buffer.remove(0);
                }
                return Ok(Some(Line { text, bare: !(cr && (lf_follows || self.after_cr)) }));
            }
            seen = self.buffer.len();
            if seen > LINE_MAX {
                return Err(io::Error::other("line too long"));
            }
            let read = timeout(IDLE_MAX, self.stream.read_buf(&mut self.buffer)).await;
            if read.map_err(io::Error::from)?? == 0 {
                return Ok(None);
            }
        }
    }
}

/// What stands between `<` and `>`.
fn path(command: &str) -> Option<String> {
    let (_, rest) = command.split_once('<')?;
    Some(rest.split_once('>')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lone_dot_after_a_bare_line_end_is_the_end_of_a_mail() {
        let sink = Sink::start(([127, 0, 0, 1], 0).into()).await.unwrap();
        let mut client = TcpStream::connect(sink.address()).await.unwrap();
        let smuggled = "EHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\nhello\r.\rMAIL FROM:<evil@x>\n\
                        RCPT TO:<c@x>\nDATA\n..dot\n.\nQUIT\r\n";
        client.write_all(smuggled.as_bytes()).await.unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        let mails = sink.mails();
        assert_eq!(mails.len(), 2, "{said}");
        assert_eq!((mails[1].from.as_str(), mails[1].text.as_str()), ("evil@x", ".dot\r\n"));
        assert!(mails.iter().all(|mail| mail.bare_line_ends > 0));
    }

    #[test]
    fn large_mails_push_out_old_ones_before_memory_runs_short() {
        let shared = Shared::default();
        for id in 1..=5 {
            let text = "x".repeat(100);
            let mail = Mail { id, at: SystemTime::now(), from: String::new(), to: vec![], text, bare_line_ends: 0 };
            push(&shared.mails, mail);
            shared.make_room(250);
        }
        assert_eq!(lock(&shared.mails).iter().map(|mail| mail.id).collect::<Vec<_>>(), [4, 5]);
    }
}
