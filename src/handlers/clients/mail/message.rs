//! Composing a mail. Pure but for the date.
//!
//! Invariant: the text that is sent is ASCII, its lines end in CRLF and nothing else, and none is longer than 998 bytes.
//! lettre 0.11.23 marks a lone dot only after CRLF, so a bare CR or LF could end a mail early and let the rest be read
//! as commands (RUSTSEC-2026-0561). Line ends are made uniform, bodies are always encoded, and [`compose`] looks at the
//! finished text once more.

use lettre::{
    Message,
    message::{
        Body, Mailbox, MultiPart, SinglePart,
        header::{ContentTransferEncoding, ContentType},
    },
};

use crate::job::model::JobId;

/// Longest line of a mail without its end. Source: RFC 5322, 2.1.1.
const LINE_MAX: usize = 998;

/// What a mail is made of; all addresses are checked.
pub struct Draft<'a> {
    pub id: JobId,
    pub from: Mailbox,
    pub to: Vec<Mailbox>,
    pub cc: Vec<Mailbox>,
    pub reply_to: Option<Mailbox>,
    pub subject: &'a str,
    pub text: &'a str,
    pub html: Option<&'a str>,
}

/// A finished mail. Blind copies are in nobody's header, only in the envelope.
#[derive(Debug)]
pub struct Composed {
    pub message_id: String,
    pub bytes: Vec<u8>,
}

/// # Errors
/// The mail can't be written as it should be: a mistake here or in the library, not to be cured by another attempt.
pub fn compose(draft: Draft<'_>) -> Result<Composed, String> {
    // The same for every attempt, so that receivers and people recognise a mail that was sent twice.
    let message_id = format!("<{}@{}>", draft.id, draft.from.email.domain());
    let mut builder =
        Message::builder().from(draft.from).subject(draft.subject).message_id(Some(message_id.clone())).date_now();
    for to in draft.to {
        builder = builder.to(to);
    }
    for cc in draft.cc {
        builder = builder.cc(cc);
    }
    if let Some(reply_to) = draft.reply_to {
        builder = builder.reply_to(reply_to);
    }
    let text = part(ContentType::TEXT_PLAIN, draft.text)?;
    let message = match draft.html {
        None => builder.singlepart(text),
        Some(html) => {
            builder.multipart(MultiPart::alternative().singlepart(text).singlepart(part(ContentType::TEXT_HTML, html)?))
        }
    };
    let bytes = message.map_err(|e| format!("the mail can't be composed: {e}"))?.formatted();
    if is_clean(&bytes) {
        Ok(Composed { message_id, bytes })
    } else {
        Err("the mail can't be composed: a line of it is too long or not ASCII".into())
    }
}

fn part(content_type: ContentType, text: &str) -> Result<SinglePart, String> {
    let text = uniform_line_ends(text);
    // Quoted-printable stays readable, but takes three bytes for one that is not ASCII.
    let foreign = text.bytes().filter(|b| !b.is_ascii()).count();
    let encoding = if foreign > text.len() / 6 {
        ContentTransferEncoding::Base64
    } else {
        ContentTransferEncoding::QuotedPrintable
    };
    let body = Body::new_with_encoding(text, encoding).map_err(|_| "the body can't be encoded".to_owned())?;
    Ok(SinglePart::builder().header(content_type).body(body))
}

/// CRLF, CR and LF all become CRLF.
fn uniform_line_ends(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 32);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {
                chars.next_if_eq(&'\n');
                out.push_str("\r\n");
            }
            '\n' => out.push_str("\r\n"),
            c => out.push(c),
        }
    }
    out
}

fn is_clean(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\r' | b'\n')) {
        if at > LINE_MAX || !rest[at..].starts_with(b"\r\n") {
            return false;
        }
        rest = &rest[at + 2..];
    }
    rest.len() <= LINE_MAX && bytes.iter().all(|b| b.is_ascii() && *b != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::handlers::clients::mail::address;

    fn draft<'a>(subject: &'a str, text: &'a str, html: Option<&'a str>) -> Draft<'a> {
        let one = |text| address::parse(text).unwrap();
        Draft {
            id: uuid::Uuid::nil(),
            from: one("Dienst <service@example.org>"),
            to: vec![one("ann@example.org"), one("Łucja <l@example.org>")],
            cc: vec![one("carl@example.org")],
            reply_to: Some(one("desk@example.org")),
            subject,
            text,
            html,
        }
    }

    fn written(draft: Draft<'_>) -> String {
        String::from_utf8(compose(draft).unwrap().bytes).unwrap()
    }

    #[test]
    fn a_mail_has_its_headers_and_a_message_id_from_the_job() {
        let mail = written(draft("Grüße", "Hello,\nworld", None));
        assert!(mail.contains("Message-ID: <00000000-0000-0000-0000-000000000000@example.org>\r\n"), "{mail}");
        assert!(mail.contains("Reply-To: desk@example.org\r\n") && mail.contains("Cc: carl@example.org\r\n"), "{mail}");
        assert!(mail.contains("Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n"), "{mail}");
        assert!(mail.contains("Content-Transfer-Encoding: quoted-printable\r\n"), "{mail}");
        assert!(mail.ends_with("\r\n\r\nHello,\r\nworld\r\n"), "{mail}");
    }

    #[test]
    fn html_comes_as_an_alternative_after_the_text() {
        let mail = written(draft("Hi", "plain", Some("<b>rich</b>")));
        assert!(mail.contains("multipart/alternative"));
        assert!(mail.find("text/plain").unwrap() < mail.find("text/html").unwrap());
    }

    #[test]
    fn text_in_another_script_is_base64() {
        assert!(written(draft("Hi", "こんにちは世界", None)).contains("Content-Transfer-Encoding: base64\r\n"));
    }

    #[test]
    fn a_very_long_subject_is_folded() {
        assert!(written(draft(&"word ".repeat(200), "x", None)).contains("Subject: word word"));
        assert!(written(draft(&"é".repeat(900), "x", None)).contains("Subject: =?utf-8?b?"));
    }

    proptest! {
        #[test]
        fn no_body_can_make_a_line_end_that_is_not_crlf(
            text in "([a-zé世\\. \t=]|\r|\n|\r\n|\r\\.\r|\n\\.\n){0,80}",
            html in proptest::option::of("([a-z<>\\.]|\r|\n|\u{85}|\u{2028}|\\PC){0,80}"),
        ) {
            let composed = compose(draft("Hi", &text, html.as_deref()));
            prop_assert!(composed.is_ok(), "{composed:?}");
        }
    }
}
