//! What can be set, with defaults. `layers` says where a value comes from; `reference` prints the page in `docs/`.
//!
//! Section and key names are part of the wire contract. A leaf: it imports nothing but the retry policy.

pub mod layers;
pub mod reference;
mod sections;
pub mod takes;

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::RetryPolicy;

pub use layers::{Loaded, load};
pub use sections::*;

/// All settings of one process.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub nats: Nats,
    pub database: Database,
    pub http: Http,
    pub rpc: Rpc,
    pub worker: Worker,
    pub retry: RetryPolicy,
    /// Settings of single job types, for instance `[types.send-email]`.
    pub types: BTreeMap<String, TypeOverrides>,
    pub handlers: Handlers,
    pub limits: Limits,
    pub smtp: Smtp,
    pub ai: Ai,
    pub webhook: Webhook,
    pub crawl: Crawl,
    pub retention: Retention,
    pub background: Background,
    pub log: Log,
}

/// What is in force for one type, after the overrides.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeSettings {
    pub timeout: Duration,
    pub concurrency: usize,
    pub retry: RetryPolicy,
}

/// Longest run of one attempt when nothing else is said. Source: wire contract.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Bounds of a timeout. Source: wire contract.
pub const TIMEOUT_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);

impl Config {
    /// The settings of `job_type`.
    ///
    /// # Errors
    /// A sentence naming the key when an override has the wrong form; [`load`] calls this for every type, so that a
    /// running service never meets it.
    pub fn type_settings(&self, job_type: &str) -> Result<TypeSettings, String> {
        let overrides = self.types.get(job_type).cloned().unwrap_or_default();
        let retry = if overrides.retry.is_empty() {
            self.retry.clone()
        } else {
            let mut table = toml::Table::try_from(&self.retry).map_err(|e| e.to_string())?;
            table.extend(overrides.retry);
            table.try_into().map_err(|e| format!("types.{job_type}.retry: {e}"))?
        };
        Ok(TypeSettings {
            timeout: overrides.timeout.unwrap_or(DEFAULT_TIMEOUT),
            concurrency: overrides.concurrency.unwrap_or(self.worker.concurrency),
            retry,
        })
    }

    /// Checks the bounds of all quantities, and what no single key can express.
    ///
    /// # Errors
    /// One sentence per fault, each naming its key and what to write there.
    pub fn check(&self) -> Result<(), Vec<String>> {
        // Again, for settings that a program has put together.
        let mut faults: Vec<String> = match toml::Table::try_from(self) {
            Ok(table) => {
                takes::faults(&table).into_iter().map(|(path, it)| format!("{} {it}", path.join("."))).collect()
            }
            Err(_) => vec!["a number is larger than 2^63".to_owned()],
        };
        let mut need = |ok: bool, fault: String| {
            if !ok {
                faults.push(fault);
            }
        };
        let token = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let prefix = &self.nats.prefix;
        need(
            !prefix.is_empty() && prefix.len() <= 100 && prefix.chars().all(token),
            "nats.prefix takes 1 to 100 letters, digits, '-' or '_'".into(),
        );
        let domain = self.nats.domain.as_deref().unwrap_or("hub");
        need(
            !domain.is_empty() && domain.len() <= 100 && domain.chars().all(token),
            "nats.domain takes 1 to 100 letters, digits, '-' or '_'".into(),
        );
        need(
            self.nats.tls_cert.is_some() == self.nats.tls_key.is_some(),
            "nats.tls_cert and nats.tls_key go together: set both, or neither".into(),
        );
        need(
            self.nats.token.is_none() || self.nats.token_file.is_none(),
            "nats.token and nats.token_file say the same: set one of them".into(),
        );
        let schema = &self.database.schema;
        need(
            !schema.is_empty()
                && schema.len() <= 63
                && schema.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
            "database.schema takes 1 to 63 characters of a-z, 0-9 and '_'".into(),
        );
        need(
            self.http.token.is_some() || self.http.insecure || !self.http.enabled || self.http.bind.ip().is_loopback(),
            "http.bind can be reached from other machines: set http.token (QUEUE__HTTP__TOKEN), or say --insecure if you mean it"
                .into(),
        );
        for name in self.types.keys() {
            need(crate::job::JobType::new(name).is_ok(), format!("types.{name}: {}", crate::job::BadType));
            need(self.type_settings(name).is_ok(), format!("types.{name}.retry takes the keys of the section retry"));
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }
}

/// A duration as `"90d"`, whatever months there are in it for the general form.
mod days {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    const DAY_S: u64 = 86_400;

    pub fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        if span.subsec_nanos() == 0 && span.as_secs().is_multiple_of(DAY_S) {
            return to.collect_str(&format_args!("{}d", span.as_secs() / DAY_S));
        }
        humantime_serde::serialize(span, to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        humantime_serde::deserialize(from)
    }
}

/// A list of durations as `["1s", "5s"]`.
pub mod duration_list {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Item(#[serde(with = "humantime_serde")] Duration);

    pub fn serialize<S: Serializer>(list: &[Duration], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().copied().map(Item))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Duration>, D::Error> {
        Ok(Vec::<Item>::deserialize(from)?.into_iter().map(|item| item.0).collect())
    }
}
