//! The list of job types that this program can do. Adding one is one line in [`Registry::builtin`].

use std::{collections::BTreeMap, sync::Arc};

use super::{
    AnyHandler, Handler, batch_import::BatchImport, clients::ai::Ai, crawl_website::CrawlWebsite,
    generate_content::GenerateContent, generate_embedding::GenerateEmbedding, send_email::SendEmail,
    typed::Error as TypeError, webhook_delivery::WebhookDelivery,
};
use crate::{config::Config, job::JobType, supervise::Supervisor};

/// The names of all types that come with the program, in the order of the alphabet. For what has to know them before
/// there is a configuration or a database.
pub const BUILTIN_TYPES: [&str; 6] =
    ["batch-import", "crawl-website", "generate-content", "generate-embedding", "send-email", "webhook-delivery"];

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
    pub fn builtin(config: &Config, db: sqlx::PgPool, supervisor: &Supervisor) -> Result<Self, Error> {
        // One for both types: a provider's concurrency cap holds for all that this process asks.
        let ai = Arc::new(Ai::new(&config.ai).map_err(fault_of::<GenerateEmbedding>)?);
        Ok(Self::default()
            .with(BatchImport::new(db))?
            .with(set_up(CrawlWebsite::new(config))?)?
            .with(GenerateContent::new(ai.clone(), &config.ai))?
            .with(GenerateEmbedding::new(ai, &config.ai, supervisor))?
            .with(set_up(SendEmail::new(&config.smtp))?)?
            .with(set_up(WebhookDelivery::new(&config.webhook))?)?)
    }

    /// Adds one type.
    ///
    /// # Errors
    /// A bad or doubled type name: a mistake in the program.
    pub fn with<H: Handler>(self, handler: H) -> Result<Self, TypeError> {
        self.with_any(AnyHandler::new(handler)?)
    }

    /// Adds one type.
    ///
    /// # Errors
    /// [`TypeError::Twice`].
    pub fn with_any(mut self, handler: AnyHandler) -> Result<Self, TypeError> {
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

fn set_up<H: Handler>(made: Result<H, String>) -> Result<H, Error> {
    made.map_err(fault_of::<H>)
}

fn fault_of<H: Handler>(message: impl ToString) -> Error {
    Error::Setup { job_type: H::TYPE, message: message.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builtin(config: &Config) -> Result<Registry, Error> {
        Registry::builtin(
            config,
            sqlx::postgres::PgPoolOptions::new().connect_lazy("postgres://127.0.0.1/none").unwrap(),
            &Default::default(),
        )
    }

    #[tokio::test]
    async fn what_is_registered_is_what_the_list_of_types_says() {
        let registry = builtin(&Config::default()).unwrap();
        assert!(registry.iter().map(|handler| handler.job_type.as_str()).eq(BUILTIN_TYPES));
    }

    #[tokio::test]
    async fn the_documentation_has_one_good_example_of_each_type() {
        let registry = builtin(&Config::default()).unwrap();
        let page = include_str!("../../docs/job-types.md");
        let blocks = page.split("```json\n").skip(1).filter_map(|rest| rest.split("\n```").next());
        let mut types = Vec::new();
        for block in blocks {
            let request: serde_json::Value = serde_json::from_str(block).unwrap();
            let Some(job_type) = request["type"].as_str() else { continue };
            let payload = serde_json::value::to_raw_value(&request["payload"]).unwrap();
            assert_eq!(registry.get(job_type).unwrap().check(&payload), Default::default(), "{block}");
            types.push(job_type.to_owned());
        }
        types.sort();
        assert_eq!(types, BUILTIN_TYPES);
    }

    #[tokio::test]
    async fn a_setting_that_a_handler_cannot_use_is_named_with_its_type() {
        let mut config = Config::default();
        config.smtp.url = Some("imap://example.org".to_owned().into());
        let refused = builtin(&config).err().unwrap().to_string();
        assert!(refused.starts_with("the handler of 'send-email' can't be set up: smtp.url"), "{refused}");
    }
}
