//! What can be set, with defaults. `layers` says where a value comes from; `reference` prints the page in `docs/`.
//!
//! Section and key names are part of the wire contract. A leaf: it imports nothing but the retry policy.

pub mod layers;
pub mod reference;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use ipnet::IpNet;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::job::RetryPolicy;

pub use layers::{Loaded, load};

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
    pub limits: Limits,
    pub smtp: Smtp,
    pub ai: Ai,
    pub webhook: Webhook,
    pub crawl: Crawl,
    pub retention: Retention,
    pub background: Background,
    pub log: Log,
}

/// The broker.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Nats {
    /// Servers, separated by commas. `NATS_URL` sets it too.
    pub url: String,
    /// First token of every subject and part of the streams' names: one prefix is one namespace.
    pub prefix: String,
    /// File with a user's JWT and key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds: Option<PathBuf>,
    /// Token to connect with.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub token: Option<SecretString>,
    /// Certificate authority of the servers, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate, PEM; goes with `tls_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// Key of the client certificate, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Copies of each stream: 1, or 3 in a cluster.
    pub replicas: u8,
    /// Disk that the three streams may take together; the broker sets it aside. Half of it is for wake-ups, a quarter
    /// each for dead letters and events.
    #[schemars(with = "String")]
    pub store: ByteSize,
    /// First tokens of this process's own inboxes; `_INBOX.<user>` where users may read only their own.
    pub inbox_prefix: String,
    /// First tokens that a request's reply subject may have; others are refused, so that nobody can make the service
    /// publish for him.
    pub reply_prefixes: Vec<String>,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".into(),
            prefix: "queue".into(),
            creds: None,
            token: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            replicas: 1,
            store: ByteSize::gib(2),
            inbox_prefix: "_INBOX".into(),
            reply_prefixes: vec!["_INBOX.".into(), "_R_.".into()],
        }
    }
}

/// Postgres.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `postgres://user:password@host/database`. `DATABASE_URL` sets it too.
    pub url: String,
    /// Connections of this process, at least 4; one more is reserved for the heartbeat.
    pub max_connections: u32,
    /// Schema of all tables; made when missing.
    pub schema: String,
}

impl Default for Database {
    fn default() -> Self {
        Self { url: "postgres://127.0.0.1/queue".into(), max_connections: 10, schema: "queue".into() }
    }
}

/// The HTTP door.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    pub enabled: bool,
    /// Address and port. Any other address than loopback needs `token`, or `insecure`.
    #[schemars(with = "String")]
    pub bind: SocketAddr,
    /// Bearer token that every request but the health probes must carry.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub token: Option<SecretString>,
    /// Listen on any address without a token.
    pub insecure: bool,
}

impl Default for Http {
    fn default() -> Self {
        Self { enabled: true, bind: SocketAddr::from(([127, 0, 0, 1], 8080)), token: None, insecure: false }
    }
}

/// The NATS micro-service.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rpc {
    pub enabled: bool,
    /// Requests that are worked on at the same time; more are answered `overloaded`.
    pub max_in_flight: usize,
}

impl Default for Rpc {
    fn default() -> Self {
        Self { enabled: true, max_in_flight: 8192 }
    }
}

/// Running jobs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    pub enabled: bool,
    /// Types that this process runs; empty: all it knows.
    pub types: Vec<String>,
    /// Jobs of one type that run at the same time in this process.
    pub concurrency: usize,
    /// Most messages that are pulled, and jobs that are claimed, at once.
    pub batch: usize,
    /// How long a worker may be silent before its jobs are taken over. It reports six times in that span.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub lease: Duration,
    /// How long running jobs may go on after a request to stop; then they are handed back.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain: Duration,
    /// How long a cancelled handler may take to stop by itself.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub cancel_grace: Duration,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            enabled: true,
            types: Vec::new(),
            concurrency: 100,
            batch: 100,
            lease: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            cancel_grace: Duration::from_secs(5),
        }
    }
}

/// What a type may set for itself; what is missing comes from `worker` and `retry`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TypeOverrides {
    /// Longest run of one attempt, 100 ms to 24 h (`30s` unless set).
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub timeout: Option<Duration>,
    /// Jobs of this type that run at the same time in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Keys as in the section `retry`; those not given are taken from there.
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    #[schemars(with = "RetryPolicy")]
    pub retry: toml::Table,
}

/// What a request may ask for.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest payload of a job.
    #[schemars(with = "String")]
    pub payload: ByteSize,
    /// Largest result of a job; a larger one is a permanent failure.
    #[schemars(with = "String")]
    pub result: ByteSize,
    /// Jobs that may wait to be written before callers are told `overloaded`.
    pub intake: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { payload: ByteSize::kib(512), result: ByteSize::kib(256), intake: 20_000 }
    }
}

/// Outgoing mail of `send-email`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Smtp {
    /// `smtp://host:25` (plain), `smtp://user:password@host:587?tls=required` (STARTTLS) or `smtps://host:465`.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub url: Option<SecretString>,
    /// Sender of mails that name none.
    pub from: String,
    /// Connections kept open.
    pub pool: u32,
}

impl Default for Smtp {
    fn default() -> Self {
        Self { url: None, from: "queue-service@localhost".into(), pool: 10 }
    }
}

/// Text models of `generate-embedding` and `generate-content`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ai {
    /// Root of an API of the OpenAI shape, for instance `https://api.openai.com/v1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub api_key: Option<SecretString>,
    /// Further providers by name; the one with the longest matching model prefix is asked.
    pub providers: BTreeMap<String, AiProvider>,
    /// Other names for models: `{ "small" = "gpt-4o-mini" }`.
    pub aliases: BTreeMap<String, String>,
    /// Model of embeddings that name none.
    pub embedding_model: String,
    /// Model of texts that name none.
    pub content_model: String,
    /// Longest wait for an answer of a provider.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// Requests to one provider at the same time, per process.
    pub concurrency: usize,
}

impl Default for Ai {
    fn default() -> Self {
        Self {
            base_url: None,
            api_key: None,
            providers: BTreeMap::new(),
            aliases: BTreeMap::new(),
            embedding_model: "@cf/baai/bge-base-en-v1.5".into(),
            content_model: "@cf/meta/llama-3.1-8b-instruct".into(),
            timeout: Duration::from_secs(25),
            concurrency: 8,
        }
    }
}

/// One provider of the OpenAI shape.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AiProvider {
    pub base_url: String,
    #[serde(default, skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub api_key: Option<SecretString>,
    /// Models whose names begin so are asked here, for instance `["gpt-", "text-embedding-"]`.
    pub models: Vec<String>,
}

/// Outgoing requests of `webhook-delivery`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Webhook {
    /// `whsec_…` (base64): deliveries are signed by Standard Webhooks when it is set.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub secret: Option<SecretString>,
    /// `false`, `true`, or the networks to allow: `["10.1.0.0/16"]`.
    pub allow_private: AllowPrivate,
}

/// Requests of `crawl-website`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Crawl {
    /// Sent with every request and looked for in robots.txt.
    pub user_agent: String,
    /// `false`, `true`, or the networks to allow.
    pub allow_private: AllowPrivate,
}

impl Default for Crawl {
    fn default() -> Self {
        Self { user_agent: "queue-service/0.1".into(), allow_private: AllowPrivate::default() }
    }
}

/// Which private addresses outgoing requests may reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AllowPrivate {
    All(bool),
    Only(#[schemars(with = "Vec<String>")] Vec<IpNet>),
}

impl Default for AllowPrivate {
    fn default() -> Self {
        AllowPrivate::All(false)
    }
}

/// How long finished jobs are kept, in whole days.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    #[serde(with = "days")]
    #[schemars(with = "String")]
    pub completed: Duration,
    #[serde(with = "days")]
    #[schemars(with = "String")]
    pub failed: Duration,
    #[serde(with = "days")]
    #[schemars(with = "String")]
    pub cancelled: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |n: u64| Duration::from_secs(n * 24 * 3600);
        Self { completed: days(30), failed: days(90), cancelled: days(30) }
    }
}

/// Periods of the duties in the background. The defaults are right; tests shrink them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Background {
    /// Longest pause of the relay between two looks into the outbox.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub relay: Duration,
    /// Time between two repair sweeps.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub sweep: Duration,
    /// How long a due job may be pending before a sweep looks for its wake-up.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub overdue: Duration,
    /// Time that a fresh batch has for its publish before the relay takes it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub publish_grace: Duration,
    /// How long a delivered message may be unanswered before the broker delivers it again. Fixed when a consumer is
    /// made: it is never edited on a live one.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub ack_wait: Duration,
}

impl Default for Background {
    fn default() -> Self {
        Self {
            relay: Duration::from_millis(500),
            sweep: Duration::from_secs(60),
            overdue: Duration::from_secs(60),
            publish_grace: Duration::from_secs(5),
            ack_wait: Duration::from_secs(30),
        }
    }
}

/// The process's own log, on standard error.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged, for instance `info` or `queue_service=debug,warn`. `RUST_LOG` sets it too.
    pub filter: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
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
