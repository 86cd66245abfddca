//! The result of a crawl, and how it is kept within the limit for results. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::handlers::crawl::visit::Reason;

/// Skipped addresses that are told; more are counted.
const SKIPPED_MAX: usize = 100;
/// Kept of the limit for what stands around pages and skipped addresses.
const FRAME: usize = 1024;
/// A page may take this part of the limit, so that the first one leaves room for others.
const PAGE_PART: usize = 8;
/// All skipped addresses together may take this part.
const SKIPPED_PART: usize = 8;

/// What a completed job shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pages: Vec<Page>,
    skipped: Vec<Skipped>,
    /// All that were skipped; more than the list shows when that would be too long.
    skipped_total: usize,
    /// Why the crawl ended early; `null` when it did not.
    truncated: Option<Truncated>,
}

/// What ended a crawl before it had all the pages it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Truncated {
    /// The job's timeout.
    Time,
    /// The limit for results.
    Size,
    /// Too many addresses gave no page.
    Requests,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Page {
    pub url: String,
    pub status: u16,
    pub title: Option<String>,
    pub data: BTreeMap<String, Vec<String>>,
    pub links: Vec<String>,
    /// Some of the page was left out for its size, or took too long.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Skipped {
    url: String,
    reason: Reason,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// A result in the making.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub pages: Vec<Page>,
    pub truncated: Option<Truncated>,
    skipped: Vec<Skipped>,
    skipped_total: usize,
    size: usize,
    skipped_size: usize,
    max: usize,
}

impl Report {
    /// `max`: bytes of JSON that a result may have.
    pub fn new(max: usize) -> Self {
        Self {
            pages: Vec::new(),
            truncated: None,
            skipped: Vec::new(),
            skipped_total: 0,
            size: 0,
            skipped_size: 0,
            max: max.saturating_sub(FRAME),
        }
    }

    /// Adds a page, made smaller where needed, or notes that there is no room for it.
    pub fn add(&mut self, mut page: Page) {
        let room = self.max - self.max / SKIPPED_PART;
        let size = fit(&mut page, self.max / PAGE_PART);
        if self.size + size > room {
            self.truncated = Some(Truncated::Size);
            return;
        }
        self.size += size;
        self.pages.push(page);
    }

    pub fn skip(&mut self, url: &Url, reason: Reason, detail: Option<String>) {
        self.skipped_total += 1;
        let skipped = Skipped { url: url.to_string(), reason, detail };
        let size = size_of(&skipped);
        if self.skipped.len() < SKIPPED_MAX && self.skipped_size + size <= self.max / SKIPPED_PART {
            self.skipped_size += size;
            self.skipped.push(skipped);
        }
    }

    pub fn into_output(self) -> Output {
        let Self { pages, truncated, skipped, skipped_total, .. } = self;
        Output { pages, skipped, skipped_total, truncated }
    }
}

/// Bytes of JSON, with the comma after it.
fn size_of<T: Serialize>(value: &T) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX / 4, |json| json.len() + 1)
}

/// Takes away links first, then from the longest list of texts, until the page has no more than `max` bytes. The size
/// that is left can be larger only when the address and title alone are.
fn fit(page: &mut Page, max: usize) -> usize {
    loop {
        let size = size_of(page);
        if size <= max {
            return size;
        }
        let longest = page.data.values_mut().max_by_key(|texts| texts.len()).filter(|texts| !texts.is_empty());
        if !page.links.is_empty() {
            page.links.truncate(page.links.len() / 2);
        } else if let Some(texts) = longest {
            texts.truncate(texts.len() / 2);
        } else {
            return size;
        }
        page.truncated = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(links: usize, texts: usize, length: usize) -> Page {
        Page {
            url: "https://example.org/".into(),
            status: 200,
            title: Some("t".into()),
            data: [("x".to_owned(), vec!["\"".repeat(length); texts])].into(),
            links: vec!["https://example.org/link".into(); links],
            truncated: false,
        }
    }

    #[test]
    fn a_page_that_fits_is_not_touched() {
        let mut report = Report::new(256 * 1024);
        report.add(page(10, 10, 10));
        assert_eq!((report.pages[0].links.len(), report.pages[0].truncated, report.truncated), (10, false, None));
    }

    #[test]
    fn of_a_large_page_links_go_first_and_the_page_says_so() {
        let mut report = Report::new(64 * 1024);
        report.add(page(1000, 10, 100));
        assert!(report.pages[0].truncated && report.pages[0].links.len() < 1000);
        assert_eq!(report.pages[0].data["x"].len(), 10);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_result_never_passes_its_limit(
            sizes in proptest::collection::vec((0usize..200, 0usize..20, 0usize..1000), 0..30),
            skips in 0usize..300,
        ) {
            let max = 64 * 1024;
            let mut report = Report::new(max);
            for (links, texts, length) in sizes {
                report.add(page(links, texts, length));
            }
            let url = Url::parse(&format!("https://example.org/{}", "x".repeat(500))).unwrap();
            for _ in 0..skips {
                report.skip(&url, Reason::Status, Some("404".into()));
            }
            let output = serde_json::to_string(&report.into_output()).unwrap();
            prop_assert!(output.len() <= max, "{}", output.len());
        }
    }
}
