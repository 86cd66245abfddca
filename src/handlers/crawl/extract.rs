//! What a page says: title, what the selectors find, links. Synchronous, and bounded in time and output.
//!
//! A parsed page can't leave its thread, so everything here takes text and gives owned data.

use std::{
    collections::{BTreeMap, HashSet},
    time::Instant,
};

use html5ever::{
    driver,
    tendril::{StrTendril, TendrilSink},
};
use scraper::{ElementRef, Html, HtmlTreeSink, Selector};
use url::Url;

use crate::handlers::clients::guard::URL_MAX;

/// Most selectors of a job, and the longest. Source: wire contract.
pub const SELECTORS_MAX: usize = 32;
pub const SELECTOR_MAX: usize = 256;
pub const NAME_MAX: usize = 64;
/// Matches of one selector that are kept, and how much of each, in bytes.
const MATCHES_MAX: usize = 100;
const TEXT_MAX: usize = 2000;
/// Text of one page that is kept, in bytes.
const DATA_MAX: usize = 64 * 1024;
const TITLE_MAX: usize = 500;
/// Links of one page that are shown, and that are looked at.
const LINKS_SHOWN_MAX: usize = 100;
const LINKS_MAX: usize = 1000;
/// Elements, and bytes of the text, between two looks at the clock.
const STRIDE: usize = 64;
const CHUNK: usize = 1024;

/// Compiled selectors by name.
#[derive(Debug)]
pub struct Selectors(Vec<(String, Selector)>);

impl Selectors {
    /// # Errors
    /// The names of selectors that can't be used, and why.
    pub fn compile(selectors: &BTreeMap<String, String>) -> Result<Self, Vec<(String, String)>> {
        let mut faults = Vec::new();
        let mut compiled = Vec::with_capacity(selectors.len());
        for (name, css) in selectors {
            match one(name, css) {
                Ok(selector) => compiled.push((name.clone(), selector)),
                Err(message) => faults.push((name.clone(), message)),
            }
        }
        if faults.is_empty() { Ok(Self(compiled)) } else { Err(faults) }
    }
}

fn one(name: &str, css: &str) -> Result<Selector, String> {
    if name.is_empty() || name.chars().count() > NAME_MAX || name.chars().any(char::is_control) {
        return Err(format!("must have a name of 1 to {NAME_MAX} characters without control characters"));
    }
    if css.chars().count() > SELECTOR_MAX {
        return Err(format!("must have at most {SELECTOR_MAX} characters"));
    }
    // Each of these looks at many elements for one; within each other the work multiplies.
    let lowered = css.to_ascii_lowercase();
    if lowered.matches(":has(").count() > 1 || lowered.matches('~').count() > 3 {
        return Err("must have at most one :has() and three '~'".into());
    }
    // The error borrows the text and repeats it; one sentence is enough.
    Selector::parse(css).map_err(|_| "is no CSS selector; write one like \"article h2 > a[href]\"".into())
}

/// What is kept of a page.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    pub title: Option<String>,
    pub data: BTreeMap<String, Vec<String>>,
    /// All addresses that the page links to, each once, without fragments.
    pub links: Vec<String>,
    /// Those that may be followed.
    pub follow: Vec<Url>,
    /// Something was left out for its size, or the time was over.
    pub cut: bool,
}

/// Reads a page that came from `url`, until `deadline`.
pub fn extract(html: &str, url: &Url, selectors: &Selectors, deadline: Instant) -> Extracted {
    let (page, cut) = parse(html, deadline);
    let mut reader = Reader { page: &page, deadline, room: DATA_MAX, out: Extracted { cut, ..Extracted::default() } };
    reader.head(url);
    for (name, selector) in &selectors.0 {
        let found = reader.find(selector);
        reader.out.data.insert(name.clone(), found);
    }
    reader.out
}

/// Parses as much as there is time for, and says whether something was left. A parser as the standard describes it looks
/// through all open elements at each tag: a million nested `<div>` would keep it busy for days.
fn parse(html: &str, deadline: Instant) -> (Html, bool) {
    let sink = HtmlTreeSink::new(Html::new_document());
    let mut parser = driver::parse_document(sink, driver::ParseOpts::default());
    let mut rest = html;
    while !rest.is_empty() && Instant::now() < deadline {
        let (chunk, after) = rest.split_at(rest.ceil_char_boundary(CHUNK));
        parser.process(StrTendril::from_slice(chunk));
        rest = after;
    }
    (parser.finish(), !rest.is_empty())
}

struct Reader<'a> {
    page: &'a Html,
    deadline: Instant,
    /// Bytes of text that may still be kept.
    room: usize,
    out: Extracted,
}

impl Reader<'_> {
    /// Title and links, in one walk.
    fn head(&mut self, url: &Url) {
        let mut base = url.clone();
        let mut based = false;
        let mut nofollow = false;
        let mut hrefs: Vec<(String, bool)> = Vec::new();
        for element in self.page.root_element().descendent_elements() {
            let attribute = |name| element.attr(name).unwrap_or_default();
            match element.value().name() {
                // An SVG picture may have a title, too: the first one is the page's.
                "title" if self.out.title.is_none() => {
                    self.out.title = Some(text_of(element, TITLE_MAX).0).filter(|title| !title.is_empty());
                }
                "base" if !based && element.attr("href").is_some() => {
                    based = true;
                    base = url.join(attribute("href")).unwrap_or(base);
                }
                "meta" if attribute("name").eq_ignore_ascii_case("robots") => {
                    let content = attribute("content").to_ascii_lowercase();
                    nofollow |= content.split(',').any(|word| matches!(word.trim(), "nofollow" | "none"));
                }
                "a" | "area" if hrefs.len() < LINKS_MAX => {
                    if let Some(href) = element.attr("href").filter(|href| href.len() <= URL_MAX) {
                        hrefs.push((href.to_owned(), has_word(attribute("rel"), "nofollow")));
                    }
                }
                _ => {}
            }
        }
        let mut seen = HashSet::new();
        for (href, asked_not_to) in hrefs {
            let Some(link) = link(&base, &href) else { continue };
            if !seen.insert(link.clone()) {
                continue;
            }
            if self.out.links.len() < LINKS_SHOWN_MAX {
                self.out.links.push(link.to_string());
            } else {
                self.out.cut = true;
            }
            if !nofollow && !asked_not_to {
                self.out.follow.push(link);
            }
        }
    }

    fn find(&mut self, selector: &Selector) -> Vec<String> {
        let root = self.page.root_element();
        let mut found = Vec::new();
        for (n, element) in std::iter::once(root).chain(root.descendent_elements()).enumerate() {
            if n % STRIDE == 0 && Instant::now() >= self.deadline {
                self.out.cut = true;
                break;
            }
            if !selector.matches(&element) {
                continue;
            }
            if found.len() >= MATCHES_MAX || self.room == 0 {
                self.out.cut = true;
                break;
            }
            let (text, cut) = text_of(element, TEXT_MAX.min(self.room));
            self.out.cut |= cut;
            if !text.is_empty() {
                self.room -= text.len();
                found.push(text);
            }
        }
        found
    }
}

fn has_word(list: &str, word: &str) -> bool {
    list.split_ascii_whitespace().any(|one| one.eq_ignore_ascii_case(word))
}

fn link(base: &Url, href: &str) -> Option<Url> {
    let mut link = base.join(href.trim()).ok()?;
    link.set_fragment(None);
    let plain = matches!(link.scheme(), "http" | "https") && link.username().is_empty() && link.password().is_none();
    (plain && link.as_str().len() <= URL_MAX).then_some(link)
}

/// An element's text without scripts and styles, white space folded, at most `max` bytes; and whether there was more.
fn text_of(element: ElementRef<'_>, max: usize) -> (String, bool) {
    let mut text = String::new();
    for node in element.descendants() {
        let Some(piece) = node.value().as_text() else { continue };
        let parent = node.parent().and_then(|parent| parent.value().as_element().map(|element| element.name()));
        if matches!(parent, Some("script" | "style" | "template" | "noscript")) {
            continue;
        }
        // Text of neighbours is glued together unless white space stands between: `a<b>b</b>` reads `ab`.
        let mut glued = !piece.starts_with(char::is_whitespace);
        for word in piece.split_whitespace() {
            if !text.is_empty() && !text.ends_with(' ') && !std::mem::take(&mut glued) {
                text.push(' ');
            }
            glued = false;
            text.push_str(word);
            if text.len() > max {
                text.truncate(text.floor_char_boundary(max));
                return (text.trim_end().to_owned(), true);
            }
        }
        if piece.ends_with(char::is_whitespace) && !text.is_empty() && !text.ends_with(' ') {
            text.push(' ');
        }
    }
    (text.trim_end().replace('\0', "\u{fffd}"), false)
}

#[cfg(test)]
mod tests;
