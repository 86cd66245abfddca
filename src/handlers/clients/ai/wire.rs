//! The OpenAI wire shape, as much of it as is needed. Answers are read leniently (unknown fields are ignored) and
//! checked strictly: a vector that is not one never becomes a result.

use serde::{Deserialize, Serialize};

use super::{Chat, Completion, Usage};

#[derive(Serialize)]
pub(super) struct EmbeddingsRequest<'a> {
    pub model: &'a str,
    pub input: Vec<&'a str>,
}

#[derive(Deserialize)]
pub(super) struct Embeddings {
    data: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    /// Place of its text in the request; without one, the order counts.
    #[serde(default)]
    index: Option<usize>,
    /// 32 bits: models compute with no more, and a result takes half the room.
    embedding: Vec<f32>,
}

impl Embeddings {
    /// The vectors in the order of the request, or a sentence on why there is not one for each text.
    pub fn vectors(self, asked: usize) -> Result<Vec<Vec<f32>>, String> {
        if self.data.len() != asked {
            return Err(format!("{} vectors for {asked} texts", self.data.len()));
        }
        let mut vectors: Vec<Option<Vec<f32>>> = vec![None; asked];
        for (position, row) in self.data.into_iter().enumerate() {
            let index = row.index.unwrap_or(position);
            if row.embedding.is_empty() || row.embedding.iter().any(|number| !number.is_finite()) {
                return Err(format!("vector {index} is empty or holds something that is no number"));
            }
            match vectors.get_mut(index) {
                Some(place @ None) => *place = Some(row.embedding),
                Some(Some(_)) => return Err(format!("two vectors with index {index}")),
                None => return Err(format!("a vector with index {index} for {asked} texts")),
            }
        }
        // As many rows as places, none twice: no place is empty.
        Ok(vectors.into_iter().flatten().collect())
    }
}

#[derive(Serialize)]
pub(super) struct ChatRequest<'a> {
    model: &'a str,
    messages: [Message<'a>; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

impl<'a> ChatRequest<'a> {
    pub fn new(model: &'a str, chat: &Chat<'a>) -> Self {
        Self {
            model,
            messages: [
                Message { role: "system", content: chat.system },
                Message { role: "user", content: chat.prompt },
            ],
            max_tokens: chat.max_tokens,
            temperature: chat.temperature,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct ChatAnswer {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Written,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    #[serde(default)]
    total_tokens: u64,
}

/// Why an answer holds no text.
pub(super) enum Fault {
    /// The model declined; it will do so again.
    Refusal(String),
    Malformed(String),
}

impl ChatAnswer {
    pub fn completion(self) -> Result<Completion, Fault> {
        let usage = self.usage.map(|u| Usage {
            prompt_tokens: u.prompt_tokens,
            completion_tokens: u.completion_tokens,
            // Some servers leave the sum to the reader.
            total_tokens: u.total_tokens.max(u.prompt_tokens.saturating_add(u.completion_tokens)),
        });
        let Some(choice) = self.choices.into_iter().next() else {
            return Err(Fault::Malformed("no choices".into()));
        };
        match (choice.message.content.filter(|text| !text.is_empty()), choice.message.refusal) {
            (Some(content), _) => Ok(Completion { content, usage }),
            (None, Some(refusal)) => Err(Fault::Refusal(refusal)),
            (None, None) => match choice.finish_reason.as_deref() {
                Some("content_filter") => Err(Fault::Refusal("its content filter stopped the text".into())),
                Some("length") => Err(Fault::Refusal("maxTokens was used up before any text came".into())),
                reason => Err(Fault::Malformed(format!("an empty text (finish_reason {})", reason.unwrap_or("none")))),
            },
        }
    }
}

/// The sentence in an error body: OpenAI's shape, Cloudflare's, FastAPI's, Ollama's. `None` when there is none.
pub(super) fn error_sentence(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let places = ["/error/message", "/errors/0/message", "/message", "/detail/0/msg", "/detail", "/error"];
    places.iter().find_map(|place| value.pointer(place)?.as_str().map(str::to_owned))
}
