//! `config`: what is in force, and where each value came from.

use clap::Args;
use serde_json::json;

use super::{
    exit::Exit,
    output::{Output, Tone},
    table::Columns,
    text::clean,
};
use crate::config::{Loaded, reference, takes};

#[derive(Debug, Args)]
#[command(after_help = "\
Secrets and passwords in URLs are not shown.

Examples:
  queue-service config
  queue-service config --config /etc/queue.toml --json | jq '.[] | select(.origin != \"default\")'
  queue-service config --reference > docs/configuration.md
  queue-service config --schema > queue.schema.json     for editors")]
pub struct ConfigArgs {
    /// Print the reference of all keys, in Markdown
    #[arg(long, conflicts_with = "schema")]
    reference: bool,
    /// Print the JSON Schema of the configuration file
    #[arg(long)]
    schema: bool,
}

impl ConfigArgs {
    /// Pages that are the same everywhere, also where the configuration is broken.
    pub fn page(&self, out: &Output) -> Option<anyhow::Result<()>> {
        if self.reference {
            return Some(out.line(reference::markdown().trim_end()));
        }
        self.schema.then(|| out.json(serde_json::to_string(takes::schema())?.as_bytes()))
    }
}

pub fn run(loaded: &Loaded, out: &Output) -> anyhow::Result<Exit> {
    let rows = loaded.rows();
    if out.json {
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(key, value, origin)| json!({"key": key, "value": value, "origin": origin}))
            .collect();
        out.json(serde_json::to_string(&rows)?.as_bytes())?;
        return Ok(Exit::Done);
    }
    let row = |(key, value, origin): (String, String, String)| {
        let tone = if origin == "default" { Tone::Faint } else { Tone::Strong };
        vec![out.cell(Tone::Plain, key), out.cell(tone, clean(&value)), out.cell(tone, clean(&origin))]
    };
    let columns = Columns { titles: &["KEY", "VALUE", "ORIGIN"], flexible: &[1], optional: &[] };
    out.line(&out.table(&columns, rows.into_iter().map(row).collect()))?;
    Ok(Exit::Done)
}
