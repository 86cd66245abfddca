//! `types`, `pause` and `resume`: the kinds of jobs, who does them, and whether they are started.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json, value::RawValue};

use super::{
    exit::{Exit, UsageError},
    output::{Output, Tone},
    pretty::pretty,
    table::Columns,
    text::{cell, clean},
};
use crate::{
    client::{CallError, Client, TypeInfo, Types, read},
    ops::Verb,
};

#[derive(Debug, Args)]
#[command(
    after_help = "\
Examples:
  queue-service types
  queue-service types send-email              with the JSON Schema of its payload
  queue-service types --json | jq -r '.types[] | select(.paused) | .type'
  queue-service types register thumbnail --handler nats --timeout 2m
  queue-service types register --file thumbnail.json
  queue-service types remove thumbnail",
    args_conflicts_with_subcommands = true
)]
pub struct TypesArgs {
    /// Show everything about this type
    #[arg(value_name = "TYPE")]
    r#type: Option<String>,
    #[command(subcommand)]
    command: Option<TypesCommand>,
}

#[derive(Debug, Subcommand)]
enum TypesCommand {
    /// Make a type whose work is done outside, or replace its definition
    Register(Box<RegisterArgs>),
    /// Forget a type that was registered or discovered
    #[command(visible_alias = "rm", after_help = "Examples:\n  queue-service types remove thumbnail")]
    Remove {
        /// The type
        #[arg(value_name = "TYPE")]
        r#type: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
The definition is that of registerType (docs/protocol.md); flags go before the file.

Examples:
  queue-service types register thumbnail --handler nats --timeout 2m --max-attempts 5
  queue-service types register thumbnail --handler http --url https://thumbs.example.org/jobs
  queue-service types register --file thumbnail.json
  queue-service types register thumbnail --handler pull --payload-schema thumbnail.schema.json")]
struct RegisterArgs {
    /// The type's name, if the file does not say it
    #[arg(value_name = "TYPE")]
    r#type: Option<String>,
    /// Read the definition from this file; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Who does the work
    #[arg(long, value_name = "WHO", value_parser = ["nats", "http", "pull"])]
    handler: Option<String>,
    /// Where an http handler is asked
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// One sentence for lists
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Longest run of one attempt, for instance 2m
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    /// A run that is silent for so long is taken to be lost
    #[arg(long, value_name = "TIME")]
    heartbeat: Option<String>,
    /// Attempts that a job gets
    #[arg(long, value_name = "N")]
    max_attempts: Option<i64>,
    /// Runs at the same time, per process of the service
    #[arg(long, value_name = "N")]
    concurrency: Option<i64>,
    /// File with the JSON Schema of the payload
    #[arg(long, value_name = "FILE")]
    payload_schema: Option<PathBuf>,
    /// File with the JSON Schema of the result
    #[arg(long, value_name = "FILE")]
    result_schema: Option<PathBuf>,
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
    match args.command {
        Some(TypesCommand::Register(args)) => return register(*args, client, out).await,
        Some(TypesCommand::Remove { r#type }) => return remove(r#type, client, out).await,
        None => {}
    }
    let answer = client.call(Verb::ListTypes, &json!({})).await?;
    let Some(wanted) = args.r#type else {
        if out.json {
            out.json(&answer)?;
        } else {
            out.line(&table(&read(Verb::ListTypes, &answer)?, out)?)?;
        }
        return Ok(Exit::Done);
    };
    let all: Types<Box<RawValue>> = read(Verb::ListTypes, &answer)?;
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

async fn register(args: RegisterArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let answer = client.call(Verb::RegisterType, &args.definition()?).await?;
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    out.line(&card(&read(Verb::RegisterType, &answer)?, out))?;
    Ok(Exit::Done)
}

async fn remove(name: String, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let answer = client.call(Verb::UnregisterType, &json!({"type": name})).await?;
    if out.json {
        out.json(&answer)?;
    } else {
        out.line(&format!("{} is forgotten", clean(&name)))?;
    }
    Ok(Exit::Done)
}

impl RegisterArgs {
    /// What is in the file, and then what the flags say.
    fn definition(self) -> anyhow::Result<Map<String, Value>> {
        let mut definition = match &self.file {
            None => Map::new(),
            Some(path) => match json_of(path)? {
                Value::Object(definition) => definition,
                _ => return Err(UsageError(format!("{}: a definition is one JSON object", path.display())).into()),
            },
        };
        let schema = |path: Option<PathBuf>| path.map(|path| json_of(&path)).transpose();
        let said = [
            ("type", self.r#type.map(Value::from)),
            ("handler", self.handler.map(Value::from)),
            ("url", self.url.map(Value::from)),
            ("description", self.description.map(Value::from)),
            ("timeout", self.timeout.map(Value::from)),
            ("heartbeat", self.heartbeat.map(Value::from)),
            ("maxAttempts", self.max_attempts.map(Value::from)),
            ("concurrency", self.concurrency.map(Value::from)),
            ("payloadSchema", schema(self.payload_schema)?),
            ("resultSchema", schema(self.result_schema)?),
        ];
        definition.extend(said.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        Ok(definition)
    }
}

fn json_of(path: &Path) -> anyhow::Result<Value> {
    let text =
        if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.map_err(|e| UsageError(format!("{} can't be read: {e}", path.display())))?;
    Ok(serde_json::from_str(&text).map_err(|e| UsageError(format!("{} is no JSON: {e}", path.display())))?)
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
        format!("{name} is paused: new jobs are accepted and wait; `queue-service resume {name}` starts them")
    } else {
        format!("{name} runs again")
    })?;
    Ok(Exit::Done)
}

fn table(all: &Types<Box<RawValue>>, out: &Output) -> Result<String, CallError> {
    let mut rows = Vec::new();
    for raw in &all.types {
        let info: TypeInfo = read(Verb::ListTypes, raw.get().as_bytes())?;
        rows.push(vec![
            out.cell(Tone::Plain, cell(Some(&info.r#type))),
            out.cell(super::view::tone(info.state()), info.state()),
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
    let schema = |schema: &Option<Box<RawValue>>| {
        schema.as_ref().map_or_else(|| "-".to_owned(), |schema| pretty(schema.get(), 12))
    };
    [
        fact("type", &clean(&info.r#type)),
        fact("meaning", &cell(Some(&info.description))),
        fact("state", info.state()),
        fact(
            "handler",
            &[Some(&info.handler), info.url.as_ref()]
                .into_iter()
                .flatten()
                .map(|s| clean(s))
                .collect::<Vec<_>>()
                .join(" "),
        ),
        fact("origin", &cell(Some(&info.origin))),
        fact("timeout", &cell(Some(&info.timeout))),
        fact("heartbeat", &cell(info.heartbeat.as_deref())),
        fact("concurrency", &info.concurrency.to_string()),
        fact("attempts", &info.max_attempts.to_string()),
        fact("retries", &cell(Some(&info.retry_delays.join(", ")))),
        fact("payload", &schema(if info.payload_schema.is_some() { &info.payload_schema } else { &info.schema })),
        fact("result", &schema(&info.result_schema)),
    ]
    .join("\n")
}
