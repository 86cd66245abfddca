//! Which addresses a request on behalf of a job may reach. Pure: no name is resolved here.
//!
//! A payload's URL is written by a stranger, and the worker stands inside the operator's network. So every address is
//! checked in two places that together leave no gap: literal hosts when a URL is taken, and each answer of the name
//! lookup (`fetch`), which then connects to exactly the checked addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use url::{Host, Url};

use crate::config::AllowPrivate;

/// Longest URL that is taken, in bytes.
pub const URL_MAX: usize = 2048;

/// Why a URL or address is not asked. No attempt can change it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("is not an absolute URL like https://example.org/path: {0}")]
    Syntax(String),
    #[error("has more than {URL_MAX} bytes")]
    TooLong,
    #[error("has the scheme '{0}'; only http and https are taken")]
    Scheme(String),
    #[error("holds a user name or password; send credentials in a header instead")]
    Userinfo,
    #[error("names port {0}, which belongs to another protocol than HTTP")]
    Port(u16),
    #[error("leads to the private address {0}, which the operator has not allowed (allow_private)")]
    Private(IpAddr),
}

/// IPv4 ranges that are not the public internet. Source: IANA special-purpose address registry.
const V4: [Ipv4Net; 16] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
    v4(255, 255, 255, 255, 32),
];

/// All that is routed as unicast; whatever lies outside is refused, known or not.
const V6_UNICAST: Ipv6Net = v6(0x2000, 0, 0, 3);
/// Ranges within it that are not the public internet. `2001::/23` holds Teredo and other assignments of the IETF,
/// `2002::/16` is 6to4, which can carry any IPv4 address; then documentation, twice.
const V6: [Ipv6Net; 4] = [v6(0x2001, 0, 0, 23), v6(0x2002, 0, 0, 16), v6(0x2001, 0x0db8, 0, 32), v6(0x3fff, 0, 0, 20)];
/// NAT64: networks without IPv4 reach the public IPv4 internet through it, so the address inside decides.
const NAT64: Ipv6Net = v6(0x0064, 0xff9b, 0, 96);

/// Ports that speak something else, where a request could be taken for a command. Source: WHATWG Fetch, "bad port".
const BAD_PORTS: [u16; 83] = [
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531,
    532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060,
    5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(a: u16, b: u16, c: u16, bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), bits)
}

/// The rules of one handler.
#[derive(Clone, Debug)]
pub struct Guard {
    allow: AllowPrivate,
}

impl Guard {
    pub fn new(allow: &AllowPrivate) -> Self {
        Self { allow: allow.clone() }
    }

    /// Reads a URL from outside.
    ///
    /// # Errors
    /// It is no URL that may be asked, as far as that shows without resolving its name.
    pub fn parse(&self, text: &str) -> Result<Url, Refused> {
        if text.len() > URL_MAX {
            return Err(Refused::TooLong);
        }
        // The parser drops tabs and line ends silently; a text with such in it is a mistake or an attempt.
        if text.chars().any(char::is_control) {
            return Err(Refused::Syntax("control characters in it".into()));
        }
        let url = Url::parse(text).map_err(|e| Refused::Syntax(e.to_string()))?;
        self.check(&url)?;
        Ok(url)
    }

    /// Checks a URL by itself; needed again for every hop of a redirect.
    ///
    /// # Errors
    /// As for [`Guard::parse`].
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        if url.as_str().len() > URL_MAX {
            return Err(Refused::TooLong);
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::Scheme(url.scheme().chars().take(20).collect()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::Userinfo);
        }
        match url.port() {
            Some(port) if BAD_PORTS.contains(&port) => return Err(Refused::Port(port)),
            Some(_) | None => {}
        }
        // The URL parser has turned every odd spelling of IPv4 (0x7f.1, 2130706433, full-width digits) into numbers.
        match url.host() {
            Some(Host::Ipv4(ip)) => self.check_ip(ip.into()),
            Some(Host::Ipv6(ip)) => self.check_ip(ip.into()),
            // Always this machine (RFC 6761), so it need not wait for the lookup to be refused.
            Some(Host::Domain(name)) if is_localhost(name) => self.check_ip(Ipv4Addr::LOCALHOST.into()),
            Some(Host::Domain(name)) if !name.trim_matches('.').is_empty() => Ok(()),
            Some(Host::Domain(_)) | None => Err(Refused::Syntax("no host in it".into())),
        }
    }

    /// # Errors
    /// The address is private and not allowed.
    pub fn check_ip(&self, ip: IpAddr) -> Result<(), Refused> {
        let plain = ip.to_canonical();
        let allowed = match &self.allow {
            AllowPrivate::All(all) => *all,
            AllowPrivate::Only(nets) => nets.iter().any(|net| net.contains(&ip) || net.contains(&plain)),
        };
        if allowed || is_public(plain) { Ok(()) } else { Err(Refused::Private(plain)) }
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !V4.iter().any(|net| net.contains(&ip)),
        IpAddr::V6(ip) if NAT64.contains(&ip) => {
            let [.., a, b, c, d] = ip.octets();
            is_public(Ipv4Addr::new(a, b, c, d).into())
        }
        IpAddr::V6(ip) => V6_UNICAST.contains(&ip) && !V6.iter().any(|net| net.contains(&ip)),
    }
}

/// A URL as it may be shown in an error or a log: paths and queries hold secrets more often than not.
pub fn shown(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{}://{host}:{port}", url.scheme()),
        (Some(host), None) => format!("{}://{host}", url.scheme()),
        (None, _) => url.scheme().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Guard {
        Guard::new(&AllowPrivate::All(false))
    }

    #[test]
    fn every_spelling_of_a_private_address_is_refused() {
        for host in [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "①②⑦.0.0.1",
            "127。0。0。1",
            "0",
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.19.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::ffff:10.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[100::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "[2002:7f00:1::]",
            "[3fff::1]",
            "[5f00::1]",
            "[fc00::1]",
            "[fd12:3456::1]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
        ] {
            let refused = closed().parse(&format!("http://{host}/")).unwrap_err();
            assert!(matches!(refused, Refused::Private(_)), "{host}: {refused}");
        }
    }

    #[test]
    fn public_addresses_and_names_pass() {
        for host in
            ["example.org", "8.8.8.8", "[2606:4700::1111]", "[64:ff9b::8.8.8.8]", "[::ffff:8.8.8.8]", "100.63.0.1"]
        {
            assert_eq!(closed().parse(&format!("https://{host}/a?b=c")).err(), None, "{host}");
        }
    }

    #[test]
    fn what_is_no_plain_web_address_is_refused() {
        let refused = |text: &str| closed().parse(text).unwrap_err();
        assert!(matches!(refused("example.org/x"), Refused::Syntax(_)));
        assert!(matches!(refused("http://"), Refused::Syntax(_)));
        assert!(matches!(refused("http://exam\nple.org"), Refused::Syntax(_)));
        assert!(matches!(refused("http://./"), Refused::Syntax(_)));
        assert_eq!(refused("file:///etc/passwd"), Refused::Scheme("file".into()));
        assert_eq!(refused("gopher://example.org"), Refused::Scheme("gopher".into()));
        assert_eq!(refused("https://user@example.org"), Refused::Userinfo);
        assert_eq!(refused("https://:pw@example.org"), Refused::Userinfo);
        assert_eq!(refused("http://example.org:25/"), Refused::Port(25));
        assert_eq!(refused(&format!("http://example.org/{}", "a".repeat(URL_MAX))), Refused::TooLong);
    }

    #[test]
    fn the_operator_can_allow_all_private_addresses_or_some_networks() {
        let all = Guard::new(&AllowPrivate::All(true));
        assert_eq!(all.check_ip([127, 0, 0, 1].into()), Ok(()));
        let some = Guard::new(&AllowPrivate::Only(vec!["10.1.0.0/16".parse().unwrap()]));
        assert_eq!(some.parse("http://10.1.2.3/").err(), None);
        assert_eq!(some.parse("http://[::ffff:10.1.2.3]/").err(), None);
        assert!(some.parse("http://10.2.2.3/").is_err());
        assert!(some.parse("http://[64:ff9b::10.1.2.3]/").is_err());
    }

    #[test]
    fn shown_urls_hold_neither_path_nor_query() {
        let url = Url::parse("https://hooks.example.org:8443/services/T0/secret?token=x").unwrap();
        assert_eq!(shown(&url), "https://hooks.example.org:8443");
    }
}
