//! Against web sites of all sorts.

use std::{collections::HashMap, sync::Mutex};

use axum::{extract::Request as Incoming, response::Response};
use bytes::Bytes;
use serde_json::{Value, json, value::RawValue};

use super::*;
use crate::{
    config::AllowPrivate,
    handlers::{
        AnyHandler,
        clients::peer::{Names, Peer, answer, gzip_bomb, repeated},
        context::Notes,
    },
    job::{FailureKind, JobType},
};

const HTML: &[(&str, &str)] = &[("content-type", "text/html; charset=utf-8")];

fn handler(allow: AllowPrivate) -> AnyHandler {
    let mut config = Config::default();
    config.crawl.allow_private = allow;
    AnyHandler::new(CrawlWebsite::new(&config).unwrap()).unwrap()
}

fn open() -> AnyHandler {
    handler(AllowPrivate::All(true))
}

/// One handler whose names all lead to the loopback.
fn named(names: &[&str]) -> AnyHandler {
    let loopback = [std::net::IpAddr::from([127, 0, 0, 1])];
    let names: Vec<(&str, &[std::net::IpAddr])> = names.iter().map(|name| (*name, &loopback[..])).collect();
    let fetcher = Fetcher::with_lookup("test", &AllowPrivate::All(true), Arc::new(Names::new(&names))).unwrap();
    AnyHandler::new(CrawlWebsite::with_fetcher(&Config::default(), fetcher).unwrap()).unwrap()
}

fn context(timeout: Duration) -> RunContext {
    RunContext::detached(JobType::new("crawl-website").unwrap(), timeout)
}

async fn run(handler: &AnyHandler, payload: &Value) -> Result<Value, Failure> {
    run_as(handler, &context(Duration::from_secs(60)), payload).await
}

async fn run_as(handler: &AnyHandler, ctx: &RunContext, payload: &Value) -> Result<Value, Failure> {
    let payload = serde_json::value::to_raw_value(payload).unwrap();
    handler.run(ctx, &payload).await.result().map(|result| serde_json::from_str(result.get()).unwrap())
}

/// A site whose pages are given by path; any other path is a 404. It keeps what it was asked for.
async fn site(pages: impl Fn(&str) -> Option<Response> + Send + Sync + 'static) -> (Peer, Arc<Mutex<Vec<String>>>) {
    let (asked, pages) = (Arc::new(Mutex::new(Vec::new())), Arc::new(pages));
    let peer = Peer::start({
        let asked = asked.clone();
        move |request: Incoming| {
            let target = request.uri().path_and_query().unwrap().to_string();
            asked.lock().unwrap().push(target.clone());
            let response = pages(&target).unwrap_or_else(|| answer(404, HTML, "none"));
            async move { response }
        }
    })
    .await;
    (peer, asked)
}

async fn fixed(pages: &[(&str, &str)]) -> (Peer, Arc<Mutex<Vec<String>>>) {
    let pages: HashMap<String, String> = pages.iter().map(|(path, body)| ((*path).into(), (*body).into())).collect();
    site(move |path| pages.get(path).map(|body| answer(200, HTML, body.clone()))).await
}

fn paths(result: &Value) -> Vec<String> {
    let pages = result["pages"].as_array().unwrap().iter();
    pages.map(|page| url::Url::parse(page["url"].as_str().unwrap()).unwrap().path().to_owned()).collect()
}

fn skipped(result: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let path = |value: &Value| url::Url::parse(value.as_str().unwrap()).unwrap().path().to_owned();
    result["skipped"].as_array().unwrap().iter().map(|s| (path(&s["url"]), text(&s["reason"]))).collect()
}

#[tokio::test]
async fn a_site_is_read_breadth_first_and_its_robots_are_kept() {
    let (peer, asked) = fixed(&[
        ("/robots.txt", "User-agent: *\nDisallow: /private\n"),
        ("/", "<title>Home</title><h1>Hello <i>you</i></h1><a href=/a>a</a><a href='/b?x=1#y'>b</a><a href=/private>p</a><a href=/file.pdf>f</a><a href=/gone>g</a><a href='https://other.example/'>o</a>"),
        ("/a", "<h1>A</h1><a href=/deep>d</a><a href=/>home</a>"),
        ("/b?x=1", "<h1>B1</h1><h1>B2</h1>"),
        ("/deep", "no heading"),
    ])
    .await;
    let ctx = context(Duration::from_secs(60));
    let result = run_as(&open(), &ctx, &json!({"url": peer.url("/")})).await.unwrap();
    assert_eq!(paths(&result), ["/", "/a", "/b", "/deep"]);
    let links: Vec<String> =
        ["/a", "/b?x=1", "/private", "/file.pdf", "/gone"].iter().map(|path| peer.url(path).to_string()).collect();
    let links: Vec<&str> = links.iter().map(String::as_str).chain(["https://other.example/"]).collect();
    assert_eq!(
        result["pages"][0],
        json!({"url": peer.url("/"), "status": 200, "title": "Home", "data": {"title": ["Hello you"]}, "links": links})
    );
    assert_eq!(result["pages"][2]["data"]["title"], json!(["B1", "B2"]));
    assert_eq!(result["pages"][3]["title"], Value::Null);
    let expected = [("/file.pdf", "not_html"), ("/private", "robots"), ("/gone", "status")];
    assert_eq!(skipped(&result), expected.map(|(path, reason)| (path.to_owned(), reason.to_owned())));
    assert_eq!((&result["skippedTotal"], &result["truncated"]), (&json!(3), &Value::Null));
    assert_eq!(*asked.lock().unwrap(), ["/robots.txt", "/", "/a", "/b?x=1", "/gone", "/deep"]);
    let told = ctx.notes.take();
    assert_eq!(
        (told.percent, told.message.as_deref()),
        (Some(40.0), Some("4 of at most 10 pages, 0 addresses waiting"))
    );
}

#[tokio::test]
async fn no_more_pages_are_read_than_asked_for_and_selectors_name_what_is_kept() {
    let (peer, _) = site(|path| {
        (path != "/robots.txt").then(|| answer(200, HTML, format!("<p class=x>{path}</p><a href='{path}a'>n</a>")))
    })
    .await;
    let payload = json!({"url": peer.url("/"), "maxPages": 3, "selectors": {"text": "p.x", "none": "h1"}});
    let result = run(&open(), &payload).await.unwrap();
    assert_eq!(paths(&result), ["/", "/a", "/aa"]);
    assert_eq!(result["pages"][1]["data"], json!({"text": ["/a"], "none": []}));
}

#[tokio::test]
async fn www_is_the_same_site_and_other_hosts_are_not() {
    let elsewhere = Peer::start(|_| async { answer(200, HTML, "") }).await;
    let peer = Peer::start(move |request: Incoming| async move {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        let (port, other) = (host.rsplit(':').next().unwrap(), elsewhere.port);
        let links = format!(
            "<a href='//www.site.example:{port}/a'>w</a><a href='//shop.site.example:{port}/b'>s</a><a href='//site.example:{other}/c'>p</a>"
        );
        answer(200, HTML, if request.uri().path() == "/" { links } else { String::new() })
    })
    .await;
    let handler = named(&["site.example", "www.site.example", "shop.site.example"]);
    let result = run(&handler, &json!({"url": format!("http://site.example:{}/", peer.port)})).await.unwrap();
    assert_eq!(paths(&result), ["/", "/a"]);
}

#[tokio::test]
async fn robots_that_cannot_be_had_mean_no_and_missing_ones_mean_yes() {
    for (status, outcome) in
        [(404, None), (403, None), (500, Some(FailureKind::Error)), (429, Some(FailureKind::Error))]
    {
        let (peer, _) = site(move |path| {
            Some(if path == "/robots.txt" { answer(status, &[], "x") } else { answer(200, HTML, "hi") })
        })
        .await;
        let result = run(&open(), &json!({"url": peer.url("/")})).await;
        assert_eq!(result.err().map(|failure| failure.kind), outcome, "{status}");
    }
    let (closed, _) = fixed(&[("/robots.txt", "User-agent: queue-service\nDisallow: /"), ("/", "hi")]).await;
    let failure = run(&open(), &json!({"url": closed.url("/")})).await.unwrap_err();
    assert_eq!(failure, Failure::permanent("robots.txt of the site forbids the start page"));
    let (odd, _) = site(|path| {
        let body = [b"\xff\xfe\0User-agent\0: *\nDis\xe9allow\n".repeat(100), vec![b'x'; 2 << 20]].concat();
        Some(if path == "/robots.txt" { answer(200, &[], body) } else { answer(200, HTML, "hi") })
    })
    .await;
    assert_eq!(paths(&run(&open(), &json!({"url": odd.url("/")})).await.unwrap()), ["/"]);
    let (moved, _) = site(|path| match path {
        "/robots.txt" => Some(answer(301, &[("location", "/rules")], "")),
        "/rules" => Some(answer(200, &[], "User-agent: *\nDisallow: /")),
        _ => Some(answer(200, HTML, "hi")),
    })
    .await;
    assert!(run(&open(), &json!({"url": moved.url("/")})).await.unwrap_err().message.contains("forbids"));
}

#[tokio::test]
async fn a_start_page_that_cannot_be_had_fails_the_job() {
    let (peer, _) = site(|path| match path {
        "/503" => Some(answer(503, &[("retry-after", "9")], "")),
        "/loop" => Some(answer(302, &[("location", "/loop")], "")),
        "/away" => Some(answer(302, &[("location", "http://other.example/")], "")),
        "/inside" => Some(answer(302, &[("location", "http://169.254.169.254/")], "")),
        _ => None,
    })
    .await;
    for (path, kind, said) in [
        ("/404", FailureKind::Permanent, "the start page answered 404 Not Found"),
        ("/503", FailureKind::Error, "503"),
        ("/loop", FailureKind::Error, "more than 5 redirects"),
        ("/away", FailureKind::Permanent, "redirects to another site, http://other.example"),
        ("/inside", FailureKind::Permanent, "redirects to another site, http://169.254.169.254"),
    ] {
        let failure = run(&open(), &json!({"url": peer.url(path)})).await.unwrap_err();
        assert!(failure.kind == kind && failure.message.contains(said), "{path}: {failure:?}");
        assert_eq!(failure.retry_after.is_some(), path == "/503");
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let gone = run(&open(), &json!({"url": closed})).await.unwrap_err();
    assert_eq!(gone.kind, FailureKind::Error);
    let private = run(&handler(AllowPrivate::All(false)), &json!({"url": peer.url("/")})).await.unwrap_err();
    assert!(private.kind == FailureKind::Permanent && private.message.contains("private address"), "{private:?}");
}

#[tokio::test]
async fn pages_of_hostile_sites_are_skipped_and_the_job_lives() {
    let (peer, _) = site(|path| {
        Some(match path {
            "/" => answer(200, HTML, "<a href=/bomb>1</a><a href=/huge>2</a><a href=/loop>3</a><a href=/inside>4</a><a href=/text>5</a><a href=/moved>6</a><a href=/broken>7</a><a href=/ok>8</a>"),
            "/bomb" => answer(200, &[HTML[0], ("content-encoding", "gzip")], gzip_bomb(50 << 20)),
            "/huge" => answer(200, HTML, repeated(Bytes::from_static(&[b'<'; 64 << 10]), 800)),
            "/loop" => answer(301, &[("location", "/loop")], ""),
            "/inside" => answer(301, &[("location", "http://127.0.0.1:22/")], ""),
            "/text" => answer(200, &[("content-type", "text/plain")], "hi"),
            "/moved" => answer(301, &[("location", "/")], ""),
            "/broken" => answer(200, &[HTML[0], ("content-encoding", "gzip")], "no gzip at all"),
            "/ok" => answer(200, HTML, "<h1>ok"),
            _ => return None,
        })
    })
    .await;
    let result = run(&open(), &json!({"url": peer.url("/")})).await.unwrap();
    assert_eq!(paths(&result), ["/", "/ok"]);
    let expected = [
        ("/bomb", "too_large"),
        ("/huge", "too_large"),
        ("/loop", "too_many_redirects"),
        ("/inside", "off_site"),
        ("/text", "not_html"),
        ("/moved", "duplicate"),
        ("/broken", "unreachable"),
    ];
    assert_eq!(skipped(&result), expected.map(|(path, reason)| (path.to_owned(), reason.to_owned())));
}

#[tokio::test]
async fn a_calendar_without_end_costs_a_few_requests() {
    let (peer, asked) = site(|path| {
        let links: String = (0..20).map(|n| format!("<a href='/cal?from={path}&day={n}'>x</a>")).collect();
        (path != "/robots.txt").then(|| answer(200, HTML, links))
    })
    .await;
    let result = run(&open(), &json!({"url": peer.url("/"), "maxPages": 100})).await.unwrap();
    assert_eq!(paths(&result).len(), 11);
    assert_eq!(asked.lock().unwrap().len(), 12);
}

#[tokio::test]
async fn errors_without_end_stop_the_crawl() {
    let (peer, _) = site(|path| {
        let links: String = (0..100).map(|n| format!("<a href='/x{}'>x</a>", "ab".repeat(n))).collect();
        (path == "/").then(|| answer(200, HTML, links))
    })
    .await;
    let result = run(&open(), &json!({"url": peer.url("/"), "maxPages": 5})).await.unwrap();
    assert_eq!((&result["truncated"], &result["skippedTotal"]), (&json!("requests"), &json!(14)));
}

#[tokio::test]
async fn when_the_time_is_over_the_crawl_completes_with_what_it_has() {
    let peer = Peer::start(|request: Incoming| async move {
        match request.uri().path() {
            "/" => answer(200, HTML, "<a href=/slow>s</a>"),
            "/robots.txt" => answer(404, &[], ""),
            _ => std::future::pending().await,
        }
    })
    .await;
    let result = run_as(&open(), &context(Duration::from_secs(2)), &json!({"url": peer.url("/")})).await.unwrap();
    assert_eq!((paths(&result), &result["truncated"]), (vec!["/".to_owned()], &json!("time")));
    let nothing = run_as(&open(), &context(Duration::from_millis(800)), &json!({"url": peer.url("/slow")})).await;
    assert!(nothing.unwrap_err().message.contains("longer timeout"));
}

#[tokio::test]
async fn a_long_crawl_delay_ends_the_crawl_and_does_not_hold_the_worker() {
    let (peer, _) =
        fixed(&[("/robots.txt", "User-agent: *\nCrawl-delay: 1000000000"), ("/", "<a href=/a>a</a>"), ("/a", "")])
            .await;
    let started = Instant::now();
    let result = run_as(&open(), &context(Duration::from_secs(20)), &json!({"url": peer.url("/")})).await.unwrap();
    assert_eq!((paths(&result), &result["truncated"]), (vec!["/".to_owned()], &json!("time")));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn an_interrupted_crawl_goes_on_where_it_was() {
    let reached = Arc::new(tokio::sync::Notify::new());
    let open_door = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let peer = Peer::start({
        let (reached, open_door, asked) = (reached.clone(), open_door.clone(), asked.clone());
        move |request: Incoming| {
            let (reached, open_door, asked) = (reached.clone(), open_door.clone(), asked.clone());
            async move {
                let path = request.uri().path().to_owned();
                asked.lock().unwrap().push(path.clone());
                match path.as_str() {
                    "/" => answer(200, HTML, "<h1>home</h1><a href=/a>a</a><a href=/b>b</a>"),
                    "/a" if !open_door.load(std::sync::atomic::Ordering::SeqCst) => {
                        reached.notify_one();
                        std::future::pending().await
                    }
                    "/robots.txt" => answer(404, &[], ""),
                    path => answer(200, HTML, format!("<h1>{path}</h1>")),
                }
            }
        }
    })
    .await;
    let (handler, ctx, payload) = (Arc::new(open()), context(Duration::from_secs(60)), json!({"url": peer.url("/")}));
    let running = tokio::spawn({
        let (handler, ctx, payload) = (handler.clone(), ctx.clone(), payload.clone());
        async move { run_as(&handler, &ctx, &payload).await }
    });
    reached.notified().await;
    ctx.cancel.cancel();
    assert!(running.await.unwrap().is_err());

    open_door.store(true, std::sync::atomic::Ordering::SeqCst);
    asked.lock().unwrap().clear();
    let kept = ctx.notes.take().checkpoint.unwrap();
    let notes = Notes::with_checkpoint(Some(RawValue::from_string(kept.get().to_owned()).unwrap()));
    let next = RunContext { notes: Arc::new(notes), ..context(Duration::from_secs(60)) };
    let result = run_as(&handler, &next, &payload).await.unwrap();
    assert_eq!(paths(&result), ["/", "/a", "/b"]);
    assert_eq!(result["pages"][0]["data"]["title"], json!(["home"]));
    assert_eq!(*asked.lock().unwrap(), ["/robots.txt", "/a", "/b"]);
}

#[tokio::test]
async fn two_crawls_of_one_host_together_have_two_requests_open_at_most() {
    let (now, most) =
        (Arc::new(std::sync::atomic::AtomicUsize::new(0)), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let peer = Peer::start({
        let (now, most) = (now.clone(), most.clone());
        move |request: Incoming| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                let open = now.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                most.fetch_max(open, std::sync::atomic::Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                match request.uri().path() {
                    "/robots.txt" => answer(404, &[], ""),
                    path => answer(200, HTML, format!("<a href='{path}a'>n</a>")),
                }
            }
        }
    })
    .await;
    let handler = open();
    let payload = json!({"url": peer.url("/"), "maxPages": 10});
    let crawls = (0..8).map(|_| run(&handler, &payload));
    let results = futures_util::future::join_all(crawls).await;
    assert!(results.iter().all(|result| paths(result.as_ref().unwrap()).len() == 10));
    assert!(most.load(std::sync::atomic::Ordering::SeqCst) <= 2);
}

#[test]
fn every_fault_has_its_pointer() {
    let closed = handler(AllowPrivate::All(false));
    let url = "https://example.org/";
    let many: BTreeMap<String, &str> = (0..33).map(|n| (format!("s{n}"), "h1")).collect();
    for (payload, expected) in [
        (json!({"url": url}), vec![]),
        (json!({"url": url, "maxPages": 100, "selectors": {}}), vec![]),
        (json!({"url": "http://10.0.0.1/"}), vec!["/url"]),
        (json!({"url": "file:///etc/passwd"}), vec!["/url"]),
        (json!({"url": url, "maxPages": 0}), vec!["/maxPages"]),
        (json!({"url": url, "maxPages": 101}), vec!["/maxPages"]),
        (json!({"url": url, "maxPages": -1}), vec!["/maxPages"]),
        (json!({"url": url, "maxPages": 1.5}), vec!["/maxPages"]),
        (
            json!({"url": url, "selectors": {"a": "h1", "b/c": "h1 >", "d": "x".repeat(300)}}),
            vec!["/selectors/b~1c", "/selectors/d"],
        ),
        (json!({"url": url, "selectors": {"a": ["h1"]}}), vec!["/selectors/a"]),
        (json!({"url": url, "selectors": many}), vec!["/selectors"]),
        (json!({"url": url, "depth": 3}), vec!["/depth"]),
        (json!({}), vec![""]),
    ] {
        let raw = serde_json::value::to_raw_value(&payload).unwrap();
        let faults: Vec<String> = closed.check(&raw).0.into_iter().map(|(pointer, _)| pointer).collect();
        assert_eq!(faults, expected, "{payload}");
    }
}

#[test]
fn a_user_agent_without_a_name_is_refused_at_the_start() {
    let mut config = Config::default();
    config.crawl.user_agent = "1.0".into();
    assert!(CrawlWebsite::new(&config).err().unwrap().contains("crawl.user_agent"));
}

#[tokio::test]
async fn the_site_of_the_sandbox_is_read_as_a_person_would() {
    let sandbox = crate::dev::sandbox::Sandbox::start().await.unwrap();
    let mut config = Config::default();
    sandbox.apply(&mut config, |_| false);
    let handler = AnyHandler::new(CrawlWebsite::new(&config).unwrap()).unwrap();
    let result = run(&handler, &json!({"url": sandbox.site_url(), "maxPages": 100})).await.unwrap();
    let titles: Vec<&str> =
        result["pages"].as_array().unwrap().iter().filter_map(|page| page["title"].as_str()).collect();
    assert!(titles.contains(&"Café") && titles.contains(&"Untidy"), "{titles:?}");
    assert!(titles.len() < 40 && !titles.iter().any(|title| title.contains("Private")), "{titles:?}");
    let skipped = skipped(&result);
    for (path, reason) in
        [("/private", "robots"), ("/broken", "status"), ("/missing", "status"), ("/prices.csv", "not_html")]
    {
        assert!(skipped.contains(&(path.to_owned(), reason.to_owned())), "{path}: {skipped:?}");
    }
    assert_eq!(result["truncated"], Value::Null);
}
