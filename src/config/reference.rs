//! The configuration reference in Markdown, made from the types, so that it can't go stale.

use std::fmt::Write;

use serde_json::Value;

use super::{
    Config,
    takes::{self, Takes},
};

/// The whole page. `docs/configuration.md` is this text; a test compares them.
pub fn markdown() -> String {
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut page = String::from(INTRODUCTION);
    for (section, part) in properties(takes::schema()) {
        let _ = writeln!(page, "\n## `{section}`\n\n{}\n", text(part));
        page.push_str("| key | takes | default | meaning |\n|---|---|---|---|\n");
        match takes::of(part) {
            Takes::Named(each) => rows(&mut page, "", each, &Value::Null),
            _ => rows(&mut page, "", part, &defaults[section]),
        }
    }
    page
}

const INTRODUCTION: &str = "# Configuration\n\n\
    <!-- Made by `queue-service config --reference`; edit the doc comments in src/config instead. -->\n\n\
    Built-in defaults → `queue.toml` in the working directory, or the file named by `--config` → environment \
    `QUEUE__SECTION__KEY` → flags; later ones win. `NATS_URL`, `DATABASE_URL` and `RUST_LOG` work too. Unknown keys \
    are errors, and variables that are set but empty count as unset. `queue-service config` prints what is in force, and where each value came from. Durations are written \
    `250ms`, `30s`, `1h`, `7d`, sizes `512KiB`; both ends of a range are taken. A list may be written as text, with commas: \
    `10.1.0.0/16,192.168.7.0/24`. In variables, a type is written with `_`: \
    `QUEUE__TYPES__SEND_EMAIL__TIMEOUT=1m`.\n";

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn text(schema: &Value) -> String {
    schema.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ")
}

/// A row per key. `above`: the tables that the key is in, each with a dot.
fn rows(page: &mut String, above: &str, table: &Value, defaults: &Value) {
    for (key, schema) in properties(table) {
        let default = match &defaults[key] {
            Value::Null => "–".to_owned(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let (key, takes) = (format!("{above}{key}"), takes::of(schema));
        let meaning = text(schema).replace('|', "\\|");
        let _ = writeln!(page, "| `{key}` | {} | {default} | {meaning} |", takes.short());
        match takes {
            Takes::Keys(below) => rows(page, &format!("{key}."), below, &Value::Null),
            Takes::Named(each) if matches!(takes::of(each), Takes::Keys(_)) => {
                rows(page, &format!("{key}.<name>."), each, &Value::Null);
            }
            _ => {}
        }
    }
}
