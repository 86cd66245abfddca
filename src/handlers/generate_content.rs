//! `generate-content`: lets a model write. The kinds of text and their instructions are the table [`FRAMES`].

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Faults, Handler, RunContext,
    clients::ai::{Ai, Chat, Usage, model_fault},
};
use crate::{config, job::Failure};

/// What the model is told unless the payload's `system` says something else.
const SYSTEM: &str = "You write for people. Answer in the language of the request, with the text itself: no preamble, no \
                      remarks about the task.";

/// Kinds of text that have an instruction of their own. Any other kind becomes a plain hint, [`OTHER_FRAME`].
const FRAMES: [(&str, &str); 5] = [
    (
        "article",
        "Write an article: a title, a short introduction, sections with headings, and a conclusion. Use Markdown.",
    ),
    (
        "summary",
        "Summarise what follows in at most a fifth of its length. Keep names, numbers and reservations; add nothing.",
    ),
    (
        "email",
        "Write an e-mail: the first line is 'Subject: …', then a blank line, a greeting, the message and a closing.",
    ),
    (
        "social",
        "Write one post for social media: at most 280 characters, one thought, at most two hashtags at its end.",
    ),
    (
        "product",
        "Write a product description: one sentence on what it is for, then three to five points on its benefits. State \
         nothing that is not in the request.",
    ),
];
const OTHER_FRAME: &str = "Write this kind of text: {type}.";

/// Longest name of a kind of text, in characters.
const TYPE_MAX: usize = 100;
/// Longest `system` text, in bytes.
const SYSTEM_MAX: usize = 32 * 1024;
/// Most tokens that may be asked for; no model of today writes more at a time.
const TOKENS_MAX: u32 = 131_072;
/// Range of `temperature`. Source: OpenAI API reference, chat completions.
const TEMPERATURE: std::ops::RangeInclusive<f64> = 0.0..=2.0;

pub struct GenerateContent {
    ai: Arc<Ai>,
    default_model: String,
    /// What one provider takes at the same time.
    slots: usize,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "GenerateContentPayload")]
pub struct Payload {
    /// What to write about; not empty.
    pub prompt: String,
    /// The kind of text: `article`, `summary`, `email`, `social`, `product`, or any other words as a hint.
    #[serde(default = "article")]
    pub r#type: String,
    /// The model, or an alias of one; `ai.content_model` when it is missing.
    #[serde(default)]
    pub model: Option<String>,
    /// Most tokens to write, 1 to 131072; the provider's own limit when it is missing.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// From 0 (sober) to 2 (wild); the provider's own when it is missing.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Who the model shall be and what it shall mind, instead of the built-in words. The kind of text still counts.
    #[serde(default)]
    pub system: Option<String>,
}

fn article() -> String {
    "article".into()
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Output {
    pub r#type: String,
    /// The model that was asked, after the aliases.
    pub model: String,
    pub content: String,
    /// `null` when the provider does not count.
    pub usage: Option<Usage>,
}

impl GenerateContent {
    pub fn new(ai: Arc<Ai>, config: &config::Ai) -> Self {
        Self { ai, default_model: config.content_model.clone(), slots: config.concurrency }
    }
}

impl Handler for GenerateContent {
    const TYPE: &'static str = "generate-content";
    const ABOUT: &'static str = "Lets a language model write a text.";
    type Payload = Payload;
    type Output = Output;

    // More would wait for the provider with their timeout running.
    fn concurrency(&self) -> Option<usize> {
        Some(self.slots.max(1))
    }

    fn check(&self, payload: &Payload, faults: &mut Faults) {
        if payload.prompt.is_empty() {
            faults.add("/prompt", "must not be empty");
        }
        let kind = &payload.r#type;
        if kind.is_empty() || kind.chars().count() > TYPE_MAX || kind.chars().any(char::is_control) {
            faults.add("/type", format!("must be 1 to {TYPE_MAX} characters on one line"));
        }
        if let Some(fault) = payload.model.as_deref().and_then(model_fault) {
            faults.add("/model", fault);
        }
        if payload.max_tokens.is_some_and(|tokens| !(1..=TOKENS_MAX).contains(&tokens)) {
            faults.add("/maxTokens", format!("must be 1 to {TOKENS_MAX}"));
        }
        if payload.temperature.is_some_and(|temperature| !TEMPERATURE.contains(&temperature)) {
            faults.add("/temperature", "must be 0 to 2");
        }
        if payload.system.as_ref().is_some_and(|system| system.len() > SYSTEM_MAX) {
            faults.add("/system", format!("must be at most {SYSTEM_MAX} bytes"));
        }
    }

    async fn run(&self, ctx: &RunContext, payload: Payload) -> Result<Output, Failure> {
        let target = self.ai.pick(payload.model.as_deref().unwrap_or(&self.default_model))?;
        let system = instructions(payload.system.as_deref(), &payload.r#type);
        let chat = Chat {
            system: &system,
            prompt: &payload.prompt,
            max_tokens: payload.max_tokens,
            temperature: payload.temperature,
        };
        let written = tokio::select! {
            written = target.chat(&chat) => written?,
            () = ctx.cancelled() => return Err(Failure::retry("stopped before the text came")),
        };
        Ok(Output { r#type: payload.r#type, model: target.model, content: written.content, usage: written.usage })
    }
}

/// The system message. The prompt stays untouched in a message of its own, so that its words are not mistaken for ours.
fn instructions(system: Option<&str>, kind: &str) -> String {
    let frame = FRAMES.iter().find(|(name, _)| *name == kind).map(|(_, frame)| (*frame).to_owned());
    let frame = frame.unwrap_or_else(|| OTHER_FRAME.replace("{type}", kind));
    format!("{}\n\n{frame}", system.unwrap_or(SYSTEM))
}

#[cfg(test)]
mod tests;
