//! A small web site to crawl, on an address of its own because robots.txt counts for a whole host. It has what makes
//! crawling hard: a redirect, a calendar without end, a broken page, a forbidden one, a file, an old charset, untidy HTML.

use axum::{
    Router,
    extract::Query,
    http::{StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use serde::Deserialize;

const ROBOTS: &str = "# A crawler that keeps to this never sees /private.\nUser-agent: *\nDisallow: /private\n";
/// Latin-1, as its header says.
const OLD_CHARSET: &[u8] = b"<!doctype html><title>Caf\xe9</title><h1>Caf\xe9 cr\xe8me</h1><p><a href='/'>Home</a>";
const UNTIDY: &str = "<!doctype html><title>Untidy</title><h1>Untidy & unclosed<p>A <b>paragraph <i>that</b> never ends\
                      <a href=/guides/first>First guide<a href='#here'>Here</a><a href=\"http://[broken\">Broken</a>\
                      <a href=mailto:nobody@example.com>Mail</a><a href=\"javascript:void(0)\">Script</a>";

pub(super) fn router() -> Router {
    Router::new()
        .route("/", get(home))
        .route("/robots.txt", get(|| async { ROBOTS }))
        .route("/guides", get(guides))
        .route("/guides/first", get(first))
        .route("/guides/second", get(second))
        .route("/about", get(about))
        .route("/old-about", get(|| async { Redirect::permanent("/about") }))
        .route("/calendar", get(calendar))
        .route("/broken", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "this page is always broken\n") }))
        .route("/untidy", get(|| async { Html(UNTIDY) }))
        .route("/cafe", get(|| async { ([(header::CONTENT_TYPE, "text/html; charset=iso-8859-1")], OLD_CHARSET) }))
        .route("/prices.csv", get(|| async { ([(header::CONTENT_TYPE, "text/csv")], "item,price\ntea,3\ncoffee,4\n") }))
        .route("/private", get(|| async { page("Private", "<p>A crawler that reads this broke robots.txt.</p>") }))
        .fallback(|| async { (StatusCode::NOT_FOUND, page("Not found", "<p><a href=\"/\">Home</a></p>")) })
}

fn page(title: &str, body: &str) -> Response {
    Html(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title} – Sandbox Tea House</title></head>\n\
         <body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    ))
    .into_response()
}

async fn home() -> Response {
    page(
        "Sandbox Tea House",
        "<p class=\"lead\">A small web site to crawl, part of the sandbox.</p>\n<ul>\n\
         <li><a href=\"/guides\">Guides</a></li>\n<li><a href=\"/guides/?from=home\">Guides, by another address</a></li>\n\
         <li><a href=\"/old-about\">About us (moved)</a></li>\n<li><a href=\"about#team\">The team</a></li>\n\
         <li><a href=\"/calendar\">Calendar (without end)</a></li>\n<li><a href=\"/cafe\">Café (an old charset)</a></li>\n\
         <li><a href=\"/untidy\">Untidy</a></li>\n<li><a href=\"/broken\">Broken</a></li>\n\
         <li><a href=\"/missing\">Missing</a></li>\n<li><a href=\"/prices.csv\">Prices (a file)</a></li>\n\
         <li><a href=\"/private\">Private (forbidden by robots.txt)</a></li>\n\
         <li><a href=\"https://example.com/\">Another site</a></li>\n</ul>",
    )
}

async fn guides() -> Response {
    page(
        "Guides",
        "<ol><li><a href=\"/guides/first\">How to boil water</a></li><li><a href=\"guides/second\">How to wait</a></li></ol>\
         <p><a href=\"/\">Home</a></p>",
    )
}

async fn first() -> Response {
    page(
        "How to boil water",
        "<p class=\"lead\">Heat it until it bubbles.</p><p>Next: <a href=\"second\">How to wait</a></p>",
    )
}

async fn second() -> Response {
    page(
        "How to wait",
        "<p class=\"lead\">Three minutes are enough.</p><p>Back to <a href=\"../guides\">all guides</a></p>",
    )
}

async fn about() -> Response {
    page("About us", "<p id=\"team\" class=\"lead\">Nobody works here.</p><p><a href=\"/\">Home</a></p>")
}

#[derive(Deserialize)]
struct Month {
    #[serde(default)]
    month: u32,
}

/// Every month links to the next one, for ever.
async fn calendar(Query(Month { month }): Query<Month>) -> Response {
    let (next, year) = (month.saturating_add(1), 2026 + month / 12);
    let body = format!(
        "<p>Nothing happens in month {} of {year}.</p><p><a href=\"/calendar?month={next}\">Next month</a> \
         <a href=\"/calendar?month={next}&amp;view=list\">as a list</a></p>",
        month % 12 + 1
    );
    page("Calendar", &body)
}
