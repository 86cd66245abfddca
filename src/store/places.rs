//! Where jobs are by their ids: live, or in the partition of the day on which they ended. Reads only.
//!
//! A statement that looks through all partitions of finished jobs takes nearly a thousand locks at full retention, and
//! the lock table is shared by all who use the database.

use chrono::{Days, NaiveDate};
use uuid::Uuid;

use super::{Error, Store};
use crate::job::model::JobId;

/// Where a job is.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Place {
    pub id: JobId,
    pub status: String,
    /// The day (UTC) on which it ended.
    pub day: Option<NaiveDate>,
}

impl Store {
    /// Where these jobs are; unknown ones are left out.
    ///
    /// # Errors
    /// As for every statement.
    pub(super) async fn places(&self, ids: &[Uuid]) -> Result<Vec<Place>, Error> {
        let find = "SELECT id, status, day FROM job_places($1)";
        self.read_answer("find jobs", sqlx::query_as(find).bind(ids)).await
    }
}

/// A condition on `finished_jobs` by which the planner opens this partition alone. It holds values of our own only.
pub(super) fn within(place: &Place) -> String {
    let Some((day, next)) = place.day.and_then(|day| Some((day, day.checked_add_days(Days::new(1))?))) else {
        return "false".to_owned();
    };
    format!("status = '{}' AND finished_at >= '{day} 00:00+00' AND finished_at < '{next} 00:00+00'", place.status)
}
