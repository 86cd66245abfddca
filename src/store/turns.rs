//! Whose turn it is: of all replicas one does a duty in each period, without a leader and without holding a lock.

use std::time::Duration;

use super::{Error, Store};

/// The row decides: whoever moves `next_at` on has the turn. A replica that dies with it is followed by another one in
/// the next period.
const TAKE: &str = r#"
INSERT INTO duties AS d (name, next_at) VALUES ($1, clock_timestamp() + $2 * interval '1 millisecond')
ON CONFLICT (name) DO UPDATE SET next_at = excluded.next_at WHERE d.next_at <= clock_timestamp() RETURNING name"#;

impl Store {
    /// Takes the turn of `duty`, which comes once per `period`. False: somebody else has it, or it is not time yet.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn take_turn(&self, duty: &str, period: Duration) -> Result<bool, Error> {
        let query = sqlx::query_as(TAKE).bind(duty).bind(period.as_millis() as i64);
        Ok(!self.read_all::<(String,)>("take a turn", query).await?.is_empty())
    }
}
