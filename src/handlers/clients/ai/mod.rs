//! Text models over the OpenAI wire shape: OpenAI, Cloudflare's compatible endpoint, Ollama, vLLM and their like.
//!
//! `provider` sends one request and judges the answer, `wire` has the shapes, `batch` puts embeddings together. A key
//! is in no error and no log line, whatever a provider echoes.

pub mod batch;
mod error;
mod provider;
#[cfg(test)]
pub(crate) mod testing;
mod wire;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use crate::config;

pub use batch::Embedder;
pub use error::{Error, SetupError};
use provider::Provider;

/// Largest answer with embeddings: 64 vectors of 4096 numbers, written at full length, and as much again.
const EMBEDDINGS_MAX: usize = 16 * 1024 * 1024;
/// Largest answer with a text; what a job may return is far less.
const COMPLETION_MAX: usize = 2 * 1024 * 1024;
/// Longest name of a model.
const MODEL_MAX: usize = 200;

/// All configured providers. One instance per process, so that the concurrency cap of a provider holds for all types.
pub struct Ai {
    providers: Vec<(Vec<String>, Arc<Provider>)>,
    fallback: Option<Arc<Provider>>,
    aliases: std::collections::BTreeMap<String, String>,
}

/// A model and the provider that has it.
#[derive(Clone)]
pub struct Target {
    provider: Arc<Provider>,
    /// The name that the provider is asked with, after the aliases.
    pub model: String,
}

/// A text to be written.
#[derive(Debug)]
pub struct Chat<'a> {
    pub system: &'a str,
    pub prompt: &'a str,
    pub max_tokens: Option<u32>,
    pub temperature: Option<f64>,
}

/// A text that was written.
#[derive(Debug, PartialEq)]
pub struct Completion {
    pub content: String,
    pub usage: Option<Usage>,
}

/// What a request cost, in tokens, as the provider counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
}

impl Ai {
    /// # Errors
    /// An address or key that no request can be made with; the message names the setting.
    pub fn new(config: &config::Ai) -> Result<Self, SetupError> {
        super::install_crypto();
        let make = |name: &str, section: &str, base_url: &str, key: Option<&secrecy::SecretString>| {
            Provider::new(name, section, base_url, key, config).map(Arc::new)
        };
        let fallback = config.base_url.as_deref().map(|url| make("default", "ai", url, config.api_key.as_ref()));
        let providers = config.providers.iter().map(|(name, p)| {
            let provider = make(name, &format!("ai.providers.{name}"), &p.base_url, p.api_key.as_ref())?;
            Ok((p.models.clone(), provider))
        });
        Ok(Self {
            providers: providers.collect::<Result<_, _>>()?,
            fallback: fallback.transpose()?,
            aliases: config.aliases.clone(),
        })
    }

    /// Finds the provider of `model`: the alias is followed once, then the longest prefix wins, then `ai.base_url`.
    ///
    /// # Errors
    /// [`Error::NotConfigured`] when nobody has this model.
    pub fn pick(&self, model: &str) -> Result<Target, Error> {
        let model = self.aliases.get(model).map_or(model, String::as_str);
        let longest = |prefixes: &[String]| {
            prefixes.iter().filter(|prefix| model.starts_with(prefix.as_str())).map(String::len).max()
        };
        let named = self
            .providers
            .iter()
            .filter_map(|(prefixes, provider)| Some((longest(prefixes)?, provider)))
            .max_by_key(|(length, _)| *length)
            .map(|(_, provider)| provider);
        match named.or(self.fallback.as_ref()) {
            Some(provider) => Ok(Target { provider: provider.clone(), model: model.to_owned() }),
            None => Err(Error::NotConfigured { model: model.to_owned() }),
        }
    }
}

impl Target {
    /// One vector per text, in order.
    ///
    /// # Errors
    /// See [`Error`]; it concerns all texts of the request.
    pub async fn embed<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Vec<f32>>, Error> {
        let input = texts.iter().map(AsRef::as_ref).collect();
        let request = wire::EmbeddingsRequest { model: &self.model, input };
        let answer: wire::Embeddings = self.provider.post("embeddings", &request, EMBEDDINGS_MAX).await?;
        answer.vectors(texts.len()).map_err(|message| self.provider.bad_answer(&message))
    }

    /// Lets the model write.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn chat(&self, chat: &Chat<'_>) -> Result<Completion, Error> {
        let request = wire::ChatRequest::new(&self.model, chat);
        let answer: wire::ChatAnswer = self.provider.post("chat/completions", &request, COMPLETION_MAX).await?;
        answer.completion().map_err(|fault| match fault {
            wire::Fault::Refusal(message) => self.provider.refusal(&message),
            wire::Fault::Malformed(message) => self.provider.bad_answer(&message),
        })
    }

    /// Which requests may share one with this.
    fn key(&self) -> (String, String) {
        (self.provider.name.clone(), self.model.clone())
    }
}

/// What is wrong with the name of a model, checked when a job is enqueued. The name goes into JSON only; the rule keeps
/// nonsense out of logs, and out of the paths of providers that build one from it.
pub fn model_fault(model: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "@/._:+-".contains(c);
    let good = !model.is_empty()
        && model.len() <= MODEL_MAX
        && model.chars().all(allowed)
        && model.split('/').all(|segment| segment != "..");
    (!good).then(|| format!("must be 1 to {MODEL_MAX} letters, digits and @ / . _ : + -, without '..' between slashes"))
}

#[cfg(test)]
mod tests;
