//! Reading rows as far as they can be read: who writes into the tables by hand may leave what nobody expects.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::{DateTime, Utc};
use sqlx::{
    Decode, FromRow, Postgres, Row, Type,
    error::BoxDynError,
    postgres::{PgRow, PgTypeInfo, PgValueRef},
};

use crate::job::model::JobId;

/// A row that begins with the id and has the number of the run, the attempt and the type: it is read, or it is not and takes
/// no other one along.
pub(super) enum Read<T> {
    Whole(T),
    Not { id: JobId, job_type: String, run: i64, attempt: i16, why: String },
}

impl<'r, T: FromRow<'r, PgRow>> FromRow<'r, PgRow> for Read<T> {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let why = match catch_unwind(AssertUnwindSafe(|| T::from_row(row))) {
            Ok(Ok(whole)) => return Ok(Read::Whole(whole)),
            Ok(Err(e)) => e.to_string(),
            Err(panic) => crate::supervise::said(&*panic).to_owned(),
        };
        let (id, job_type) = (row.try_get("id")?, row.try_get("type")?);
        Ok(Read::Not { id, job_type, run: row.try_get("run")?, attempt: row.try_get("attempt")?, why })
    }
}

/// A time within the years 1 to 9999, as RFC 3339 can say it: an infinite one is the nearest of them.
pub(super) struct At(pub DateTime<Utc>);

impl From<At> for DateTime<Utc> {
    fn from(at: At) -> Self {
        at.0
    }
}

/// From 2000 on, in microseconds.
const EPOCH: i64 = 946_684_800_000_000;
const FIRST: i64 = -62_135_596_800_000_000;
const LAST: i64 = 253_402_300_799_999_999;

impl Type<Postgres> for At {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for At {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        let micros = <i64 as Decode<Postgres>>::decode(value)?.saturating_add(EPOCH).clamp(FIRST, LAST);
        Ok(Self(DateTime::from_timestamp_micros(micros).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_time_can_be_said() {
        for (micros, said) in [(FIRST, "0001-01-01T00:00:00+00:00"), (LAST, "9999-12-31T23:59:59.999999+00:00")] {
            assert_eq!(DateTime::from_timestamp_micros(micros).unwrap().to_rfc3339(), said);
        }
    }
}
