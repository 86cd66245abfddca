//! `/`: how things are, for people. Drawn anew for each visit, without script.

use std::{fmt::Write, sync::Arc};

use axum::{
    extract::State,
    http::{HeaderMap, header::HOST},
    response::Response,
};

use super::{
    Door,
    html::{self, escape},
    metrics::by_status,
};
use crate::ops::{
    ApiError, Health, HealthStatus,
    wire::{ListReply, ListRequest, Stats, StatusCounts, TypesReply},
};

/// Newest jobs that are shown.
const NEWEST: i64 = 20;

pub async fn page(State(door): State<Arc<Door>>, headers: HeaderMap) -> Response {
    let newest = ListRequest { limit: Some(NEWEST), ..ListRequest::default() };
    let (health, stats, types, newest) = tokio::join!(
        door.ops.health(),
        door.ops.get_stats(None),
        door.ops.list_types(None),
        door.ops.list_jobs(None, newest)
    );
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let mut body = state(&health);
    body.push_str(&part(&stats, numbers));
    body.push_str(&part(&types, |types| by_type(types, stats.as_ref().ok())));
    body.push_str(&part(&newest, jobs));
    body.push_str(&how_to(host));
    html::page("queue-service", &body)
}

/// What can't be known now is said in its place; the rest of the page stands.
fn part<T>(known: &Result<T, ApiError>, draw: impl FnOnce(&T) -> String) -> String {
    match known {
        Ok(known) => draw(known),
        Err(e) => format!("<p class=\"failed\">{}</p>\n", escape(&e.detail)),
    }
}

fn state(health: &Health) -> String {
    let word = |status: HealthStatus| match status {
        HealthStatus::Ok => "ok",
        HealthStatus::Degraded => "degraded",
        HealthStatus::Unavailable => "unavailable",
    };
    let mut out =
        format!("<h1>The service is <span class=\"{0}\">{0}</span></h1>\n<p class=\"soft\">", word(health.status));
    for (name, check) in &health.checks {
        // Writing into a String can't fail, here and below.
        let _ = write!(out, "<b class=\"{}\">{name}</b> {}<br>", word(check.status), escape(&check.detail));
    }
    out.push_str("</p>\n");
    out
}

fn numbers(stats: &Stats) -> String {
    let mut out = "<div class=\"tiles\">".to_owned();
    for (status, n) in by_status(&stats.all) {
        let _ = write!(out, "<a href=\"/jobs?status={status}\"><b>{n}</b>{status}</a>");
    }
    let _ = write!(out, "<div><b>{}</b>completed of all</div>", escape(&stats.completion_rate));
    if let Some(seconds) = stats.oldest_pending_seconds {
        let _ = write!(out, "<div><b>{seconds:.1} s</b>oldest due job</div>");
    }
    if let Some(seconds) = stats.oldest_paused_seconds {
        let _ = write!(out, "<div><b>{seconds:.1} s</b>oldest of paused types</div>");
    }
    out.push_str("</div>\n");
    out
}

fn by_type(reply: &TypesReply, stats: Option<&Stats>) -> String {
    let mut out = "<h2>Job types</h2>\n<div class=\"scroll\"><table><tr><th>type<th>what it does".to_owned();
    for (status, _) in by_status(&StatusCounts::default()) {
        let _ = write!(out, "<th class=\"n\">{status}");
    }
    out.push('\n');
    for info in &reply.types {
        let counts = stats.and_then(|stats| stats.by_type.get(&info.r#type).copied()).unwrap_or_default();
        let name = escape(&info.r#type);
        let paused = if info.paused { " <span class=\"degraded\">paused</span>" } else { "" };
        let about = escape(&info.description);
        let _ = write!(
            out,
            "<tr><td class=\"whole\"><a href=\"/jobs?type={name}\">{name}</a>{paused}<td class=\"soft\">{about}"
        );
        for (_, n) in by_status(&counts) {
            let _ = write!(out, "<td class=\"n\">{n}");
        }
        out.push('\n');
    }
    out.push_str("</table></div>\n");
    out
}

fn jobs(reply: &ListReply) -> String {
    if reply.jobs.is_empty() {
        return "<h2>Newest jobs</h2>\n<p class=\"soft\">There are none yet.</p>\n".to_owned();
    }
    let mut out =
        "<h2>Newest jobs</h2>\n<div class=\"scroll\"><table><tr><th>accepted (UTC)<th>job<th>type<th>status<th class=\"n\">attempts<th>error\n"
            .to_owned();
    for job in &reply.jobs {
        let made = job.created_at.format("%Y-%m-%d %H:%M:%S");
        let error = job.error.as_deref().unwrap_or_default();
        let short = error.get(..error.floor_char_boundary(200)).unwrap_or_default();
        let _ = writeln!(
            out,
            "<tr><td class=\"whole\">{made}<td class=\"whole\"><a href=\"/jobs/{0}\"><code>{0}</code></a>\
             <td class=\"whole\">{1}<td class=\"{2}\">{2}\
             <td class=\"n\">{3} of {4}<td class=\"soft\">{5}",
            job.id,
            escape(&job.r#type),
            job.status,
            job.attempts,
            job.max_attempts,
            escape(short),
        );
    }
    out.push_str("</table></div>\n");
    out
}

fn how_to(host: &str) -> String {
    let curl = format!(
        "curl --json '{{\"type\": \"send-email\", \"payload\": {{\"to\": \"ada@example.org\", \"subject\": \"Hello\", \
         \"body\": \"It works.\"}}}}' http://{host}/jobs"
    );
    format!(
        "<h2>Enqueue a job</h2>\n<pre>{}</pre>\n<p class=\"soft\">All routes: <a href=\"/docs\">docs</a>, \
         <a href=\"/openapi.json\">openapi.json</a>. The same verbs are asked over NATS as <code>queue.enqueue</code>, \
         <code>queue.getJob</code> and so on.</p>\n",
        escape(&curl)
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{job::Status, ops::wire::Job};

    #[test]
    fn hostile_texts_are_shown_as_texts() {
        const HOSTILE: &str = "<script>alert(1)</script>\" onmouseover='x'";
        let job = Job {
            id: uuid::Uuid::nil(),
            r#type: HOSTILE.into(),
            status: Status::Failed,
            payload: None,
            priority: 0,
            attempts: 1,
            max_attempts: 3,
            result: None,
            error: Some(format!("{HOSTILE}{}", "ä".repeat(500))),
            errors: None,
            progress: None,
            tags: vec![HOSTILE.into()],
            idempotency_key: None,
            note: None,
            worker_id: Some(HOSTILE.into()),
            created_at: chrono::DateTime::UNIX_EPOCH,
            run_at: chrono::DateTime::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
        };
        let drawn = [
            jobs(&ListReply { jobs: vec![job], limit: 20, offset: 0, next_cursor: None }),
            how_to(HOSTILE),
            part(&Err::<(), _>(ApiError::unavailable(HOSTILE)), |()| String::new()),
            state(&Health { status: HealthStatus::Ok, checks: BTreeMap::new() }),
        ];
        for html in drawn {
            assert!(!html.contains("<script") && !html.contains("onmouseover='"), "{html}");
        }
    }
}
