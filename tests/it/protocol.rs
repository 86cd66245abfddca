//! docs/protocol.md is complete: what it lists is what there is.

use std::collections::{BTreeMap, BTreeSet};

use queue_service::ops::{Code, VERBS, limits};

/// The rows of the first table below a heading: its cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md")).unwrap();
    let below = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("there is no {heading}")).1;
    let rows = below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| -> Vec<String> {
        let inside = row.trim_matches('|').replace("\\|", "\u{1}");
        inside.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
    };
    rows.skip(2).map(cells).collect()
}

#[test]
fn the_page_lists_every_verb_with_every_field_of_its_request() {
    let rows: BTreeMap<String, String> =
        table("### Verbs").into_iter().map(|cells| (cells[0].trim_matches('`').to_owned(), cells[1].clone())).collect();
    let names: BTreeSet<&str> = rows.keys().map(String::as_str).collect();
    assert_eq!(names, VERBS.into_iter().map(|verb| verb.name()).collect());
    for verb in VERBS {
        let request = verb.schemas().0;
        for field in request["properties"].as_object().into_iter().flatten().map(|(name, _)| name) {
            let told =
                rows[verb.name()].contains(&format!("\"{field}\"")) || rows[verb.name()].contains("[definition]");
            assert!(told, "{field} of {} is missing in: {}", verb.name(), rows[verb.name()]);
        }
    }
    let definition: BTreeSet<String> = table("## Types")
        .iter()
        .flat_map(|cells| cells[0].split(", ").map(|key| key.trim_matches('`').to_owned()))
        .collect();
    let fields = queue_service::ops::Verb::RegisterType.schemas().0["properties"].as_object().unwrap().clone();
    assert_eq!(definition, fields.into_iter().map(|(name, _)| name).collect());
}

#[test]
fn the_page_lists_every_code_with_its_status_and_what_to_do() {
    let rows = table("### Refusals");
    let listed: BTreeMap<&str, u16> =
        rows.iter().map(|cells| (cells[0].trim_matches('`'), cells[1].parse().unwrap())).collect();
    assert_eq!(listed, Code::ALL.into_iter().map(|code| (code.as_str(), code.status())).collect());
    assert!(rows.iter().all(|cells| !cells[2].is_empty()));
}

#[test]
fn the_limits_on_the_page_are_those_that_hold() {
    let listed: Vec<(String, String)> =
        table("## Limits").into_iter().map(|cells| (cells[0].clone(), cells[1].clone())).collect();
    let hold: Vec<(String, String)> = limits::all().into_iter().map(|(what, limit)| (what.to_owned(), limit)).collect();
    assert_eq!(listed, hold);
}
