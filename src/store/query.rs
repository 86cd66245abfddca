//! Reading jobs. Nothing here writes.

use futures_util::TryStreamExt;
use sea_orm::{
    ColumnTrait, Condition, ExprTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, SimpleExpr},
};
use uuid::Uuid;

pub use super::reading::Include;
use super::{
    ANSWER, Error, Store,
    entity::job::{Column, Model},
    held,
    reading::{BY_ID, columns},
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

impl Wanted {
    fn status(self) -> Status {
        match self {
            Wanted::Status(status) => status,
            Wanted::Scheduled | Wanted::Retrying => Status::Pending,
        }
    }
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
        let query = sqlx::query_as(BY_ID.as_str()).bind(vec![id]);
        Ok(self.read_answer("read a job", query).await?.pop())
    }

    /// Jobs by id, in no order; unknown ids are left out. So are those that can't be read.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn jobs(&self, ids: &[Uuid]) -> Result<Vec<Model>, Error> {
        let read = async |some: &[Uuid]| self.read_answer("read jobs", sqlx::query_as(BY_ID.as_str()).bind(some)).await;
        within("read jobs", Box::pin(self.apart(1, ids, |id| *id, |_| None, read))).await
    }

    /// The newest jobs first. The page ends early when its rows would pass `budget` bytes; at least one row is given. Where
    /// one of them can't be read as a whole, all are without their large parts.
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
        match Box::pin(self.list_with(filter, limit, offset, include, budget)).await {
            Err(e) if e.may_be_about_one() && include != Include::default() => {
                Box::pin(self.list_with(filter, limit, offset, Include::default(), budget)).await
            }
            page => page,
        }
    }

    async fn list_with(
        &self,
        filter: &Filter,
        limit: u64,
        offset: u64,
        include: Include,
        budget: usize,
    ) -> Result<Page, Error> {
        self.check_migrated()?;
        let wanted = |order: Order| condition(filter).add_option(filter.before.map(|id| order.after(id)));
        // An offset counts over both. Else each half by itself: the planner believes that it can merge them row by row, and
        // then reads all of a half in which next to nothing fits, to find the first that does.
        if offset > 0 {
            return within("list jobs", self.page(wanted(Order::Id), Order::Id, limit, offset, include, budget)).await;
        }
        let rare = match &filter.tag {
            Some(tag) => !within("list jobs", self.is_common(tag, limit)).await?,
            None => false,
        };
        let half = |statuses: &[Status]| {
            let named = |wanted: &Wanted| statuses.contains(&wanted.status());
            (filter.states.is_empty() || filter.states.iter().any(named)).then(|| {
                let among = Column::Status.is_in(statuses.iter().map(|status| status.as_str()));
                let looked_up = statuses == LIVE.as_slice() && only_running(&filter.states);
                let candidates = looked_up.then(|| Expr::cust(held::CANDIDATES));
                let order = match &filter.job_type {
                    _ if looked_up || rare => Order::Later,
                    Some(_) if statuses == LIVE.as_slice() && by_status_alone(filter) => Order::WithinType,
                    _ => Order::Id,
                };
                let wanted = wanted(order).add(among).add_option(candidates);
                self.page(wanted, order, limit, 0, include, budget)
            })
        };
        let (live, over) = (half(&LIVE), half(&OVER));
        within("list jobs", async {
            let mut pages = Vec::new();
            for page in [live, over].into_iter().flatten() {
                pages.push(page.await?);
            }
            Ok(merge(pages, limit, budget))
        })
        .await
    }

    /// Whether so many jobs have this tag that a page of them is found sooner by walking through all that have tags than by
    /// putting all of them in order. The planner's statistics of each partition tell; by itself it would guess where those say
    /// nothing, and take a tag that nobody has for one that many have.
    async fn is_common(&self, tag: &str, limit: u64) -> Result<bool, Error> {
        let sql = "
            SELECT COALESCE(power(sum(tagged * share), 2) > $2 * sum(tagged), false)
            FROM (SELECT c.reltuples::float8 * (1 - s.null_frac) AS tagged,
                         s.most_common_elem_freqs[array_position(s.most_common_elems::text::text[], $1)] AS share
                  FROM pg_stats AS s
                  JOIN pg_class AS c ON c.relname = s.tablename AND c.relnamespace = current_schema()::regnamespace
                  WHERE s.schemaname = current_schema() AND s.attname = 'tags' AND c.relkind = 'r') AS tables";
        let query = sqlx::query_as(sql).bind(tag).bind(limit as f64);
        let rows: Vec<(bool,)> = self.read_all("look a tag up", query).await?;
        Ok(rows.first().is_some_and(|row| row.0))
    }

    async fn page(
        &self,
        wanted: Condition,
        order: Order,
        limit: u64,
        offset: u64,
        include: Include,
        budget: usize,
    ) -> Result<Page, Error> {
        let failed = |e| Error::orm("list jobs", e);
        let db = self.orm();
        let select = columns(include).filter(wanted).order_by_desc(order.by()).limit(limit + 1).offset(offset);
        let mut rows = select.stream(&db).await.map_err(failed)?;
        let mut page = Filling::new(limit, budget);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            if !page.add(row) {
                break;
            }
        }
        Ok(page.page)
    }
}

/// The newest first: always the same order, said in ways of which different indexes know.
#[derive(Clone, Copy, Debug)]
enum Order {
    Id,
    /// As the index of live jobs by type has it.
    WithinType,
    /// As no index has it: what another index has found is put in order, instead of reading all jobs in order until enough of what
    /// is wanted was met.
    Later,
}

impl Order {
    fn by(self) -> SimpleExpr {
        Expr::cust(match self {
            Self::Id => "id",
            Self::WithinType => "uuid_send(id)",
            Self::Later => "id::text COLLATE \"C\"",
        })
    }

    /// Jobs that come after this one. By the same expression: else the planner would read all jobs that are older from the index of
    /// ids where it takes them for few.
    fn after(self, id: JobId) -> SimpleExpr {
        match self {
            Self::Id => Column::Id.lt(id),
            Self::WithinType => self.by().lt(id.as_bytes().to_vec()),
            Self::Later => self.by().lt(id.to_string()),
        }
    }
}

/// Whether nothing is asked that another index knows better than the one by type.
fn by_status_alone(filter: &Filter) -> bool {
    filter.tag.is_none() && filter.states.iter().all(|wanted| matches!(wanted, Wanted::Status(_)))
}

/// Whether of all live jobs only those that run are wanted.
fn only_running(states: &[Wanted]) -> bool {
    let mut live = states.iter().filter(|wanted| LIVE.contains(&wanted.status())).peekable();
    live.peek().is_some() && live.all(|wanted| *wanted == Wanted::Status(Status::Processing))
}

const LIVE: [Status; 2] = [Status::Pending, Status::Processing];
const OVER: [Status; 3] = [Status::Completed, Status::Failed, Status::Cancelled];

/// One page of several that are each in order. A page that has ended early says nothing of what is older than its last row.
fn merge(pages: Vec<Page>, limit: u64, budget: usize) -> Page {
    let known_to = pages.iter().filter(|page| page.more).filter_map(|page| page.rows.last()).map(|row| row.id).max();
    let mut rows: Vec<Model> = pages.into_iter().flat_map(|page| page.rows).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.id));
    // A job that ended between the two readings is in both.
    rows.dedup_by_key(|row| row.id);
    let mut merged = Filling::new(limit, budget);
    for row in rows.into_iter().take_while(|row| known_to.is_none_or(|last| row.id >= last)) {
        if !merged.add(row) {
            break;
        }
    }
    let Page { rows, more } = merged.page;
    Page { rows, more: more || known_to.is_some() }
}

/// A page that takes rows until it is full.
struct Filling {
    page: Page,
    limit: u64,
    budget: usize,
    size: usize,
}

impl Filling {
    fn new(limit: u64, budget: usize) -> Self {
        Self { page: Page { rows: Vec::new(), more: false }, limit, budget, size: 0 }
    }

    /// `false`: the page is full without this row, which follows it.
    fn add(&mut self, row: Model) -> bool {
        let rows = &mut self.page.rows;
        self.size += weight(&row);
        if rows.len() as u64 == self.limit || (self.size > self.budget && !rows.is_empty()) {
            self.page.more = true;
            return false;
        }
        rows.push(row);
        true
    }
}

async fn within<T>(context: &'static str, read: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(ANSWER, read).await.unwrap_or(Err(Error::Unavailable { context, source: None }))
}

fn condition(filter: &Filter) -> Condition {
    let pending = || Column::Status.eq(Status::Pending.as_str());
    let state = |wanted: &Wanted| -> SimpleExpr {
        match wanted {
            Wanted::Status(status) => Column::Status.eq(status.as_str()),
            Wanted::Scheduled => pending().and(Column::Attempt.eq(0)).and(Expr::cust("run_at > now()")),
            // Whoever has spent an attempt and waits has an error, and those that have are in an index.
            Wanted::Retrying => pending().and(Column::Attempt.gt(0)).and(Column::Errors.is_not_null()),
        }
    };
    let states = filter.states.iter().map(state).fold(Condition::any(), Condition::add);
    // Not `ARRAY[$1]`: the query builder takes brackets for quotes and leaves what is between them as it is.
    let tag = |tag: &String| Expr::cust_with_values("tags @> $1", [vec![tag.clone()]]);
    Condition::all()
        .add_option((!filter.states.is_empty()).then_some(states))
        .add_option(filter.job_type.as_ref().map(|name| Column::Type.eq(name.as_str())))
        .add_option(filter.tag.as_ref().map(tag))
}

/// About how long the row is as JSON.
fn weight(row: &Model) -> usize {
    const SMALL_COLUMNS: usize = 700;
    let texts = [&row.payload, &row.result, &row.errors, &row.progress, &row.idempotency_key, &row.error];
    let tags: usize = row.tags.iter().flatten().map(|tag| tag.len() + 3).sum();
    SMALL_COLUMNS + tags + texts.into_iter().flatten().map(String::len).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn row(n: u8, large: bool) -> Model {
        let at = chrono::DateTime::UNIX_EPOCH;
        Model {
            id: Uuid::from_u128(u128::from(n)),
            r#type: "a".into(),
            status: "pending".into(),
            priority: 0,
            attempt: 0,
            max_attempts: 1,
            run: 0,
            timeout_ms: None,
            tags: None,
            idempotency_key: None,
            payload: large.then(|| "x".repeat(3000)),
            result: None,
            errors: None,
            error: None,
            progress: None,
            worker_id: None,
            cancel_reason: None,
            created_at: at,
            run_at: at,
            started_at: None,
            finished_at: None,
        }
    }

    /// As [`Store::page`] reads it.
    fn page(rows: &[Model], before: Option<Uuid>, limit: u64, budget: usize) -> Page {
        let mut page = Filling::new(limit, budget);
        for row in rows.iter().filter(|row| before.is_none_or(|before| row.id < before)) {
            if !page.add(row.clone()) {
                break;
            }
        }
        page.page
    }

    proptest! {
        #[test]
        fn leafing_through_both_halves_shows_every_job_once_and_in_order(
            jobs in proptest::collection::btree_map(any::<u8>(), (any::<bool>(), any::<bool>()), 0..60),
            limit in 1_u64..10,
            budget in 500_usize..10_000,
        ) {
            let half = |which: bool| -> Vec<Model> {
                jobs.iter().rev().filter(|(_, (live, _))| *live == which).map(|(n, (_, large))| row(*n, *large)).collect()
            };
            let halves = [half(true), half(false)];
            let (mut seen, mut before) = (Vec::new(), None);
            loop {
                let merged = merge(halves.iter().map(|rows| page(rows, before, limit, budget)).collect(), limit, budget);
                seen.extend(merged.rows.iter().map(|row| row.id.as_u128() as u8));
                if !merged.more {
                    break;
                }
                prop_assert!(!merged.rows.is_empty());
                before = merged.rows.last().map(|row| row.id);
            }
            let all: Vec<u8> = jobs.keys().rev().copied().collect();
            prop_assert_eq!(seen, all);
        }
    }
}
