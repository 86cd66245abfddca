//! Sending mail over SMTP: a small pool of connections, and an answer per recipient.
//!
//! Our own client: it reads bytes, acts on codes, drops what came before TLS, and tells who got the mail. See
//! docs/adr/0034. A connection goes back to the pool only after a conversation that ended well.

pub mod address;
mod connection;
mod dkim;
pub mod message;
mod reply;
mod settings;
mod talk;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::config::Smtp;
use address::Address;
use connection::Connection;
pub use dkim::{BadKey, Signer};
pub use settings::BadSettings;
use settings::Settings;
use talk::Mail;

/// A connection that was idle for longer is not used again: servers close theirs after a few minutes.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Longest part of a server's answer that is told, in characters.
const ANSWER_MAX: usize = 300;

/// Why nothing was sent, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the SMTP server could not be reached: {0}")]
    Connect(String),
    #[error("the SMTP server refused the mail ({step}): {}", .refusal.answer)]
    Refused { step: &'static str, refusal: Refusal },
    #[error("the connection to the SMTP server broke ({step}): {message}; nothing was sent")]
    Broken { step: &'static str, message: String },
    #[error(
        "the SMTP server did not answer after the text was sent ({message}): it may have taken the mail, which the \
         next attempt sends again with the same Message-ID"
    )]
    Doubtful { message: String },
    #[error("the SMTP server did not answer in time ({step})")]
    Timeout { step: &'static str },
}

/// A server's no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 5xx as a rule; 4xx may be otherwise next time.
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
    /// Why the rest of the recipients have no answer.
    pub failed: Option<Error>,
}

/// Sends mail through one server.
pub struct Mailer {
    settings: Settings,
    slots: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

impl Mailer {
    /// `url`: `smtp.url`; the rest of the section is taken from `config`.
    ///
    /// # Errors
    /// The settings can't be used; the text repeats no secret.
    pub fn new(url: &str, config: &Smtp) -> Result<Arc<Self>, BadSettings> {
        super::install_crypto();
        let settings = Settings::read(url, config)?;
        let slots = Semaphore::new(config.pool.clamp(1, 1000) as usize);
        Ok(Arc::new(Self { settings, slots, idle: Mutex::default() }))
    }

    /// Offers one mail to all `recipients`, until `deadline`.
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
        let (mut delivery, mut open) = (Delivery::default(), recipients.to_vec());
        let conversation = async {
            let _slot = self.slots.acquire().await;
            self.converse(&Mail { sender, text: mail }, &mut open, &mut delivery, &mut step).await
        };
        let ended = timeout_at(deadline, conversation).await;
        let error = match ended {
            Ok(Ok(())) => return Ok(delivery),
            Ok(Err(e)) => e,
            Err(_) if step == talk::AFTER => Error::Doubtful { message: "no answer in time".into() },
            Err(_) => Error::Timeout { step },
        };
        // Everybody has an answer when only the goodbye failed.
        match () {
            () if open.is_empty() => Ok(delivery),
            () if delivery.accepted.is_empty() => Err(error),
            () => Ok(Delivery { failed: Some(error), ..delivery }),
        }
    }

    async fn converse(
        &self,
        mail: &Mail<'_>,
        open: &mut Vec<Address>,
        delivery: &mut Delivery,
        step: &mut &'static str,
    ) -> Result<(), Error> {
        // A server may be tired of a connection, by its count of mails or of minutes: a new one costs no attempt.
        let mut may_replace = true;
        loop {
            *step = "connecting";
            let connection = match self.idle_connection().filter(|_| may_replace) {
                Some(idle) => Ok(idle),
                None => Connection::open(&self.settings).await,
            };
            let replace = std::mem::take(&mut may_replace);
            let mut connection = match connection {
                Ok(connection) => connection,
                Err(e) if replace && e.is_about_this_connection() => continue,
                Err(e) => return Err(Error::Connect(shorten(e.to_string()))),
            };
            match talk::hand_over(&mut connection, mail, open, delivery, step).await {
                Ok(()) => {
                    self.idle().push(connection);
                    return Ok(());
                }
                Err(cut) if replace && cut.may_go_on => {}
                Err(cut) => return Err(cut.error),
            }
        }
    }

    fn idle_connection(&self) -> Option<Connection> {
        let mut idle = self.idle();
        idle.retain(|connection| connection.idle_since.elapsed() < IDLE_MAX);
        idle.pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server's answer as it may be shown: one line, bounded.
fn shorten(text: String) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ANSWER_MAX).collect();
    line.trim().to_owned()
}
