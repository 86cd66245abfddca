//! The page of promises names a test for each of them, and each of these tests is there.

use std::path::Path;

fn page() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guarantees.md")).unwrap()
}

/// What stands between backticks and looks like `file::name`.
fn named(text: &str) -> Vec<(&str, &str)> {
    let spans = text.split('`').skip(1).step_by(2);
    spans.filter_map(|span| span.split_once("::")).filter(|(file, name)| !file.is_empty() && !name.is_empty()).collect()
}

#[test]
fn every_test_that_the_promises_name_exists() {
    let page = page();
    let tests = named(&page);
    assert!(tests.len() > 40, "the promises name {} tests", tests.len());
    for (file, name) in tests {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/{file}.rs"));
        let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let at = source.find(&format!("fn {name}()")).unwrap_or_else(|| panic!("there is no test {file}::{name}"));
        let before = &source[..at];
        let attribute = before.rfind("#[").map(|at| &before[at..]).unwrap_or_default();
        assert!(attribute.contains("test"), "{file}::{name} is no test");
        assert!(!attribute.contains('}'), "{file}::{name} is no test");
    }
}

#[test]
fn every_promise_and_every_fault_names_a_test() {
    let page = page();
    for section in ["## Promises", "## What you will see"] {
        let from = page.find(section).unwrap();
        let rest = &page[from + section.len()..];
        let rows = rest[..rest.find("\n## ").unwrap()].lines().filter(|line| line.starts_with('|')).skip(2);
        for row in rows {
            assert!(!named(row).is_empty(), "no test stands behind: {row}");
        }
    }
}
