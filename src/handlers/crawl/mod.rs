//! The parts of `crawl-website`: which addresses belong to a site, which come next, what may be asked and how fast, and
//! what a page says. The crawl itself is in `crawl_website`.

pub(super) mod extract;
pub(super) mod frontier;
pub(super) mod politeness;
pub(super) mod robots;
pub(super) mod site;
pub(super) mod visit;
