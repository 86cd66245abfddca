use std::time::Duration;

use super::*;

fn selectors(list: &[(&str, &str)]) -> Selectors {
    Selectors::compile(&list.iter().map(|(name, css)| ((*name).into(), (*css).into())).collect()).unwrap()
}

fn read(html: &str, list: &[(&str, &str)]) -> Extracted {
    let url = Url::parse("https://example.org/dir/page").unwrap();
    extract(html, &url, &selectors(list), Instant::now() + Duration::from_secs(20))
}

#[test]
fn title_matches_and_links_are_found() {
    let html = r#"<title> A
        page </title>
        <h1>One <b>bo</b>ld<script>x()</script></h1><h1>  Two&nbsp;&amp; more </h1><h1></h1><p class=x>text</p>
        <a href="next#part">n</a><a href="next">again</a><a href="/root" rel="nofollow noopener">r</a><a href="//other.example/x">o</a>
        <a href="mailto:a@example.org">m</a><a href="javascript:alert(1)">j</a><a href="https://u:p@example.org/">u</a><a>none</a>"#;
    let page = read(html, &[("head", "h1"), ("x", "p.x, p.y"), ("none", "h6")]);
    assert_eq!(page.title.as_deref(), Some("A page"));
    assert_eq!(page.data["head"], ["One bold", "Two & more"]);
    assert_eq!((page.data["x"].as_slice(), page.data["none"].len()), (["text".to_owned()].as_slice(), 0));
    assert_eq!(page.links, ["https://example.org/dir/next", "https://example.org/root", "https://other.example/x"]);
    let follow: Vec<&str> = page.follow.iter().map(Url::as_str).collect();
    assert_eq!(follow, ["https://example.org/dir/next", "https://other.example/x"]);
    assert!(!page.cut);
}

#[test]
fn base_and_nofollow_are_kept() {
    let page = read(r#"<base href="/other/"><meta name=ROBOTS content="noindex, NoFollow"><a href="x">x</a>"#, &[]);
    assert_eq!((page.links, page.follow), (vec!["https://example.org/other/x".to_owned()], vec![]));
}

#[test]
fn what_is_kept_of_a_huge_page_is_bounded_and_marked() {
    let html = format!("<h1>{}</h1>{}", "é".repeat(100_000), "<p>word word</p><a href='/x'>x</a>".repeat(5000));
    let page = read(&html, &[("h", "h1"), ("p", "p")]);
    assert_eq!((page.data["h"][0].len(), page.data["p"].len(), page.links.len()), (TEXT_MAX, MATCHES_MAX, 1));
    assert!(page.cut);
    let links: String = (0..5000).map(|i| format!("<a href=/{i}>x</a>")).collect();
    let page = read(&links, &[]);
    assert_eq!((page.links.len(), page.follow.len(), page.cut), (LINKS_SHOWN_MAX, LINKS_MAX, true));
}

#[test]
fn broken_and_hostile_pages_are_read_without_harm() {
    for html in ["", "<", "<!--", "<html", "<a href", "\u{fffd}\0", "<table><a href=x>", "plain text"] {
        read(html, &[("x", "*")]);
    }
}

#[test]
fn a_page_made_to_keep_the_parser_busy_is_read_in_part() {
    let url = Url::parse("https://example.org/").unwrap();
    let attributes: String = (0..300_000).map(|n| format!("a{n} ")).collect();
    for (html, css) in [
        (format!("<title>t</title>{}", "<div>".repeat(1_000_000)), "div div div"),
        (format!("<title>t</title>{}", "<a href=x>".repeat(100_000)), "a"),
        (format!("<title>t</title>{}{}", "<b>".repeat(100_000), "<p>".repeat(100_000)), "b ~ b"),
        (format!("<title>t</title><p {attributes}>"), "p[a1]"),
    ] {
        let started = Instant::now();
        let page = extract(&html, &url, &selectors(&[("x", css)]), started + Duration::from_millis(300));
        assert!(started.elapsed() < Duration::from_secs(5), "{:.40}: {:?}", html, started.elapsed());
        assert_eq!(page.title.as_deref(), Some("t"));
    }
}

#[test]
fn a_selector_that_would_take_for_ever_is_stopped_by_the_clock() {
    let html = "<i></i>".repeat(50_000);
    let url = Url::parse("https://example.org/").unwrap();
    let costly = [("a", ":not(:is(x ~ * ~ * ~ *))"), ("b", "body:has(x), i:nth-last-child(3n+1)"), ("c", "i ~ i ~ x")];
    let started = Instant::now();
    let page = extract(&html, &url, &selectors(&costly), started + Duration::from_millis(300));
    assert!(page.cut && started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn bad_selectors_are_refused_by_name() {
    let long = "a".repeat(SELECTOR_MAX + 1);
    for css in
        ["", "h1 >", "[", "h1::before", ":has(:has(a))", "a:has(b):has(c)", "a ~ b ~ c ~ d ~ e", "p:frobnicate", &long]
    {
        let refused = Selectors::compile(&[("x".to_owned(), css.to_owned())].into()).unwrap_err();
        assert_eq!((refused.len(), refused[0].0.as_str()), (1, "x"), "{css}");
    }
    let refused = Selectors::compile(&[("a\n".to_owned(), "h1".to_owned()), (String::new(), "h1".to_owned())].into());
    assert_eq!(refused.unwrap_err().len(), 2);
    let nested = format!("{}a{}", ":not(".repeat(60), ")".repeat(60));
    let _ = Selectors::compile(&[("x".to_owned(), nested)].into());
}
