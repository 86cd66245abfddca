//! Where a payload comes from: the argument itself, a file, or standard input.

use std::{
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde_json::value::RawValue;

use super::exit::UsageError;
use crate::telemetry::say;

/// Largest file that is read as one payload; far above what the service takes, far below what hurts here.
const MAX: u64 = 16 * 1024 * 1024;

/// A source as it is written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Text(String),
    File(PathBuf),
    Stdin,
}

impl Source {
    /// `-`, `@file`, or the text itself. No JSON begins with `@`, and none is `-`.
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix('@') {
            Some("-") => Source::Stdin,
            Some(path) => Source::File(path.into()),
            None if text == "-" => Source::Stdin,
            None => Source::Text(text.to_owned()),
        }
    }

    /// Reads the payload, which must be JSON.
    ///
    /// # Errors
    /// What can't be read, is too large, or is no JSON.
    pub fn read(&self) -> anyhow::Result<Box<RawValue>> {
        let (name, text) = match self {
            Source::Text(text) => ("the payload".to_owned(), text.clone()),
            Source::File(path) => (path.display().to_string(), read_file(path)?),
            Source::Stdin => {
                if std::io::stdin().is_terminal() {
                    say("type the payload as JSON; Ctrl-D ends it");
                }
                let name = "standard input";
                (name.to_owned(), read_all(std::io::stdin().lock(), name)?)
            }
        };
        RawValue::from_string(text.trim().to_owned()).map_err(|e| {
            let hint = match self {
                Source::Text(_) => "; put it in single quotes, or in a file: @payload.json",
                Source::File(_) | Source::Stdin => "",
            };
            UsageError(format!("{name} is not valid JSON: {e}{hint}")).into()
        })
    }
}

fn read_file(path: &Path) -> anyhow::Result<String> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).with_context(|| UsageError(format!("could not read {name}")))?;
    read_all(file, &name)
}

fn read_all(from: impl Read, name: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX + 1).read_to_end(&mut bytes).with_context(|| UsageError(format!("could not read {name}")))?;
    if bytes.len() as u64 > MAX {
        return Err(UsageError(format!("{name} is larger than {} MiB, which no job takes", MAX >> 20)).into());
    }
    String::from_utf8(bytes).map_err(|_| UsageError(format!("{name} is not UTF-8 text")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_an_argument_a_file_or_standard_input() {
        assert_eq!(Source::parse(r#"{"a":1}"#), Source::Text(r#"{"a":1}"#.into()));
        assert_eq!(Source::parse("@a/b.json"), Source::File("a/b.json".into()));
        assert_eq!((Source::parse("-"), Source::parse("@-")), (Source::Stdin, Source::Stdin));
        assert_eq!(Source::parse("-1"), Source::Text("-1".into()));
    }

    #[test]
    fn what_is_no_json_is_told_with_a_hint() {
        let error = Source::parse("{to: me}").read().unwrap_err().to_string();
        assert!(error.contains("the payload is not valid JSON") && error.contains("single quotes"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b" {\"n\": 1.50}\n").unwrap();
        assert_eq!(Source::File(file.path().into()).read().unwrap().get(), r#"{"n": 1.50}"#);
        std::fs::write(file.path(), b"\xff").unwrap();
        assert!(Source::File(file.path().into()).read().unwrap_err().to_string().contains("not UTF-8"));
        let missing = Source::parse("@/nowhere/x.json").read().unwrap_err();
        assert_eq!(missing.to_string(), "could not read /nowhere/x.json");
    }
}
