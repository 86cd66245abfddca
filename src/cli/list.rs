//! `list`: a table of jobs, newest first.

use chrono::Utc;
use clap::Args;
use comfy_table::Cell;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    exit::Exit,
    output::{Output, Tone},
    pretty::compact,
    table::Columns,
    text::{NOTHING, absolute, cell, clean, relative},
    view::tone,
};
use crate::{
    client::{Client, Job, Page, read},
    ops::Verb,
};

/// Jobs that are asked for at once when all are wanted.
const PAGE: u32 = 500;

#[derive(Debug, Args)]
#[command(after_help = "\
On a terminal times are relative; in a pipe they are absolute, and nothing is cut off.

Examples:
  queue-service list --status failed --type send-email
  queue-service list --status scheduled --status retrying --limit 20
  queue-service list --tag order-17 --include payload,errors --json
  queue-service list --status failed --all --json | jq -r .id | queue-service retry -")]
pub struct ListArgs {
    /// Only jobs of this status; may be repeated: pending, scheduled, retrying, processing, completed, failed, cancelled
    #[arg(long, value_name = "STATUS", value_delimiter = ',')]
    status: Vec<String>,
    /// Only jobs of this type
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Only jobs with this tag
    #[arg(long)]
    tag: Option<String>,
    /// At most this many, 1 to 1000 [default: 50]
    #[arg(long, value_name = "N", conflicts_with = "all")]
    limit: Option<u32>,
    /// Leave out this many, at most 100000; for more use --cursor
    #[arg(long, value_name = "N", conflicts_with_all = ["all", "cursor"])]
    offset: Option<u32>,
    /// Go on where a page ended
    #[arg(long)]
    cursor: Option<String>,
    /// Show these as well: payload, result, errors
    #[arg(long, value_name = "FIELDS", value_delimiter = ',')]
    include: Vec<String>,
    /// All jobs, page by page; with --json one job per line
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    status: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    include: &'a [String],
}

pub async fn run(args: ListArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let mut request = Request {
        status: &args.status,
        r#type: args.r#type.as_deref(),
        tag: args.tag.as_deref(),
        limit: if args.all { Some(PAGE) } else { args.limit },
        offset: args.offset,
        cursor: args.cursor.clone(),
        include: &args.include,
    };
    let mut shown = 0;
    loop {
        let answer = client.call(Verb::ListJobs, &request).await?;
        let page: Page<Box<RawValue>> = read(Verb::ListJobs, &answer)?;
        match (out.json, args.all) {
            (true, false) => out.json(&answer)?,
            (true, true) => page.jobs.iter().try_for_each(|job| out.json_line(job.get()))?,
            (false, _) if page.jobs.is_empty() && shown == 0 => out.note("no such jobs"),
            (false, _) if page.jobs.is_empty() => {}
            (false, _) => out.line(&table(&page, &args.include, shown == 0, out)?)?,
        }
        shown += page.jobs.len();
        let Some(cursor) = page.next_cursor else { break };
        if !args.all {
            if !out.json {
                out.note(&format!("there are more: --cursor {}, or --all", clean(&cursor)));
            }
            break;
        }
        request.cursor = Some(cursor);
    }
    Ok(Exit::Done)
}

fn table(page: &Page<Box<RawValue>>, include: &[String], first: bool, out: &Output) -> anyhow::Result<String> {
    let mut header = vec!["ID", "TYPE", "STATUS", "ATTEMPTS", "CREATED", "TIMING", "REMARK"];
    let extra: Vec<String> = include.iter().map(|name| name.to_uppercase()).collect();
    header.extend(extra.iter().map(String::as_str));
    let flexible: Vec<usize> = (6..header.len()).collect();
    let rows: anyhow::Result<Vec<Vec<Cell>>> = page.jobs.iter().map(|raw| row(raw, include, out)).collect();
    let columns = Columns { titles: &header, flexible: &flexible, optional: &[4, 3, 5] };
    let table = out.table(&columns, rows?);
    // One header for all pages of a pipe: what reads them wants rows.
    let skipped = usize::from(!first && !out.terminal);
    Ok(table.lines().skip(skipped).collect::<Vec<_>>().join("\n"))
}

fn row(raw: &RawValue, include: &[String], out: &Output) -> anyhow::Result<Vec<Cell>> {
    let now = Utc::now();
    let job: Job = read(Verb::ListJobs, raw.get().as_bytes())?;
    let state = cell(Some(job.state(now)));
    let time = |at| if out.terminal { relative(at, now) } else { absolute(at) };
    let mut cells = vec![
        out.cell(Tone::Plain, cell(Some(&job.id))),
        out.cell(Tone::Plain, cell(Some(&job.r#type))),
        out.cell(tone(&state), &state),
        out.cell(Tone::Plain, format!("{}/{}", job.attempts, job.max_attempts)),
        out.cell(Tone::Plain, job.created_at.map_or_else(|| NOTHING.to_owned(), time)),
        out.cell(Tone::Plain, job.timing(now)),
        out.cell(if job.status == "failed" { Tone::Bad } else { Tone::Plain }, job.remark()),
    ];
    if !include.is_empty() {
        let fields: std::collections::BTreeMap<String, &RawValue> = serde_json::from_str(raw.get())?;
        let field =
            |name: &String| fields.get(name.trim()).map_or_else(|| NOTHING.to_owned(), |json| compact(json.get()));
        cells.extend(include.iter().map(|name| out.cell(Tone::Plain, field(name))));
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_a_line_per_job_with_all_that_was_asked_for() {
        let page: Page<Box<RawValue>> = serde_json::from_str(
            r#"{"jobs":[{"id":"0198","type":"x","status":"failed","attempts":3,"maxAttempts":3,"error":"a\nb",
                "createdAt":"2026-01-01T00:00:00.000001Z","startedAt":"2026-01-01T00:00:00Z",
                "finishedAt":"2026-01-01T00:00:01.5Z","payload":{"a":[1]}}],"nextCursor":null}"#,
        )
        .unwrap();
        let text = table(&page, &["payload".into()], true, &Output::piped()).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["ID", "TYPE", "STATUS", "ATTEMPTS", "CREATED", "TIMING", "REMARK", "PAYLOAD"]);
        assert_eq!(
            lines[1],
            ["0198", "x", "failed", "3/3", "2026-01-01T00:00:00.000Z", "took", "1.5s", "a", "b", r#"{"a":[1]}"#]
        );
        let next = table(&page, &[], false, &Output::piped()).unwrap();
        assert_eq!(next.lines().count(), 1);
    }
}
