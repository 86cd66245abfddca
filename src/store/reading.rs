//! How the columns of a job are read: cleaned of what nobody expects there, so that a row that somebody has changed by hand does
//! not keep others from being read.

use std::sync::LazyLock;

use sea_orm::{EntityTrait, IdenStatic, Iterable, QuerySelect, Select, sea_query::Expr};

use super::entity::job::{Column, Entity};

/// The large columns to read along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Include {
    pub payload: bool,
    pub result: bool,
    pub errors: bool,
}

/// Not through the view: that opens all partitions of finished jobs.
pub(super) static BY_ID: LazyLock<String> = LazyLock::new(|| {
    let named = |column: Column| match cleaned(column) {
        Some(sql) => format!("{sql} AS {}", column.as_str()),
        None => column.as_str().to_owned(),
    };
    format!("SELECT {} FROM jobs_by_id($1)", Column::iter().map(named).collect::<Vec<_>>().join(", "))
});

/// A time as RFC 3339 can say it: an infinite one is the nearest that it can.
macro_rules! within_years {
    ($column:literal) => {
        concat!(
            "CASE WHEN ",
            $column,
            " IS NOT NULL THEN greatest(least(",
            $column,
            ", '9999-12-31 23:59:59.999999+00'), '0001-01-01 00:00:00+00') END"
        )
    };
}

/// What is read in the place of a column.
fn cleaned(column: Column) -> Option<&'static str> {
    match column {
        Column::Tags => {
            Some("CASE WHEN tags IS NOT NULL THEN ARRAY(SELECT t FROM unnest(tags) AS t WHERE t IS NOT NULL) END")
        }
        Column::CreatedAt => Some(within_years!("created_at")),
        Column::RunAt => Some(within_years!("run_at")),
        Column::StartedAt => Some(within_years!("started_at")),
        Column::FinishedAt => Some(within_years!("finished_at")),
        _ => None,
    }
}

/// All of a job, but for the large columns that are not wanted.
pub(super) fn columns(include: Include) -> Select<Entity> {
    let is_wanted = |column: Column| match column {
        Column::Payload => include.payload,
        Column::Result => include.result,
        Column::Errors => include.errors,
        _ => true,
    };
    Column::iter().fold(Entity::find().select_only(), |select, column| match cleaned(column) {
        _ if !is_wanted(column) => select.expr_as(Expr::cust("NULL::text"), column),
        Some(sql) => select.expr_as(Expr::cust(sql), column),
        None => select.column(column),
    })
}
