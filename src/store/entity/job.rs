//! A job, live or finished: a row of the view `all_jobs`. JSON columns are texts, so that they go out as they came in.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, sqlx::FromRow)]
#[sea_orm(table_name = "all_jobs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub r#type: String,
    pub status: String,
    pub priority: i16,
    pub attempt: i16,
    pub max_attempts: i16,
    pub run: i64,
    pub timeout_ms: Option<i64>,
    pub tags: Option<Vec<String>>,
    pub idempotency_key: Option<String>,
    pub payload: Option<String>,
    pub result: Option<String>,
    pub errors: Option<String>,
    /// The message of the last of them.
    pub error: Option<String>,
    pub progress: Option<String>,
    pub worker_id: Option<String>,
    pub cancel_reason: Option<String>,
    pub created_at: DateTimeUtc,
    pub run_at: DateTimeUtc,
    pub started_at: Option<DateTimeUtc>,
    pub finished_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {}
