//! Jobs whose rows the database refuses to read or to write, so that each harms itself alone, and somebody sees it.
//!
//! Kept in memory, so many and for so long: what goes on failing is noted again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{Error, Store};
use crate::job::model::JobId;

/// Jobs that are remembered.
const KEPT: usize = 1000;
/// How long one is, after it was last seen. Longer than the pause before a job that can't be claimed comes again.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Single items of a batch that a statement must refuse, and none pass, to show that it is not about one of them.
pub(super) const ALIKE: usize = 8;

/// See the module. Cheap to clone.
#[derive(Clone, Default)]
pub struct Harmed(Arc<Mutex<HashMap<JobId, Trouble>>>);

struct Trouble {
    said: String,
    seen: Instant,
}

impl Harmed {
    /// Notes and logs what the database said of a job. What is known of it already is not logged again.
    pub(crate) fn note(&self, id: JobId, error: &Error) {
        let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
        self.note_said(id, format!("{error}{cause}"));
    }

    pub(crate) fn note_said(&self, id: JobId, said: String) {
        let now = Instant::now();
        let mut jobs = self.lock();
        jobs.retain(|_, trouble| now.duration_since(trouble.seen) < REMEMBERED);
        if jobs.get(&id).is_none_or(|known| known.said != said) {
            tracing::error!(job.id = %id, "job {id} has a row that is refused: {said}");
        }
        if jobs.len() < KEPT || jobs.contains_key(&id) {
            jobs.insert(id, Trouble { said, seen: now });
        }
    }

    /// What was said of this job lately.
    pub fn of(&self, id: JobId) -> Option<String> {
        let jobs = self.lock();
        jobs.get(&id).filter(|trouble| trouble.seen.elapsed() < REMEMBERED).map(|trouble| trouble.said.clone())
    }

    /// All that were seen lately, with what was said of them, the latest first.
    pub fn report(&self) -> Vec<(JobId, String)> {
        let jobs = self.lock();
        let mut lately: Vec<_> = jobs.iter().filter(|(_, trouble)| trouble.seen.elapsed() < REMEMBERED).collect();
        lately.sort_by_key(|(_, trouble)| std::cmp::Reverse(trouble.seen));
        lately.into_iter().map(|(id, trouble)| (*id, trouble.said.clone())).collect()
    }

    /// These are well again.
    pub(super) fn forget(&self, ids: impl Iterator<Item = JobId>) {
        let mut jobs = self.lock();
        if !jobs.is_empty() {
            ids.for_each(|id| drop(jobs.remove(&id)));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// The jobs that can't be read or written.
    pub fn harmed(&self) -> &Harmed {
        &self.harmed
    }

    /// Carries `work` out on all of `items` together or, where the database refuses that for good, on halves of them, and so
    /// on: one that is refused alone is noted, and gives what `refused` says. The answers come in the order of the items.
    /// `alike`: so many refused alone, and none taken, are an error, since then it may be the statement that does not fit.
    pub(super) async fn apart<'a, I, T, Fut>(
        &self,
        alike: usize,
        items: &'a [I],
        id: impl Fn(&I) -> JobId,
        refused: impl Fn(&'a I) -> Option<T>,
        work: impl Fn(&'a [I]) -> Fut,
    ) -> Result<Vec<T>, Error>
    where
        Fut: Future<Output = Result<Vec<T>, Error>>,
    {
        // Boxed: what waits here is deep already, and a statement is large.
        let mut answers = Box::pin(work(items)).await;
        if answers.is_ok() {
            return answers;
        }
        let (mut part, mut todo) = (items, Vec::new());
        let (mut done, mut found, mut any_passed) = (Vec::new(), Vec::new(), false);
        loop {
            match answers {
                Ok(answers) => {
                    any_passed = true;
                    done.extend(answers);
                }
                Err(e) if !e.may_be_about_one() => return Err(e),
                Err(e) => match part {
                    [] => return Err(e),
                    [item] => {
                        let is_ours = matches!(e, Error::Broken { .. });
                        found.push((id(item), e));
                        // A statement that fits nothing does not fit one job less than another.
                        if is_ours && !any_passed && found.len() >= alike {
                            return Err(found.swap_remove(0).1);
                        }
                        done.extend(refused(item));
                    }
                    _ => {
                        let (left, right) = part.split_at(part.len() / 2);
                        todo.extend([right, left]);
                    }
                },
            }
            let Some(next) = todo.pop() else { break };
            part = next;
            answers = Box::pin(work(part)).await;
        }
        found.iter().for_each(|(id, e)| self.harmed.note(*id, e));
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_of_a_job_is_known_until_it_is_well_again_and_no_more_are_kept_than_so_many() {
        let (harmed, one) = (Harmed::default(), JobId::now_v7());
        harmed.note_said(one, "no room".into());
        harmed.note_said(one, "no table".into());
        assert_eq!(harmed.report(), [(one, "no table".to_owned())]);
        harmed.forget([one].into_iter());
        assert_eq!(harmed.of(one), None);
        (0..2 * KEPT).for_each(|_| harmed.note_said(JobId::now_v7(), "no room".into()));
        assert_eq!(harmed.report().len(), KEPT);
    }
}
