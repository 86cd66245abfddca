//! Mail addresses from payloads. Pure.
//!
//! Narrower than RFC 5322 on purpose: quoted local parts, comments, groups and address literals are legal there, and are
//! what injections into headers and recipient lists are made of. Nobody's mailbox needs them.

use lettre::{Address, message::Mailbox};

/// Longest address with its display name, in bytes.
const TEXT_MAX: usize = 512;
const LOCAL_MAX: usize = 64;
const DOMAIN_MAX: usize = 255;
/// What a local part may hold besides ASCII letters and digits. Source: RFC 5322, "atext".
const ATEXT: &str = "!#$%&'*+-/=?^_`{|}~.";
/// What a display name may not hold unless it is quoted, and never inside quotes but for the first row.
const SPECIALS: &[char] = &['(', ')', '[', ']', ':', ';', '@', ',', '.', '<', '>', '"', '\\'];

/// Reads `ann@example.org` or `Ann Example <ann@example.org>`.
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
    let text = text.trim_matches(' ');
    let (name, address) = match text.strip_suffix('>').and_then(|rest| rest.rsplit_once('<')) {
        Some((name, address)) => (display_name(name.trim_matches(' '))?, address),
        None => (None, text),
    };
    Ok(Mailbox::new(name, plain(address)?))
}

fn display_name(text: &str) -> Result<Option<String>, String> {
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let refused: &[char] = if quoted.is_some() { &['"', '\\', '<', '>'] } else { SPECIALS };
    let name = quoted.unwrap_or(text);
    if name.contains(refused) {
        return Err("has a display name with special characters; write it as \"Doe, Ann\" <ann@example.org>".into());
    }
    Ok(Some(name.to_owned()).filter(|name| !name.is_empty()))
}

fn plain(text: &str) -> Result<Address, String> {
    const EXPECTED: &str = "must be one address like ann@example.org or Ann Example <ann@example.org>";
    let (local, domain) = text.rsplit_once('@').ok_or(EXPECTED)?;
    if local.is_empty() || local.len() > LOCAL_MAX || domain.is_empty() || domain.len() > DOMAIN_MAX {
        return Err(EXPECTED.into());
    }
    if !local.is_ascii() {
        return Err("has letters outside ASCII before the @, which most mail servers refuse".into());
    }
    if !local.chars().all(|c| c.is_ascii_alphanumeric() || ATEXT.contains(c)) {
        return Err(EXPECTED.into());
    }
    // Also turns ésus.example into xn--sus-9oa.example, which every server understands.
    match url::Host::parse(domain) {
        Ok(url::Host::Domain(domain)) if !domain.ends_with('.') => {
            Address::new(local, domain).map_err(|_| EXPECTED.into())
        }
        Ok(_) => Err("must have a domain name after the @".into()),
        Err(_) => Err(EXPECTED.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_named_addresses_are_read() {
        for (text, name, address) in [
            ("ann@example.org", None, "ann@example.org"),
            ("<ann@example.org>", None, "ann@example.org"),
            ("Ann Example <a.b+c@example.org>", Some("Ann Example"), "a.b+c@example.org"),
            ("\"Doe, Ann\" <ann@example.org>", Some("Doe, Ann"), "ann@example.org"),
            ("Änne <root@localhost>", Some("Änne"), "root@localhost"),
            ("ann@bücher.example", None, "ann@xn--bcher-kva.example"),
        ] {
            let read = parse(text).unwrap();
            assert_eq!((read.name.as_deref(), read.email.to_string().as_str()), (name, address), "{text}");
        }
    }

    #[test]
    fn injections_groups_and_oddities_are_refused() {
        let long = format!("{}@example.org", "a".repeat(10_000));
        let local = format!("{}@example.org", "a".repeat(65));
        for text in [
            "",
            "ann",
            "@example.org",
            "ann@",
            "ann@example.org, bob@example.org",
            "friends: ann@example.org;",
            "friends: ann@example.org, bob@example.org;",
            "ann@example.org\r\nBcc: eve@example.org",
            "ann@example.org\n",
            "ann\0@example.org",
            "\"<x>\"@example.org",
            "\"a b\"@example.org",
            "ann@example.org> SIZE=1 <b@example.org",
            "Ann <ann@example.org>, Bob <bob@example.org>",
            "\"A\" <b@example.org>\" <ann@example.org>",
            "a b@example.org",
            "a..b@example.org",
            ".a@example.org",
            "ann(comment)@example.org",
            "ann@[127.0.0.1]",
            "ann@127.0.0.1",
            "ann@exa mple.org",
            "ann@example.org.",
            "änn@example.org",
            "ann\u{2028}@example.org",
            &long,
            &local,
        ] {
            assert!(parse(text).is_err(), "{text:.60}");
        }
    }
}
