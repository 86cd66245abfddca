//! What can go wrong with a provider, and whether another attempt may cure it.

use std::time::Duration;

use crate::job::Failure;

/// Why a provider's answer can't be used. `Clone`, since all jobs of a shared request get it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error(
        "no AI provider is configured for the model '{model}': set ai.base_url (QUEUE__AI__BASE_URL), \
         or [ai.providers.<name>] with a prefix of this name in its `models`"
    )]
    NotConfigured { model: String },
    /// The provider understood, and will say the same again.
    #[error("the AI provider '{provider}' refused the request (status {status}): {message}")]
    Refused { provider: String, status: u16, message: String },
    #[error("the AI provider '{provider}' can't take the request now (status {status}): {message}")]
    Unavailable { provider: String, status: u16, message: String, retry_after: Option<Duration> },
    /// The model itself declined to write.
    #[error("the model at the AI provider '{provider}' declined: {message}")]
    Declined { provider: String, message: String },
    #[error("the AI provider '{provider}' gave no answer: {message}")]
    NoAnswer { provider: String, message: String },
    #[error("the AI provider '{provider}' answered HTML instead of JSON: look whether its base_url is right")]
    Html { provider: String },
    #[error("the AI provider '{provider}' gave an unusable answer: {message}")]
    BadAnswer { provider: String, message: String },
    #[error("the AI provider '{provider}' answered more than {limit} bytes; the rest was not read")]
    TooLarge { provider: String, limit: usize },
}

/// A setting that no request can be made with.
#[derive(Debug, thiserror::Error)]
#[error("{key} {message}")]
pub struct SetupError {
    pub key: String,
    pub message: String,
}

impl Error {
    /// Whether one text of a shared request may have caused this for all of them, or the number of texts. Such a
    /// request is worth being asked again in parts; the others would only fail more often.
    pub(super) fn may_be_the_fault_of_one(&self) -> bool {
        match self {
            Error::Refused { status, .. } => matches!(status, 400 | 413 | 422),
            // A vector that is no vector makes the whole answer unreadable.
            Error::BadAnswer { .. } => true,
            Error::NotConfigured { .. }
            | Error::Unavailable { .. }
            | Error::Declined { .. }
            | Error::NoAnswer { .. }
            | Error::Html { .. }
            | Error::TooLarge { .. } => false,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            // The same question would only cost the same answer again.
            Error::NotConfigured { .. } | Error::Refused { .. } | Error::Declined { .. } | Error::TooLarge { .. } => {
                Failure::permanent(message)
            }
            Error::Unavailable { retry_after, .. } => Failure::retry(message).after(retry_after),
            // A proxy's error page and a half-started server look like this; both pass.
            Error::NoAnswer { .. } | Error::Html { .. } | Error::BadAnswer { .. } => Failure::retry(message),
        }
    }
}
