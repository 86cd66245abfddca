//! `send-email`: hands a mail to the configured SMTP server.
//!
//! Done means that the server took it for every recipient. When it takes some and refuses others, the mail still goes
//! to the former at once, and a checkpoint keeps the next attempt from writing to them again.

mod extras;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use schemars::JsonSchema;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::{
    Faults, Handler, RunContext,
    clients::{
        answer_by,
        mail::{
            self, Delivery, Mailer, Signer,
            address::{self, Address, Mailbox},
            message::{self, Draft, LINE_MAX},
        },
    },
};
use crate::{
    config::{Dkim, Smtp},
    job::Failure,
};

/// Most addresses in one of the lists. Source: wire contract.
const LIST_MAX: usize = 50;
/// Most recipients of one mail: what every server must take. Source: RFC 5321, 4.5.3.1.8.
const RECIPIENTS_MAX: usize = 100;
/// Kept of the run's time to say what went wrong.
const RESERVE: Duration = Duration::from_millis(250);

/// Sends mail.
pub struct SendEmail {
    from: Mailbox,
    /// `None`: no `smtp.url` is set.
    mailer: Option<Arc<Mailer>>,
    /// `None`: no `smtp.dkim` is set.
    signer: Option<Signer>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "SendEmailPayload")]
pub struct Payload {
    /// One address or a list of up to 50, each `ann@example.org` or `Ann Example <ann@example.org>`.
    to: Addresses,
    subject: String,
    /// Plain text.
    body: String,
    /// Sender; `smtp.from` unless set.
    #[serde(default)]
    from: Option<String>,
    /// The same as `body` in HTML, for readers that show it.
    #[serde(default)]
    html: Option<String>,
    #[serde(default)]
    cc: Option<Addresses>,
    /// Recipients that the others don't see.
    #[serde(default)]
    bcc: Option<Addresses>,
    /// Where answers go.
    #[serde(default)]
    reply_to: Option<String>,
    /// Files that go along, at most 50.
    #[serde(default)]
    attachments: Option<Vec<extras::File>>,
    /// Further headers: `List-Unsubscribe`, `List-Unsubscribe-Post`, `Auto-Submitted`, `In-Reply-To`, `References` and
    /// those that begin with `X-`.
    #[serde(default)]
    headers: Option<BTreeMap<String, String>>,
}

/// One address, or a list of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Addresses {
    One(String),
    Many(#[schemars(length(max = 50))] Vec<String>),
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    message_id: String,
    /// Recipients the server took the mail for.
    accepted: usize,
    /// What it said, with its own id for the mail for instance.
    response: String,
}

/// Who need not be written to again.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Checkpoint {
    accepted: BTreeSet<String>,
}

impl SendEmail {
    /// # Errors
    /// `smtp.url` or `smtp.from` can't be used.
    pub fn new(config: &Smtp) -> Result<Self, String> {
        let from = address::parse(&config.from).map_err(|e| format!("smtp.from {e}"))?;
        let mailer = match &config.url {
            Some(url) => Some(Mailer::new(url.expose_secret(), config).map_err(|e| e.to_string())?),
            None => None,
        };
        let signer = config.dkim.as_ref().map(signer).transpose().map_err(|e| format!("smtp.dkim: {e}"))?;
        Ok(Self { from, mailer, signer })
    }
}

fn signer(dkim: &Dkim) -> Result<Signer, String> {
    let key = dkim.key.expose_secret();
    let read;
    let pem = if key.contains("-----BEGIN") {
        key
    } else {
        read = std::fs::read_to_string(key).map_err(|e| format!("the file of the key can't be read: {e}"))?;
        &read
    };
    Signer::new(&dkim.domain, &dkim.selector, pem).map_err(|e| e.to_string())
}

impl Handler for SendEmail {
    const TYPE: &'static str = "send-email";
    const ABOUT: &'static str = "Sends a mail through the configured SMTP server.";
    type Payload = Payload;
    type Output = Output;

    fn check(&self, payload: &Payload, faults: &mut Faults) {
        Envelope::read(payload, &self.from, faults);
    }

    async fn run(&self, ctx: &RunContext, payload: Payload) -> Result<Output, Failure> {
        let Some(mailer) = &self.mailer else {
            // Not permanent: once the setting is made the next attempt succeeds.
            return Err(Failure::retry("no mail server is configured: set smtp.url (QUEUE__SMTP__URL)"));
        };
        let mut faults = Faults::default();
        let envelope = match Envelope::read(&payload, &self.from, &mut faults) {
            Some(envelope) if faults.is_empty() => envelope,
            _ => {
                let (pointer, message) = faults.0.into_iter().next().unwrap_or_default();
                return Err(Failure::permanent(format!("{pointer} {message}")));
            }
        };
        let mut mail = message::compose(Draft {
            id: ctx.job_id,
            from: envelope.from.clone(),
            to: envelope.to,
            cc: envelope.cc,
            reply_to: envelope.reply_to,
            subject: &payload.subject,
            text: &payload.body,
            html: payload.html.as_deref(),
            attachments: envelope.attachments,
            headers: extras::pairs(&payload.headers),
        })
        .map_err(Failure::permanent)?;
        if let Some(signer) = &self.signer {
            let signature = signer.sign(&mail.bytes).map_err(Failure::retry)?;
            mail.bytes.splice(0..0, signature);
        }
        let mut done: Checkpoint = ctx.last_checkpoint().unwrap_or_default();
        let total = envelope.recipients.len();
        let open: Vec<Address> =
            envelope.recipients.into_iter().filter(|to| !done.accepted.contains(&to.to_string())).collect();
        let mut response = String::new();
        if !open.is_empty() {
            // A conversation is short and never cut off by a cancellation: half a mail may turn out to be a whole one.
            let delivery = mailer
                .send(&envelope.from.email, &open, &mail.bytes, answer_by(ctx, RESERVE))
                .await
                .map_err(|e| into_failure(&e))?;
            if !delivery.refused.is_empty() || delivery.failed.is_some() {
                done.accepted.extend(delivery.accepted.iter().map(ToString::to_string));
                if !done.accepted.is_empty() {
                    ctx.checkpoint(&done);
                }
                return Err(match &delivery.failed {
                    Some(e) => Failure::retry(format!("the mail has reached {} of {total}: {e}", done.accepted.len())),
                    None => refused(&delivery, done.accepted.len(), total),
                });
            }
            response = delivery.answer;
        }
        Ok(Output { message_id: mail.message_id, accepted: total, response })
    }
}

fn into_failure(error: &mail::Error) -> Failure {
    match error {
        mail::Error::Refused { refusal, .. } if refusal.permanent => Failure::permanent(error.to_string()),
        mail::Error::Refused { .. }
        | mail::Error::Connect(_)
        | mail::Error::Broken { .. }
        | mail::Error::Doubtful { .. }
        | mail::Error::Timeout { .. } => Failure::retry(error.to_string()),
    }
}

/// A mail that did not reach everybody. As long as one refusal may pass it is tried again, for those who lack it.
fn refused(delivery: &Delivery, accepted: usize, total: usize) -> Failure {
    const SHOWN: usize = 5;
    let each = |(to, refusal): &(Address, mail::Refusal)| format!("{to}: {}", refusal.answer);
    let mut list: Vec<String> = delivery.refused.iter().take(SHOWN).map(each).collect();
    if delivery.refused.len() > SHOWN {
        list.push(format!("and {} more", delivery.refused.len() - SHOWN));
    }
    let list = list.join("; ");
    let message = match (accepted, total) {
        (0, 1) => format!("the SMTP server refused the recipient {list}"),
        (0, _) => format!("the SMTP server refused every recipient: {list}"),
        _ => format!("the SMTP server took the mail for {accepted} of {total} recipients, but refused {list}"),
    };
    if delivery.refused.iter().all(|(_, refusal)| refusal.permanent) {
        Failure::permanent(message)
    } else {
        Failure::retry(message)
    }
}

/// The addresses of a payload, checked.
struct Envelope<'a> {
    from: Mailbox,
    to: Vec<Mailbox>,
    cc: Vec<Mailbox>,
    reply_to: Option<Mailbox>,
    /// All who get the mail, each once.
    recipients: Vec<Address>,
    attachments: Vec<message::Attachment<'a>>,
}

impl<'a> Envelope<'a> {
    /// `None` when there are faults.
    fn read(payload: &'a Payload, default_from: &Mailbox, faults: &mut Faults) -> Option<Self> {
        let to = list(Some(&payload.to), "/to", faults);
        let cc = list(payload.cc.as_ref(), "/cc", faults);
        let bcc = list(payload.bcc.as_ref(), "/bcc", faults);
        let from = single(payload.from.as_deref(), "/from", faults).unwrap_or_else(|| default_from.clone());
        let reply_to = single(payload.reply_to.as_deref(), "/replyTo", faults);
        if payload.subject.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
            faults.add("/subject", "must not hold line breaks or other control characters");
        }
        // Longer ones are folded, which takes a blank.
        if payload.subject.split([' ', '\t']).any(|word| word.len() > LINE_MAX) {
            faults.add("/subject", format!("must have no word of more than {LINE_MAX} bytes"));
        }
        let attachments = extras::attachments(payload.attachments.as_deref().unwrap_or_default(), faults);
        extras::check_headers(&payload.headers, faults);
        let mut seen = BTreeSet::new();
        let all = to.iter().chain(&cc).chain(&bcc).map(|mailbox| mailbox.email.clone());
        let recipients: Vec<Address> = all.filter(|address| seen.insert(address.to_string())).collect();
        if to.is_empty() && faults.is_empty() {
            faults.add("/to", "at least one address is needed");
        }
        if recipients.len() > RECIPIENTS_MAX {
            let message = format!(
                "to, cc and bcc have {} addresses together; at most {RECIPIENTS_MAX} are taken",
                recipients.len()
            );
            faults.add("", message);
        }
        faults.is_empty().then_some(Self { from, to, cc, reply_to, recipients, attachments })
    }
}

fn single(text: Option<&str>, pointer: &str, faults: &mut Faults) -> Option<Mailbox> {
    match address::parse(text?) {
        Ok(mailbox) => Some(mailbox),
        Err(message) => {
            faults.add(pointer, message);
            None
        }
    }
}

fn list(addresses: Option<&Addresses>, pointer: &str, faults: &mut Faults) -> Vec<Mailbox> {
    match addresses {
        None => Vec::new(),
        Some(Addresses::One(one)) => single(Some(one), pointer, faults).into_iter().collect(),
        Some(Addresses::Many(many)) => {
            if many.len() > LIST_MAX {
                faults.add(pointer, format!("{} addresses; at most {LIST_MAX} are taken", many.len()));
            }
            let each = many.iter().take(LIST_MAX).enumerate();
            each.filter_map(|(i, one)| single(Some(one), &format!("{pointer}/{i}"), faults)).collect()
        }
    }
}

#[cfg(test)]
mod tests;
