//! Pages for people: one layout, one style sheet, no script. Every text from outside goes through [`escape`].

use axum::{
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    response::{IntoResponse, Response},
};

const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A page; `title` is escaped here, `body` is HTML.
pub fn page(title: &str, body: &str) -> Response {
    let title = escape(title);
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<link rel=\"stylesheet\" href=\"/style.css\">\n\
         <header><a href=\"/\"><b>queue-service</b></a> <nav><a href=\"/jobs\">jobs</a> <a href=\"/stats\">stats</a> \
         <a href=\"/types\">types</a> <a href=\"/health\">health</a> <a href=\"/metrics\">metrics</a> \
         <a href=\"/docs\">docs</a></nav></header>\n<main>\n{body}</main>\n</html>\n"
    );
    ([(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)], html).into_response()
}

pub async fn style() -> Response {
    let headers = [(CONTENT_TYPE, "text/css; charset=utf-8"), (CACHE_CONTROL, "max-age=3600")];
    (headers, include_str!("style.css")).into_response()
}

/// Makes a text safe between tags and in quoted attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Direction marks and other invisible controls could make a text look like another one.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_place() {
        assert_eq!(escape("<a href='x' id=\"y\">&"), "&lt;a href=&#39;x&#39; id=&quot;y&quot;&gt;&amp;");
        assert_eq!(escape("a\u{202e}b\u{1b}[2J\nc"), "a\u{fffd}b\u{fffd}[2J\nc");
    }

    #[test]
    fn pages_need_nothing_from_elsewhere_and_run_nothing() {
        let css = include_str!("style.css");
        assert!(!css.contains("http") && !css.contains("url("), "the style sheet fetches nothing");
        assert!(!POLICY.contains("unsafe") && !POLICY.contains("script-src"));
    }
}
