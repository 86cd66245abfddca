//! The mailbox as pages and JSON: what the SMTP sink has taken.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;

use super::{
    REFUSED_MAILBOX, mime,
    page::{escape, page, table, wants_json},
    smtp::{Mail, Sink},
};

/// A mail in the list.
#[derive(Serialize)]
struct Summary {
    id: u64,
    at: DateTime<Utc>,
    /// The envelope's, which Bcc recipients are in.
    from: String,
    to: Vec<String>,
    subject: Option<String>,
}

/// A mail in full.
#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    summary: Summary,
    /// Pairs, because a name may come more than once.
    headers: Vec<(String, String)>,
    text: Option<String>,
    html: Option<String>,
    raw: String,
}

impl Summary {
    fn of(mail: &Mail, read: &mime::Mail) -> Self {
        Self {
            id: mail.id,
            at: mail.at.into(),
            from: mail.from.clone(),
            to: mail.to.clone(),
            subject: read.header("subject").map(str::to_owned),
        }
    }
}

pub(super) fn router(sink: Sink) -> Router {
    Router::new()
        .route("/dev/mail", get(list))
        .route("/dev/mail.json", get(list_json))
        .route("/dev/mail/{id}", get(one))
        .with_state(sink)
}

/// Newest first.
fn summaries(sink: &Sink) -> Vec<Summary> {
    sink.mails().iter().rev().map(|mail| Summary::of(mail, &mime::Mail::read(mail.text.as_bytes()))).collect()
}

async fn list(State(sink): State<Sink>, headers: HeaderMap) -> Response {
    let mails = summaries(&sink);
    if wants_json(&headers) {
        return Json(json!({"mails": mails})).into_response();
    }
    let rows = mails.iter().map(|mail| {
        let subject = mail.subject.as_deref().filter(|subject| !subject.trim().is_empty()).unwrap_or("(no subject)");
        vec![
            mail.at.format("%H:%M:%S").to_string(),
            escape(&mail.from),
            escape(&mail.to.join(", ")),
            format!("<a href=\"/dev/mail/{}\">{}</a>", mail.id, escape(subject)),
        ]
    });
    let table = match mails.is_empty() {
        true => "<p class=\"quiet\">No mail yet.</p>".to_owned(),
        false => table(&["UTC", "from", "to", "subject"], rows),
    };
    let about = format!(
        "<p>Mail that was sent to the sandbox; none of it left this machine. Mail to <code>{REFUSED_MAILBOX}</code> is \
         refused. As JSON: <a href=\"/dev/mail.json\">/dev/mail.json</a>.</p>"
    );
    page("Mail", &format!("{about}{table}"))
}

async fn list_json(State(sink): State<Sink>) -> Response {
    Json(json!({"mails": summaries(&sink)})).into_response()
}

/// `/dev/mail/7` and `/dev/mail/7.json`.
async fn one(State(sink): State<Sink>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    let bare = name.strip_suffix(".json");
    let id: Option<u64> = bare.unwrap_or(&name).parse().ok();
    let Some(mail) = sink.mails().into_iter().find(|mail| Some(mail.id) == id) else {
        return (StatusCode::NOT_FOUND, page("No such mail", "<p>It may have made room for newer ones.</p>"))
            .into_response();
    };
    let read = mime::Mail::read(mail.text.as_bytes());
    let summary = Summary::of(&mail, &read);
    if bare.is_some() || wants_json(&headers) {
        let mime::Mail { headers, text, html } = read;
        return Json(Whole { summary, headers, text, html, raw: mail.text }).into_response();
    }
    let head: Vec<_> = read.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let part = |name: &str, text: Option<&str>| match text {
        Some(text) => format!("<h2>{name}</h2><pre>{}</pre>", escape(text)),
        None => String::new(),
    };
    let body = [
        format!("<p>From {} to {}</p>", escape(&mail.from), escape(&mail.to.join(", "))),
        part("Text", read.text.as_deref()),
        // Shown as source: a mail is somebody else's page.
        part("HTML", read.html.as_deref()),
        part("Headers", Some(&head.join("\n"))),
        format!("<details><summary>As it was sent</summary><pre>{}</pre></details>", escape(&mail.text)),
    ];
    page(summary.subject.as_deref().unwrap_or("(no subject)"), &body.concat())
}
