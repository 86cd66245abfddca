//! Built-in defaults → TOML file → environment → flags, with the origin of every value.
//!
//! Each layer is a TOML table; later ones win key by key. Own lines on `toml`, because `queue-service config` shows
//! where every single value came from.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{Config, takes};

/// The file that is read when none is named and it exists in the working directory.
pub const DEFAULT_FILE: &str = "queue.toml";
const ENV_PREFIX: &str = "QUEUE__";
/// Variables that other tools know, and the keys they set. They rank below `QUEUE__…`.
const ENV_ALIASES: [(&str, &[&str]); 3] =
    [("NATS_URL", &["nats", "url"]), ("DATABASE_URL", &["database", "url"]), ("RUST_LOG", &["log", "filter"])];
/// Keys whose values are never shown.
const SECRETS: [&str; 6] = ["nats.token", "http.token", "smtp.url", "ai.api_key", ".secret", ".api_key"];
/// Keys whose values may hold a password between `//` and `@`.
const URLS: [&str; 2] = ["nats.url", "database.url"];

/// Effective settings and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    table: Table,
    origins: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read the configuration file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {} is not valid TOML: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("configuration key '{key}' ({origin}): {message}")]
    Key { key: String, origin: String, message: String },
    #[error("the configuration can't be used:\n  {}", .0.join("\n  "))]
    Check(Vec<String>),
}

/// Loads the configuration. `file`: the one named by `--config`; `flags`: (dotted key, value) pairs.
///
/// # Errors
/// An unreadable file, an unknown key, a value of the wrong form: each with its key and origin.
pub fn load(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    flags: &[(&str, String)],
) -> Result<Loaded, Error> {
    let table = Table::try_from(Config::default()).unwrap_or_default();
    let mut layers = Layers { table, origins: BTreeMap::new() };
    match file {
        Some(path) => layers.add_file(path)?,
        None if Path::new(DEFAULT_FILE).exists() => layers.add_file(Path::new(DEFAULT_FILE))?,
        None => {}
    }
    layers.add_env(env);
    for (key, value) in flags {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        layers.add_text(&path, value, "flag");
    }
    layers.finish()
}

struct Layers {
    table: Table,
    origins: BTreeMap<String, String>,
}

impl Layers {
    fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        let table: Table = text.parse().map_err(|e| syntax(path, &text, &e))?;
        let origin = path.display().to_string();
        for (path, value) in leaves(&table) {
            self.origins.insert(path.join("."), origin.clone());
            set(&mut self.table, &path, value);
        }
        Ok(())
    }

    /// A variable that is set but empty is one that is not set: `QUEUE__HTTP__TOKEN=$TOKEN` without a `TOKEN`.
    fn add_env(&mut self, env: impl Iterator<Item = (String, String)>) {
        let vars: BTreeMap<String, String> = env.filter(|(_, text)| !text.trim().is_empty()).collect();
        for (name, path) in ENV_ALIASES {
            if let Some(text) = vars.get(name) {
                let path: Vec<String> = path.iter().map(|s| (*s).to_owned()).collect();
                self.add_text(&path, text, name);
            }
        }
        for (name, text) in &vars {
            if let Some(key) = name.strip_prefix(ENV_PREFIX) {
                let mut path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
                // A shell variable can't hold '-', so types are written with '_' there.
                if path[0] == "types" && path.len() > 1 {
                    path[1] = path[1].replace('_', "-");
                }
                self.add_text(&path, text, name);
            }
        }
    }

    /// Texts from the environment and flags take the form that the schema gives their key.
    fn add_text(&mut self, path: &[String], text: &str, origin: &str) {
        let takes = takes::at(takes::schema(), path);
        let value = takes.map_or_else(|| Value::from(text), |takes| takes.read(text));
        self.origins.insert(path.join("."), origin.to_owned());
        set(&mut self.table, path, value);
    }

    fn finish(mut self) -> Result<Loaded, Error> {
        takes::bring_into_form(takes::schema(), &mut self.table);
        let named = |(path, message): (Vec<String>, String)| {
            let key = path.join(".");
            let origin = self.origin_below(&key);
            Error::Key { key, origin, message }
        };
        let mut faults: Vec<Error> = takes::faults(&self.table).into_iter().map(named).collect();
        let missing = takes::missing(takes::schema(), &self.table).into_iter();
        faults.extend(missing.map(|path| named((path, "is needed".to_owned()))));
        match faults.len() {
            0 => {}
            1 => return Err(faults.remove(0)),
            _ => return Err(Error::Check(faults.iter().map(ToString::to_string).collect())),
        }
        // What the schema takes can be read: what is said here of a value would be a fault of ours.
        let config: Config = serde_path_to_error::deserialize(self.table.clone()).map_err(|e| {
            let key = e.path().to_string();
            let origin = self.origin_below(&key);
            Error::Key { key, origin, message: "does not have the form that it takes".into() }
        })?;
        config.check().map_err(Error::Check)?;
        Ok(Loaded { config, table: self.table, origins: self.origins })
    }

    fn origin_below(&self, key: &str) -> String {
        let hit = self.origins.iter().rev().find(|(path, _)| *path == key || path.starts_with(&format!("{key}.")));
        hit.map_or_else(|| "see the file, environment and flags".to_owned(), |(_, origin)| format!("from {origin}"))
    }
}

/// Where a file is no TOML. The line itself may hold a password, so it is counted and not shown.
fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let before = error.span().map(|span| text.get(..span.start).unwrap_or(text));
    let line = before.map_or_else(String::new, |before| format!("line {}: ", before.matches('\n').count() + 1));
    Error::Syntax { path: path.into(), message: format!("{line}{}", error.message()) }
}

impl Loaded {
    /// Every key that has a value: (dotted key, shown value, origin). Secrets are hidden, passwords in URLs too.
    pub fn rows(&self) -> Vec<(String, String, String)> {
        let row = |(path, value): (Vec<String>, Value)| {
            let key = path.join(".");
            let shown = match &value {
                _ if is_secret(&key) => "(hidden)".to_owned(),
                Value::String(text) if URLS.contains(&key.as_str()) => mask_url(text),
                other => other.to_string(),
            };
            let origin = self.origins.get(&key).cloned().unwrap_or_else(|| "default".to_owned());
            (key, shown, origin)
        };
        leaves(&self.table).into_iter().map(row).collect()
    }
}

fn is_secret(key: &str) -> bool {
    SECRETS.iter().any(|secret| key == *secret || (secret.starts_with('.') && key.ends_with(secret)))
}

/// Replaces what stands between `//` and `@` in every part of a list of URLs.
pub fn mask_url(text: &str) -> String {
    let mask = |url: &str| match (url.find("//"), url.rfind('@')) {
        (Some(start), Some(at)) if start + 2 <= at => format!("{}(hidden){}", &url[..start + 2], &url[at..]),
        _ => url.to_owned(),
    };
    text.split(',').map(mask).collect::<Vec<_>>().join(",")
}

/// All leaves of a table; arrays are leaves.
fn leaves(table: &Table) -> Vec<(Vec<String>, Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => found.extend(leaves(inner).into_iter().map(|(mut path, value)| {
                path.insert(0, key.clone());
                (path, value)
            })),
            leaf => found.push((vec![key.clone()], leaf.clone())),
        }
    }
    found
}

fn set(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let inner = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into_iter()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn later_layers_win_and_each_value_knows_where_it_came_from() {
        let file = file("[nats]\nprefix = 'a'\nurl = 'nats://file'\n[worker]\nconcurrency = 7\n");
        let env = env(&[("NATS_URL", "nats://alias"), ("QUEUE__NATS__PREFIX", "b"), ("QUEUE__HTTP__ENABLED", "false")]);
        let loaded = load(Some(file.path()), env, &[("http.bind", "127.0.0.1:9".into())]).unwrap();
        assert_eq!(loaded.config.nats.prefix, "b");
        assert_eq!(loaded.config.nats.url, "nats://alias");
        assert_eq!(loaded.config.worker.concurrency, 7);
        assert!(!loaded.config.http.enabled);
        assert_eq!(loaded.config.http.bind.port(), 9);
        let origin = |key: &str| loaded.rows().into_iter().find(|row| row.0 == key).unwrap().2;
        assert_eq!(origin("nats.prefix"), "QUEUE__NATS__PREFIX");
        assert_eq!(origin("worker.concurrency"), file.path().display().to_string());
        assert_eq!(origin("http.bind"), "flag");
        assert_eq!(origin("retry.base"), "default");
    }

    #[test]
    fn unknown_keys_and_wrong_forms_are_errors_that_name_the_key() {
        for (text, expected) in [
            ("[nats]\nurll = 'x'", "urll"),
            ("[worker]\nlease = '5 parsecs'", "worker.lease"),
            ("[nonsense]\nx = 1", "nonsense"),
            ("[types.send-email]\ntimeout = '1ms'", "types.send-email.timeout"),
            ("[types.'a.b']\ntimeout = '1s'", "types.a.b"),
            ("[types.x.retry]\nbse = '1s'", "types.x.retry"),
            ("[retry]\nmax_attempts = 0", "max_attempts"),
            ("[http]\nbind = '0.0.0.0:80'", "http.token"),
            ("[nats]\nprefix = 'a.*'", "nats.prefix"),
        ] {
            let error = load(Some(file(text).path()), env(&[]), &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?} gave: {error}");
        }
    }

    #[test]
    fn a_type_inherits_what_it_does_not_set() {
        let file = file("[retry]\nbase = '5s'\n[types.send-email]\nretry.max_attempts = 9\ntimeout = '2m'\n");
        let config =
            load(Some(file.path()), env(&[("QUEUE__TYPES__SEND_EMAIL__CONCURRENCY", "3")]), &[]).unwrap().config;
        let settings = config.type_settings("send-email").unwrap();
        assert_eq!((settings.concurrency, settings.timeout.as_secs()), (3, 120));
        assert_eq!((settings.retry.max_attempts, settings.retry.base.as_secs()), (9, 5));
        assert_eq!(config.type_settings("other").unwrap().retry.max_attempts, 3);
    }

    #[test]
    fn secrets_are_never_shown() {
        let env = env(&[
            ("QUEUE__HTTP__TOKEN", "canary"),
            ("QUEUE__SMTP__URL", "smtp://u:canary@h"),
            ("DATABASE_URL", "postgres://u:canary@h/d"),
            ("QUEUE__AI__PROVIDERS__X__API_KEY", "canary"),
            ("QUEUE__AI__PROVIDERS__X__BASE_URL", "http://h"),
            ("QUEUE__AI__PROVIDERS__X__MODELS", "[\"a\"]"),
        ]);
        let loaded = load(None, env, &[]).unwrap();
        assert!(!format!("{:?}", loaded.rows()).contains("canary"));
        assert!(!format!("{:?}", loaded.config.http).contains("canary"));
        assert!(loaded.rows().iter().any(|row| row.1 == "postgres://(hidden)@h/d"));
    }
}
