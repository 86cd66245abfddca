//! What each key takes, as its schema says it: checked when settings are loaded, and shown in the reference.
//!
//! A quantity carries its least and its greatest value in the schema: numbers as `minimum` and `maximum`
//! (`#[schemars(range(…))]`), spans of time and sizes, which are texts, as `x-least` and `x-greatest`. There is no other place for
//! them.

use std::{fmt, net::SocketAddr, sync::LazyLock, time::Duration};

use bytesize::ByteSize;
use ipnet::IpNet;
use schemars::{
    JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema, transform::RecursiveTransform,
};
use serde_json::Value as Json;
use toml::{Table, Value};

use super::Config;

/// In schemas: a span of time, written `250ms`, `30s`, `1h 30m`, `90d`.
pub struct Span;
/// In schemas: a number of bytes, written `512KiB`, `2GiB`.
pub struct Size;
/// In schemas: an address and a port.
pub struct Address;
/// In schemas: a delay of a list of delays.
pub struct Delay;

/// The schema of a text with a form that JSON Schema has no word for.
macro_rules! form {
    ($name:ident, $schema:tt) => {
        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}
form!(Span, {"type": "string", "format": "span"});
form!(Size, {"type": "string", "format": "size"});
form!(Address, {"type": "string", "format": "address"});
form!(Delay, {"type": "string", "format": "span", "x-least": "0s", "x-greatest": "30d"});

/// The schema of all settings, with nothing referred to.
pub fn schema() -> &'static Json {
    static SCHEMA: LazyLock<Json> = LazyLock::new(|| {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let settings = settings.with_transform(RecursiveTransform(no_empty_text));
        settings.into_generator().into_root_schema_for::<Config>().to_value()
    });
    &SCHEMA
}

/// A text that is there says something: an empty token or file name is a mistake wherever it is written.
fn no_empty_text(schema: &mut Schema) {
    let json = schema.as_value();
    let is_text = json["type"] == "string" || json["type"] == serde_json::json!(["string", "null"]);
    let has_form = ["format", "enum", "minLength"].into_iter().any(|word| json.get(word).is_some());
    if is_text && !has_form {
        schema.insert("minLength".into(), 1.into());
    }
}

/// What one key takes.
#[derive(Debug)]
pub enum Takes<'s> {
    /// Keys that are known, and those among them that are needed.
    Keys(&'s Json),
    /// Any names, each with the same keys or values below it.
    Named(&'s Json),
    Flag,
    /// One of these.
    One(Vec<Json>),
    Whole(Option<i64>, Option<i64>),
    Number(Option<f64>, Option<f64>),
    Span(Option<&'s str>, Option<&'s str>),
    Size(Option<&'s str>, Option<&'s str>),
    Address,
    Networks,
    /// At least one character unless it may be empty, and at most so many.
    Text(u64, Option<u64>),
    /// Each as its `items`, and not more than its `maxItems`.
    List(&'s Json),
}

/// What the part of the schema takes that describes a key.
pub fn of(schema: &Json) -> Takes<'_> {
    // `Option` of something larger than a text.
    let parts = ["anyOf", "oneOf"].into_iter().find_map(|word| schema[word].as_array());
    if let Some(parts) = parts {
        let there: Vec<&Json> = parts.iter().filter(|part| part["type"] != "null").collect();
        if let [one] = there[..] {
            return of(one);
        }
        if there.iter().all(|part| part.get("const").is_some()) {
            return Takes::One(there.iter().map(|part| part["const"].clone()).collect());
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        return Takes::One(values.iter().filter(|value| !value.is_null()).cloned().collect());
    }
    let text = |key: &str| schema[key].as_str();
    match text("format") {
        Some("span") => return Takes::Span(text("x-least"), text("x-greatest")),
        Some("size") => return Takes::Size(text("x-least"), text("x-greatest")),
        Some("address") => return Takes::Address,
        Some("networks") => return Takes::Networks,
        _ => {}
    }
    let is = |name: &str| match &schema["type"] {
        Json::Array(names) => names.iter().any(|each| each == name),
        other => other == name,
    };
    if schema.get("properties").is_some() {
        Takes::Keys(schema)
    } else if is("object") {
        Takes::Named(&schema["additionalProperties"])
    } else if is("array") {
        Takes::List(schema)
    } else if is("boolean") {
        Takes::Flag
    } else if is("integer") {
        Takes::Whole(schema["minimum"].as_i64(), schema["maximum"].as_i64())
    } else if is("number") {
        Takes::Number(schema["minimum"].as_f64(), schema["maximum"].as_f64())
    } else {
        Takes::Text(schema["minLength"].as_u64().unwrap_or(0), schema["maxLength"].as_u64())
    }
}

/// What the key at `path` takes; `None`: there is no such key.
pub fn at<'s>(schema: &'s Json, path: &[String]) -> Option<Takes<'s>> {
    let takes = of(schema);
    let Some((first, rest)) = path.split_first() else { return Some(takes) };
    match takes {
        Takes::Keys(keys) => at(keys["properties"].get(first)?, rest),
        Takes::Named(each) => at(each, rest),
        _ => None,
    }
}

/// As `250ms` or `90d`; a number without a unit is none, but for 0.
fn span(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

fn size(value: &Value) -> Option<ByteSize> {
    match value {
        Value::Integer(bytes) => u64::try_from(*bytes).ok().map(ByteSize::b),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// Of a list.
fn most(list: &Json) -> Option<u64> {
    list["maxItems"].as_u64()
}

fn within<T: PartialOrd>(value: &T, least: Option<T>, greatest: Option<T>) -> bool {
    least.is_none_or(|least| *value >= least) && greatest.is_none_or(|greatest| *value <= greatest)
}

impl Takes<'_> {
    /// A text of the environment, of a flag or of the file, in the form that the key has.
    pub fn read(&self, text: &str) -> Value {
        let toml = || toml::from_str::<Table>(&format!("v = {text}")).ok().and_then(|mut table| table.remove("v"));
        let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let read = match self {
            Takes::Text(..) | Takes::Span(..) | Takes::Address => None,
            // A number of bytes.
            Takes::Size(..) => text.trim().parse().ok().map(Value::Integer),
            Takes::One(values) if values.iter().any(Json::is_string) => None,
            Takes::List(list) => {
                let each = of(&list["items"]);
                let plain = || Value::Array(parts().map(|part| each.read(part)).collect());
                Some(toml().filter(Value::is_array).unwrap_or_else(plain))
            }
            Takes::Networks => {
                let plain = || Value::Array(parts().map(Value::from).collect());
                Some(toml().filter(|value| value.is_array() || value.is_bool()).unwrap_or_else(plain))
            }
            Takes::Keys(_) | Takes::Named(_) | Takes::Flag | Takes::One(_) | Takes::Whole(..) | Takes::Number(..) => {
                toml().filter(|value| !value.is_datetime())
            }
        };
        read.unwrap_or_else(|| Value::from(text))
    }

    /// Whether a value is one of those that the key takes. Tables are looked into by [`faults`].
    fn takes(&self, value: &Value) -> bool {
        match self {
            Takes::Keys(_) | Takes::Named(_) => value.is_table(),
            Takes::Flag => value.is_bool(),
            Takes::One(values) => serde_json::to_value(value).is_ok_and(|value| values.contains(&value)),
            Takes::Whole(least, greatest) => value.as_integer().is_some_and(|n| within(&n, *least, *greatest)),
            Takes::Number(least, greatest) => {
                let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
                number.is_some_and(|n| n.is_finite() && within(&n, *least, *greatest))
            }
            Takes::Span(least, greatest) => value
                .as_str()
                .and_then(span)
                .is_some_and(|it| within(&it, least.and_then(span), greatest.and_then(span))),
            Takes::Size(least, greatest) => {
                let bound = |text: &Option<&str>| text.and_then(|text| text.parse().ok());
                size(value).is_some_and(|it| within(&it, bound(least), bound(greatest)))
            }
            Takes::Address => value.as_str().is_some_and(|text| text.parse::<SocketAddr>().is_ok()),
            Takes::Networks => match value {
                Value::Boolean(_) => true,
                Value::Array(nets) => {
                    nets.iter().all(|net| net.as_str().is_some_and(|text| text.parse::<IpNet>().is_ok()))
                }
                _ => false,
            },
            Takes::Text(least, greatest) => {
                value.as_str().is_some_and(|text| within(&(text.chars().count() as u64), Some(*least), *greatest))
            }
            Takes::List(list) => {
                let (each, most) = (of(&list["items"]), most(list));
                value.as_array().is_some_and(|values| {
                    most.is_none_or(|most| values.len() as u64 <= most) && values.iter().all(|value| each.takes(value))
                })
            }
        }
    }

    /// For the reference: the same in a few words.
    pub fn short(&self) -> String {
        let code = |value: &Json| format!("`{}`", plain(value));
        match self {
            Takes::Keys(_) | Takes::Named(_) => "table".into(),
            Takes::Flag => "`true`, `false`".into(),
            Takes::One(values) => values.iter().map(code).collect::<Vec<_>>().join(", "),
            Takes::Whole(..) | Takes::Number(..) | Takes::Span(..) | Takes::Size(..) => self.bounds(),
            Takes::Address => "address and port".into(),
            Takes::Networks => "`true`, `false`, networks".into(),
            Takes::Text(_, None) => "text".into(),
            Takes::Text(_, Some(greatest)) => format!("text, ≤ {greatest} characters"),
            Takes::List(list) => match (of(&list["items"]), most(list)) {
                (Takes::Text(..), None) => "list of texts".into(),
                (each, None) => format!("list, each {}", each.short()),
                (each, Some(most)) => format!("list of ≤ {most}, each {}", each.short()),
            },
        }
    }

    /// `1 to 100`, as far as there are bounds.
    fn bounds(&self) -> String {
        let (least, greatest) = match self {
            Takes::Whole(least, greatest) => (least.map(|n| n.to_string()), greatest.map(|n| n.to_string())),
            Takes::Number(least, greatest) => (least.map(|n| n.to_string()), greatest.map(|n| n.to_string())),
            Takes::Span(least, greatest) | Takes::Size(least, greatest) => {
                (least.map(str::to_owned), greatest.map(str::to_owned))
            }
            _ => (None, None),
        };
        match (least, greatest) {
            (Some(least), Some(greatest)) => format!("{least} to {greatest}"),
            (Some(least), None) => format!("{least} or more"),
            (None, Some(greatest)) => format!("{greatest} or less"),
            (None, None) => String::new(),
        }
    }
}

/// In a sentence: `takes …`.
impl fmt::Display for Takes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = self.bounds();
        match self {
            Takes::Keys(keys) => write!(f, "a table of the keys {}", names(keys)),
            Takes::Named(_) => f.write_str("a table with names of your choice"),
            Takes::Flag => f.write_str("true or false"),
            Takes::One(values) => match values.split_last() {
                Some((last, rest)) if !rest.is_empty() => {
                    let rest: Vec<_> = rest.iter().map(plain).collect();
                    write!(f, "{} or {}", rest.join(", "), plain(last))
                }
                _ => values.iter().try_for_each(|value| f.write_str(&plain(value))),
            },
            Takes::Whole(..) => write!(f, "a whole number, {bounds}"),
            Takes::Number(..) => write!(f, "a number, {bounds}"),
            Takes::Span(..) => write!(f, "a span of time, {bounds}, written like 250ms, 30s, 1h or 7d"),
            Takes::Size(..) => write!(f, "a size, {bounds}, written like 512KiB or 2GiB"),
            Takes::Address => f.write_str("an IP address and a port, like 127.0.0.1:8080 or [::1]:8080"),
            Takes::Networks => f.write_str("true, false, or a list of networks like 10.1.0.0/16,192.168.7.0/24"),
            Takes::Text(0, None) => f.write_str("a text"),
            Takes::Text(_, None) => f.write_str("a text that is not empty; leave the key out to have none"),
            Takes::Text(_, Some(greatest)) => write!(f, "a text of at most {greatest} characters"),
            Takes::List(list) => {
                let most = most(list).map_or_else(String::new, |most| format!(" of at most {most}"));
                write!(f, "a list{most}, separated by commas or as TOML, each {}", of(&list["items"]))
            }
        }
    }
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn names(keys: &Json) -> String {
    let names = keys["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    names.collect::<Vec<_>>().join(", ")
}

/// Brings texts that stand for lists into the form that their keys have.
pub fn bring_into_form(schema: &Json, table: &mut Table) {
    for (key, value) in table {
        let Some(takes) = at(schema, std::slice::from_ref(key)) else { continue };
        match (takes, value) {
            (takes @ (Takes::List(_) | Takes::Networks), value) => {
                if let Some(text) = value.as_str() {
                    *value = takes.read(text);
                }
            }
            (Takes::Keys(below), Value::Table(inner)) => bring_into_form(below, inner),
            (Takes::Named(each), Value::Table(inner)) => {
                for value in inner.iter_mut().filter_map(|(_, value)| value.as_table_mut()) {
                    bring_into_form(each, value);
                }
            }
            _ => {}
        }
    }
}

/// What is wrong with the values of a table: the path of each key, and a sentence that says what it takes and never
/// what it has.
pub fn faults(table: &Table) -> Vec<(Vec<String>, String)> {
    let mut found = Vec::new();
    look(schema(), &Value::Table(table.clone()), &mut Vec::new(), &mut found);
    found
}

fn look(schema: &Json, value: &Value, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, String)>) {
    let takes = of(schema);
    if !takes.takes(value) {
        found.push((path.clone(), format!("takes {takes}")));
        return;
    }
    let Some(table) = value.as_table() else { return };
    for (key, value) in table {
        path.push(key.clone());
        match &takes {
            Takes::Keys(keys) => match keys["properties"].get(key) {
                Some(below) => look(below, value, path, found),
                None => found.push((path.clone(), format!("is no key; here are {}", names(keys)))),
            },
            Takes::Named(each) if each.is_object() => look(each, value, path, found),
            _ => {}
        }
        path.pop();
    }
}

/// Keys that are needed and not there.
pub fn missing(schema: &Json, table: &Table) -> Vec<Vec<String>> {
    let needed = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
    let mut found: Vec<_> = needed.filter(|key| !table.contains_key(*key)).map(|key| vec![key.to_owned()]).collect();
    for (key, value) in table {
        let below = match (at(schema, std::slice::from_ref(key)), value) {
            (Some(Takes::Keys(keys)), Value::Table(inner)) => missing(keys, inner),
            (Some(Takes::Named(each)), Value::Table(inner)) => {
                let tables = inner.iter().filter_map(|(name, value)| Some((name, value.as_table()?)));
                let keys = match of(each) {
                    Takes::Keys(keys) => keys,
                    _ => continue,
                };
                tables
                    .flat_map(|(name, table)| missing(keys, table).into_iter().map(|path| under(name, path)))
                    .collect()
            }
            _ => continue,
        };
        found.extend(below.into_iter().map(|path| under(key, path)));
    }
    found
}

fn under(name: &str, mut path: Vec<String>) -> Vec<String> {
    path.insert(0, name.to_owned());
    path
}
