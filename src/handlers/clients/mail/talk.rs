//! Handing one mail over: MAIL, RCPT for each recipient, DATA, and what the answers mean. No connecting here.

use super::{
    Delivery, Error, Refusal,
    address::Address,
    connection::{COMMAND, Connection, DATA, END, Error as Lost},
    reply::Reply,
    shorten,
};

/// The step in which it is not known whether the mail was taken.
pub(super) const AFTER: &str = "after the text";

/// What is offered to a server.
pub(super) struct Mail<'a> {
    pub sender: &'a Address,
    pub text: &'a [u8],
}

/// A conversation that ended early.
pub(super) struct Cut {
    pub error: Error,
    /// Nothing of the mail was taken, and another connection may do better at once.
    pub may_go_on: bool,
}

/// Offers the mail to all of `open`, and notes in `delivery` who takes it. Who had an answer leaves `open`.
///
/// A server may take fewer recipients at once than there are: the rest gets transactions of its own (RFC 5321,
/// 4.5.3.1.10), as long as each of them reaches somebody.
pub(super) async fn hand_over(
    connection: &mut Connection,
    mail: &Mail<'_>,
    open: &mut Vec<Address>,
    delivery: &mut Delivery,
    step: &mut &'static str,
) -> Result<(), Cut> {
    while !open.is_empty() {
        *step = "MAIL FROM";
        let reply = said(connection.command(&mail_from(connection, mail)?, COMMAND).await, step)?;
        expect(&reply, 200..300, step)?;
        *step = "RCPT TO";
        let (mut taken, mut later, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for recipient in open.iter() {
            let reply = said(connection.command(&format!("RCPT TO:<{recipient}>"), COMMAND).await, step)?;
            match reply.code {
                200..300 => taken.push(recipient.clone()),
                421 => return expect(&reply, 200..300, step),
                // "Too many recipients", in the right and in the old way.
                452 | 552 if !taken.is_empty() => later.push(recipient.clone()),
                _ => refused.push((recipient.clone(), Refusal::of_recipient(&reply))),
            }
        }
        if taken.is_empty() {
            delivery.refused.append(&mut refused);
            open.clear();
            *step = "RSET";
            let reply = said(connection.command("RSET", COMMAND).await, step)?;
            return expect(&reply, 200..300, step);
        }
        *step = "DATA";
        let reply = said(connection.command("DATA", DATA).await, step)?;
        expect(&reply, 300..400, step)?;
        *step = "sending the text";
        said(connection.text(mail.text).await, step)?;
        *step = AFTER;
        let reply = match connection.reply(END).await {
            Ok(reply) => reply,
            Err(lost) => {
                return Err(Cut { error: Error::Doubtful { message: shorten(lost.to_string()) }, may_go_on: false });
            }
        };
        let answer = shorten(reply.lines.join(" "));
        expect(&reply, 200..300, step)?;
        delivery.answer = answer;
        delivery.accepted.append(&mut taken);
        delivery.refused.append(&mut refused);
        *open = later;
    }
    Ok(())
}

/// The command that begins a mail, with what the server asks to be told.
fn mail_from(connection: &Connection, mail: &Mail<'_>) -> Result<String, Cut> {
    let mut line = format!("MAIL FROM:<{}>", mail.sender);
    if connection.takes_size() {
        line.push_str(&format!(" SIZE={}", mail.text.len()));
    }
    if !mail.sender.is_ascii() || !mail.text.is_ascii() {
        if !connection.takes_utf8() {
            let answer = "the server takes no letters outside ASCII before the @ (it offers no SMTPUTF8)".to_owned();
            let refusal = Refusal { permanent: true, answer };
            return Err(Cut { error: Error::Refused { step: "MAIL FROM", refusal }, may_go_on: false });
        }
        line.push_str(" BODY=8BITMIME SMTPUTF8");
    }
    Ok(line)
}

fn said<T>(answer: Result<T, Lost>, step: &'static str) -> Result<T, Cut> {
    answer.map_err(|lost| Cut {
        may_go_on: lost.is_about_this_connection(),
        error: match lost {
            Lost::Silent(_) => Error::Timeout { step },
            lost => Error::Broken { step, message: shorten(lost.to_string()) },
        },
    })
}

fn expect(reply: &Reply, codes: std::ops::Range<u16>, step: &'static str) -> Result<(), Cut> {
    if codes.contains(&reply.code) {
        return Ok(());
    }
    // 421 closes the connection, not the matter (RFC 5321, 3.8).
    Err(Cut { error: Error::Refused { step, refusal: Refusal::of(reply) }, may_go_on: reply.code == 421 })
}

impl Refusal {
    fn of(reply: &Reply) -> Self {
        // 530, 534, 535 and 538 ask for another login or for TLS: the operator's to cure, not the sender's.
        let permanent = reply.code >= 500 && !matches!(reply.code, 530 | 534 | 535 | 538);
        Self { permanent, answer: shorten(reply.text()) }
    }

    /// For a recipient 552 means "too many", or "mailbox full": both may pass (RFC 5321, 4.5.3.1.10).
    fn of_recipient(reply: &Reply) -> Self {
        let refusal = Self::of(reply);
        Self { permanent: refusal.permanent && reply.code != 552, ..refusal }
    }
}
