//! What waits in this worker for a place, by lanes. No I/O.

use std::collections::VecDeque;

/// Every so many starts the normal lane goes first, and every twice as many the low one, so that none starves.
const SHARE: u64 = 10;

/// What is to be started of one type; lanes by number, from the highest on.
pub(crate) struct Line<T> {
    lanes: [VecDeque<(Source, T)>; 3],
    /// How many of each lane are messages of the broker.
    messages: [usize; 3],
    picked: u64,
}

/// Where something in the line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Broker,
    Here,
}

impl<T> Line<T> {
    pub fn new() -> Self {
        Self { lanes: [const { VecDeque::new() }; 3], messages: [0; 3], picked: 0 }
    }

    pub fn push(&mut self, lane: usize, source: Source, prompt: T) {
        self.messages[lane] += usize::from(source == Source::Broker);
        self.lanes[lane].push_back((source, prompt));
    }

    /// Whose turn it is.
    pub fn pick(&mut self) -> Option<T> {
        self.picked += 1;
        let order = match self.picked {
            n if n.is_multiple_of(2 * SHARE) => [2, 0, 1],
            n if n.is_multiple_of(SHARE) => [1, 2, 0],
            _ => [0, 1, 2],
        };
        let lane = order.into_iter().find(|lane| !self.lanes[*lane].is_empty())?;
        let (source, prompt) = self.lanes[lane].pop_front()?;
        self.messages[lane] -= usize::from(source == Source::Broker);
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
    pub fn clear(&mut self) -> Vec<T> {
        self.messages = [0; 3];
        self.lanes.iter_mut().flat_map(|queue| queue.drain(..)).map(|(_, prompt)| prompt).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many of each lane, from the highest on.
    fn line(source: Source, counts: [usize; 3]) -> Line<usize> {
        let mut line = Line::new();
        let lanes = (0..3).zip(counts).flat_map(|(lane, n)| std::iter::repeat_n(lane, n));
        lanes.for_each(|lane| line.push(lane, source, lane));
        line
    }

    fn lanes(mut line: Line<usize>, n: usize) -> Vec<usize> {
        (0..n).filter_map(|_| line.pick()).collect()
    }

    #[test]
    fn higher_lanes_go_first_and_lower_ones_have_a_small_share() {
        let picked = lanes(line(Source::Broker, [50, 50, 50]), 40);
        let of = |lane: usize| {
            picked.iter().enumerate().filter(|(_, l)| **l == lane).map(|(n, _)| n + 1).collect::<Vec<_>>()
        };
        assert_eq!((of(1), of(2)), (vec![10, 30], vec![20, 40]));
        assert_eq!(lanes(line(Source::Here, [1, 1, 1]), 4), [0, 1, 2], "none is lost, and none comes twice");
    }

    #[test]
    fn what_was_asked_for_here_is_no_message_and_what_is_cleared_waits_no_longer() {
        let mut line = line(Source::Here, [0, 2, 1]);
        assert!(!line.has_messages() && line.has_lower_than(0) && line.has_lower_than(1) && !line.has_lower_than(2));
        line.push(1, Source::Broker, 1);
        assert_eq!((line.has_messages(), line.messages_of(1), line.messages_of(2)), (true, 1, 0));
        assert_eq!((line.len(), line.clear().len()), (4, 4));
        assert!(line.is_empty() && !line.has_messages());
    }
}
