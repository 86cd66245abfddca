//! Mail addresses from payloads, as mail programs write them. Pure.
//!
//! One mailbox per text: `ann@example.org`, `Ann Example <ann@example.org>`, `"Doe, Ann" <ann@example.org>` or
//! `ann@example.org (Ann)`. Lists, groups and address literals (`ann@[127.0.0.1]`) are refused: they are legal in
//! RFC 5322, and they are what injections into headers and recipient lists are made of.

use std::fmt;

/// Longest address with its display name, in bytes. Source: RFC 5322, 2.1.1, the longest line.
const TEXT_MAX: usize = 998;
/// Source: RFC 5321, 4.5.3.1.1.
const LOCAL_MAX: usize = 64;
/// Source: RFC 5321, 4.5.3.1.3: a path has 256 bytes, two of them are its brackets.
const ADDRESS_MAX: usize = 254;
const LABEL_MAX: usize = 63;
/// What a local part may hold besides letters and digits. Source: RFC 5322, "atext".
const ATEXT: &str = "!#$%&'*+-/=?^_`{|}~";

const EXPECTED: &str = "must be one address like ann@example.org or Ann Example <ann@example.org>";
const NAME: &str = "has a display name with special characters; write it as \"Doe, Ann\" <ann@example.org>";
const DOMAIN: &str = "must have a domain name after the @";

/// An address without a name, as it stands in an envelope.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    local: String,
    domain: String,
}

/// An address with the name of whoever it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    pub name: Option<String>,
    pub email: Address,
}

impl Address {
    /// In ASCII; other letters are in punycode, which every server understands.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Whether a server without SMTPUTF8 (RFC 6531) can be told of it.
    pub fn is_ascii(&self) -> bool {
        self.local.is_ascii()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

/// Reads one mailbox.
///
/// # Errors
/// A sentence for the caller, without the address itself.
pub fn parse(text: &str) -> Result<Mailbox, String> {
    if text.len() > TEXT_MAX {
        return Err(format!("must have at most {TEXT_MAX} bytes"));
    }
    if text.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        return Err("must not hold line breaks or other control characters".into());
    }
    let tokens = tokens(text)?;
    match tokens.iter().position(|token| *token == Token::Open) {
        Some(at) => named(&tokens[..at], &tokens[at + 1..]),
        None => bare(&tokens),
    }
}

#[derive(Debug, PartialEq)]
enum Token {
    Char(char),
    /// Without its quotes and escapes.
    Quoted(String),
    /// Without its brackets.
    Comment(String),
    Open,
    Close,
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut chars = text.trim_matches(' ').chars();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '"' => Token::Quoted(until(&mut chars, None, '"')?),
            '(' => Token::Comment(until(&mut chars, Some('('), ')')?),
            '<' => Token::Open,
            '>' => Token::Close,
            c => Token::Char(c),
        });
    }
    Ok(tokens)
}

/// The text up to `close`, with escapes undone. Comments may be nested.
fn until(chars: &mut std::str::Chars<'_>, open: Option<char>, close: char) -> Result<String, String> {
    let (mut text, mut depth) = (String::new(), 0);
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().ok_or(NAME)?),
            c if c == close && depth == 0 => return Ok(text),
            c => {
                if c == close {
                    depth -= 1;
                } else if Some(c) == open {
                    depth += 1;
                }
                text.push(c);
            }
        }
    }
    Err(NAME.into())
}

/// `Ann Example <ann@example.org>`: nothing but comments may follow.
fn named(name: &[Token], rest: &[Token]) -> Result<Mailbox, String> {
    let end = rest.iter().position(|token| *token == Token::Close).ok_or(EXPECTED)?;
    if !rest[end + 1..].iter().all(|token| matches!(token, Token::Char(' ') | Token::Comment(_))) {
        return Err(EXPECTED.into());
    }
    let mut text = String::new();
    for token in name {
        match token {
            // Unquoted, the first three part the members of a list or a group.
            Token::Char(',' | ';' | ':' | '\\') | Token::Open | Token::Close => return Err(NAME.into()),
            Token::Char(c) => text.push(*c),
            Token::Quoted(word) => text.push_str(word),
            Token::Comment(comment) => text.push_str(&format!("({comment})")),
        }
    }
    let name = text.trim_matches(' ').to_owned();
    Ok(Mailbox { name: Some(name).filter(|name| !name.is_empty()), email: address(&rest[..end])? })
}

/// `ann@example.org`, and `ann@example.org (Ann)`, in which older programs write the name.
fn bare(tokens: &[Token]) -> Result<Mailbox, String> {
    let (name, tokens) = match tokens {
        [rest @ .., Token::Comment(name)] => (Some(name.clone()).filter(|name| !name.is_empty()), rest),
        all => (None, all),
    };
    let end = tokens.iter().rposition(|token| *token != Token::Char(' ')).map_or(0, |last| last + 1);
    Ok(Mailbox { name, email: address(&tokens[..end])? })
}

fn address(tokens: &[Token]) -> Result<Address, String> {
    let (local, domain) = match tokens {
        [Token::Quoted(local), Token::Char('@'), domain @ ..] => (quoted_if_needed(local)?, text(domain)?),
        all => {
            let all = text(all)?;
            let (local, domain) = all.rsplit_once('@').ok_or(EXPECTED)?;
            if !is_dot_atom(local) {
                return Err(EXPECTED.into());
            }
            (local.to_owned(), domain.to_owned())
        }
    };
    if local.len() > LOCAL_MAX {
        return Err(format!("must have at most {LOCAL_MAX} bytes before the @"));
    }
    let address = Address { local, domain: domain_of(&domain)? };
    if address.to_string().len() > ADDRESS_MAX {
        return Err(format!("must have an address of at most {ADDRESS_MAX} bytes"));
    }
    Ok(address)
}

fn text(tokens: &[Token]) -> Result<String, String> {
    let char = |token: &Token| if let Token::Char(c) = token { Ok(*c) } else { Err(EXPECTED.to_owned()) };
    tokens.iter().map(char).collect()
}

/// Letters of any script: a server with SMTPUTF8 takes them.
fn is_dot_atom(text: &str) -> bool {
    let is_atext = |c: char| c.is_ascii_alphanumeric() || ATEXT.contains(c) || (!c.is_ascii() && !c.is_whitespace());
    text.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

/// A local part in quotes only where it has to be, so that one mailbox has one spelling. Source: RFC 5321, 4.1.2.
fn quoted_if_needed(local: &str) -> Result<String, String> {
    if local.is_empty() {
        return Err(EXPECTED.into());
    }
    Ok(if is_dot_atom(local) {
        local.to_owned()
    } else {
        format!("\"{}\"", local.replace('\\', "\\\\").replace('"', "\\\""))
    })
}

/// ésus.example becomes xn--sus-9oa.example, which every server understands.
fn domain_of(text: &str) -> Result<String, String> {
    let Ok(url::Host::Domain(domain)) = url::Host::parse(text) else { return Err(DOMAIN.into()) };
    let is_label = |label: &str| {
        (1..=LABEL_MAX).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let has_letter = |label: &str| label.bytes().any(|b| !b.is_ascii_digit());
    // The last label is never a number, or it would be mistaken for an IP address (RFC 3696, 2).
    if domain.split('.').all(is_label) && domain.rsplit('.').next().is_some_and(has_letter) {
        Ok(domain)
    } else {
        Err(DOMAIN.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_mail_programs_write_them() {
        for (text, name, address) in [
            ("ann@example.org", None, "ann@example.org"),
            ("  ann@example.org ", None, "ann@example.org"),
            ("<ann@example.org>", None, "ann@example.org"),
            ("Ann Example <a.b+c@example.org>", Some("Ann Example"), "a.b+c@example.org"),
            ("Ann<ann@example.org>", Some("Ann"), "ann@example.org"),
            ("\"Doe, Ann\" <ann@example.org>", Some("Doe, Ann"), "ann@example.org"),
            ("Acme Inc. <office@acme.example>", Some("Acme Inc."), "office@acme.example"),
            ("J. R. O'Neil <jr@example.org>", Some("J. R. O'Neil"), "jr@example.org"),
            ("ann@example.org <ann@example.org>", Some("ann@example.org"), "ann@example.org"),
            ("\"Ann \\\"Al\\\" Doe\" <ann@example.org>", Some("Ann \"Al\" Doe"), "ann@example.org"),
            ("\"back\\\\slash\" <ann@example.org>", Some("back\\slash"), "ann@example.org"),
            ("\"<x>\" <ann@example.org>", Some("<x>"), "ann@example.org"),
            ("Ann (Sales) <ann@example.org>", Some("Ann (Sales)"), "ann@example.org"),
            ("Ann [Sales] <ann@example.org> (office)", Some("Ann [Sales]"), "ann@example.org"),
            ("ann@example.org (Ann Example)", Some("Ann Example"), "ann@example.org"),
            ("\"Ann\" \"Doe\" <ann@example.org>", Some("Ann Doe"), "ann@example.org"),
            ("Änne <root@localhost>", Some("Änne"), "root@localhost"),
            ("ann@bücher.example", None, "ann@xn--bcher-kva.example"),
            ("änn@example.org", None, "änn@example.org"),
            ("用户@例子.广告", None, "用户@xn--fsqu00a.xn--4rr70v"),
            ("\"a b\"@example.org", None, "\"a b\"@example.org"),
            ("\"ann\"@example.org", None, "ann@example.org"),
            ("o'neil@EXAMPLE.org", None, "o'neil@example.org"),
        ] {
            let read = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((read.name.as_deref(), read.email.to_string().as_str()), (name, address), "{text}");
        }
    }

    #[test]
    fn injections_lists_groups_and_oddities_are_refused() {
        let long = format!("{}@example.org", "a".repeat(10_000));
        let local = format!("{}@example.org", "a".repeat(65));
        let label = format!("ann@{}.org", "a".repeat(64));
        let domain = format!("ann@{}org", "abc.".repeat(63));
        for text in [
            "",
            "ann",
            "@example.org",
            "ann@",
            "ann@example.org, bob@example.org",
            "ann@example.org; bob@example.org",
            "ann@example.org, Bob <bob@example.org>",
            "friends: ann@example.org;",
            "friends: ann@example.org, bob@example.org;",
            "friends: <ann@example.org>",
            "ann@example.org\r\nBcc: eve@example.org",
            "ann@example.org\n",
            "ann\0@example.org",
            "\"\"@example.org",
            "\"a\"b@example.org",
            "ann@example.org> SIZE=1 <b@example.org",
            "Ann <ann@example.org>, Bob <bob@example.org>",
            "Doe, Ann <ann@example.org>",
            "\"A\" <b@example.org>\" <ann@example.org>",
            "\"Ann <ann@example.org>",
            "Ann\\ <ann@example.org>",
            "<ann@example.org",
            "ann@example.org>",
            "<<ann@example.org>>",
            "a b@example.org",
            "a..b@example.org",
            ".a@example.org",
            "a.@example.org",
            "ann(comment)@example.org",
            "ann@[127.0.0.1]",
            "ann@[IPv6:::1]",
            "ann@127.0.0.1",
            "ann@2130706433",
            "ann@example.123",
            "ann@exa mple.org",
            "ann@example.org.",
            "ann@example..org",
            "ann@-example.org",
            "ann@example-.org",
            "ann@exa_mple.org",
            "ann@bob@example.org",
            "ann\u{2028}@example.org",
            "ann\u{3000}@example.org",
            &long,
            &local,
            &label,
            &domain,
        ] {
            assert!(parse(text).is_err(), "{text:.60}");
        }
    }
}
