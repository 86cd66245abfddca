//! The list of job types that this program can do. Adding one is one line in [`Registry::builtin`].

use std::{collections::BTreeMap, sync::Arc};

use super::{
    AnyHandler, Handler, clients::ai::Ai, generate_content::GenerateContent, generate_embedding::GenerateEmbedding,
    typed::Error as TypeError,
};
use crate::{config::Config, job::JobType};

/// All handlers by type.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<JobType, Arc<AnyHandler>>);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Type(#[from] TypeError),
    #[error("the handler of '{job_type}' can't be set up: {message}")]
    Setup { job_type: &'static str, message: String },
}

impl Registry {
    /// The types that come with the program.
    ///
    /// # Errors
    /// A setting that a handler can't work with, `smtp.url` for instance.
    pub fn builtin(config: &Config, db: sqlx::PgPool) -> Result<Self, Error> {
        let _ = db;
        // One for both types: a provider's concurrency cap holds for all that this process asks.
        let ai = Arc::new(Ai::new(&config.ai).map_err(setup(GenerateEmbedding::TYPE))?);
        Ok(Self::default()
            .with(GenerateEmbedding::new(ai.clone(), &config.ai))?
            .with(GenerateContent::new(ai, &config.ai))?)
    }

    /// Adds one type.
    ///
    /// # Errors
    /// A bad or doubled type name: a mistake in the program.
    pub fn with<H: Handler>(mut self, handler: H) -> Result<Self, TypeError> {
        let handler = AnyHandler::new(handler)?;
        let job_type = handler.job_type.clone();
        match self.0.insert(job_type.clone(), Arc::new(handler)) {
            None => Ok(self),
            Some(_) => Err(TypeError::Twice(job_type)),
        }
    }

    pub fn get(&self, job_type: &str) -> Option<&Arc<AnyHandler>> {
        self.0.get(job_type)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<AnyHandler>> {
        self.0.values()
    }
}

fn setup<E: std::fmt::Display>(job_type: &'static str) -> impl Fn(E) -> Error {
    move |e| Error::Setup { job_type, message: e.to_string() }
}
