//! What somebody says of a type whose work is done outside, and the rules for it. Pure.

use std::{fmt, ops::RangeInclusive, time::Duration};

use schemars::JsonSchema;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::Value;

use super::{Known, Origin};
use crate::{
    config::{Config, TIMEOUT_RANGE, TypeOverrides, TypeSettings},
    job::{JobType, RetryPolicy, Work, integer::optional_integer},
    ops::input::Span,
    outside::Callers,
};

/// Longest description, in characters.
pub const ABOUT_MAX: usize = 500;
/// Largest schema, in bytes of JSON.
pub const SCHEMA_MAX: usize = 64 * 1024;
/// Bounds of a sign of life. Source: docs/protocol.md.
pub const HEARTBEAT_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Most delays that a back-off may list.
pub const DELAYS_MAX: usize = 100;
/// Longest delay of a back-off.
pub const DELAY_MAX: Duration = Duration::from_secs(24 * 3600);

/// A type whose work is done outside the service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Definition {
    /// `^[a-z][a-z0-9-]{0,62}$`; may be left out where the subject or the path names it.
    #[serde(default)]
    pub r#type: Option<String>,
    /// Who does the work: `nats` is asked on `queue.handlers.<type>`, `http` by POST to `url`, `pull` comes and fetches.
    pub handler: Work,
    /// One sentence for lists, at most 500 characters.
    #[serde(default)]
    pub description: Option<String>,
    /// Where an `http` handler is asked.
    #[serde(default)]
    pub url: Option<String>,
    /// `whsec_…`: requests to an `http` handler are signed with it by Standard Webhooks. Never shown again.
    #[serde(default)]
    pub secret: Option<String>,
    /// JSON Schema (2020-12) of the payload, at most 64 KiB, with no reference outside itself.
    #[serde(default)]
    pub payload_schema: Option<Value>,
    /// JSON Schema (2020-12) of the result, as `payloadSchema`.
    #[serde(default)]
    pub result_schema: Option<Value>,
    /// Longest run of one attempt, 100 ms to 24 h; 30 s unless given.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// A run that is silent for so long is taken to be lost, 1 s to 1 h; unless given, the timeout decides.
    #[serde(default)]
    pub heartbeat: Option<Span>,
    /// 1 to 100.
    #[serde(default, deserialize_with = "optional_integer")]
    pub max_attempts: Option<i64>,
    /// What is not given comes from the section `retry` of the configuration.
    #[serde(default)]
    pub backoff: Option<Backoff>,
    /// Runs at the same time, per process of the service, 1 to 10000.
    #[serde(default, deserialize_with = "optional_integer")]
    pub concurrency: Option<i64>,
}

/// How long failed attempts wait for the next one.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Backoff {
    /// Delay after the first failed attempt, at most 24 h.
    pub base: Option<Span>,
    /// What each further delay is multiplied with, 1 to 100.
    pub factor: Option<f64>,
    /// No delay is longer than this, at most 24 h.
    pub max: Option<Span>,
    /// Share of the delay that is random, 0 to 1.
    pub jitter: Option<f64>,
    /// Explicit delays instead of base and factor, at most 100; the last one repeats.
    pub delays: Vec<Span>,
}

/// What is wrong with a definition: JSON pointers and sentences.
#[derive(Debug, Default, PartialEq)]
pub struct Faults(pub Vec<(String, String)>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> =
            self.0.iter().map(|(path, message)| format!("{} {message}", path.trim_start_matches('/'))).collect();
        f.write_str(&all.join("; "))
    }
}

impl Faults {
    fn need(&mut self, ok: bool, path: &str, message: impl Into<String>) {
        if !ok {
            self.0.push((path.to_owned(), message.into()));
        }
    }
}

impl Definition {
    /// The definition that a section `[types.<name>]` of the configuration amounts to.
    ///
    /// # Errors
    /// A schema that is no JSON.
    pub fn of_section(section: &TypeOverrides) -> Result<Self, String> {
        let schema = |key: &str, text: &Option<String>| {
            let read = |text: &String| serde_json::from_str(text).map_err(|e| format!("{key} is no JSON: {e}"));
            text.as_ref().map(read).transpose()
        };
        Ok(Self {
            r#type: None,
            handler: section.handler.unwrap_or(Work::Nats),
            description: section.description.clone(),
            url: section.url.clone(),
            secret: section.secret.as_ref().map(|secret| secret.expose_secret().to_owned()),
            payload_schema: schema("payload_schema", &section.payload_schema)?,
            result_schema: schema("result_schema", &section.result_schema)?,
            heartbeat: section.heartbeat.map(Span),
            // These are keys of every type, and read as for built-in ones.
            timeout: None,
            max_attempts: None,
            backoff: None,
            concurrency: None,
        })
    }

    /// The type that this describes. `text`: what it was read from.
    ///
    /// # Errors
    /// Every fault.
    pub(super) fn build(
        &self,
        name: &str,
        origin: Origin,
        config: &Config,
        callers: &Callers,
        text: Option<String>,
    ) -> Result<Known, Faults> {
        let mut faults = Faults::default();
        let job_type = JobType::new(name).map_err(|rule| faults.need(false, "/type", rule.to_string())).ok();
        self.check(&mut faults);
        let settings = match config.type_settings(name) {
            Ok(settings) => self.settings(settings),
            Err(fault) => {
                faults.need(false, "", fault);
                return Err(faults);
            }
        };
        let heartbeat = self.heartbeat.map(|span| span.0);
        let Some(job_type) = job_type.filter(|_| faults.0.is_empty()) else { return Err(faults) };
        let handler = callers.handler(job_type, self, heartbeat).map_err(|faults| Faults(faults.0))?;
        let url = self.url.clone();
        Ok(Known { handler: handler.into(), settings, origin, heartbeat, url, text })
    }

    fn check(&self, faults: &mut Faults) {
        let about = self.description.as_deref().unwrap_or_default();
        faults.need(
            about.chars().count() <= ABOUT_MAX && !about.chars().any(char::is_control),
            "/description",
            format!("must be one line of at most {ABOUT_MAX} characters"),
        );
        for (path, schema) in [("/payloadSchema", &self.payload_schema), ("/resultSchema", &self.result_schema)] {
            let size = schema.as_ref().map_or(0, |schema| schema.to_string().len());
            faults.need(
                size <= SCHEMA_MAX,
                path,
                format!("has {size} bytes; the limit is {SCHEMA_MAX} bytes (64 KiB)"),
            );
        }
        faults.need(self.handler != Work::Http || self.url.is_some(), "/url", "is needed for an http handler");
        faults.need(self.handler == Work::Http || self.url.is_none(), "/url", "goes with http handlers only");
        faults.need(self.handler == Work::Http || self.secret.is_none(), "/secret", "goes with http handlers only");
        let within =
            |span: Option<Span>, range: RangeInclusive<Duration>| span.is_none_or(|span| range.contains(&span.0));
        faults.need(within(self.timeout, TIMEOUT_RANGE), "/timeout", "must be 100ms to 24h");
        faults.need(within(self.heartbeat, HEARTBEAT_RANGE), "/heartbeat", "must be 1s to 1h");
        let attempts = self.max_attempts.unwrap_or(1);
        faults.need((1..=100).contains(&attempts), "/maxAttempts", "must be 1 to 100");
        let concurrency = self.concurrency.unwrap_or(1);
        faults.need((1..=10_000).contains(&concurrency), "/concurrency", "must be 1 to 10000");
        let Some(backoff) = &self.backoff else { return };
        let delays = Duration::ZERO..=DELAY_MAX;
        faults.need(within(backoff.base, delays.clone()), "/backoff/base", "must be at most 24h");
        faults.need(within(backoff.max, delays.clone()), "/backoff/max", "must be at most 24h");
        let factor = backoff.factor.unwrap_or(1.0);
        faults.need((1.0..=100.0).contains(&factor), "/backoff/factor", "must be 1 to 100");
        let jitter = backoff.jitter.unwrap_or(0.0);
        faults.need((0.0..=1.0).contains(&jitter), "/backoff/jitter", "must be 0 to 1");
        let listed = &backoff.delays;
        faults.need(
            listed.len() <= DELAYS_MAX && listed.iter().all(|span| delays.contains(&span.0)),
            "/backoff/delays",
            format!("must be at most {DELAYS_MAX} delays of at most 24h"),
        );
    }

    /// What is in force: the definition, and where it is silent what the configuration says.
    fn settings(&self, base: TypeSettings) -> TypeSettings {
        let backoff = self.backoff.clone().unwrap_or_default();
        let span = |span: Option<Span>, otherwise: Duration| span.map_or(otherwise, |span| span.0);
        let delays: Vec<Duration> = backoff.delays.iter().map(|span| span.0).collect();
        let retry = RetryPolicy {
            base: span(backoff.base, base.retry.base),
            factor: backoff.factor.unwrap_or(base.retry.factor),
            max: span(backoff.max, base.retry.max).max(delays.iter().copied().max().unwrap_or_default()),
            max_attempts: self.max_attempts.and_then(|n| u16::try_from(n).ok()).unwrap_or(base.retry.max_attempts),
            jitter: backoff.jitter.unwrap_or(base.retry.jitter),
            schedule: if delays.is_empty() { base.retry.schedule } else { delays },
        };
        TypeSettings {
            timeout: span(self.timeout, base.timeout),
            concurrency: self.concurrency.and_then(|n| usize::try_from(n).ok()).unwrap_or(base.concurrency),
            retry,
        }
    }
}
