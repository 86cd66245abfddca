//! `types`, `pause` and `resume`: the kinds of jobs, and whether they are started.

use clap::Args;
use serde_json::json;

use super::{
    client::{CallError, Client, read},
    exit::{Exit, UsageError},
    output::{Output, Tone},
    pretty::pretty,
    table::Columns,
    text::{cell, clean},
    view::{TypeInfo, Types},
};
use crate::ops::Verb;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  queue-service types
  queue-service types send-email              with the JSON Schema of its payload
  queue-service types --json | jq -r '.types[] | select(.paused) | .type'")]
pub struct TypesArgs {
    /// Show everything about this type
    #[arg(value_name = "TYPE")]
    r#type: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A paused type takes jobs, but starts none; those that run go on. It holds across restarts and for all replicas.

Examples:
  queue-service pause send-email
  queue-service resume send-email")]
pub struct PauseArgs {
    /// The type
    #[arg(value_name = "TYPE")]
    r#type: String,
}

pub async fn run(args: TypesArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let answer = client.call(Verb::ListTypes, &json!({})).await?;
    let Some(wanted) = args.r#type else {
        if out.json {
            out.json(&answer)?;
        } else {
            out.line(&table(&read(Verb::ListTypes, &answer)?, out)?)?;
        }
        return Ok(Exit::Done);
    };
    let all: Types = read(Verb::ListTypes, &answer)?;
    for raw in &all.types {
        let info: TypeInfo = read(Verb::ListTypes, raw.get().as_bytes())?;
        if info.r#type == wanted {
            if out.json {
                out.json(raw.get().as_bytes())?;
            } else {
                out.line(&card(&info, out))?;
            }
            return Ok(Exit::Done);
        }
    }
    Err(UsageError(format!("there is no type '{}'; `queue-service types` lists them", clean(&wanted))).into())
}

pub async fn set(verb: Verb, args: PauseArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let answer = client.call(verb, &json!({"type": args.r#type})).await?;
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let info: TypeInfo = read(verb, &answer)?;
    let name = clean(&info.r#type);
    out.line(&if info.paused {
        format!("{name} is paused: jobs are taken and wait; `queue-service resume {name}` starts them")
    } else {
        format!("{name} is not paused")
    })?;
    Ok(Exit::Done)
}

fn table(all: &Types, out: &Output) -> Result<String, CallError> {
    let mut rows = Vec::new();
    for raw in &all.types {
        let info: TypeInfo = read(Verb::ListTypes, raw.get().as_bytes())?;
        let paused = if info.paused { "paused" } else { "active" };
        rows.push(vec![
            out.cell(Tone::Plain, cell(Some(&info.r#type))),
            out.cell(super::view::tone(paused), paused),
            out.cell(Tone::Plain, cell(Some(&info.handler))),
            out.cell(Tone::Plain, cell(Some(&info.timeout))),
            out.cell(Tone::Plain, info.concurrency),
            out.cell(Tone::Plain, info.max_attempts),
            out.cell(Tone::Plain, cell(Some(&info.retry_delays.join(",")))),
            out.cell(Tone::Plain, cell(Some(&info.description))),
        ]);
    }
    let titles = ["TYPE", "STATE", "HANDLER", "TIMEOUT", "CONCURRENCY", "ATTEMPTS", "RETRIES AFTER", "MEANING"];
    Ok(out.table(&Columns { titles: &titles, flexible: &[7], optional: &[2, 4, 6] }, rows))
}

fn card(info: &TypeInfo, out: &Output) -> String {
    let fact = |name: &str, value: &str| format!("{} {value}", out.paint(Tone::Faint, &format!("{name:<11}")));
    let schema = info.schema.as_ref().map_or_else(|| "-".to_owned(), |schema| pretty(schema.get(), 12));
    [
        fact("type", &clean(&info.r#type)),
        fact("meaning", &cell(Some(&info.description))),
        fact("state", if info.paused { "paused" } else { "active" }),
        fact("handler", &cell(Some(&info.handler))),
        fact("timeout", &cell(Some(&info.timeout))),
        fact("concurrency", &info.concurrency.to_string()),
        fact("attempts", &info.max_attempts.to_string()),
        fact("retries", &cell(Some(&info.retry_delays.join(", ")))),
        fact("payload", &schema),
    ]
    .join("\n")
}
