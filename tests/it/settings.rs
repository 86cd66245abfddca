//! Settings: every duration, size and count has a least and a greatest value, which hold when they are loaded.

use std::time::Duration;

use queue_service::config::{
    self,
    takes::{self, Takes},
};
use serde_json::Value as Json;
use toml::{Table, Value};

/// Every key that holds a value, with the part of the schema that describes it.
fn keys<'s>(schema: &'s Json, path: &[&str], found: &mut Vec<(Vec<String>, &'s Json)>) {
    match takes::of(schema) {
        Takes::Keys(below) => {
            for (key, schema) in below["properties"].as_object().unwrap() {
                keys(schema, &[path, &[key.as_str()]].concat(), found);
            }
        }
        Takes::Named(each) => keys(each, &[path, &["a-name"]].concat(), found),
        _ => found.push((path.iter().map(|&key| key.to_owned()).collect(), schema)),
    }
}

/// What loading says of a file with this value alone.
fn loaded(path: &[String], value: &Value) -> Result<(), String> {
    let mut table = Table::new();
    // What these tables need besides.
    for (inside, needed) in [("smtp.dkim", "domain selector key"), ("ai.providers", "a-name.base_url a-name.models")] {
        if inside.split('.').eq(path.iter().take(2).map(String::as_str)) {
            for key in needed.split(' ') {
                let needed: Vec<String> = format!("{inside}.{key}").split('.').map(str::to_owned).collect();
                put(&mut table, &needed, Value::from("plain"));
            }
        }
    }
    put(&mut table, path, value.clone());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, table.to_string()).unwrap();
    config::load(Some(file.path()), std::iter::empty(), &[]).map(|_| ()).map_err(|e| e.to_string())
}

fn put(table: &mut Table, path: &[String], value: Value) {
    let (last, above) = path.split_last().unwrap();
    let mut inner = table;
    for key in above {
        inner = inner.entry(key.clone()).or_insert_with(|| Value::Table(Table::new())).as_table_mut().unwrap();
    }
    inner.insert(last.clone(), value);
}

/// Values at both bounds, and values that are beyond them; `None`: a bound is missing, or this is no quantity.
fn bounds(takes: &Takes<'_>) -> Option<(Vec<Value>, Vec<Value>)> {
    let span = |text: &str| humantime::parse_duration(text).unwrap();
    let written = |span: Duration| Value::from(humantime::format_duration(span).to_string());
    let size = |text: &str| text.parse::<bytesize::ByteSize>().unwrap().as_u64() as i64;
    Some(match takes {
        Takes::Whole(Some(least), Some(greatest)) => {
            let zero = (*least > 0).then_some(0);
            let beyond = [Some(-1), zero, Some(least - 1), Some(greatest + 1), Some(i64::MAX)];
            (vec![(*least).into(), (*greatest).into()], beyond.into_iter().flatten().map(Value::from).collect())
        }
        Takes::Number(Some(least), Some(greatest)) => {
            let beyond = [-1.0, least - 0.1, least - 1.0, greatest + 0.1, f64::NAN, f64::INFINITY];
            (vec![(*least).into(), (*greatest).into()], beyond.map(Value::from).into())
        }
        Takes::Span(Some(least), Some(greatest)) => {
            let (least, greatest) = (span(least), span(greatest));
            let mut beyond =
                vec![Value::from("-1s"), (-1).into(), 0.into(), written(greatest + Duration::from_millis(1))];
            if let Some(below) = least.checked_sub(Duration::from_millis(1)) {
                beyond.extend([Value::from("0s"), written(below)]);
            }
            (vec![written(least), written(greatest)], beyond)
        }
        Takes::Size(Some(least), Some(greatest)) => {
            let (least, greatest) = (size(least), size(greatest));
            let beyond = [-1, 0, least - 1, greatest + 1].map(Value::from);
            (vec![least.into(), greatest.into()], [&beyond[..], &[Value::from("0B"), "-1KiB".into()]].concat())
        }
        _ => return None,
    })
}

#[test]
fn every_quantity_has_a_least_and_a_greatest_value_that_hold_at_the_start() {
    let mut all = Vec::new();
    keys(takes::schema(), &[], &mut all);
    let mut quantities = 0;
    for (path, schema) in &all {
        let key = path.join(".");
        // What a list holds is tried as a list of one.
        let (takes, listed) = match takes::of(schema) {
            Takes::List(list) => (takes::of(&list["items"]), true),
            // Numbers of which only some are right have bounds all the same.
            Takes::One(values) if values.iter().all(Json::is_number) => {
                (Takes::Whole(schema["minimum"].as_i64(), schema["maximum"].as_i64()), false)
            }
            takes => (takes, false),
        };
        let whole = |value: &Value| if listed { Value::Array(vec![value.clone()]) } else { value.clone() };
        match takes {
            Takes::Whole(..) | Takes::Number(..) | Takes::Span(..) | Takes::Size(..) => {
                let (taken, beyond) = bounds(&takes).unwrap_or_else(|| panic!("{key} has no bounds"));
                for value in &taken {
                    assert_eq!(loaded(path, &whole(value)), Ok(()), "{key} = {value}");
                }
                for value in &beyond {
                    let told = loaded(path, &whole(value)).expect_err(&format!("{key} took {value}"));
                    let said = told.contains(&key) && told.contains(" takes ");
                    assert!(said, "{key} = {value} is refused so: {told}");
                }
                quantities += 1;
            }
            // A quantity that the schema calls a text would not take one. What goes in pairs is refused alone.
            Takes::Text(..) => {
                let told = loaded(path, &whole(&Value::from("plain"))).err().unwrap_or_default();
                assert!(told.is_empty() || told.contains("go together"), "{key} is no plain text: {told}");
            }
            Takes::Flag | Takes::One(_) | Takes::Address | Takes::Networks => {}
            Takes::Keys(_) | Takes::Named(_) | Takes::List(_) => panic!("{key}: {takes:?}"),
        }
    }
    assert!(quantities >= 35, "only {quantities} quantities were found among {} keys", all.len());
}

#[test]
fn the_reference_shows_what_each_quantity_takes() {
    let page = config::reference::markdown();
    for row in [
        "| `lease` | 300ms to 1h | `30s` |",
        "| `payload` | 1KiB to 768KiB | `512.0 KiB` |",
        "| `replicas` | `1`, `3`, `5` | `1` |",
        "| `factor` | 1 to 100 | `2.0` |",
        "| `retry.base` | 0s to 30d | – |",
        "| `providers.<name>.base_url` | text | – |",
        "| `allow_private` | `true`, `false`, networks | `false` |",
    ] {
        assert!(page.contains(row), "{row} is not in\n{page}");
    }
}

fn env(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>().into_iter()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn faults_say_key_origin_and_what_is_taken_and_never_the_value() {
    for (key, value, taken) in [
        ("worker.lease", "canary", "a span of time, 300ms to 1h"),
        ("worker.batch", "canary", "a whole number, 1 to 1000"),
        ("retry.factor", "canary", "a number, 1 to 100"),
        ("limits.payload", "canary", "a size, 1KiB to 768KiB"),
        ("http.enabled", "canary", "true or false"),
        ("http.bind", "canary", "an IP address and a port"),
        ("log.format", "canary", "text or json"),
        ("nats.replicas", "2", "1, 3 or 5"),
        ("types.a.handler", "canary", "nats, http"),
        ("webhook.allow_private", "canary", "true, false, or a list of networks like 10.1.0.0/16"),
        ("webhook.allow_private", "10.0.0.0/8,canary", "true, false, or a list of networks like 10.1.0.0/16"),
        ("retry.schedule", "1s,canary", "a list of at most 100"),
        ("types.a.retry.base", "canary", "a span of time, 0s to 30d"),
        ("ai.providers.x.models", "canary", "ai.providers.x.base_url"),
        ("smtp.dkim", "canary", "a table of the keys"),
        ("nats.prefix", "canary.*", "1 to 100 letters"),
        ("http.bind", "192.0.2.77:1", "http.token"),
    ] {
        let name = format!("QUEUE__{}", key.replace('.', "__").to_uppercase());
        let told = config::load(None, env(&[(&name, value)]), &[]).unwrap_err().to_string();
        assert!(told.contains(taken), "{key}: {told}");
        assert!(!told.contains("canary") && !told.contains("192.0.2.77"), "{told}");
    }
    let broken = file("[http]\ntoken = 'x'\n[smtp]\nurl = 'smtp://u:canary@h\n");
    let told = config::load(Some(broken.path()), env(&[]), &[]).unwrap_err().to_string();
    assert!(told.contains("line 4") && !told.contains("canary"), "{told}");
    let empty = file("[http]\ntoken = ''");
    let told = config::load(Some(empty.path()), env(&[]), &[]).unwrap_err().to_string();
    assert!(told.contains("http.token") && told.contains("not empty"), "{told}");
}

#[test]
fn empty_variables_are_unset_and_lists_may_be_plain_text() {
    let file = file("[http]\ntoken = 'kept'\n[crawl]\nallow_private = '10.1.0.0/16, 192.168.7.0/24'\n");
    let env = env(&[
        ("QUEUE__HTTP__TOKEN", ""),
        ("QUEUE__NATS__TLS_CA", ""),
        ("NATS_URL", ""),
        ("QUEUE__WORKER__LEASE", " "),
        ("QUEUE__WEBHOOK__ALLOW_PRIVATE", "10.1.0.0/16,192.168.7.0/24"),
        ("QUEUE__HANDLERS__ALLOW_PRIVATE", "true"),
        ("QUEUE__AI__PROVIDERS__X__BASE_URL", "http://h"),
        ("QUEUE__AI__PROVIDERS__X__MODELS", "gpt-,text-"),
        ("QUEUE__TYPES__A__RETRY__SCHEDULE", "1s, 5s"),
        ("QUEUE__TYPES__A__DESCRIPTION", "12"),
        ("QUEUE__RETRY__FACTOR", "2"),
    ]);
    let config = config::load(Some(file.path()), env, &[]).unwrap().config;
    assert!(config.http.token.is_some() && config.nats.tls_ca.is_none());
    assert_eq!(
        (config.nats.url, config.worker.lease),
        (config::Config::default().nats.url, config::Config::default().worker.lease)
    );
    let nets = config::AllowPrivate::Only(vec!["10.1.0.0/16".parse().unwrap(), "192.168.7.0/24".parse().unwrap()]);
    assert_eq!((&config.webhook.allow_private, &config.crawl.allow_private), (&nets, &nets));
    assert_eq!(config.handlers.allow_private, config::AllowPrivate::All(true));
    assert_eq!(config.ai.providers["x"].models, ["gpt-", "text-"]);
    assert_eq!(config.types["a"].retry["schedule"].as_array().unwrap().len(), 2);
    assert_eq!(config.types["a"].description.as_deref(), Some("12"));
}
