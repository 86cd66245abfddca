//! `generate-embedding`: the vector of a text. Jobs that wait for the same model share a request (`clients::ai::batch`).

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Faults, Handler, RunContext,
    clients::ai::{Ai, Embedder, Error, model_fault},
};
use crate::{config, job::Failure, supervise::Supervisor};

pub struct GenerateEmbedding {
    embedder: Embedder,
    default_model: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "GenerateEmbeddingPayload")]
pub struct Payload {
    /// What to embed; not empty, and sent as it is.
    pub text: String,
    /// The model, or an alias of one; `ai.embedding_model` when it is missing.
    #[serde(default)]
    pub model: Option<String>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Output {
    /// The model that was asked, after the aliases: vectors of different models can't be compared.
    pub model: String,
    pub dimensions: usize,
    pub embedding: Vec<f32>,
}

impl GenerateEmbedding {
    pub fn new(ai: Arc<Ai>, config: &config::Ai, supervisor: &Supervisor) -> Self {
        Self { embedder: Embedder::new(ai, supervisor), default_model: config.embedding_model.clone() }
    }
}

impl Handler for GenerateEmbedding {
    const TYPE: &'static str = "generate-embedding";
    const ABOUT: &'static str = "Turns a text into a vector.";
    type Payload = Payload;
    type Output = Output;

    fn check(&self, payload: &Payload, faults: &mut Faults) {
        if payload.text.is_empty() {
            faults.add("/text", "must not be empty");
        }
        if let Some(fault) = payload.model.as_deref().and_then(model_fault) {
            faults.add("/model", fault);
        }
    }

    async fn run(&self, ctx: &RunContext, payload: Payload) -> Result<Output, Failure> {
        let model = payload.model.as_deref().unwrap_or(&self.default_model);
        let length = payload.text.chars().count();
        let embedded = tokio::select! {
            embedded = self.embedder.embed(model, payload.text) => embedded,
            () = ctx.cancelled() => return Err(Failure::retry("stopped before the vector came")),
        };
        let (model, embedding) = embedded.map_err(|error| match error {
            // Models take a few hundred to some thousand tokens, and many refusals don't say what was too long.
            Error::Refused { status: 400 | 413 | 422, .. } => {
                Failure::permanent(format!("{error}; the text has {length} characters"))
            }
            error => error.into(),
        })?;
        Ok(Output { model, dimensions: embedding.len(), embedding })
    }
}

#[cfg(test)]
mod tests;
