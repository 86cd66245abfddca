//! Which page comes next: breadth first, each once, and no more of one kind than a person would read. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use url::Url;

use super::site;
use crate::handlers::clients::guard::URL_MAX;

/// Links away from the start page.
const DEPTH_MAX: u16 = 20;
/// Pages of one kind (see [`site::kind`]) when their addresses differ in numbers only.
const KIND_MAX: u16 = 50;
/// The same for addresses with a query.
const QUERY_KIND_MAX: u16 = 10;
/// Marks that are kept; beyond that nothing new is taken, which a crawl of 100 pages never needs.
const SEEN_MAX: usize = 4000;

/// Addresses to visit and addresses known. Goes into the checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Frontier {
    queue: VecDeque<Entry>,
    seen: BTreeSet<i64>,
    kinds: BTreeMap<i64, u16>,
    queue_max: usize,
}

/// One address to visit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub url: Url,
    pub depth: u16,
}

impl Frontier {
    /// `queue_max`: most addresses that may wait.
    pub fn new(start: Url, queue_max: usize) -> Self {
        let seen = [site::mark(&start)].into();
        Self { queue: [Entry { url: start, depth: 0 }].into(), seen, kinds: BTreeMap::new(), queue_max }
    }

    /// Takes an address into the queue, unless it is known, too deep, or one too many of its kind.
    pub fn offer(&mut self, url: &Url, depth: u16) {
        let too_much = depth > DEPTH_MAX
            || url.as_str().len() > URL_MAX
            || self.queue.len() >= self.queue_max
            || self.seen.len() >= SEEN_MAX;
        if too_much || site::trap(url).is_some() || !self.seen.insert(site::mark(url)) {
            return;
        }
        let max = if url.query().is_some() { QUERY_KIND_MAX } else { KIND_MAX };
        let count = self.kinds.entry(site::kind(url)).or_default();
        if *count < max {
            *count += 1;
            self.queue.push_back(Entry { url: url.clone(), depth });
        }
    }

    /// Notes an address as known without a visit. `false`: it was known already.
    pub fn know(&mut self, url: &Url) -> bool {
        self.seen.insert(site::mark(url))
    }

    pub fn next(&mut self) -> Option<Entry> {
        self.queue.pop_front()
    }

    /// Puts an address back that could not be visited after all.
    pub fn put_back(&mut self, entry: Entry) {
        self.queue.push_front(entry);
    }

    pub fn waiting(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(path: &str) -> Url {
        Url::parse("https://example.org").unwrap().join(path).unwrap()
    }

    fn drain(mut frontier: Frontier) -> Vec<String> {
        std::iter::from_fn(|| frontier.next()).map(|entry| entry.url.path().to_owned()).collect()
    }

    #[test]
    fn pages_come_breadth_first_and_once() {
        let mut frontier = Frontier::new(url("/"), 100);
        for path in ["/a", "/b", "/a#x", "/", "/b?utm_source=x", "/c"] {
            frontier.offer(&url(path), 1);
        }
        assert_eq!(drain(frontier), ["/", "/a", "/b", "/c"]);
    }

    #[test]
    fn a_calendar_and_a_filter_get_a_few_visits_and_no_more() {
        let mut frontier = Frontier::new(url("/"), 1000);
        for n in 0..500 {
            frontier.offer(&url(&format!("/day/{n}")), 1);
            frontier.offer(&url(&format!("/list?page={n}")), 1);
        }
        assert_eq!(frontier.waiting(), 1 + usize::from(KIND_MAX + QUERY_KIND_MAX));
    }

    #[test]
    fn depth_length_and_queue_are_bounded() {
        let mut frontier = Frontier::new(url("/"), 3);
        frontier.offer(&url("/deep"), DEPTH_MAX + 1);
        frontier.offer(&url(&format!("/{}", "x".repeat(URL_MAX))), 1);
        assert_eq!(frontier.waiting(), 1);
        for path in ["/a", "/b", "/c", "/d"] {
            frontier.offer(&url(path), 1);
        }
        assert_eq!(drain(frontier), ["/", "/a", "/b"]);
    }

    proptest! {
        #[test]
        fn whatever_is_offered_it_stays_bounded_and_survives_a_checkpoint(paths in proptest::collection::vec("/[a-c0-9/?=&%]{0,12}", 0..200)) {
            let mut frontier = Frontier::new(url("/"), 50);
            for path in &paths {
                if let Ok(url) = url("/").join(path) {
                    frontier.offer(&url, 1);
                }
            }
            prop_assert!(frontier.waiting() <= 50);
            let text = serde_json::to_string(&frontier).unwrap();
            let read: Frontier = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(drain(read), drain(frontier));
        }
    }
}
