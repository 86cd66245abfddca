//! The sections and keys of the configuration, with their defaults. The doc comments are the text of the reference page.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::takes::{Address, Size, Span};
use crate::job::{RetryPolicy, Work};

/// The broker.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Nats {
    /// Servers, separated by commas. `NATS_URL` sets it too.
    pub url: String,
    /// First token of every subject and part of the streams' names: one prefix is one namespace.
    pub prefix: String,
    /// JetStream domain to use, where streams are to be kept on another server than the one connected to: a hub behind a
    /// leaf node, for instance. One token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// File with a user's JWT and key. Like all files here it is read at each connect, so it may be renewed at any time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds: Option<PathBuf>,
    /// Token to connect with.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub token: Option<SecretString>,
    /// File with the token, in place of `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// File with the password of the user in `url`, which then has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
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
    #[schemars(range(min = 1, max = 5), extend("enum" = [1, 3, 5]))]
    pub replicas: u8,
    /// Disk that the streams may take together; the broker sets it aside. Half of it is for wake-ups, a quarter for dead
    /// letters, an eighth for events, and an eighth for the inbox.
    #[schemars(with = "Size", extend("x-least" = "16MiB", "x-greatest" = "1PiB"))]
    pub store: ByteSize,
    /// First tokens of this process's own inboxes; `_INBOX.<user>` where users may read only their own.
    pub inbox_prefix: String,
    /// Whether handlers that say so in their NATS service metadata become job types by themselves.
    pub discovery: bool,
    /// First tokens that a request's reply subject may have; others are refused, so that nobody can make the service
    /// publish for him.
    pub reply_prefixes: Vec<String>,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".into(),
            prefix: "queue".into(),
            domain: None,
            creds: None,
            token: None,
            token_file: None,
            password_file: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            replicas: 1,
            store: ByteSize::gib(2),
            inbox_prefix: "_INBOX".into(),
            discovery: true,
            reply_prefixes: vec!["_INBOX.".into(), "_R_.".into()],
        }
    }
}

/// Postgres.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `postgres://user:password@host/database`, as libpq takes it: `[::1]:5432`, several hosts, `?host=`, `?sslmode=`. Of
    /// several servers the first that takes writes is used. `DATABASE_URL` sets it too.
    pub url: String,
    /// Connections of this process; two more are reserved, for the heartbeat and for notices.
    #[schemars(range(min = 4, max = 10_000))]
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
    /// Whether this process answers HTTP.
    pub enabled: bool,
    /// Address and port. Any other address than loopback needs `token`, or `insecure`.
    #[schemars(with = "Address")]
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
    /// Whether this process answers requests over NATS.
    pub enabled: bool,
    /// Requests that are worked on at the same time; more are answered `overloaded`.
    #[schemars(range(min = 1, max = 1_000_000))]
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
    /// Whether this process runs jobs.
    pub enabled: bool,
    /// Types that this process runs; empty: all it knows.
    pub types: Vec<String>,
    /// Jobs of one type that run at the same time in this process.
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrency: usize,
    /// Most messages that are asked for in one pull.
    #[schemars(range(min = 1, max = 1000))]
    pub batch: usize,
    /// Whether a job that is asked for here starts here at once when there is room, without a message.
    pub eager: bool,
    /// How long a worker may be silent before its jobs are taken over. It reports six times in that span.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Span", extend("x-least" = "300ms", "x-greatest" = "1h"))]
    pub lease: Duration,
    /// How long running jobs may go on after a request to stop; then they are handed back.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Span", extend("x-least" = "0s", "x-greatest" = "24h"))]
    pub drain: Duration,
    /// How long a cancelled handler may take to stop by itself.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Span", extend("x-least" = "0s", "x-greatest" = "1h"))]
    pub cancel_grace: Duration,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            enabled: true,
            types: Vec::new(),
            concurrency: 100,
            batch: 100,
            eager: true,
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
    #[schemars(with = "Option<Span>", extend("x-least" = "100ms", "x-greatest" = "24h"))]
    pub timeout: Option<Duration>,
    /// Jobs of this type that run at the same time in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrency: Option<usize>,
    /// Keys as in the section `retry`; those not given are taken from there.
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    #[schemars(with = "RetryPolicy")]
    pub retry: toml::Table,
    /// Makes this a type whose work is done outside: `nats`, `http` or `pull`. See docs/protocol.md; the keys below go
    /// with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<Work>,
    /// One sentence for lists, at most 500 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 0, max = 500))]
    pub description: Option<String>,
    /// Where an `http` handler is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `whsec_…` (base64): requests to an `http` handler are signed with it.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub secret: Option<SecretString>,
    /// JSON Schema of the payload, as a text of at most 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_schema: Option<String>,
    /// JSON Schema of the result, as a text of at most 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_schema: Option<String>,
    /// A run outside that is silent for so long is taken to be lost, 1 s to 1 h.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Span>", extend("x-least" = "1s", "x-greatest" = "1h"))]
    pub heartbeat: Option<Duration>,
}

/// What a request may ask for.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest payload of a job.
    #[schemars(with = "Size", extend("x-least" = "1KiB", "x-greatest" = "768KiB"))]
    pub payload: ByteSize,
    /// Largest result of a job; a larger one is a permanent failure.
    #[schemars(with = "Size", extend("x-least" = "1KiB", "x-greatest" = "512KiB"))]
    pub result: ByteSize,
    /// Jobs that may wait to be written before callers are told `overloaded`.
    #[schemars(range(min = 1000, max = 10_000_000))]
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
    #[schemars(range(min = 1, max = 1000))]
    pub pool: u32,
    /// What EHLO says: a name of this host that others can look up, or an address in brackets, `[192.0.2.1]`. Unless
    /// set, the host's full name, and where it has none its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hello: Option<String>,
    /// File with an OAuth 2.0 access token, which replaces the password (XOAUTH2). It is read at each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Signs mails by DKIM (RFC 6376).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dkim: Option<Dkim>,
}

impl Default for Smtp {
    fn default() -> Self {
        let from = "queue-service@localhost".into();
        Self { url: None, from, pool: 10, hello: None, token_file: None, dkim: None }
    }
}

/// How mails are signed: `{ domain = "example.org", selector = "mail", key = "/etc/queue-service/dkim.pem" }`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dkim {
    /// The domain that signs; best that of `smtp.from`.
    pub domain: String,
    /// Under `<selector>._domainkey.<domain>` lies the public key.
    pub selector: String,
    /// Private key in PEM, or the path of a file with it: RSA with at least 2048 bits, or Ed25519.
    #[serde(skip_serializing)]
    #[schemars(with = "String")]
    pub key: SecretString,
}

/// Text models of `generate-embedding` and `generate-content`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ai {
    /// Root of an API of the OpenAI shape, for instance `https://api.openai.com/v1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Key of that API, sent as a bearer token.
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
    #[schemars(with = "Span", extend("x-least" = "100ms", "x-greatest" = "1h"))]
    pub timeout: Duration,
    /// Requests to one provider at the same time, per process.
    #[schemars(range(min = 1, max = 10_000))]
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

/// Handlers outside the service.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Handlers {
    /// Private addresses that `http` handlers may have: `false`, `true`, or the networks to allow.
    pub allow_private: AllowPrivate,
}

/// Which private addresses outgoing requests may reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AllowPrivate {
    All(bool),
    Only(Vec<IpNet>),
}

impl JsonSchema for AllowPrivate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AllowPrivate".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["boolean", "array", "string"], "format": "networks", "items": {"type": "string"}})
    }
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
    /// Jobs that are done.
    #[serde(with = "super::days")]
    #[schemars(with = "Span", extend("x-least" = "1d", "x-greatest" = "36500d"))]
    pub completed: Duration,
    /// Jobs that failed for good.
    #[serde(with = "super::days")]
    #[schemars(with = "Span", extend("x-least" = "1d", "x-greatest" = "36500d"))]
    pub failed: Duration,
    /// Jobs that somebody stopped.
    #[serde(with = "super::days")]
    #[schemars(with = "Span", extend("x-least" = "1d", "x-greatest" = "36500d"))]
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
    #[schemars(with = "Span", extend("x-least" = "1ms", "x-greatest" = "10m"))]
    pub relay: Duration,
    /// Time between two repair sweeps.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Span", extend("x-least" = "10ms", "x-greatest" = "24h"))]
    pub sweep: Duration,
    /// How long a due job may be pending before a sweep looks for its wake-up.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Span", extend("x-least" = "10ms", "x-greatest" = "24h"))]
    pub overdue: Duration,
    /// Time that a fresh batch has for its publish before the relay takes it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Span", extend("x-least" = "0s", "x-greatest" = "1h"))]
    pub publish_grace: Duration,
    /// How long a delivered message may be unanswered before the broker delivers it again. Fixed when a consumer is
    /// made: it is never edited on a live one.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Span", extend("x-least" = "100ms", "x-greatest" = "24h"))]
    pub ack_wait: Duration,
    /// Messages of one lane that may be unanswered at a time, over all processes: jobs that run, and jobs that wait for their
    /// next attempt. When half of it is used, further ones wait in Postgres instead.
    #[schemars(range(min = 10, max = 1_000_000))]
    pub max_unanswered: usize,
}

impl Default for Background {
    fn default() -> Self {
        Self {
            relay: Duration::from_millis(500),
            sweep: Duration::from_secs(60),
            overdue: Duration::from_secs(60),
            publish_grace: Duration::from_secs(5),
            ack_wait: Duration::from_secs(30),
            max_unanswered: 50_000,
        }
    }
}

/// The process's own log, on standard error.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged, for instance `info` or `queue_service=debug,warn`. `RUST_LOG` sets it too.
    #[schemars(length(min = 0))]
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
