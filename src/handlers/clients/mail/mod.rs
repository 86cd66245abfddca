//! Sending mail over SMTP: a small pool of connections, and an answer per recipient.
//!
//! lettre's own transport gives a mail up as a whole at the first refused recipient and does not say which. So the
//! conversation is led here, on lettre's connection, and a connection goes back to the pool only after a conversation
//! that ended well.

pub mod address;
pub mod message;
mod settings;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lettre::{
    Address,
    transport::smtp::{
        authentication::Mechanism,
        client::AsyncSmtpConnection,
        commands::{Data, Mail, Rcpt, Rset},
        extension::ClientId,
    },
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

pub use settings::BadUrl;
use settings::{Security, Settings};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that was idle for longer is not used again: servers close theirs after a few minutes.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long an idle connection may take to show that it still lives.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest part of a server's answer that is told, in characters.
const ANSWER_MAX: usize = 300;

/// Why nothing was sent, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the SMTP server could not be reached: {0}")]
    Connect(String),
    #[error("the SMTP server refused the mail ({step}): {}", .refusal.answer)]
    Refused { step: &'static str, refusal: Refusal },
    /// After the mail's end was sent this can also mean that it was taken; the next attempt carries the same Message-ID.
    #[error("the connection to the SMTP server broke ({step}): {message}")]
    Broken { step: &'static str, message: String },
    #[error("the SMTP server did not answer in time ({step})")]
    Timeout { step: &'static str },
}

/// A server's no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 5xx; 4xx may be otherwise next time.
    pub permanent: bool,
    pub answer: String,
}

/// What became of a mail, per recipient.
#[derive(Debug, Default)]
pub struct Delivery {
    pub accepted: Vec<Address>,
    pub refused: Vec<(Address, Refusal)>,
    /// What the server said in the end, with its queue's id for instance.
    pub answer: String,
}

/// Sends mail through one server.
pub struct Mailer {
    settings: Settings,
    slots: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: AsyncSmtpConnection,
    since: Instant,
}

impl Mailer {
    /// `url` as described at `smtp.url`; `pool`: most connections at the same time.
    ///
    /// # Errors
    /// The URL can't be used; the text does not repeat it.
    pub fn new(url: &str, pool: u32) -> Result<Arc<Self>, BadUrl> {
        super::install_crypto();
        let settings = Settings::parse(url)?;
        let slots = Semaphore::new(pool.clamp(1, 1000) as usize);
        Ok(Arc::new(Self { settings, slots, idle: Mutex::default() }))
    }

    /// Offers one mail to all `recipients` in one conversation, until `deadline`.
    ///
    /// # Errors
    /// None of the recipients will get it, or that is unknown.
    pub async fn send(
        &self,
        sender: &Address,
        recipients: &[Address],
        mail: &[u8],
        deadline: Instant,
    ) -> Result<Delivery, Error> {
        let mut step = "waiting for a free connection";
        let conversation = async {
            let _slot = self.slots.acquire().await;
            step = "connecting";
            let mut connection = self.connection().await?;
            let delivery = talk(&mut connection, sender, recipients, mail, &mut step).await?;
            self.keep(connection);
            Ok(delivery)
        };
        match timeout_at(deadline, conversation).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { step }),
        }
    }

    async fn connection(&self) -> Result<AsyncSmtpConnection, Error> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut idle) = idle else { break };
            let fresh = idle.since.elapsed() < IDLE_MAX;
            if fresh && timeout(PROBE_TIMEOUT, idle.connection.test_connected()).await == Ok(true) {
                return Ok(idle.connection);
            }
        }
        self.connect().await.map_err(|e| Error::Connect(told(&e)))
    }

    /// A refusal while connecting says nothing about the mail: wrong credentials and busy servers are cured elsewhere.
    async fn connect(&self) -> Result<AsyncSmtpConnection, lettre::transport::smtp::Error> {
        let Settings { host, port, security, credentials } = &self.settings;
        let me = ClientId::default();
        let wrapped = match security {
            Security::Tls(parameters) => Some(parameters.clone()),
            Security::None | Security::StartTls(_) => None,
        };
        let server = (host.as_str(), *port);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(server, Some(CONNECT_TIMEOUT), &me, wrapped, None).await?;
        if let Security::StartTls(parameters) = security {
            connection.starttls(parameters.clone(), &me).await?;
        }
        if let Some(credentials) = credentials {
            connection.auth(&[Mechanism::Plain, Mechanism::Login], credentials).await?;
        }
        Ok(connection)
    }

    fn keep(&self, connection: AsyncSmtpConnection) {
        let idle = Idle { connection, since: Instant::now() };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
    }
}

async fn talk(
    connection: &mut AsyncSmtpConnection,
    sender: &Address,
    recipients: &[Address],
    mail: &[u8],
    step: &mut &'static str,
) -> Result<Delivery, Error> {
    *step = "MAIL FROM";
    connection.command(Mail::new(Some(sender.clone()), Vec::new())).await.map_err(|e| failed(&e, step))?;
    *step = "RCPT TO";
    let mut delivery = Delivery::default();
    for recipient in recipients {
        match connection.command(Rcpt::new(recipient.clone(), Vec::new())).await {
            Ok(_) => delivery.accepted.push(recipient.clone()),
            Err(e) => match refusal(&e) {
                Some(refusal) => delivery.refused.push((recipient.clone(), refusal)),
                None => return Err(failed(&e, step)),
            },
        }
    }
    if delivery.accepted.is_empty() {
        *step = "RSET";
        connection.command(Rset).await.map_err(|e| failed(&e, step))?;
        return Ok(delivery);
    }
    *step = "DATA";
    connection.command(Data).await.map_err(|e| failed(&e, step))?;
    *step = "sending the text";
    let answer = connection.message(mail).await.map_err(|e| failed(&e, step))?;
    delivery.answer = shorten(answer.message().collect::<Vec<_>>().join(" "));
    Ok(delivery)
}

fn failed(error: &lettre::transport::smtp::Error, step: &'static str) -> Error {
    match refusal(error) {
        Some(refusal) => Error::Refused { step, refusal },
        None => Error::Broken { step, message: told(error) },
    }
}

fn refusal(error: &lettre::transport::smtp::Error) -> Option<Refusal> {
    let code = u16::from(error.status()?);
    // 530, 535 and 538 ask for other credentials or for TLS: the operator's to cure, not the sender's.
    let permanent = error.is_permanent() && !matches!(code, 530 | 535 | 538);
    let text = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    Some(Refusal { permanent, answer: shorten(format!("{code} {text}")) })
}

fn told(error: &lettre::transport::smtp::Error) -> String {
    shorten(error.to_string())
}

/// A server's answer as it may be shown: one line, bounded.
fn shorten(text: String) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ANSWER_MAX).collect();
    line.trim().to_owned()
}
