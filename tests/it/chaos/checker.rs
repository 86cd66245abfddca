//! What must be true of everything that was asked, done and recorded, whatever happened meanwhile. Pure.
//!
//! The numbers are those of the invariants in ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

/// What a caller wanted, and what it was told.
#[derive(Clone, Debug)]
pub struct Asked {
    pub key: Option<String>,
    pub wanted: Wanted,
    pub max_attempts: i16,
    /// Ids of every acknowledged answer; none: refused, or never answered.
    pub accepted: Vec<String>,
}

/// How a job behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Ends well, after this many failures of its own.
    Success { after_failures: u16 },
    /// Never ends well.
    Failure,
    /// Somebody may cancel it.
    MayBeCancelled,
}

/// One run, as the side effect saw it.
#[derive(Clone, Debug)]
pub struct Call {
    pub job: String,
    pub run: i64,
    pub attempt: i64,
    pub began: DateTime<Utc>,
    pub ended: DateTime<Utc>,
}

/// A row of the database.
#[derive(Clone, Debug)]
pub struct Row {
    pub id: String,
    pub status: String,
    pub attempt: i16,
    pub max_attempts: i16,
    pub run: i64,
    pub errors: usize,
    /// The run whose result it is, as the result says.
    pub result_of: Option<i64>,
    pub key: Option<String>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// A time in which a process may have lost its lease without knowing it.
#[derive(Clone, Copy, Debug)]
pub struct Disturbance {
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
}

/// Everything that is known after a run.
#[derive(Debug, Default)]
pub struct History {
    pub asked: Vec<Asked>,
    pub calls: Vec<Call>,
    pub rows: Vec<Row>,
    /// `<job id>:<run>` of each message in the stream of dead letters.
    pub dead_letters: Vec<String>,
    /// Dead letters of before may have gone with the broker's store.
    pub dead_letters_since: Option<DateTime<Utc>>,
    pub disturbances: Vec<Disturbance>,
    /// What `getStats` says, and what a full count says, by status.
    pub stats: BTreeMap<String, i64>,
    pub outbox: i64,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: u8,
    pub what: String,
}

/// All violations.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Found(Vec::new());
    let mut rows: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in &history.rows {
        rows.entry(&row.id).or_default().push(row);
    }
    accepted_is_kept(history, &rows, &mut found);
    for row in &history.rows {
        one_row(row, &mut found);
    }
    keys(history, &mut found);
    calls(history, &rows, &mut found);
    dead_letters(history, &mut found);
    numbers(history, &mut found);
    found.0
}

struct Found(Vec<Violation>);

impl Found {
    fn need(&mut self, holds: bool, invariant: u8, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Violation { invariant, what: what() });
        }
    }
}

fn accepted_is_kept(history: &History, rows: &BTreeMap<&str, Vec<&Row>>, found: &mut Found) {
    for asked in &history.asked {
        for id in &asked.accepted {
            let Some(row) = rows.get(id.as_str()).and_then(|rows| rows.first()) else {
                found.need(false, 1, || format!("job {id} was accepted and is lost"));
                continue;
            };
            let end = row.status.as_str();
            let fits = match asked.wanted {
                Wanted::Success { .. } => end == "completed",
                Wanted::Failure => end == "failed",
                Wanted::MayBeCancelled => matches!(end, "completed" | "cancelled"),
            };
            found.need(fits, 1, || format!("job {id} ({:?}) is {end}: {row:?}", asked.wanted));
            found.need(row.max_attempts == asked.max_attempts, 10, || format!("job {id} was changed: {row:?}"));
        }
    }
    for (id, rows) in rows {
        found.need(rows.len() == 1, 1, || format!("job {id} is there {} times", rows.len()));
    }
}

fn one_row(row: &Row, found: &mut Found) {
    let id = &row.id;
    let over = matches!(row.status.as_str(), "completed" | "failed" | "cancelled");
    found.need(over, 1, || format!("job {id} is still {}", row.status));
    found.need(row.attempt <= row.max_attempts, 4, || format!("job {id} had more attempts than it may: {row:?}"));
    found.need(i64::from(row.attempt) <= row.run, 4, || format!("job {id} had more attempts than runs: {row:?}"));
    let spent = row.errors + usize::from(row.status == "completed");
    if matches!(row.status.as_str(), "completed" | "failed") {
        found.need(row.attempt as usize == spent, 4, || {
            format!("job {id} has spent {} attempts, and {} errors tell of them: {row:?}", row.attempt, row.errors)
        });
    }
    if row.status == "completed" {
        found.need(row.result_of == Some(row.run), 2, || format!("job {id} has the result of another run: {row:?}"));
    }
}

fn keys(history: &History, found: &mut Found) {
    let mut ids: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for row in &history.rows {
        if let Some(key) = &row.key {
            ids.entry(key).or_default().insert(&row.id);
        }
    }
    for asked in &history.asked {
        if let Some(key) = &asked.key {
            ids.entry(key).or_default().extend(asked.accepted.iter().map(String::as_str));
        }
    }
    for (key, ids) in ids {
        found.need(ids.len() <= 1, 7, || format!("the key {key} has {} jobs: {ids:?}", ids.len()));
    }
}

fn calls(history: &History, rows: &BTreeMap<&str, Vec<&Row>>, found: &mut Found) {
    let mut by_job: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in &history.calls {
        by_job.entry(&call.job).or_default().push(call);
        found.need(call.attempt >= 1, 4, || format!("a run was not counted: {call:?}"));
    }
    for (id, mut calls) in by_job {
        calls.sort_by_key(|call| (call.run, call.began));
        let Some(row) = rows.get(id).and_then(|rows| rows.first()) else {
            found.need(false, 1, || format!("job {id} ran and is in no table"));
            continue;
        };
        for call in &calls {
            found.need(call.run <= row.run, 2, || format!("job {id} ran after its end: {call:?}, {row:?}"));
            let late = row.finished_at.is_some_and(|end| call.run == row.run && call.began > end);
            found.need(!late, 3, || format!("job {id} was begun after it was over: {call:?}, {row:?}"));
        }
        for pair in calls.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            found.need(first.run != second.run, 5, || format!("one run was begun twice: {first:?}, {second:?}"));
            let overlap = second.began < first.ended;
            let excused = history.disturbances.iter().any(|d| d.from <= second.began && first.began <= d.to);
            found.need(!overlap || excused, 5, || format!("two runs at a time: {first:?}, {second:?}"));
        }
    }
}

fn dead_letters(history: &History, found: &mut Found) {
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    for id in &history.dead_letters {
        *told.entry(id).or_default() += 1;
    }
    for (id, times) in &told {
        found.need(*times == 1, 8, || format!("the dead letter {id} is there {times} times"));
    }
    let failed: BTreeSet<String> =
        history.rows.iter().filter(|row| row.status == "failed").map(|row| format!("{}:{}", row.id, row.run)).collect();
    for row in history.rows.iter().filter(|row| row.status == "failed") {
        let kept = history.dead_letters_since.is_none_or(|since| row.finished_at.is_some_and(|at| at > since));
        let id = format!("{}:{}", row.id, row.run);
        found.need(!kept || told.contains_key(id.as_str()), 8, || format!("the failure {id} has no dead letter"));
    }
    for id in told.keys() {
        found.need(failed.contains(*id), 8, || format!("the dead letter {id} is of no failed job"));
    }
}

fn numbers(history: &History, found: &mut Found) {
    for (status, told) in &history.stats {
        let counted = history.rows.iter().filter(|row| row.status == *status).count() as i64;
        found.need(*told == counted, 11, || format!("statistics say {told} {status}, a count says {counted}"));
    }
    found.need(history.outbox == 0, 13, || format!("{} rows stay in the outbox", history.outbox));
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::milliseconds(ms)
    }

    fn call(run: i64, began: i64, ended: i64) -> Call {
        Call { job: "a".into(), run, attempt: run, began: at(began), ended: at(ended) }
    }

    /// A job that failed once and then ended well.
    fn good() -> History {
        let row = Row {
            id: "a".into(),
            status: "completed".into(),
            attempt: 2,
            max_attempts: 3,
            run: 2,
            errors: 1,
            result_of: Some(2),
            key: Some("k".into()),
            finished_at: Some(at(100)),
        };
        let asked = Asked {
            key: Some("k".into()),
            wanted: Wanted::Success { after_failures: 1 },
            max_attempts: 3,
            accepted: vec!["a".into(), "a".into()],
        };
        History {
            asked: vec![asked],
            calls: vec![call(1, 0, 10), call(2, 50, 90)],
            rows: vec![row],
            stats: BTreeMap::from([("completed".to_owned(), 1), ("failed".to_owned(), 0)]),
            ..History::default()
        }
    }

    fn invariants(change: impl FnOnce(&mut History)) -> Vec<u8> {
        let mut history = good();
        change(&mut history);
        let mut found: Vec<u8> = check(&history).iter().map(|violation| violation.invariant).collect();
        found.dedup();
        found
    }

    #[test]
    fn a_good_history_has_no_violation() {
        assert_eq!(check(&good()), []);
    }

    #[test]
    fn each_kind_of_damage_is_found() {
        assert_eq!(invariants(|h| h.asked[0].accepted.push("b".into())), [1, 7]);
        assert_eq!(invariants(|h| h.rows[0].status = "processing".into()), [1, 11]);
        assert_eq!(invariants(|h| h.rows.push(h.rows[0].clone())), [1, 11]);
        assert_eq!(invariants(|h| h.rows[0].result_of = Some(1)), [2]);
        assert_eq!(invariants(|h| h.calls.push(call(3, 95, 96))), [2]);
        assert_eq!(invariants(|h| h.calls[1].began = at(101)), [3]);
        assert_eq!(invariants(|h| h.rows[0].errors = 0), [4]);
        assert_eq!(invariants(|h| h.rows[0].attempt = 4), [4]);
        assert_eq!(invariants(|h| h.calls[0].attempt = 0), [4]);
        assert_eq!(invariants(|h| h.calls[0].ended = at(60)), [5]);
        assert_eq!(invariants(|h| h.calls.push(call(2, 60, 61))), [5]);
        assert_eq!(invariants(|h| h.dead_letters.push("a:2".into())), [8]);
        assert_eq!(invariants(|h| h.stats.insert("completed".into(), 2).map_or((), |_| ())), [11]);
        assert_eq!(invariants(|h| h.outbox = 1), [13]);
    }

    #[test]
    fn a_failure_has_one_dead_letter_and_no_more() {
        let fail = |letters: &[&str]| {
            invariants(|h| {
                h.asked[0].wanted = Wanted::Failure;
                (h.rows[0].status, h.rows[0].result_of, h.rows[0].errors) = ("failed".into(), None, 2);
                h.stats = BTreeMap::from([("failed".to_owned(), 1)]);
                h.dead_letters = letters.iter().map(|id| (*id).to_owned()).collect();
            })
        };
        assert_eq!(fail(&["a:2"]), Vec::<u8>::new());
        assert_eq!((fail(&[]), fail(&["a:2", "a:2"]), fail(&["a:2", "b:1"])), (vec![8], vec![8], vec![8]));
    }

    #[test]
    fn two_runs_at_a_time_are_excused_where_a_lease_may_have_run_out() {
        let disturbed = |from, to| {
            invariants(|h| {
                h.calls[0].ended = at(60);
                h.disturbances.push(Disturbance { from: at(from), to: at(to) });
            })
        };
        assert_eq!((disturbed(20, 40), disturbed(55, 70)), (vec![], vec![5]));
    }
}
