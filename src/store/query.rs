//! Reading jobs. Nothing here writes.

use futures_util::TryStreamExt;
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, SimpleExpr},
};
use uuid::Uuid;

use super::{
    ANSWER, Error, Store,
    entity::job::{Column, Entity, Model},
};
use crate::job::{Status, model::JobId};

/// Which jobs a list shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Any of these; empty: all.
    pub states: Vec<Wanted>,
    pub job_type: Option<String>,
    pub tag: Option<String>,
    /// Only jobs accepted before this one.
    pub before: Option<JobId>,
}

/// A status, or one of the two kinds of pending that people ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Status(Status),
    /// Pending, not yet due, never failed.
    Scheduled,
    /// Pending after a failed attempt.
    Retrying,
}

/// The large columns to read along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Include {
    pub payload: bool,
    pub result: bool,
    pub errors: bool,
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    pub rows: Vec<Model>,
    /// Whether older jobs follow.
    pub more: bool,
}

impl Store {
    /// One job, live or finished.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn job(&self, id: JobId) -> Result<Option<Model>, Error> {
        self.check_migrated()?;
        let db = self.orm();
        let read = Entity::find().filter(Column::Id.eq(id)).one(&db);
        within("read a job", async { read.await.map_err(|e| Error::orm("read a job", e)) }).await
    }

    /// Jobs by id, in no order; unknown ids are left out.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn jobs(&self, ids: &[Uuid]) -> Result<Vec<Model>, Error> {
        self.check_migrated()?;
        let db = self.orm();
        let read = Entity::find().filter(Column::Id.eq_any(ids.to_vec())).all(&db);
        within("read jobs", async { read.await.map_err(|e| Error::orm("read jobs", e)) }).await
    }

    /// The newest jobs first. The page ends early when its rows would pass `budget` bytes; at least one row is given.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn list(
        &self,
        filter: &Filter,
        limit: u64,
        offset: u64,
        include: Include,
        budget: usize,
    ) -> Result<Page, Error> {
        self.check_migrated()?;
        let failed = |e| Error::orm("list jobs", e);
        let db = self.orm();
        let select =
            columns(include).filter(condition(filter)).order_by_desc(Column::Id).limit(limit + 1).offset(offset);
        within("list jobs", async {
            let mut rows = select.stream(&db).await.map_err(failed)?;
            let mut page = Page { rows: Vec::new(), more: false };
            let mut size = 0;
            while let Some(row) = rows.try_next().await.map_err(failed)? {
                size += weight(&row);
                if page.rows.len() as u64 == limit || (size > budget && !page.rows.is_empty()) {
                    page.more = true;
                    break;
                }
                page.rows.push(row);
            }
            Ok(page)
        })
        .await
    }
}

async fn within<T>(context: &'static str, read: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(ANSWER, read).await.unwrap_or(Err(Error::Unavailable { context, source: None }))
}

fn columns(include: Include) -> sea_orm::Select<Entity> {
    use Column::*;
    let large = [(Payload, include.payload), (Result, include.result), (Errors, include.errors)];
    let small = [
        Id,
        Type,
        Status,
        Priority,
        Attempt,
        MaxAttempts,
        Run,
        TimeoutMs,
        Tags,
        IdempotencyKey,
        Error,
        Progress,
        WorkerId,
        CancelReason,
        CreatedAt,
        RunAt,
        StartedAt,
        FinishedAt,
    ];
    large.into_iter().fold(Entity::find().select_only().columns(small), |select, (column, wanted)| {
        if wanted { select.column(column) } else { select.expr_as(Expr::cust("NULL::text"), column) }
    })
}

fn condition(filter: &Filter) -> Condition {
    let pending = || Column::Status.eq(Status::Pending.as_str());
    let state = |wanted: &Wanted| -> SimpleExpr {
        match wanted {
            Wanted::Status(status) => Column::Status.eq(status.as_str()),
            Wanted::Scheduled => pending().and(Column::Attempt.eq(0)).and(Expr::cust("run_at > now()")),
            Wanted::Retrying => pending().and(Column::Attempt.gt(0)),
        }
    };
    let states = filter.states.iter().map(state).fold(Condition::any(), Condition::add);
    // Not `ARRAY[$1]`: the query builder takes brackets for quotes and leaves what is between them as it is.
    let tag = |tag: &String| Expr::cust_with_values("tags @> $1", [vec![tag.clone()]]);
    Condition::all()
        .add_option((!filter.states.is_empty()).then_some(states))
        .add_option(filter.job_type.as_ref().map(|name| Column::Type.eq(name.as_str())))
        .add_option(filter.tag.as_ref().map(tag))
        .add_option(filter.before.map(|id| Column::Id.lt(id)))
}

/// About how long the row is as JSON.
fn weight(row: &Model) -> usize {
    const SMALL_COLUMNS: usize = 700;
    let texts = [&row.payload, &row.result, &row.errors, &row.progress, &row.idempotency_key, &row.error];
    let tags: usize = row.tags.iter().flatten().map(|tag| tag.len() + 3).sum();
    SMALL_COLUMNS + tags + texts.into_iter().flatten().map(String::len).sum::<usize>()
}
