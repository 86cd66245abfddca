//! What waits in this worker for a place, by lanes. No I/O.

use std::collections::VecDeque;

use super::eager::Prompt;

/// Every so many starts the normal lane goes first, and every twice as many the low one, so that none starves.
const SHARE: u64 = 10;

/// Prompts of one type; lanes by number, from the highest on.
#[derive(Default)]
pub(crate) struct Line {
    lanes: [VecDeque<Prompt>; 3],
    /// How many of each lane are messages of the broker.
    messages: [usize; 3],
    picked: u64,
}

impl Line {
    pub fn push(&mut self, lane: usize, prompt: Prompt) {
        self.messages[lane] += usize::from(prompt.is_message());
        self.lanes[lane].push_back(prompt);
    }

    /// Whose turn it is.
    pub fn pick(&mut self) -> Option<Prompt> {
        self.picked += 1;
        let order = match self.picked {
            n if n.is_multiple_of(2 * SHARE) => [2, 0, 1],
            n if n.is_multiple_of(SHARE) => [1, 2, 0],
            _ => [0, 1, 2],
        };
        let lane = order.into_iter().find(|lane| !self.lanes[*lane].is_empty())?;
        let prompt = self.lanes[lane].pop_front()?;
        self.messages[lane] -= usize::from(prompt.is_message());
        Some(prompt)
    }

    pub fn len(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Messages of this lane.
    pub fn messages_of(&self, lane: usize) -> usize {
        self.messages[lane]
    }

    pub fn has_messages(&self) -> bool {
        self.messages.iter().any(|n| *n > 0)
    }

    /// Whether something of a lower lane waits.
    pub fn has_lower_than(&self, lane: usize) -> bool {
        self.lanes[lane + 1..].iter().any(|queue| !queue.is_empty())
    }

    /// All of it, which then waits here no longer.
    pub fn clear(&mut self) -> Vec<Prompt> {
        self.messages = [0; 3];
        self.lanes.iter_mut().flat_map(|queue| queue.drain(..)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::Lane,
        store::enqueue::NewJob,
        worker::eager::{Eager, tests::job},
    };

    /// So many of each lane, from the highest on.
    fn line(counts: [usize; 3]) -> Line {
        let priorities = [1, 0, -1].into_iter().zip(counts).flat_map(|(priority, n)| std::iter::repeat_n(priority, n));
        let jobs: Vec<NewJob> = priorities.map(|priority| job("probe", priority)).collect();
        let (eager, places) = (Eager::default(), (0..jobs.len()).collect::<Vec<_>>());
        let doorstep = eager.doorstep(&jobs[0].job_type);
        doorstep.allow(jobs.len());
        eager.hand_over(&jobs, &places);
        let mut line = Line::default();
        for handed in doorstep.take() {
            line.push(handed.lane() as usize, Prompt::Handed(handed));
        }
        line
    }

    fn lanes(mut line: Line, n: usize) -> Vec<Lane> {
        let lane = |prompt: Prompt| prompt.split().0.unwrap().lane;
        (0..n).filter_map(|_| line.pick()).map(lane).collect()
    }

    #[test]
    fn higher_lanes_go_first_and_lower_ones_have_a_small_share() {
        let picked = lanes(line([50, 50, 50]), 40);
        let of =
            |lane: Lane| picked.iter().enumerate().filter(|(_, l)| **l == lane).map(|(n, _)| n + 1).collect::<Vec<_>>();
        assert_eq!((of(Lane::Normal), of(Lane::Low)), (vec![10, 30], vec![20, 40]));
        assert_eq!(lanes(line([1, 1, 1]), 4), Lane::ALL, "none is lost, and none comes twice");
    }

    #[test]
    fn what_was_handed_over_is_no_message_and_what_is_cleared_waits_no_longer() {
        let mut line = line([0, 2, 1]);
        assert!(!line.has_messages() && line.has_lower_than(0) && line.has_lower_than(1) && !line.has_lower_than(2));
        assert_eq!((line.len(), line.clear().len()), (3, 3));
        assert!(line.is_empty());
    }
}
