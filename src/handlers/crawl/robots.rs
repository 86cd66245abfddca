//! robots.txt: what a site allows. Pure. Source: RFC 9309, and Google's parser where the RFC is silent.
//!
//! Own lines instead of the crate `robotstxt` 0.3: its matcher needs time in the third power of a path's length, shifts
//! its list of places while it writes to it (`*/$` does not match `//`), and its line splitter can cut a character in
//! two. Both the file and the paths come from strangers.

use std::time::Duration;

use url::Url;

/// As much of the file as is read; the RFC asks for at least that.
pub const BODY_MAX: usize = 500 * 1024;
const RULES_MAX: usize = 10_000;
/// Longer lines are cut; no address that is followed can match what lies beyond.
const LINE_MAX: usize = 4096;
/// A longer wish is held to be a mistake or a way to hold a worker.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// The rules for one agent.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    delay: Duration,
}

#[derive(Clone, Debug)]
struct Rule {
    allow: bool,
    pattern: String,
}

/// What one kind of group says.
#[derive(Default)]
struct Group {
    seen: bool,
    rules: Vec<Rule>,
    delay: Option<Duration>,
}

impl Rules {
    /// Reads a file for the agent with the product name `agent`.
    pub fn read(body: &str, agent: &str) -> Self {
        let mut ours = Group::default();
        let mut everybody = Group::default();
        let (mut for_us, mut for_everybody) = (false, false);
        // A line that names an agent goes on with a group until its first rule, and begins a new one after it.
        let mut rules_came = true;
        let body = body.trim_start_matches('\u{feff}');
        for line in body.split(['\n', '\r']) {
            let line = &line[..line.floor_char_boundary(LINE_MAX)];
            let line = line.split_once('#').map_or(line, |(before, _)| before);
            let Some((key, value)) = line.split_once(':') else { continue };
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            if key == "user-agent" {
                if std::mem::take(&mut rules_came) {
                    (for_us, for_everybody) = (false, false);
                }
                let name = product(value);
                for_everybody |= value == "*" || value.starts_with("* ");
                for_us |= !name.is_empty() && name.eq_ignore_ascii_case(agent);
                ours.seen |= for_us;
                continue;
            }
            let allow = key == "allow";
            rules_came |= allow || key == "disallow";
            let groups = [(for_us, &mut ours), (for_everybody, &mut everybody)];
            for (_, group) in groups.into_iter().filter(|(named, _)| *named) {
                match key.as_str() {
                    "allow" | "disallow" if !value.is_empty() && group.rules.len() < RULES_MAX => {
                        group.rules.push(Rule { allow, pattern: uniform(value) });
                    }
                    "crawl-delay" => group.delay = seconds(value).or(group.delay),
                    _ => {}
                }
            }
        }
        // A group that names us stands alone, even when it is empty.
        let Group { rules, delay, .. } = if ours.seen { ours } else { everybody };
        Self { rules, delay: delay.unwrap_or_default() }
    }

    /// The longest matching rule decides, and between two of one length the one that allows.
    pub fn allow(&self, url: &Url) -> bool {
        let mut path = uniform(url.path());
        if let Some(query) = url.query() {
            path.push('?');
            path.push_str(&uniform(query));
        }
        if path == "/robots.txt" {
            return true;
        }
        let matching = self.rules.iter().filter(|rule| matches(&path, &rule.pattern));
        matching.max_by_key(|rule| (rule.pattern.len(), rule.allow)).is_none_or(|rule| rule.allow)
    }

    /// Time between the starts of two requests, at most 30 s.
    pub fn delay(&self) -> Duration {
        self.delay
    }
}

/// The name that robots.txt knows a user agent by: `MyBot` of `MyBot/1.0` and of `Mozilla/5.0 (compatible; MyBot/1.0)`.
pub fn agent(user_agent: &str) -> &str {
    let text = user_agent.split_once("compatible;").map_or(user_agent, |(_, rest)| rest);
    product(text.trim_start())
}

fn product(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphabetic() || matches!(c, '-' | '_'))).unwrap_or(text.len());
    &text[..end]
}

fn seconds(value: &str) -> Option<Duration> {
    let seconds: f64 = value.parse().ok()?;
    // NaN is neither.
    (seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(DELAY_MAX.as_secs_f64())))
}

/// One spelling for paths and patterns: upper-case escapes, and escapes for what is not ASCII.
fn uniform(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut escape = 0;
    for byte in text.bytes() {
        match byte {
            b'%' => escape = 3,
            byte if !byte.is_ascii() => {
                out.push_str(&format!("%{byte:02X}"));
                continue;
            }
            _ => {}
        }
        out.push(if escape > 0 { char::from(byte.to_ascii_uppercase()) } else { char::from(byte) });
        escape = i32::max(escape - 1, 0);
    }
    out
}

/// Does `pattern` match the start of `path`? `*` stands for anything, `$` at the end for the end. Takes time in
/// proportion to both lengths: the leftmost place for a piece leaves most room for those that follow.
fn matches(path: &str, pattern: &str) -> bool {
    let (pattern, to_the_end) = pattern.strip_suffix('$').map_or((pattern, false), |rest| (rest, true));
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| path.strip_prefix(first)) else { return false };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return !to_the_end || rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if to_the_end && pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn allowed(body: &str, path: &str) -> bool {
        Rules::read(body, "queue-service").allow(&Url::parse("https://example.org").unwrap().join(path).unwrap())
    }

    #[test]
    fn the_group_that_names_us_stands_alone() {
        let body = "User-agent: *\nDisallow: /\n\nUser-agent: other\nUser-Agent: Queue-Service/2.0 # that's us\nDisallow: /b\n";
        assert!(allowed(body, "/a") && !allowed(body, "/b/c"));
        assert!(!Rules::read(body, "somebody").allow(&Url::parse("https://example.org/a").unwrap()));
        assert!(allowed("User-agent: *\nDisallow: /\nUser-agent: queue-service\nDisallow:\n", "/a"));
    }

    #[test]
    fn the_longest_rule_decides_and_allow_wins_a_tie() {
        let body = "User-agent: *\nDisallow: /shop\nAllow: /shop/open\nDisallow: /*.pdf$\nAllow: /x\nDisallow: /x\n";
        assert!(!allowed(body, "/shop/closed") && allowed(body, "/shop/open/1"));
        assert!(!allowed(body, "/a/b.pdf") && allowed(body, "/a/b.pdf?x"));
        assert!(allowed(body, "/x") && allowed(body, "/other"));
        assert!(allowed("User-agent: *\nDisallow: /", "/robots.txt"));
    }

    #[test]
    fn other_alphabets_and_escapes_are_compared_in_one_spelling() {
        let body = "User-agent: *\nDisallow: /é\nDisallow: /%c3%bc\n";
        assert!(!allowed(body, "/é") && !allowed(body, "/%c3%a9") && !allowed(body, "/ü"));
    }

    #[test]
    fn nonsense_allows_everything() {
        for body in [
            "",
            "\u{feff}",
            "<html>Not found</html>",
            "Disallow: /",
            "User-agent *\nDisallow /",
            ":::\n:\n",
            "User-agent:\nDisallow: /",
        ] {
            assert!(allowed(body, "/a"), "{body}");
        }
        assert!(!allowed("\u{feff}USER-AGENT:*\r\rdisallow:/\r", "/a"));
    }

    #[test]
    fn a_delay_is_read_for_our_group_and_capped() {
        let delay = |body: &str| Rules::read(body, "queue-service").delay().as_secs_f64();
        assert_eq!(delay("User-agent: *\nCrawl-delay: 1.5\n"), 1.5);
        assert_eq!(delay("User-agent: *\nCrawl-delay: 1e9\n"), 30.0);
        assert_eq!(delay("User-agent: other\nCrawl-delay: 9\n"), 0.0);
        for nonsense in ["-1", "NaN", "soon", ""] {
            assert_eq!(delay(&format!("User-agent: *\nCrawl-delay: {nonsense}\n")), 0.0);
        }
    }

    #[test]
    fn agents_are_known_by_their_product_name() {
        assert_eq!(agent("queue-service/0.1"), "queue-service");
        assert_eq!(agent("Mozilla/5.0 (compatible; ShopBot/2.1; +https://example.org)"), "ShopBot");
    }

    #[test]
    fn a_hostile_file_takes_no_more_time_than_its_size() {
        let body = format!("User-agent: *\nDisallow: /{}\n", "*a".repeat(2000)).repeat(120);
        let rules = Rules::read(&body, "queue-service");
        let url = Url::parse(&format!("https://example.org/{}b", "a".repeat(1900))).unwrap();
        assert!(rules.allow(&url));
        Rules::read(&format!("User-agent: {}é\u{1F600}", "é\u{1F600}".repeat(50_000)), "queue-service");
    }

    /// The definition, written down without a thought for time.
    fn plainly(path: &[u8], pattern: &[u8]) -> bool {
        match (pattern, path) {
            ([], _) => true,
            ([b'$'], path) => path.is_empty(),
            ([b'*', rest @ ..], path) => (0..=path.len()).any(|at| plainly(&path[at..], rest)),
            ([p, pattern @ ..], [c, path @ ..]) => p == c && plainly(path, pattern),
            (_, []) => false,
        }
    }

    proptest! {
        #[test]
        fn wildcards_match_as_the_plain_definition_says(pattern in "/?[ab/*]{0,8}\\$?", path in "/[ab/]{0,8}") {
            prop_assert_eq!(matches(&path, &pattern), plainly(path.as_bytes(), pattern.as_bytes()));
        }

        #[test]
        fn no_file_makes_it_panic(body in "(\\PC|[\r\n:%#*$]|user-agent: \\*\n|disallow: ){0,60}", path in "/\\PC{0,20}") {
            if let Ok(url) = Url::parse("https://example.org").unwrap().join(&path) {
                Rules::read(&body, "queue-service").allow(&url);
            }
        }
    }
}
