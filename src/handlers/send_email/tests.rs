//! Against a mail server that can be told to misbehave.

mod servers;

use serde_json::{Value, json, value::RawValue};

use super::*;
use crate::{
    dev::sandbox::smtp::{Rules, Sink},
    handlers::{AnyHandler, context::Notes},
    job::{FailureKind, JobType},
};

fn handler(url: Option<String>) -> AnyHandler {
    with(Smtp { url: url.map(Into::into), ..Smtp::default() })
}

fn with(config: Smtp) -> AnyHandler {
    let config = Smtp { from: "Dienst <service@example.org>".into(), pool: 2, ..config };
    AnyHandler::new(SendEmail::new(&config).unwrap()).unwrap()
}

async fn sink() -> Sink {
    Sink::start(([127, 0, 0, 1], 0).into()).await.unwrap()
}

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap()
}

fn context(timeout: Duration) -> RunContext {
    RunContext::detached(JobType::new("send-email").unwrap(), timeout)
}

async fn run(handler: &AnyHandler, payload: &Value) -> Result<Value, Failure> {
    run_as(handler, &context(Duration::from_secs(10)), payload).await
}

async fn run_as(handler: &AnyHandler, ctx: &RunContext, payload: &Value) -> Result<Value, Failure> {
    let payload = raw(payload);
    assert_eq!(handler.check(&payload), Faults::default());
    handler.run(ctx, &payload).await.result().map(|result| serde_json::from_str(result.get()).unwrap())
}

fn faults(payload: &Value) -> Vec<String> {
    handler(None).check(&raw(payload)).0.into_iter().map(|(pointer, _)| pointer).collect()
}

#[tokio::test]
async fn a_mail_reaches_everybody_and_blind_copies_stay_blind() {
    let sink = sink().await;
    let handler = handler(Some(sink.url()));
    let ctx = context(Duration::from_secs(10));
    let payload = json!({
        "to": ["Ann <ann@example.org>", "bob@example.org"], "cc": "carl@example.org", "bcc": ["dora@example.org", "ann@example.org"],
        "replyTo": "desk@example.org", "subject": "Grüße", "body": "Hello", "html": "<p>Hello</p>",
    });
    let result = run_as(&handler, &ctx, &payload).await.unwrap();
    let message_id = format!("<{}@example.org>", ctx.job_id);
    assert_eq!(result, json!({"messageId": message_id, "accepted": 4, "response": "2.0.0 taken"}));
    let [mail] = &sink.mails()[..] else { panic!() };
    assert_eq!(mail.from, "service@example.org");
    assert_eq!(mail.to, ["ann@example.org", "bob@example.org", "carl@example.org", "dora@example.org"]);
    assert!(mail.text.contains(&message_id) && !mail.text.contains("dora"), "{}", mail.text);
    assert_eq!(mail.bare_line_ends, 0);
}

#[tokio::test]
async fn no_body_can_end_its_mail_early() {
    let sink = sink().await;
    let handler = handler(Some(sink.url()));
    let bodies = [
        "\r.\rMAIL FROM:<evil@example.org>\rRCPT TO:<x@example.org>\rDATA\rspam\r.\r",
        "\n.\n",
        "\r\n.\r\nMAIL FROM:<evil@example.org>\r\n",
        ".\n..\n.",
        "",
    ];
    for body in bodies {
        let payload = json!({"to": "ann@example.org", "subject": "x", "body": body, "html": body});
        run(&handler, &payload).await.unwrap();
    }
    let mails = sink.mails();
    assert_eq!(mails.len(), bodies.len());
    assert!(mails.iter().all(|mail| mail.from == "service@example.org" && mail.bare_line_ends == 0));
    // Quoted-printable leaves these as they are; the marking dots must be gone again.
    assert!(mails[3].text.contains("\r\n\r\n.\r\n..\r\n.\r\n"), "{}", mails[3].text);
}

#[tokio::test]
async fn connections_are_used_again() {
    let sink = sink().await;
    let handler = handler(Some(sink.url()));
    for _ in 0..3 {
        run(&handler, &json!({"to": "ann@example.org", "subject": "x", "body": "y"})).await.unwrap();
    }
    let greetings = sink.commands().iter().filter(|command| command.starts_with("EHLO")).count();
    assert_eq!((greetings, sink.mails().len()), (1, 3));
}

#[tokio::test]
async fn a_refusal_is_permanent_for_5xx_and_passing_for_4xx() {
    let sink = sink().await;
    let handler = handler(Some(sink.url()));
    let refuse = |answer: &str| [("ann@example.org".to_owned(), answer.to_owned())].into();
    for (rules, kind, said) in [
        (Rules { refuse: refuse("550 5.1.1 no such user"), ..Rules::default() }, FailureKind::Permanent, "550"),
        (Rules { refuse: refuse("450 4.2.1 mailbox busy"), ..Rules::default() }, FailureKind::Error, "450"),
        (Rules { refuse_sender: Some("550 not you".into()), ..Rules::default() }, FailureKind::Permanent, "not you"),
        (Rules { refuse_sender: Some("530 log in first".into()), ..Rules::default() }, FailureKind::Error, "log in"),
        (Rules { refuse_mail: Some("554 spam".into()), ..Rules::default() }, FailureKind::Permanent, "554 spam"),
        (Rules { refuse_mail: Some("452 disk full".into()), ..Rules::default() }, FailureKind::Error, "disk full"),
        (Rules { greeting: Some("421 too busy".into()), ..Rules::default() }, FailureKind::Error, "421"),
        (Rules { greeting: Some("554 no service".into()), ..Rules::default() }, FailureKind::Error, "554"),
        (Rules { drop_in_data: true, ..Rules::default() }, FailureKind::Error, "may have taken"),
        (Rules { drop_after_data: true, ..Rules::default() }, FailureKind::Error, "may have taken"),
    ] {
        // A handler of its own each time, so that every case meets a fresh connection.
        let fresh = super::tests::handler(Some(sink.url()));
        sink.set_rules(rules.clone());
        let failure = run(&fresh, &json!({"to": "ann@example.org", "subject": "x", "body": "y\ny"})).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{rules:?}: {failure:?}");
        assert!(failure.message.contains(said), "{rules:?}: {failure:?}");
    }
    sink.set_rules(Rules::default());
    run(&handler, &json!({"to": "ann@example.org", "subject": "x", "body": "y"})).await.unwrap();
}

#[tokio::test]
async fn who_has_the_mail_does_not_get_it_again_when_others_were_refused_for_now() {
    let sink = sink().await;
    let handler = handler(Some(sink.url()));
    let payload =
        json!({"to": ["ann@example.org", "bob@example.org"], "bcc": "carl@example.org", "subject": "x", "body": "y"});
    let refuse =
        [("bob@example.org".to_owned(), "450 busy".to_owned()), ("carl@example.org".to_owned(), "550 gone".to_owned())];
    sink.set_rules(Rules { refuse: refuse.into(), ..Rules::default() });
    let ctx = context(Duration::from_secs(10));
    let failure = run_as(&handler, &ctx, &payload).await.unwrap_err();
    let expected = "the SMTP server took the mail for 1 of 3 recipients, but refused bob@example.org: 450 busy; carl@example.org: 550 gone";
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::Error, expected));

    // The next attempt, in another process: it has only what was written down.
    let kept = ctx.notes.take().checkpoint.unwrap();
    let notes = Notes::with_checkpoint(Some(RawValue::from_string(kept.get().to_owned()).unwrap()));
    let next = RunContext { notes: Arc::new(notes), attempt: 2, ..ctx.clone() };
    sink.set_rules(Rules {
        refuse: [("carl@example.org".to_owned(), "550 gone".to_owned())].into(),
        ..Rules::default()
    });
    let failure = run_as(&handler, &next, &payload).await.unwrap_err();
    let expected = "the SMTP server took the mail for 2 of 3 recipients, but refused carl@example.org: 550 gone";
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::Permanent, expected));
    let reached: Vec<Vec<String>> = sink.mails().into_iter().map(|mail| mail.to).collect();
    assert_eq!(reached, [["ann@example.org"], ["bob@example.org"]]);
}

#[tokio::test]
async fn a_silent_server_costs_no_more_than_the_time_of_the_run() {
    let sink = sink().await;
    sink.set_rules(Rules { silent: true, ..Rules::default() });
    let handler = handler(Some(sink.url()));
    let payload = json!({"to": "ann@example.org", "subject": "x", "body": "y"});
    let failure = run_as(&handler, &context(Duration::from_millis(350)), &payload).await.unwrap_err();
    assert_eq!(failure, Failure::retry("the SMTP server did not answer in time (connecting)"));
}

#[tokio::test]
async fn without_a_server_the_failure_names_the_setting_and_another_attempt_may_succeed() {
    let failure = run(&handler(None), &json!({"to": "a@example.org", "subject": "x", "body": "y"})).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Error);
    assert!(failure.message.contains("QUEUE__SMTP__URL"));
    let gone = handler(Some("smtp://127.0.0.1:1".into()));
    let failure = run(&gone, &json!({"to": "a@example.org", "subject": "x", "body": "y"})).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Error);
}

#[test]
fn every_fault_has_its_pointer() {
    let good = json!({"to": "a@example.org", "subject": "x", "body": "y"});
    assert!(faults(&good).is_empty());
    let with = |key: &str, value: Value| {
        let mut payload = good.clone();
        payload[key] = value;
        faults(&payload)
    };
    assert_eq!(with("to", json!("a@example.org\r\nBcc: x@example.org")), ["/to"]);
    assert_eq!(with("to", json!(["a@example.org", "b", "c@example.org", "x: d@example.org;"])), ["/to/1", "/to/3"]);
    assert_eq!(with("to", json!([])), ["/to"]);
    assert_eq!(with("to", json!(vec!["a@example.org"; 51])), ["/to"]);
    assert_eq!(with("cc", json!(["a@example.org\n"])), ["/cc/0"]);
    assert_eq!(with("bcc", json!("a\0@example.org")), ["/bcc"]);
    assert_eq!(with("from", json!("me")), ["/from"]);
    assert_eq!(with("replyTo", json!("a@example.org,b@example.org")), ["/replyTo"]);
    assert_eq!(with("subject", json!("a\r\nBcc: x@example.org")), ["/subject"]);
    assert_eq!(with("subject", json!("a".repeat(999))), ["/subject"]);
    assert_eq!(with("subject", json!(format!("Re: {}", "a".repeat(999)))), ["/subject"]);
    assert!(with("subject", json!("word ".repeat(1000))).is_empty());
    let file = |filename: &str, kind: &str, content: &str| {
        with("attachments", json!([{"filename": filename, "contentType": kind, "content": content}]))
    };
    assert!(file("a.pdf", "application/pdf", "aGk=").is_empty() && with("attachments", json!([])).is_empty());
    assert_eq!(file("../a.pdf", "application/pdf", "aGk="), ["/attachments/0/filename"]);
    assert_eq!(file("a\r\n.pdf", "application/pdf", "aGk="), ["/attachments/0/filename"]);
    assert_eq!(file("a.pdf", "pdf", "aGk="), ["/attachments/0/contentType"]);
    assert_eq!(file("a.pdf", "text/plain\r\nBcc: x@example.org", "aGk="), ["/attachments/0/contentType"]);
    assert_eq!(file("a.eml", "message/rfc822", "aGk="), ["/attachments/0/contentType"]);
    assert_eq!(file("a.pdf", "application/pdf", "aG\nk="), ["/attachments/0/content"]);
    let header = |name: &str, value: &str| with("headers", json!({name: value}));
    assert!(header("X-Campaign", "spring").is_empty() && header("list-unsubscribe", "<https://x.example>").is_empty());
    assert_eq!(header("Bcc", "x@example.org"), ["/headers/Bcc"]);
    assert_eq!(header("X-A: b\r\nBcc", "x@example.org"), ["/headers/X-A: b\r\nBcc"]);
    assert_eq!(header("X-A", "b\r\nBcc: x@example.org"), ["/headers/X-A"]);
    assert_eq!(header("X-A", ""), ["/headers/X-A"]);
    assert_eq!(header("References", &"a".repeat(999)), ["/headers/References"]);
    assert_eq!(with("headers", json!({"X-A": "1", "x-a": "2"})).len(), 1);
    assert_eq!(with("to", json!(5)), ["/to"]);
    let many = |c: char| json!((0..50).map(|i| format!("{c}{i}@example.org")).collect::<Vec<_>>());
    let crowd = json!({"to": many('a'), "cc": many('b'), "bcc": "x@example.org", "subject": "x", "body": "y"});
    assert_eq!(faults(&crowd), [""]);
}

#[test]
fn a_bad_setting_is_refused_at_the_start() {
    let url = |url: &str| SendEmail::new(&Smtp { url: Some(url.into()), ..Smtp::default() }).err().unwrap();
    assert!(url("imap://x").contains("smtp.url"));
    let from = SendEmail::new(&Smtp { from: "nobody".into(), ..Smtp::default() }).err().unwrap();
    assert!(from.contains("smtp.from"));
}

#[tokio::test]
async fn files_and_further_headers_reach_the_server_signed() {
    let sink = sink().await;
    let head = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    let der = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [head.as_slice(), &[7; 32]].concat());
    let key = format!("-----BEGIN {0}-----\n{der}\n-----END {0}-----\n", "PRIVATE KEY");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &key).unwrap();
    for key in [key, file.path().display().to_string()] {
        let dkim = Dkim { domain: "example.org".into(), selector: "mail".into(), key: key.into() };
        let handler = with(Smtp { url: Some(sink.url().into()), dkim: Some(dkim), ..Smtp::default() });
        let payload = json!({
            "to": "ann@example.org", "subject": "x", "body": "y",
            "attachments": [{"filename": "a.pdf", "contentType": "application/pdf", "content": "aGVsbG8="}],
            "headers": {"List-Unsubscribe-Post": "List-Unsubscribe=One-Click", "X-Order": "7"},
        });
        run(&handler, &payload).await.unwrap();
        let mail = sink.mails().pop().unwrap().text;
        assert!(mail.starts_with("DKIM-Signature: v=1; a=ed25519-sha256;"), "{mail}");
        assert!(
            mail.contains("X-Order: 7\r\n") && mail.contains("List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n")
        );
        assert!(mail.contains("application/pdf") && mail.contains("\r\naGVsbG8=\r\n"), "{mail}");
    }
    let dkim = Dkim { domain: "example.org".into(), selector: "mail".into(), key: "/nowhere".into() };
    let refused = SendEmail::new(&Smtp { dkim: Some(dkim), ..Smtp::default() }).err().unwrap();
    assert!(refused.contains("smtp.dkim") && refused.contains("can't be read"), "{refused}");
}
