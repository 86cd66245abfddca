//! Where the database is: `database.url`, read as libpq reads it, or refused with the reason.
//!
//! Invariant: no value of the URL is ever in a message, but for hosts and ports.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

/// Parameters that the driver takes. Source: sqlx-postgres 0.9, `options/parse.rs`.
const KNOWN: [&str; 16] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "passfile",
];

const FORM: &str = "write postgres://user:password@host:port/database";

/// A server that the database may be on.
type Host = (String, Option<u16>);

/// How to connect to each server of a URL, in their order.
///
/// # Errors
/// What is wrong with it, and what is taken.
pub(super) fn servers(url: &str) -> Result<Vec<PgConnectOptions>, String> {
    let Some((scheme, rest)) = url.trim().split_once("://") else {
        return Err(format!("it is no URL; {FORM}"));
    };
    if !matches!(scheme, "postgres" | "postgresql") {
        return Err(format!("it must begin with postgres:// or postgresql://; {FORM}"));
    }
    let (authority, path, query) = parts(rest);
    let (login, hosts) = authority.rsplit_once('@').map_or(("", authority), |(login, hosts)| (login, hosts));
    let mut hosts = hosts_of(hosts)?;
    let (mut named, mut ports, mut kept) = (None, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "host" | "hostaddr" => named = Some(decoded(value)),
            "port" => ports = Some(decoded(value)),
            "target_session_attrs" if matches!(value, "any" | "read-write" | "primary") => {}
            "target_session_attrs" => {
                return Err("target_session_attrs must be any, read-write or primary: jobs are written".into());
            }
            key if KNOWN.contains(&key) || key.starts_with("options[") => kept.push(pair),
            // Of libpq, and without a meaning here.
            key => tracing::warn!("database.url: the parameter {key} is not used"),
        }
    }
    if let Some(named) = named {
        let port_of = |place: usize| hosts.get(place).and_then(|(_, port)| *port);
        hosts = named.split(',').enumerate().map(|(place, host)| (host.to_owned(), port_of(place))).collect();
    }
    if let Some(ports) = ports {
        set_ports(&mut hosts, &ports)?;
    }
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    let login = if login.is_empty() { String::new() } else { format!("{login}@") };
    // The driver reads all but the servers; its own messages may quote what it was given.
    let base = format!("{scheme}://{login}localhost{path}{query}");
    let base = PgConnectOptions::from_str(&base).map_err(|_| format!("a part of it can't be read; {FORM}"))?;
    Ok(hosts.into_iter().map(|(host, port)| at(base.clone(), &host, port)).collect())
}

/// What stands before the path, the path, and the query.
fn parts(rest: &str) -> (&str, &str, &str) {
    let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    match before.find('/') {
        Some(at) => (&before[..at], &before[at..], query),
        None => (before, "", query),
    }
}

fn hosts_of(text: &str) -> Result<Vec<Host>, String> {
    text.split(',').map(host_of).collect()
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`, or nothing.
fn host_of(text: &str) -> Result<Host, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').ok_or("an address of IPv6 must end with ]")?;
            (host.to_owned(), rest.strip_prefix(':').unwrap_or(rest))
        }
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, ""));
            if port.contains(':') {
                return Err("an address of IPv6 is written in brackets, as in [::1]:5432".into());
            }
            (decoded(host), port)
        }
    };
    Ok((host, if port.is_empty() { None } else { Some(port_of(port)?) }))
}

fn port_of(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| "a port must be 1 to 65535".to_owned())
}

/// One for all, or one for each.
fn set_ports(hosts: &mut [Host], text: &str) -> Result<(), String> {
    let ports: Vec<&str> = text.split(',').collect();
    if ports.len() > 1 && ports.len() != hosts.len() {
        return Err(format!("there are {} hosts and {} ports", hosts.len(), ports.len()));
    }
    for (place, host) in hosts.iter_mut().enumerate() {
        let port = ports.get(place).or(ports.first()).filter(|port| !port.is_empty());
        host.1 = port.map(|port| port_of(port)).transpose()?;
    }
    Ok(())
}

fn at(options: PgConnectOptions, host: &str, port: Option<u16>) -> PgConnectOptions {
    let options = match host {
        "" => from_environment(options),
        socket if socket.starts_with('/') => options.socket(socket),
        host => options.host(host),
    };
    options.port(port.unwrap_or_else(default_port))
}

/// As libpq: `PGHOST`, else this machine.
fn from_environment(options: PgConnectOptions) -> PgConnectOptions {
    match std::env::var("PGHOST") {
        Ok(socket) if socket.starts_with('/') => options.socket(socket),
        Ok(host) if !host.is_empty() => options.host(&host),
        _ => options.host("localhost"),
    }
}

fn default_port() -> u16 {
    std::env::var("PGPORT").ok().and_then(|port| port.parse().ok()).unwrap_or(5432)
}

/// Undoes the percent encoding.
fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// A server as people write it.
pub(super) fn shown(options: &PgConnectOptions) -> String {
    match (options.get_socket(), options.get_host(), options.get_port()) {
        (Some(socket), _, port) => format!("{}/.s.PGSQL.{port}", socket.display()),
        (None, v6, port) if v6.contains(':') => format!("[{v6}]:{port}"),
        (None, host, port) => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Vec<String> {
        servers(url).unwrap_or_else(|e| panic!("{url}: {e}")).iter().map(shown).collect()
    }

    #[test]
    fn servers_are_read_as_libpq_reads_them() {
        for (url, expected) in [
            ("postgres://h/db", vec!["h:5432"]),
            ("postgresql://me:p%40ss@h:7/db?sslmode=disable", vec!["h:7"]),
            ("postgres://[::1]/db", vec!["[::1]:5432"]),
            ("postgres://me@[fe80::1]:7/db", vec!["[fe80::1]:7"]),
            ("postgres://a:1,[::1]:2,c/db?target_session_attrs=read-write", vec!["a:1", "[::1]:2", "c:5432"]),
            ("postgres:///db?host=/var/run/postgresql", vec!["/var/run/postgresql/.s.PGSQL.5432"]),
            ("postgres:///db?host=%2Ftmp&port=7", vec!["/tmp/.s.PGSQL.7"]),
            ("postgres://%2Ftmp/db", vec!["/tmp/.s.PGSQL.5432"]),
            ("postgres:///db?host=::1&port=7", vec!["[::1]:7"]),
            ("postgres:///db?host=a,b&port=1,2", vec!["a:1", "b:2"]),
            ("postgres:///db?host=a,b&port=3", vec!["a:3", "b:3"]),
            ("postgres://h:7/db?host=other", vec!["other:7"]),
        ] {
            assert_eq!(read(url), expected, "{url}");
        }
        let options = &servers("postgres://me:p%40ss@h/my%20db?application_name=x").unwrap()[0];
        assert_eq!((options.get_username(), options.get_database()), ("me", Some("my db")));
    }

    #[test]
    fn what_can_not_be_used_is_refused_without_the_password() {
        for (url, words) in [
            ("mysql://me:canary@h/db", "postgres://"),
            ("host=h password=canary", "no URL"),
            ("postgres://me:canary@h:99999/db", "1 to 65535"),
            ("postgres://me:canary@h:x/db", "1 to 65535"),
            ("postgres://me:canary@::1/db", "in brackets"),
            ("postgres://me:canary@[::1/db", "must end with ]"),
            ("postgres://me:canary@h/db?sslmode=canary", "a part of it"),
            ("postgres://me:canary@a,b/db?port=1,2,3", "2 hosts and 3 ports"),
            ("postgres://me:canary@a,b/db?target_session_attrs=standby", "jobs are written"),
        ] {
            let error = servers(url).unwrap_err();
            assert!(error.contains(words) && !error.contains("canary"), "{url}: {error}");
        }
    }
}
