//! How connections are made.

use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};

/// Makes connections that are set up for their work. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    options: PgConnectOptions,
}

impl Connector {
    pub fn new(options: PgConnectOptions) -> Self {
        Self { options }
    }

    /// For what may take longer than any statement of the service, and is not logged with all of its text.
    pub async fn connect_patient(&self) -> Result<PgConnection, sqlx::Error> {
        let settings = [("statement_timeout", "0")];
        self.options.clone().options(settings).disable_statement_logging().connect().await
    }
}
