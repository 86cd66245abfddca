//! `crawl-website`: reads pages of one site, breadth first, within what its robots.txt allows.
//!
//! Everything that a site can make large is bounded: pages, requests, time, and what is kept. A crawl whose time is over
//! completes with what it has and says so; one that is interrupted goes on from its checkpoint.

mod report;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{
    Faults, Handler, RunContext,
    clients::{answer_by, fetch::Fetcher},
    context::CHECKPOINT_MAX,
    crawl::{
        extract::{Extracted, SELECTORS_MAX, Selectors, extract},
        frontier::{Entry, Frontier},
        politeness::Hosts,
        robots,
        site::{self, Site},
        visit::{Fetched, Miss, Reason, Skip, Visitor},
    },
};
use crate::{
    config::Config,
    job::{Failure, json::push_pointer},
    supervise,
};

pub use report::Output;
use report::{Page, Report, Truncated};

/// Most pages of one job. Source: wire contract.
const PAGES_MAX: u32 = 100;
/// Requests per page that is wanted: errors, duplicates and files must not keep a crawl going for ever.
const REQUESTS_PER_PAGE: u32 = 3;
/// Kept of the run's time to put the result together.
const RESERVE: Duration = Duration::from_millis(500);
/// Longest time that one page is worked on.
const READING_MAX: Duration = Duration::from_secs(3);
/// Pages that are parsed at the same time in this process: each can take a hundred megabytes.
const PARSERS: usize = 4;
/// Time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// Crawls web sites.
pub struct CrawlWebsite {
    fetcher: Fetcher,
    hosts: Hosts,
    agent: String,
    parsers: Arc<Semaphore>,
    result_max: usize,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "CrawlWebsitePayload")]
pub struct Payload {
    /// The start page; the crawl stays on its site (the same host, with or without `www.`).
    url: String,
    #[serde(default = "default_pages")]
    #[schemars(range(min = 1, max = 100))]
    max_pages: u32,
    /// CSS selectors by the name under which their texts are reported; up to 32.
    #[serde(default = "default_selectors")]
    selectors: BTreeMap<String, String>,
}

fn default_pages() -> u32 {
    10
}

fn default_selectors() -> BTreeMap<String, String> {
    [("title".to_owned(), "h1".to_owned())].into()
}

/// How far a crawl has come: its checkpoint.
#[derive(Serialize, Deserialize)]
struct State {
    frontier: Frontier,
    requests: u32,
    report: Report,
}

impl CrawlWebsite {
    /// # Errors
    /// `crawl.user_agent` can't be used.
    pub fn new(config: &Config) -> Result<Self, String> {
        let fetcher = Fetcher::new(&config.crawl.user_agent, &config.crawl.allow_private).map_err(|e| e.to_string())?;
        Self::with_fetcher(config, fetcher)
    }

    fn with_fetcher(config: &Config, fetcher: Fetcher) -> Result<Self, String> {
        let agent = robots::agent(&config.crawl.user_agent).to_owned();
        if agent.is_empty() {
            return Err(
                "crawl.user_agent must begin with a name of letters, like MyBot/1.0: robots.txt knows it by that"
                    .into(),
            );
        }
        Ok(Self {
            fetcher,
            hosts: Hosts::default(),
            agent,
            parsers: Arc::new(Semaphore::new(PARSERS)),
            result_max: usize::try_from(config.limits.result.as_u64()).unwrap_or(usize::MAX),
        })
    }

    async fn crawl(&self, crawl: &mut Crawl<'_>, ctx: &RunContext) -> Result<(), Failure> {
        let mut saved = Instant::now();
        while crawl.state.report.pages.len() < crawl.max_pages as usize {
            let Some(entry) = crawl.state.frontier.next() else { break };
            if crawl.state.requests >= crawl.max_pages * REQUESTS_PER_PAGE {
                crawl.state.report.truncated = Some(Truncated::Requests);
                break;
            }
            let step = tokio::select! {
                biased;
                () = ctx.cancelled() => None,
                step = self.step(crawl, &entry) => Some(step),
            };
            match step {
                None => {
                    crawl.state.frontier.put_back(entry);
                    crawl.save(ctx);
                    return Err(Failure::retry("stopped before the crawl was over"));
                }
                Some(Err(Miss::OutOfTime)) => {
                    crawl.state.report.truncated = Some(Truncated::Time);
                    break;
                }
                Some(Err(Miss::Skip(skip))) => {
                    if let (0, Some(failure)) = (crawl.state.requests, skip.failure) {
                        return Err(failure);
                    }
                    crawl.state.report.skip(&entry.url, skip.reason, Some(skip.detail));
                }
                Some(Ok(())) => {}
            }
            crawl.state.requests += 1;
            if crawl.state.report.truncated.is_some() {
                break;
            }
            crawl.tell(ctx);
            if saved.elapsed() >= CHECKPOINT_EVERY {
                saved = Instant::now();
                crawl.save(ctx);
            }
        }
        if crawl.state.report.pages.is_empty() && crawl.state.report.truncated == Some(Truncated::Time) {
            return Err(Failure::retry("the time was over before a page could be read; give the job a longer timeout"));
        }
        Ok(())
    }

    /// Visits one address and takes in what it says.
    async fn step(&self, crawl: &mut Crawl<'_>, entry: &Entry) -> Result<(), Miss> {
        let fetched = crawl.visitor.visit(&entry.url).await?;
        let moved = site::mark(&fetched.url) != site::mark(&entry.url);
        if moved && !crawl.state.frontier.know(&fetched.url) {
            return Err(Miss::Skip(Box::new(Skip {
                reason: Reason::Duplicate,
                detail: "redirects to a page that is known already".into(),
                failure: None,
            })));
        }
        let (url, status) = (fetched.url.clone(), fetched.status);
        let found = self.read(fetched, crawl.selectors.clone(), crawl.visitor.deadline).await?;
        for link in found.follow.iter().filter(|link| crawl.visitor.site.holds(link)) {
            if !site::is_file(link) {
                crawl.state.frontier.offer(link, entry.depth + 1);
            } else if crawl.state.frontier.know(link) {
                crawl.state.report.skip(link, Reason::NotHtml, None);
            }
        }
        crawl.state.report.add(Page {
            url: url.into(),
            status,
            title: found.title,
            data: found.data,
            links: found.links,
            truncated: found.cut,
        });
        Ok(())
    }

    /// Parses a page on a thread where that may take its time.
    async fn read(&self, page: Fetched, selectors: Arc<Selectors>, deadline: Instant) -> Result<Extracted, Miss> {
        let slot = timeout_at(deadline, self.parsers.clone().acquire_owned()).await.map_err(|_| Miss::OutOfTime)?;
        let until = std::time::Instant::now() + READING_MAX.min(deadline.saturating_duration_since(Instant::now()));
        let reading = supervise::blocking(move || {
            // Held until the thread is done, also when nobody waits for it any more.
            let _slot = slot;
            extract(&page.html, &page.url, &selectors, until)
        });
        reading.await.map_err(|e| {
            tracing::error!("reading a page panicked: {e}");
            let detail = "the page could not be parsed".to_owned();
            Miss::Skip(Box::new(Skip { reason: Reason::Unreadable, detail, failure: None }))
        })
    }
}

/// One run of a crawl.
struct Crawl<'a> {
    visitor: Visitor<'a>,
    selectors: Arc<Selectors>,
    max_pages: u32,
    state: State,
}

impl Crawl<'_> {
    fn tell(&self, ctx: &RunContext) {
        let (pages, waiting) = (self.state.report.pages.len(), self.state.frontier.waiting());
        let percent = pages as f64 * 100.0 / f64::from(self.max_pages);
        ctx.progress(percent, format!("{pages} of at most {} pages, {waiting} addresses waiting", self.max_pages));
    }

    fn save(&self, ctx: &RunContext) {
        // Beyond the limit the last one that fitted is kept: the crawl would go on from there.
        if let Ok(raw) = serde_json::value::to_raw_value(&self.state)
            && raw.get().len() <= CHECKPOINT_MAX
        {
            ctx.checkpoint(&raw);
        }
    }
}

impl Handler for CrawlWebsite {
    const TYPE: &'static str = "crawl-website";
    const ABOUT: &'static str = "Reads pages of one web site and what CSS selectors find on them.";
    type Payload = Payload;
    type Output = Output;

    fn check(&self, payload: &Payload, faults: &mut Faults) {
        if let Err(e) = self.fetcher.guard().parse(&payload.url) {
            faults.add("/url", e.to_string());
        }
        if !(1..=PAGES_MAX).contains(&payload.max_pages) {
            faults.add("/maxPages", format!("must be 1 to {PAGES_MAX}"));
        }
        if payload.selectors.len() > SELECTORS_MAX {
            let message = format!("{} selectors; at most {SELECTORS_MAX} are taken", payload.selectors.len());
            return faults.add("/selectors", message);
        }
        for (name, message) in Selectors::compile(&payload.selectors).err().unwrap_or_default() {
            let mut pointer = "/selectors".to_owned();
            push_pointer(&mut pointer, &name);
            faults.add(pointer, message);
        }
    }

    async fn run(&self, ctx: &RunContext, payload: Payload) -> Result<Output, Failure> {
        let start = self.fetcher.guard().parse(&payload.url);
        let mut start = start.map_err(|e| Failure::permanent(format!("the URL {e}")))?;
        start.set_fragment(None);
        let selectors = Selectors::compile(&payload.selectors).map_err(|faults| {
            let (name, message) = faults.into_iter().next().unwrap_or_default();
            Failure::permanent(format!("the selector {name:?} {message}"))
        })?;
        let max_pages = payload.max_pages.clamp(1, PAGES_MAX);
        let site = Site::of(&start);
        let state = ctx.last_checkpoint().unwrap_or_else(|| State {
            frontier: Frontier::new(start, (max_pages * REQUESTS_PER_PAGE) as usize),
            requests: 0,
            report: Report::new(self.result_max),
        });
        let deadline = answer_by(ctx, RESERVE);
        let visitor = Visitor::new(&self.fetcher, &self.hosts, &self.agent, site, deadline);
        let mut crawl = Crawl { visitor, selectors: Arc::new(selectors), max_pages, state };
        self.crawl(&mut crawl, ctx).await?;
        Ok(crawl.state.report.into_output())
    }
}

#[cfg(test)]
mod tests;
