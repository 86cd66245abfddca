//! Composing a mail. Pure but for the date.
//!
//! Invariant: lines end in CRLF and nothing else, none is longer than 998 bytes, and only addresses outside ASCII bring
//! bytes outside ASCII. [`compose`] looks at the finished text once more: a bare CR or LF could end a mail early and let
//! the rest be read as commands.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use mail_builder::{
    MessageBuilder,
    headers::{HeaderType, content_type::ContentType, raw::Raw, text::Text},
    mime::MimePart,
};

use super::address::Mailbox;
use crate::job::model::JobId;

/// Longest line of a mail without its end. Source: RFC 5322, 2.1.1.
pub const LINE_MAX: usize = 998;
/// Longest line of base64. Source: RFC 2045, 6.8.
const BASE64_LINE: usize = 76;
/// Longest word that is not encoded, so that it fits into a line with the header's name.
const WORD_MAX: usize = 900;
/// Bytes of text in one encoded word, which has at most 75 characters. Source: RFC 2047, 2.
const WORD_BYTES: usize = 45;

/// What a mail is made of; everything is checked.
pub struct Draft<'a> {
    pub id: JobId,
    pub from: Mailbox,
    pub to: Vec<Mailbox>,
    pub cc: Vec<Mailbox>,
    pub reply_to: Option<Mailbox>,
    pub subject: &'a str,
    pub text: &'a str,
    pub html: Option<&'a str>,
    pub attachments: Vec<Attachment<'a>>,
    /// Further headers: names and values.
    pub headers: Vec<(&'a str, &'a str)>,
}

/// A file that goes along.
pub struct Attachment<'a> {
    pub filename: &'a str,
    pub content_type: &'a str,
    pub content: Vec<u8>,
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
    let message_id = format!("{}@{}", draft.id, draft.from.email.domain());
    let mut mail = MessageBuilder::new()
        .header("From", mailboxes(&[draft.from]))
        .header("To", mailboxes(&draft.to))
        .header("Subject", unstructured(draft.subject))
        .message_id(message_id.as_str());
    if !draft.cc.is_empty() {
        mail = mail.header("Cc", mailboxes(&draft.cc));
    }
    if let Some(reply_to) = draft.reply_to {
        mail = mail.header("Reply-To", mailboxes(&[reply_to]));
    }
    for (name, value) in draft.headers {
        mail = mail.header(name, further(value));
    }
    mail = mail.text_body(uniform_line_ends(draft.text));
    if let Some(html) = draft.html {
        mail = mail.html_body(uniform_line_ends(html));
    }
    let attachments: Vec<_> = draft.attachments.iter().map(attached).collect();
    if !attachments.is_empty() {
        mail.attachments = Some(attachments);
    }
    let mut bytes = Vec::new();
    mail.serialize(&mut bytes);
    if is_clean(&bytes) {
        Ok(Composed { message_id: format!("<{message_id}>"), bytes })
    } else {
        Err("the mail can't be composed: a line of it is too long".into())
    }
}

/// In base64, whatever is in it: a text file keeps its line ends.
fn attached<'a>(file: &Attachment<'a>) -> MimePart<'a> {
    let encoded = BASE64.encode(&file.content);
    let lines: Vec<&str> =
        encoded.as_bytes().chunks(BASE64_LINE).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    MimePart::new(ContentType::new(file.content_type), lines.join("\r\n") + "\r\n")
        .attachment(file.filename)
        .transfer_encoding("base64")
}

/// Plain text is folded at its blanks; what that would change, and what looks like an encoded word, is encoded.
fn unstructured(text: &str) -> HeaderType<'_> {
    let is_foldable = |word: &str| !word.is_empty() && word.len() <= WORD_MAX;
    if text.contains("=?") || text.starts_with([' ', '\t']) {
        Raw::new(encoded_words(text)).into()
    } else if text.is_ascii() && text.split(' ').all(is_foldable) {
        Raw::new(text).into()
    } else {
        Text::new(text).into()
    }
}

/// Further headers have a grammar of their own as long as they are ASCII.
fn further(value: &str) -> HeaderType<'_> {
    if value.is_ascii() { Raw::new(value).into() } else { Text::new(value).into() }
}

fn mailboxes(all: &[Mailbox]) -> HeaderType<'static> {
    let one = |mailbox: &Mailbox| match &mailbox.name {
        Some(name) => format!("{} <{}>", phrase(name), mailbox.email),
        None => mailbox.email.to_string(),
    };
    Raw::new(all.iter().map(one).collect::<Vec<_>>().join(", ")).into()
}

/// A name as it may stand before an address: as it is, in quotes, or encoded. Source: RFC 5322, 3.2.5.
fn phrase(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~ ".contains(c);
    if !name.is_ascii() || name.contains("=?") {
        encoded_words(name)
    } else if name.chars().all(is_plain) && !name.contains("  ") {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

/// The text in encoded words (RFC 2047). What stands between two of them is not shown, so blanks are in the words.
fn encoded_words(text: &str) -> String {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= WORD_BYTES).last();
        let (word, left) = rest.split_at(end.unwrap_or(rest.len()));
        words.push(format!("=?utf-8?B?{}?=", BASE64.encode(word)));
        rest = left;
    }
    words.join(" ")
}

/// CRLF, CR and LF all become CRLF.
fn uniform_line_ends(text: &str) -> Cow<'static, str> {
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
    Cow::Owned(out)
}

fn is_clean(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\r' | b'\n')) {
        if at > LINE_MAX || !rest[at..].starts_with(b"\r\n") {
            return false;
        }
        rest = &rest[at + 2..];
    }
    rest.len() <= LINE_MAX && !bytes.contains(&0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{dev::sandbox::mime, handlers::clients::mail::address};

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
            attachments: Vec::new(),
            headers: Vec::new(),
        }
    }

    fn written(draft: Draft<'_>) -> String {
        String::from_utf8(compose(draft).unwrap().bytes).unwrap()
    }

    /// As a mail program reads it.
    fn read(draft: Draft<'_>) -> (Option<String>, Option<String>) {
        let mail = mime::Mail::read(&compose(draft).unwrap().bytes);
        (mail.header("subject").map(str::to_owned), mail.text)
    }

    #[test]
    fn a_mail_has_its_headers_and_a_message_id_from_the_job() {
        let mail = written(draft("Grüße", "Hello,\nworld", None));
        assert!(mail.contains("Message-ID: <00000000-0000-0000-0000-000000000000@example.org>\r\n"), "{mail}");
        assert!(mail.contains("Reply-To: desk@example.org\r\n") && mail.contains("Cc: carl@example.org\r\n"), "{mail}");
        assert!(mail.contains("Subject: =?utf-8?B?R3LDvMOfZQ==?=\r\n"), "{mail}");
        assert!(mail.contains("From: Dienst <service@example.org>\r\n"), "{mail}");
        assert!(mail.contains("To: ann@example.org, =?utf-8?B?xYF1Y2ph?= <l@example.org>\r\n"), "{mail}");
        assert!(mail.ends_with("\r\n\r\nHello,\r\nworld"), "{mail}");
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
    fn a_long_subject_is_folded_and_one_without_blanks_encoded() {
        let folded = written(draft(&("word ".repeat(200) + "end"), "x", None));
        assert!(folded.contains("\r\nSubject: word word") && folded.contains(" word end\r\n"), "{folded}");
        assert!(written(draft(&"é".repeat(900), "x", None)).contains("Subject: =?utf-8?"));
        for subject in ["a".repeat(998), "word ".repeat(2000) + "end", "x".repeat(901) + " y"] {
            assert_eq!(read(draft(&subject, "x", None)).0, Some(subject));
        }
    }

    #[test]
    fn a_subject_arrives_as_it_was_asked_for() {
        for subject in [
            "two  blanks",
            "é  é",
            "é é é",
            " blank before",
            "=?utf-8?q?=0d=0aBcc:_eve@example.org?=",
            "=?",
            "tab\tin it",
            "\u{1F600} smile",
        ] {
            assert_eq!(read(draft(subject, "x", None)).0.as_deref(), Some(subject));
        }
    }

    #[test]
    fn names_are_quoted_or_encoded_as_they_need() {
        for (name, expected) in [
            ("Ann Example", "Ann Example"),
            ("Acme Inc.", "\"Acme Inc.\""),
            ("Doe, Ann", "\"Doe, Ann\""),
            ("Ann \"Al\" Doe", "\"Ann \\\"Al\\\" Doe\""),
            ("back\\slash", "\"back\\\\slash\""),
            ("Jörg", "=?utf-8?B?SsO2cmc=?="),
            ("=?utf-8?q?x?=", "=?utf-8?B?PT91dGYtOD9xP3g/PQ==?="),
        ] {
            assert_eq!(phrase(name), expected);
        }
    }

    #[test]
    fn files_go_along_unchanged() {
        let content = b"a\nb\r\nc\0\xff".to_vec();
        let file = Attachment { filename: "Müller's \"x\".pdf", content_type: "text/plain", content };
        let mail = written(Draft { attachments: vec![file], ..draft("Hi", "see", None) });
        assert!(mail.contains("multipart/mixed") && mail.contains("Content-Transfer-Encoding: base64"), "{mail}");
        assert!(mail.contains("YQpiDQpjAP8="), "{mail}");
        assert!(mail.contains("Content-Disposition: attachment;") && mail.contains("filename*"), "{mail}");
    }

    #[test]
    fn further_headers_are_folded_and_never_encoded() {
        let link = format!("<https://example.org/{}>, <mailto:leave@example.org>", "x".repeat(200));
        let headers = vec![("List-Unsubscribe", link.as_str()), ("X-Campaign", "Frühling")];
        let mail = written(Draft { headers, ..draft("Hi", "x", None) });
        assert!(mail.contains(&format!("List-Unsubscribe: {}", link.replace(", ", ",\r\n "))), "{mail}");
        assert!(mail.contains("X-Campaign: =?utf-8?"), "{mail}");
    }

    proptest! {
        #[test]
        fn any_subject_arrives(subject in "([a-z=?_ é世\t]|=\\?utf-8\\?q\\?){0,120}[a-z]") {
            prop_assert_eq!(read(draft(&subject, "x", None)).0, Some(subject));
        }

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
