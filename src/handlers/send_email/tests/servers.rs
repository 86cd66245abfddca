//! Against servers as the world has them: terse, old, impatient, and worse.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use super::*;

/// What a server answers to a line, given the place of its connection; `None` hangs up. It is asked for a greeting by "",
/// and for its word on a mail by ".".
type Answers = Arc<dyn Fn(usize, &str) -> Option<Vec<u8>> + Send + Sync>;

/// A mail server that answers as it is told, and remembers what it heard.
struct Server {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    _task: tokio::task::JoinSet<()>,
}

/// A polite server's answers, with these in place of some: of the first prefix that a line has.
fn polite(line: &str, others: &[(&str, &[u8])]) -> Option<Vec<u8>> {
    let lower = line.to_ascii_lowercase();
    let other = others.iter().find(|(prefix, _)| lower.starts_with(prefix) && prefix.is_empty() == line.is_empty());
    let answer: &[u8] = match (other, lower.split([' ', ':']).next()) {
        (Some((_, answer)), _) => answer,
        (None, Some("")) => b"220 mail.example ESMTP\r\n",
        (None, Some("data")) => b"354 go on\r\n",
        (None, Some("starttls")) => b"454 not now\r\n",
        (None, _) => b"250 2.0.0 taken\r\n",
    };
    Some(answer.to_vec())
}

impl Server {
    async fn start(answers: impl Fn(usize, &str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, answers): (Arc<Mutex<Vec<String>>>, Answers) = (Arc::default(), Arc::new(answers));
        let mut tasks = tokio::task::JoinSet::new();
        let noted = heard.clone();
        tasks.spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            for place in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                open.spawn(serve(stream, place, answers.clone(), noted.clone()));
            }
        });
        Self { address, heard, _task: tasks }
    }

    /// One that answers every connection the same way.
    async fn saying(others: &'static [(&'static str, &'static [u8])]) -> Self {
        Self::start(move |_, line| polite(line, others)).await
    }

    fn url(&self, login: &str) -> String {
        format!("smtp://{login}{}", self.address)
    }

    fn handler(&self) -> AnyHandler {
        handler(Some(self.url("")))
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    fn count(&self, prefix: &str) -> usize {
        self.heard().iter().filter(|line| line.starts_with(prefix)).count()
    }
}

async fn serve(stream: TcpStream, place: usize, answers: Answers, heard: Arc<Mutex<Vec<String>>>) {
    let mut stream = BufReader::new(stream);
    let (mut line, mut in_text) = (String::new(), false);
    loop {
        if !in_text || line == "." {
            in_text = false;
            let Some(answer) = answers(place, &line) else { return };
            in_text = in_text || answer.starts_with(b"354");
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
        line.clear();
        if stream.read_line(&mut line).await.unwrap_or_default() == 0 {
            return;
        }
        line.truncate(line.trim_end().len());
        if !in_text {
            heard.lock().unwrap().push(line.clone());
        }
    }
}

fn mail() -> Value {
    json!({"to": "ann@example.org", "subject": "x", "body": "y"})
}

fn mail_to(n: usize) -> Value {
    json!({"to": (0..n).map(|i| format!("u{i}@example.org")).collect::<Vec<_>>(), "subject": "x", "body": "y"})
}

#[tokio::test]
async fn only_the_code_of_a_reply_counts() {
    let servers: [&[(&str, &[u8])]; 5] = [
        &[("", b"220\r\n"), ("ehlo", b"250\r\n"), ("mail", b"250\r\n"), ("data", b"354\r\n"), (".", b"250\r\n")],
        &[("", b"220 Gr\xfc\xdfe\r\n"), ("ehlo", b"250-\xff\xfe\r\n250 \xff\r\n"), (".", b"250 \xd6\xd0\xce\xc4\r\n")],
        &[("", b"220-a\r\n220-\r\n220 b\r\n"), ("rcpt", b"250-2.1.5\r\n250\r\n"), (".", b"250-queued\r\n250 as 7\r\n")],
        &[("", b"220 x\n"), ("ehlo", b"250 x\n"), ("rcpt", b"251 will forward\n"), (".", b"250 ok\n")],
        &[("", b"220\tx\r\n"), ("data", b"354-go\r\n354\r\n")],
    ];
    for others in servers {
        let server = Server::start(move |_, line| polite(line, others)).await;
        let result = run(&server.handler(), &mail()).await;
        assert!(result.is_ok(), "{result:?}: {:?}", server.heard());
        assert_eq!(server.count("DATA"), 1);
    }
    // In GBK: no such user.
    let server = Server::saying(&[("rcpt", b"550 \xce\xde\xb4\xcb\xd3\xc3\xbb\xa7\r\n")]).await;
    let failure = run(&server.handler(), &mail()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Permanent, "{failure:?}");
}

#[tokio::test]
async fn servers_that_know_no_ehlo_and_write_keywords_their_way_are_spoken_to() {
    let server = Server::saying(&[("ehlo", b"502 what?\r\n")]).await;
    run(&server.handler(), &mail()).await.unwrap();
    assert_eq!(server.count("HELO"), 1);

    let server = Server::saying(&[
        ("ehlo", b"250-mail\r\n250 auth=login\r\n"),
        ("auth login", b"334 Wie hei\xdft du?\r\n"),
        ("yw5u", b"334\r\n"),
        ("cea6dw==", b"235 ok\r\n"),
    ])
    .await;
    run(&handler(Some(server.url("ann:p%40:w@"))), &mail()).await.unwrap();
    assert_eq!(server.heard()[1..4], ["AUTH LOGIN", "YW5u", "cEA6dw=="]);

    let server =
        Server::saying(&[("ehlo", b"250-mail\r\n250 Auth PLAIN LOGIN\r\n"), ("auth plain", b"235 ok\r\n")]).await;
    run(&handler(Some(server.url("ann:pw@"))), &mail()).await.unwrap();
    assert_eq!(server.heard()[1], "AUTH PLAIN AGFubgBwdw==");

    let server = Server::saying(&[("ehlo", b"250-mail\r\n250 AUTH PLAIN\r\n"), ("auth plain", b"535 no\r\n")]).await;
    let failure = run(&handler(Some(server.url("ann:pw@"))), &mail()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Error, "wrong credentials are the operator's to cure");
    assert!(failure.message.contains("535 no"), "{failure:?}");
}

#[tokio::test]
async fn a_token_is_read_again_at_each_connection() {
    let challenged = Mutex::new(false);
    let server = Server::start(move |_, line| {
        let mut challenged = challenged.lock().unwrap();
        match line {
            _ if line.starts_with("EHLO") => Some(b"250-mail\r\n250 AUTH XOAUTH2\r\n".to_vec()),
            _ if line.starts_with("AUTH") => {
                *challenged = true;
                Some(b"334 eyJzdGF0dXMiOiI0MDEifQ==\r\n".to_vec())
            }
            "" if std::mem::take(&mut *challenged) => Some(b"535 5.7.8 expired\r\n".to_vec()),
            _ => polite(line, &[]),
        }
    })
    .await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let url = Some(server.url("ann@").into());
    let handler = with(Smtp { url, token_file: Some(file.path().into()), ..Smtp::default() });
    for token in ["old", "new"] {
        std::fs::write(file.path(), format!("{token}\n")).unwrap();
        let failure = run(&handler, &mail()).await.unwrap_err();
        assert!(failure.kind == FailureKind::Error && failure.message.contains("expired"), "{failure:?}");
    }
    let expected = |token: &str| {
        let text = format!("user=ann\x01auth=Bearer {token}\x01\x01");
        format!("AUTH XOAUTH2 {}", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text))
    };
    let logins: Vec<String> = server.heard().into_iter().filter(|line| line.starts_with("AUTH")).collect();
    assert_eq!(logins, [expected("old"), expected("new")]);
}

#[tokio::test]
async fn ehlo_says_what_is_set_or_a_full_name_or_an_address() {
    let server = Server::saying(&[]).await;
    run(&server.handler(), &mail()).await.unwrap();
    let hello = Some("mail.example.org".into());
    run(&with(Smtp { url: Some(server.url("").into()), hello, ..Smtp::default() }), &mail()).await.unwrap();
    let greetings: Vec<String> = server.heard().into_iter().filter(|line| line.starts_with("EHLO")).collect();
    assert!(greetings[0] == "EHLO [127.0.0.1]" || greetings[0].contains('.'), "{greetings:?}");
    assert_eq!(greetings[1], "EHLO mail.example.org");
}

#[tokio::test]
async fn a_tired_connection_is_replaced_at_once_and_costs_no_attempt() {
    // Three mails a connection, then 421, an end without a word, or a refused DATA.
    let endings: [(&str, Option<&[u8]>); 4] =
        [("MAIL", Some(b"421 enough\r\n")), ("MAIL", None), ("RCPT", Some(b"421 4.7.0 enough\r\n")), ("DATA", None)];
    for (at, ending) in endings {
        let mails = Mutex::new(std::collections::HashMap::<usize, usize>::new());
        let server = Server::start(move |place, line| {
            let mut mails = mails.lock().unwrap();
            let taken = mails.entry(place).or_default();
            if *taken >= 3 && line.starts_with(at) {
                return ending.map(<[u8]>::to_vec);
            }
            *taken += usize::from(line == ".");
            polite(line, &[])
        })
        .await;
        let handler = server.handler();
        for n in 0..12 {
            let result = run(&handler, &mail()).await;
            assert!(result.is_ok(), "mail {n}, {at} {ending:?}: {result:?}");
        }
        assert_eq!(server.count("EHLO"), 4, "{at} {ending:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_busy_at_first_is_asked_once_more() {
    let busy = |until: usize| {
        move |place: usize, line: &str| {
            let others: &[(&str, &[u8])] = if place < until { &[("", b"421 too many connections\r\n")] } else { &[] };
            polite(line, others)
        }
    };
    run(&Server::start(busy(1)).await.handler(), &mail()).await.unwrap();
    let failure = run(&Server::start(busy(9)).await.handler(), &mail()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Error);
    assert!(failure.message.contains("421 too many connections"), "{failure:?}");
}

#[tokio::test]
async fn recipients_beyond_the_servers_limit_are_offered_at_once_again() {
    for answer in ["452 4.5.3 too many recipients\r\n", "552 too many recipients\r\n"] {
        let recipients = Mutex::new(0);
        let server = Server::start(move |_, line| {
            let mut recipients = recipients.lock().unwrap();
            if line.starts_with("MAIL") {
                *recipients = 0;
            }
            *recipients += usize::from(line.starts_with("RCPT"));
            if line.starts_with("RCPT") && *recipients > 2 { Some(answer.into()) } else { polite(line, &[]) }
        })
        .await;
        let result = run(&server.handler(), &mail_to(5)).await.unwrap();
        assert_eq!((result["accepted"].as_i64(), server.count("DATA")), (Some(5), 3), "{:?}", server.heard());
    }
    for code in ["421", "450", "452", "552"] {
        let server = Server::start(move |_, line| match line.starts_with("RCPT") {
            true => Some(format!("{code} not now\r\n").into()),
            false => polite(line, &[]),
        })
        .await;
        let failure = run(&server.handler(), &mail()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Error, "{failure:?}");
    }
}

#[tokio::test]
async fn who_got_the_mail_before_the_connection_broke_is_remembered() {
    let server = Server::start(|_, line| match line {
        line if line.starts_with("RCPT TO:<u1") => Some(b"452 too many\r\n".to_vec()),
        _ => polite(line, &[]),
    })
    .await;
    let ctx = context(Duration::from_secs(10));
    // The second transaction has nobody who is taken, so the first one stands.
    let failure = run_as(&server.handler(), &ctx, &mail_to(2)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Error);
    assert!(failure.message.contains("1 of 2"), "{failure:?}");
    assert!(ctx.notes.take().checkpoint.unwrap().get().contains("u0@example.org"));
}

#[tokio::test]
async fn an_end_without_an_answer_says_that_the_mail_may_be_there() {
    let server = Server::start(|_, line| if line == "." { None } else { polite(line, &[]) }).await;
    let failure = run(&server.handler(), &mail()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Error);
    assert!(failure.message.contains("may have taken") && failure.message.contains("same Message-ID"), "{failure:?}");
    assert_eq!(server.count("DATA"), 1, "it is not sent twice in one attempt");
}

#[tokio::test]
async fn what_was_said_before_tls_is_not_believed_after_it() {
    let server = Server::saying(&[
        ("ehlo", b"250-mail\r\n250 StartTLS\r\n"),
        ("starttls", b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n"),
    ])
    .await;
    let handler = handler(Some(server.url("") + "?tls=required"));
    let failure = run(&handler, &mail()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Error);
    assert!(failure.message.contains("before TLS"), "{failure:?}");
    assert_eq!(server.heard().last().unwrap(), "STARTTLS", "nothing follows, no handshake either");

    let server = Server::saying(&[]).await;
    let failure = run(&super::handler(Some(server.url("") + "?tls=required")), &mail()).await.unwrap_err();
    assert!(failure.message.contains("no STARTTLS"), "{failure:?}");
    assert_eq!(server.count("MAIL"), 0);
}

#[tokio::test]
async fn letters_outside_ascii_before_the_at_need_a_server_that_takes_them() {
    let payload = json!({"to": "Änn <änn@example.org>", "subject": "x", "body": "y"});
    let server = Server::saying(&[("ehlo", b"250-mail\r\n250-smtputf8\r\n250 8BITMIME\r\n")]).await;
    run(&server.handler(), &payload).await.unwrap();
    assert!(server.heard().contains(&"MAIL FROM:<service@example.org> BODY=8BITMIME SMTPUTF8".to_owned()));
    assert!(server.heard().contains(&"RCPT TO:<änn@example.org>".to_owned()));

    let server = Server::saying(&[]).await;
    let failure = run(&server.handler(), &payload).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains("SMTPUTF8"), "{failure:?}");
}

#[tokio::test]
async fn a_servers_limit_of_size_is_asked_about_before_the_text_is_sent() {
    let server = Server::saying(&[("ehlo", b"250-mail\r\n250 size 10\r\n"), ("mail", b"552 too large\r\n")]).await;
    let failure = run(&server.handler(), &mail()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Permanent, "{failure:?}");
    assert!(server.heard()[1].contains(" SIZE="), "{:?}", server.heard());
    assert_eq!(server.count("DATA"), 0);
}
