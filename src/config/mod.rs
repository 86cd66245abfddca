//! What can be set, with defaults. `layers` says where a value comes from; `reference` prints the page in `docs/`.
//!
//! Section and key names are part of the wire contract. A leaf: it imports nothing but the retry policy.

pub mod layers;
pub mod reference;
mod sections;

use std::{collections::BTreeMap, time::Duration};

use bytesize::ByteSize;
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

    /// Checks what types alone can't express.
    ///
    /// # Errors
    /// One sentence per fault, each naming its key and what to write there.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut faults = Vec::new();
        let mut need = |ok: bool, fault: String| {
            if !ok {
                faults.push(fault);
            }
        };
        let token = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let prefix = &self.nats.prefix;
        need(
            !prefix.is_empty() && prefix.len() <= 100 && prefix.chars().all(token),
            format!("nats.prefix '{prefix}' must be 1 to 100 letters, digits, '-' or '_'"),
        );
        let domain = self.nats.domain.as_deref().unwrap_or("hub");
        need(
            !domain.is_empty() && domain.len() <= 100 && domain.chars().all(token),
            "nats.domain must be 1 to 100 letters, digits, '-' or '_'".into(),
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
            format!("database.schema '{schema}' must be 1 to 63 characters of a-z, 0-9 and '_'"),
        );
        need(self.database.max_connections >= 4, "database.max_connections must be at least 4".into());
        need(
            (1..=1000).contains(&self.worker.batch) && self.worker.concurrency >= 1,
            "worker.batch must be 1 to 1000 and worker.concurrency at least 1".into(),
        );
        need(
            (10..=1_000_000).contains(&self.background.max_unanswered),
            "background.max_unanswered must be 10 to 1000000".into(),
        );
        need(self.worker.lease >= Duration::from_millis(300), "worker.lease must be at least 300ms".into());
        need(matches!(self.nats.replicas, 1 | 3 | 5), "nats.replicas must be 1, 3 or 5".into());
        need(self.nats.store >= ByteSize::mib(16), "nats.store must be at least 16MiB".into());
        need(self.limits.payload <= ByteSize::kib(768), "limits.payload must be at most 768KiB".into());
        need(self.limits.result <= ByteSize::kib(512), "limits.result must be at most 512KiB".into());
        need(self.limits.intake >= 1000, "limits.intake must be at least 1000, the size of one bulk request".into());
        need(
            self.http.token.is_some() || self.http.insecure || !self.http.enabled || self.http.bind.ip().is_loopback(),
            format!(
                "http.bind {} can be reached from other machines: set http.token (QUEUE__HTTP__TOKEN), or say --insecure if you mean it",
                self.http.bind
            ),
        );
        for (name, overrides) in &self.types {
            need(crate::job::JobType::new(name).is_ok(), format!("types.{name}: {}", crate::job::BadType));
            need(
                overrides.timeout.is_none_or(|t| TIMEOUT_RANGE.contains(&t)),
                format!("types.{name}.timeout must be 100ms to 24h"),
            );
            need(overrides.concurrency != Some(0), format!("types.{name}.concurrency must be at least 1"));
        }
        let policies = std::iter::once(("retry".to_owned(), Ok(self.retry.clone()))).chain(
            self.types
                .keys()
                .map(|t| (format!("types.{t}.retry"), self.type_settings(t).map(|settings| settings.retry))),
        );
        for (key, policy) in policies {
            match policy {
                Err(fault) => need(false, fault),
                Ok(policy) => need(
                    (1..=100).contains(&policy.max_attempts)
                        && policy.factor >= 1.0
                        && policy.factor.is_finite()
                        && (0.0..=1.0).contains(&policy.jitter),
                    format!("{key}: max_attempts must be 1 to 100, factor at least 1, jitter 0 to 1"),
                ),
            }
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
