//! The configuration reference in Markdown, made from the types, so that it can't go stale.

use std::fmt::Write;

use schemars::{Schema, generate::SchemaSettings};
use serde_json::Value;

use super::Config;

/// The whole page. `docs/configuration.md` is this text; a test compares them.
pub fn markdown() -> String {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<Config>();
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut page = String::from(INTRODUCTION);
    for (section, part) in properties(schema.as_value()) {
        let _ = writeln!(page, "\n## `{section}`\n\n{}\n", text(part));
        match part.get("additionalProperties").filter(|inner| inner.is_object()) {
            Some(inner) => rows(&mut page, inner, &Value::Null),
            None => rows(&mut page, part, &defaults[section]),
        }
    }
    page
}

const INTRODUCTION: &str = "# Configuration\n\n\
    <!-- Made by `queue-service config --reference`; edit the doc comments in src/config instead. -->\n\n\
    Built-in defaults → `queue.toml` in the working directory, or the file named by `--config` → environment \
    `QUEUE__SECTION__KEY` → flags; later ones win. `NATS_URL`, `DATABASE_URL` and `RUST_LOG` work too. Unknown keys \
    are errors. `queue-service config` prints what is in force, and where each value came from. Durations are written \
    `250ms`, `30s`, `1h`, sizes `512KiB`. In variables, a type is written with `_`: \
    `QUEUE__TYPES__SEND_EMAIL__TIMEOUT=1m`.\n";

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn text(schema: &Value) -> String {
    schema.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ")
}

fn rows(page: &mut String, section: &Value, defaults: &Value) {
    page.push_str("| key | default | meaning |\n|---|---|---|\n");
    for (key, schema) in properties(section) {
        let default = match &defaults[key] {
            Value::Null => "–".to_owned(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let _ = writeln!(page, "| `{key}` | {default} | {} |", text(schema).replace('|', "\\|"));
    }
}

/// The JSON Schema of the configuration file, for editors.
pub fn schema() -> Schema {
    schemars::schema_for!(Config)
}
