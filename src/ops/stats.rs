//! `getStats`.

use std::collections::BTreeSet;

use super::{
    Ops, Scope,
    error::ApiError,
    wire::{Stats, StatusCounts},
};
use crate::{
    job::Status,
    store::counts::{Among, Oldest},
    types::Snapshot,
};

impl Ops {
    /// # Errors
    /// `unavailable` when the database is away.
    pub async fn get_stats(&self, scope: Scope<'_>) -> Result<Stats, ApiError> {
        let counts = self.store.counts().await?.into_iter();
        let counts: Vec<_> = counts.filter(|(name, ..)| scope.is_none_or(|scope| scope.as_str() == name)).collect();
        let waiting = Waiting::of(&counts, &self.types.now(), scope);
        let oldest = self.oldest(&waiting, scope).await?;
        let paused = match waiting.paused.as_slice() {
            [] => None,
            paused => self.store.oldest_pending_seconds_of(paused).await?,
        };
        let seconds = |age: Option<f64>| age.map(|seconds| (seconds * 1000.0).round() / 1000.0);
        Ok(Stats {
            oldest_pending_seconds: seconds(oldest),
            oldest_paused_seconds: seconds(paused),
            unattended: waiting.unattended,
            paused: waiting.paused_types,
            ..tally(counts.into_iter())
        })
    }

    /// A look at the jobs themselves, where the counts can't say it.
    async fn oldest(&self, waiting: &Waiting, scope: Scope<'_>) -> Result<Option<f64>, ApiError> {
        let known = match (waiting.counting.as_slice(), waiting.paused.as_slice()) {
            ([], _) => None,
            (_, []) => {
                let among = scope.map_or(Among::All, |scope| Among::Type(scope.as_str(), waiting.live));
                self.store.oldest_pending_seconds(among).await?
            }
            (counting, paused) => match self.store.oldest_pending_seconds_but(paused).await? {
                Oldest::Seconds(seconds) => seconds,
                Oldest::Unknown => self.store.oldest_pending_seconds_of(counting).await?,
            },
        };
        // Those that nobody answers for are put off again and again, so they are hardly ever due.
        let put_off = match waiting.put_off.as_slice() {
            [] => None,
            types => self.store.oldest_pending_seconds_of(types).await?,
        };
        Ok(match (known, put_off) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        })
    }
}

/// What waits, as the counts and the types have it.
struct Waiting {
    /// Jobs that wait or run.
    live: i64,
    /// Types with waiting jobs that may start, and those that may not.
    counting: Vec<String>,
    paused: Vec<String>,
    /// Types that may start, with jobs that nobody answers for.
    put_off: Vec<String>,
    paused_types: Vec<String>,
    unattended: Vec<String>,
}

impl Waiting {
    fn of(counts: &[(String, Status, i64)], types: &Snapshot, scope: Scope<'_>) -> Self {
        let of = |status| counts.iter().filter(move |count| count.1 == status && count.2 > 0);
        let live = of(Status::Pending).chain(of(Status::Processing)).map(|count| count.2).sum();
        let (paused, counting) =
            of(Status::Pending).map(|count| count.0.clone()).partition(|name| types.paused.contains(name));
        let may_start = |name: &String| types.unattended.contains(name) && !types.paused.contains(name);
        let put_off: BTreeSet<String> = of(Status::Pending)
            .chain(of(Status::Processing))
            .map(|count| &count.0)
            .filter(|name| may_start(name))
            .cloned()
            .collect();
        let seen = |names: &BTreeSet<String>| {
            names.iter().filter(|name| scope.is_none_or(|scope| scope.as_str() == *name)).cloned().collect()
        };
        let (paused_types, unattended) = (seen(&types.paused), seen(&types.unattended));
        Self { live, counting, paused, put_off: put_off.into_iter().collect(), paused_types, unattended }
    }
}

fn tally(counts: impl Iterator<Item = (String, Status, i64)>) -> Stats {
    let mut all = StatusCounts::default();
    let mut by_type = std::collections::BTreeMap::<String, StatusCounts>::new();
    for (name, status, n) in counts {
        *all.of(status) += n;
        *by_type.entry(name).or_default().of(status) += n;
    }
    let total = all.pending + all.processing + all.completed + all.failed + all.cancelled;
    let rate = |n: i64| format!("{:.2}%", if total == 0 { 0.0 } else { n as f64 * 100.0 / total as f64 });
    Stats {
        total,
        completion_rate: rate(all.completed),
        failure_rate: rate(all.failed),
        all,
        by_type,
        oldest_pending_seconds: None,
        oldest_paused_seconds: None,
        unattended: Vec::new(),
        paused: Vec::new(),
    }
}

impl StatusCounts {
    fn of(&mut self, status: Status) -> &mut i64 {
        match status {
            Status::Pending => &mut self.pending,
            Status::Processing => &mut self.processing,
            Status::Completed => &mut self.completed,
            Status::Failed => &mut self.failed,
            Status::Cancelled => &mut self.cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_total_and_zero_of_nothing() {
        let counts = [("a", Status::Completed, 16), ("a", Status::Failed, 1), ("b", Status::Pending, 3)];
        let stats = tally(counts.into_iter().map(|(t, s, n)| (t.to_owned(), s, n)));
        assert_eq!((stats.total, stats.completion_rate.as_str(), stats.failure_rate.as_str()), (20, "80.00%", "5.00%"));
        assert_eq!(stats.by_type["a"].completed, 16);
        let none = tally(std::iter::empty());
        assert_eq!((none.completion_rate.as_str(), none.failure_rate.as_str()), ("0.00%", "0.00%"));
    }
}
