//! `getStats`.

use super::{
    Ops, Scope,
    error::ApiError,
    wire::{Stats, StatusCounts},
};
use crate::{job::Status, store::counts::Among};

impl Ops {
    /// # Errors
    /// `unavailable` when the database is away.
    pub async fn get_stats(&self, scope: Scope<'_>) -> Result<Stats, ApiError> {
        let counts = self.store.counts().await?.into_iter();
        let counts: Vec<_> = counts.filter(|(name, ..)| scope.is_none_or(|scope| scope.as_str() == name)).collect();
        let of = |status| counts.iter().filter(|count| count.1 == status).map(|count| count.2).sum::<i64>();
        let (pending, processing) = (of(Status::Pending), of(Status::Processing));
        // A look at the jobs themselves, where the counts can't say it.
        let oldest = if pending > 0 {
            let among = scope.map_or(Among::All, |scope| Among::Type(scope.as_str(), pending + processing));
            self.store.oldest_pending_seconds(among).await?
        } else {
            None
        };
        let types = self.types.now();
        let unattended = types.unattended.iter().filter(|name| scope.is_none_or(|scope| scope.as_str() == *name));
        Ok(Stats { unattended: unattended.cloned().collect(), ..tally(counts.into_iter(), oldest) })
    }
}

fn tally(counts: impl Iterator<Item = (String, Status, i64)>, oldest_pending_seconds: Option<f64>) -> Stats {
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
        oldest_pending_seconds: oldest_pending_seconds.map(|s| (s * 1000.0).round() / 1000.0),
        unattended: Vec::new(),
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
        let stats = tally(counts.into_iter().map(|(t, s, n)| (t.to_owned(), s, n)), Some(1.23456));
        assert_eq!((stats.total, stats.completion_rate.as_str(), stats.failure_rate.as_str()), (20, "80.00%", "5.00%"));
        assert_eq!(stats.by_type["a"].completed, 16);
        assert_eq!(stats.oldest_pending_seconds, Some(1.235));
        let none = tally(std::iter::empty(), None);
        assert_eq!((none.completion_rate.as_str(), none.failure_rate.as_str()), ("0.00%", "0.00%"));
    }
}
