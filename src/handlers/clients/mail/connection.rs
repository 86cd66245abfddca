//! One connection to an SMTP server: greeting, EHLO or HELO, TLS, login, and single commands with their answers.
//!
//! Invariant: nothing that came before the TLS handshake is used after it (RFC 3207, 4.2).

use std::{
    io,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    reply::{self, Reader, Reply},
    settings::{Login, Secret, Security, Settings, Tls},
};

/// Longest wait for a connection; a job's own deadline may be sooner.
const CONNECT: Duration = Duration::from_secs(30);
/// How long a server may think, by RFC 5321, 4.5.3.2: about its greeting and most commands …
pub(super) const COMMAND: Duration = Duration::from_secs(300);
/// … about DATA …
pub(super) const DATA: Duration = Duration::from_secs(120);
/// … to take a part of the text …
const BLOCK: Duration = Duration::from_secs(180);
/// … and about what to do with a whole mail.
pub(super) const END: Duration = Duration::from_secs(600);
/// How long a server that ended the conversation while we were speaking may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Part of the text that is written at once, in bytes.
const BLOCK_SIZE: usize = 64 * 1024;

/// Bytes both ways.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    reader: Reader,
    features: Features,
    /// Since when nothing was said.
    pub idle_since: Instant,
}

/// What a server offers in its answer to EHLO.
#[derive(Debug, Default)]
struct Features {
    starttls: bool,
    size: bool,
    smtputf8: bool,
    /// Ways to log in, in capital letters.
    auth: Vec<String>,
}

/// Why a server can't be talked to; says nothing about any mail.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Said(String),
    #[error(transparent)]
    Reply(#[from] reply::Error),
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// 421: the server ends the connection (RFC 5321, 3.8).
    #[error("{0}")]
    Busy(String),
}

impl Error {
    /// Whether another connection may do better at once.
    pub fn is_about_this_connection(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Reply(reply::Error::Closed | reply::Error::Io(_)))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Reply(error.into())
    }
}

impl Connection {
    /// Connects, protects the connection as the settings ask, and logs in.
    pub async fn open(settings: &Settings) -> Result<Self, Error> {
        let address = (settings.host.as_str(), settings.port);
        let connected = timeout(CONNECT, TcpStream::connect(address)).await.map_err(|_| Error::Silent(CONNECT))?;
        let tcp = connected.map_err(|e| Error::Said(e.to_string()))?;
        let _ = tcp.set_nodelay(true);
        let hello = match &settings.hello {
            Some(name) => name.clone(),
            None => own_name(&tcp),
        };
        let mut connection = Self {
            stream: Box::new(tcp),
            reader: Reader::default(),
            features: Features::default(),
            idle_since: Instant::now(),
        };
        if let Security::Tls(tls) = &settings.security {
            connection = connection.encrypted(tls).await?;
        }
        let greeting = connection.reply(COMMAND).await?;
        positive(greeting)?;
        connection.hello(&hello).await?;
        if let Security::StartTls(tls) = &settings.security {
            connection = connection.start_tls(tls).await?;
            connection.hello(&hello).await?;
        }
        if let Some(login) = &settings.login {
            connection.log_in(login).await?;
        }
        Ok(connection)
    }

    pub fn takes_utf8(&self) -> bool {
        self.features.smtputf8
    }

    pub fn takes_size(&self) -> bool {
        self.features.size
    }

    /// Sends one line and reads the answer, whatever it is.
    pub async fn command(&mut self, line: &str, patience: Duration) -> Result<Reply, Error> {
        let sent = async {
            self.stream.write_all(line.as_bytes()).await?;
            self.stream.write_all(b"\r\n").await?;
            self.stream.flush().await
        };
        match timeout(patience, sent).await {
            Ok(Ok(())) => self.reply(patience).await,
            Ok(Err(e)) => self.last_words(e).await,
            Err(_) => Err(Error::Silent(patience)),
        }
    }

    /// Sends a mail's text up to its end, of which the answer is not read.
    pub async fn text(&mut self, mail: &[u8]) -> Result<(), Error> {
        let stuffed = with_dots_doubled(mail);
        for block in stuffed.chunks(BLOCK_SIZE) {
            match timeout(BLOCK, self.stream.write_all(block)).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return self.last_words(e).await.and_then(|said| Err(Error::Said(said.text()))),
                Err(_) => return Err(Error::Silent(BLOCK)),
            }
        }
        Ok(timeout(BLOCK, self.stream.flush()).await.map_err(|_| Error::Silent(BLOCK))??)
    }

    pub async fn reply(&mut self, patience: Duration) -> Result<Reply, Error> {
        let reply = timeout(patience, self.reader.reply(&mut self.stream)).await;
        self.idle_since = Instant::now();
        Ok(reply.map_err(|_| Error::Silent(patience))??)
    }

    /// A server that closes its end may have said why before.
    async fn last_words(&mut self, error: io::Error) -> Result<Reply, Error> {
        self.reply(LAST_WORDS).await.map_err(|_| error.into())
    }

    /// EHLO, and HELO where that is not known (RFC 5321, 3.2).
    async fn hello(&mut self, name: &str) -> Result<(), Error> {
        let reply = self.command(&format!("EHLO {name}"), COMMAND).await?;
        if reply.code >= 500 {
            self.features = Features::default();
            let reply = self.command(&format!("HELO {name}"), COMMAND).await?;
            return positive(reply);
        }
        self.features = Features::read(&reply);
        positive(reply)
    }

    async fn start_tls(mut self, tls: &Tls) -> Result<Self, Error> {
        if !self.features.starttls {
            return Err(Error::Said("the server offers no STARTTLS, which smtp.url asks for".into()));
        }
        let reply = self.command("STARTTLS", COMMAND).await?;
        positive(reply)?;
        if self.reader.has_more() {
            // Somebody between us and the server would have it taken for answers of the encrypted conversation.
            return Err(Error::Said("the server said more than it was asked for before TLS began".into()));
        }
        self.encrypted(tls).await
    }

    /// The same connection within TLS; what was read before is gone.
    async fn encrypted(self, tls: &Tls) -> Result<Self, Error> {
        let handshake = tls.connector.connect(tls.name.clone(), self.stream);
        let stream = timeout(CONNECT, handshake).await.map_err(|_| Error::Silent(CONNECT))?;
        let stream = stream.map_err(|e| Error::Said(format!("TLS: {e}")))?;
        Ok(Self { stream: Box::new(stream), reader: Reader::default(), features: Features::default(), ..self })
    }

    async fn log_in(&mut self, login: &Login) -> Result<(), Error> {
        let user = &login.user;
        let reply = match &login.secret {
            Secret::TokenFile(file) => {
                let token = tokio::fs::read_to_string(file).await;
                let token = token.map_err(|e| Error::Said(format!("smtp.token_file can't be read: {e}")))?;
                let response = format!("user={user}\x01auth=Bearer {}\x01\x01", token.trim());
                let reply = self.command(&format!("AUTH XOAUTH2 {}", BASE64.encode(response)), COMMAND).await?;
                // A challenge holds the reason of a refusal, and wants an empty answer.
                if reply.code == 334 { self.command("", COMMAND).await? } else { reply }
            }
            Secret::Password(password) if self.offers("PLAIN") || !self.offers("LOGIN") => {
                let response = BASE64.encode(format!("\0{user}\0{}", password.expose_secret()));
                let reply = self.command(&format!("AUTH PLAIN {response}"), COMMAND).await?;
                if reply.code == 334 { self.command(&response, COMMAND).await? } else { reply }
            }
            Secret::Password(password) => {
                let mut reply = self.command("AUTH LOGIN", COMMAND).await?;
                // Prompts differ from server to server, and so does what they are encoded in: only their order counts.
                for answer in [user.as_str(), password.expose_secret()] {
                    if reply.code != 334 {
                        break;
                    }
                    reply = self.command(&BASE64.encode(answer), COMMAND).await?;
                }
                reply
            }
        };
        match reply.code {
            200..300 => Ok(()),
            _ => Err(refused("login", reply)),
        }
    }

    fn offers(&self, mechanism: &str) -> bool {
        self.features.auth.iter().any(|offered| offered == mechanism)
    }
}

impl Features {
    fn read(reply: &Reply) -> Self {
        let mut features = Self::default();
        for line in reply.lines.iter().skip(1) {
            // Not case-sensitive (RFC 5321, 2.4); some old servers write `AUTH=`.
            let line = line.to_ascii_uppercase();
            let mut words = line.split([' ', '=', '\t']).filter(|word| !word.is_empty()).map(str::to_owned);
            match words.next().as_deref() {
                Some("STARTTLS") => features.starttls = true,
                Some("SIZE") => features.size = true,
                Some("SMTPUTF8") => features.smtputf8 = true,
                Some("AUTH") => features.auth.extend(words),
                _ => {}
            }
        }
        features
    }
}

fn positive(reply: Reply) -> Result<(), Error> {
    if reply.is_positive() { Ok(()) } else { Err(refused("greeting", reply)) }
}

fn refused(step: &str, reply: Reply) -> Error {
    let text = super::shorten(format!("{step} refused: {}", reply.text()));
    if reply.code == 421 { Error::Busy(text) } else { Error::Said(text) }
}

/// The host's full name; without one the address of this end, as RFC 5321, 4.1.4 asks.
fn own_name(tcp: &TcpStream) -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let is_full = name.contains('.')
        && name.len() <= 255
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    match tcp.local_addr().map(|address| address.ip().to_canonical()) {
        _ if is_full => name,
        Ok(std::net::IpAddr::V4(ip)) => format!("[{ip}]"),
        Ok(std::net::IpAddr::V6(ip)) => format!("[IPv6:{ip}]"),
        Err(_) => "[127.0.0.1]".into(),
    }
}

/// The text as it goes over the wire, with its end. Source: RFC 5321, 4.5.2. All lines of `mail` end in CRLF.
fn with_dots_doubled(mail: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(mail.len() + 64);
    for line in mail.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_in_any_case() {
        let lines = ["mail.example", "StartTLS", "size 1000", "auth=login", "Auth Plain XOAUTH2", "SmtpUTF8"];
        let reply = Reply { code: 250, lines: lines.map(str::to_owned).to_vec() };
        let features = Features::read(&reply);
        assert!(features.starttls && features.size && features.smtputf8, "{features:?}");
        assert_eq!(features.auth, ["LOGIN", "PLAIN", "XOAUTH2"]);
    }

    #[test]
    fn no_line_of_a_mail_looks_like_its_end() {
        assert_eq!(with_dots_doubled(b"a\r\n.\r\n..b\r\n"), b"a\r\n..\r\n...b\r\n.\r\n");
        assert_eq!(with_dots_doubled(b"no end"), b"no end\r\n.\r\n");
    }
}
