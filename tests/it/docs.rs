//! The documentation says what is: its snippets run, its links lead somewhere, and what it names exists.
//!
//! A fenced block says by its second word what is done with it: `sh run`, `python run`, `toml config`, `ts check`,
//! `go check`. Rust blocks are compiled as documentation tests of the library.

use std::{
    collections::BTreeSet,
    fmt::Write,
    path::{Path, PathBuf},
};

use clap::CommandFactory;
use queue_service::{
    cli::Cli,
    config,
    dev::{process::find, sandbox::Sandbox},
    handlers::registry::BUILTIN_TYPES,
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    child::Program,
    harness::{PATIENCE, Place},
};

/// The addresses that readers find their own service at.
const HTTP: &str = "http://127.0.0.1:8080";
const NATS: &str = "nats://127.0.0.1:4222";

struct Page {
    name: String,
    text: String,
}

struct Block {
    place: String,
    info: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<Page> {
    let mut pages = Vec::new();
    for folder in ["", "docs", "docs/adr", "examples"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap().flatten() {
            if entry.path().extension().is_some_and(|ext| ext == "md") {
                let name = entry.path().strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                pages.push(Page { name, text: std::fs::read_to_string(entry.path()).unwrap() });
            }
        }
    }
    pages.sort_by(|a, b| a.name.cmp(&b.name));
    pages
}

impl Page {
    /// Its fenced blocks, and its other lines with their numbers.
    fn parts(&self) -> (Vec<Block>, Vec<(usize, &str)>) {
        let (mut blocks, mut prose, mut open) = (Vec::new(), Vec::new(), None::<Block>);
        for (number, line) in self.text.lines().enumerate() {
            match (line.strip_prefix("```"), open.take()) {
                (Some(info), None) => {
                    let place = format!("{}:{}", self.name, number + 1);
                    open = Some(Block { place, info: info.to_owned(), text: String::new() });
                }
                (Some(_), Some(block)) => blocks.push(block),
                (None, Some(mut block)) => {
                    writeln!(block.text, "{line}").unwrap();
                    open = Some(block);
                }
                (None, None) => prose.push((number + 1, line)),
            }
        }
        assert!(open.is_none(), "{} ends inside a block", self.name);
        (blocks, prose)
    }

    /// Everything between backticks outside of blocks.
    fn spans(&self) -> Vec<(String, String)> {
        let of_line = |(number, line): &(usize, &str)| {
            let spans: Vec<_> = line.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            spans.into_iter().map(|span| (format!("{}:{number}", self.name), span)).collect::<Vec<_>>()
        };
        self.parts().1.iter().flat_map(of_line).collect()
    }

    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.parts().1.into_iter().filter(|(_, line)| line.starts_with('#'));
        headings.map(|(_, line)| anchor(line.trim_start_matches('#').trim())).collect()
    }
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

fn blocks(info: &str) -> Vec<Block> {
    pages().iter().flat_map(|page| page.parts().0).filter(|block| block.info == info).collect()
}

/// Runs a program with `text` in a file named `name`, and fails with everything it said.
async fn run(mut command: Command, block: &Block, name: &str, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), text).unwrap();
    command.arg(name).current_dir(folder.path()).env("HOME", folder.path()).env("XDG_CONFIG_HOME", folder.path());
    let output = command.stdin(std::process::Stdio::null()).kill_on_drop(true).output();
    let output =
        tokio::time::timeout(PATIENCE, output).await.unwrap_or_else(|_| panic!("{} does not end", block.place));
    let output = output.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} ends with {}:\n{text}\n{said}", block.place, output.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snippets_in_the_documentation_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ready.json");
    let arguments = ["dev", "--ephemeral", "--http", "127.0.0.1:0", "--ready-file", file.to_str().unwrap()];
    let program = Program::start(&arguments, None);
    program.logged("queue-service is ready").await;
    let ready: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let (http, nats) = (ready["httpUrl"].as_str().unwrap(), ready["natsUrl"].as_str().unwrap());

    let own = Path::new(env!("CARGO_BIN_EXE_queue-service")).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = [own, root().join(".tools/bin")].into_iter().chain(std::env::split_paths(&path));
    let path = std::env::join_paths(path).unwrap();
    let python = root().join(".tools/python/bin/python");
    assert!(python.exists(), "the Python client is missing: run script/bootstrap --test");
    let mut ran = BTreeSet::new();
    for page in pages() {
        for block in page.parts().0 {
            let text = block.text.replace(HTTP, http).replace(NATS, nats);
            let (mut command, name) = match block.info.as_str() {
                "sh run" => (Command::new("bash"), "snippet.sh"),
                "python run" => (Command::new(&python), "snippet.py"),
                _ => continue,
            };
            if name == "snippet.sh" {
                command.args(["-e", "-u", "-o", "pipefail"]);
            }
            command.env("PATH", &path).env("NATS_URL", nats);
            run(command, &block, name, &text).await;
            ran.insert(name);
        }
    }
    assert_eq!(ran.len(), 2, "the snippets are marked otherwise now: {ran:?}");
    program.stop().await;
}

#[tokio::test]
async fn snippets_in_languages_that_need_not_be_here_are_well_formed_where_they_are() {
    for (info, program, arguments, name) in
        [("ts check", "node", &["--check"][..], "snippet.mjs"), ("go check", "gofmt", &["-e", "-l"], "snippet.go")]
    {
        let found = blocks(info);
        assert!(!found.is_empty(), "no block is marked '{info}'");
        let Some(program) = find(program) else { continue };
        for block in found {
            let mut command = Command::new(&program);
            command.args(arguments);
            run(command, &block, name, &block.text).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_all_job_types_complete() {
    let sandbox = Sandbox::start().await.unwrap();
    let mut place = Place::new().await;
    sandbox.apply(&mut place.config, |_| false);
    let service = place.start().await;
    let mut done = BTreeSet::new();
    for example in blocks("json") {
        let mut request: Value = serde_json::from_str(&example.text).unwrap();
        let Some(job_type) = request["type"].as_str().map(str::to_owned) else { continue };
        // What an example asks of somebody else's server, the sandbox answers.
        match job_type.as_str() {
            "webhook-delivery" => request["payload"]["url"] = json!(sandbox.url("/dev/webhooks/example")),
            "crawl-website" => request["payload"]["url"] = json!(sandbox.site_url()),
            _ => {}
        }
        let id = service.enqueue(request).await;
        let job = service.finished(&id).await;
        assert_eq!(job["status"], "completed", "{}: {job}", example.place);
        done.insert(job_type);
    }
    let known: BTreeSet<String> = BUILTIN_TYPES.iter().map(ToString::to_string).collect();
    assert_eq!(done, known);
    service.stop().await;
}

#[test]
fn every_block_says_its_language_and_json_and_settings_are_valid() {
    for page in pages() {
        for block in page.parts().0 {
            // Without one, the documentation tests would take it for Rust.
            assert!(!block.info.is_empty(), "{}: which language is it?", block.place);
            if block.info == "json" {
                serde_json::from_str::<Value>(&block.text).unwrap_or_else(|e| panic!("{}: {e}", block.place));
            }
        }
    }
    for block in blocks("toml config") {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), &block.text).unwrap();
        config::load(Some(file.path()), std::iter::empty(), &[]).unwrap_or_else(|e| panic!("{}: {e}", block.place));
    }
}

#[test]
fn the_reference_of_the_configuration_is_the_one_of_this_version() {
    let page = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let same = page.trim_end() == config::reference::markdown().trim_end();
    assert!(same, "docs/configuration.md is not what `queue-service config --reference` prints");
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    for page in &pages {
        for (number, line) in page.parts().1 {
            for rest in line.split("](").skip(1) {
                let (target, _) = rest.split_once(')').unwrap_or((rest, ""));
                if target.contains("://") {
                    continue;
                }
                let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
                let file = match path {
                    "" => root().join(&page.name),
                    path => root().join(Path::new(&page.name).parent().unwrap()).join(path),
                };
                let place = format!("{}:{number}: {target}", page.name);
                let file = file.canonicalize().unwrap_or_else(|_| panic!("{place}: there is no such file"));
                if !fragment.is_empty() {
                    let there = pages.iter().find(|page| root().join(&page.name).canonicalize().unwrap() == file);
                    assert!(there.is_some_and(|page| page.anchors().contains(fragment)), "{place}: no such heading");
                }
            }
        }
    }
}

/// The words of a line of shell, up to where another command begins.
fn commands(line: &str) -> Vec<Vec<&str>> {
    let split = line.split(['|', ';', '&', '(', ')']);
    split.map(|command| command.split_whitespace().collect()).collect()
}

#[test]
fn commands_options_recipes_scripts_and_files_that_are_named_exist() {
    let cli = Cli::command();
    let justfile = std::fs::read_to_string(root().join("justfile")).unwrap();
    let recipes: BTreeSet<&str> = justfile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains(':'))
        .filter_map(|line| line.split([' ', ':']).next())
        .collect();
    for page in pages() {
        let lines = |block: Block| {
            let place = block.place;
            let joined = block.text.replace("\\\n", " ");
            joined.lines().map(|line| (place.clone(), line.to_owned())).collect::<Vec<_>>()
        };
        let shell = page.parts().0.into_iter().filter(|block| block.info.starts_with("sh")).flat_map(lines);
        let spans = page.spans();
        for (place, line) in shell.chain(spans.iter().cloned()) {
            for words in commands(&line) {
                check_own_command(&cli, &place, &words);
                if let ["just", recipe, ..] = words[..] {
                    assert!(recipes.contains(recipe), "{place}: there is no recipe '{recipe}'");
                }
                for script in words.iter().filter(|word| word.starts_with("script/")) {
                    assert!(root().join(script).is_file(), "{place}: there is no {script}");
                }
            }
        }
        for (place, span) in spans {
            let is_path =
                ["src/", "tests/", "docs/", "nats/", "migrations/", ".ci/"].iter().any(|f| span.starts_with(f))
                    && span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            assert!(!is_path || root().join(&span).exists(), "{place}: there is no {span}");
        }
    }
}

fn check_own_command(cli: &clap::Command, place: &str, words: &[&str]) {
    let Some(at) = words.iter().position(|word| Path::new(word).file_name().is_some_and(|n| n == "queue-service"))
    else {
        return;
    };
    // As an argument of another command it is only a name.
    if words[..at].iter().any(|word| !word.contains('=') && *word != "xargs" && *word != "exec") {
        return;
    }
    let rest = &words[at + 1..];
    let Some(name) = rest.first().filter(|word| !word.starts_with('-')) else { return };
    if *name == "help" {
        return;
    }
    let command = cli.find_subcommand(name).unwrap_or_else(|| panic!("{place}: there is no command '{name}'"));
    let known: BTreeSet<&str> =
        cli.get_arguments().chain(command.get_arguments()).filter_map(|a| a.get_long()).chain(["help"]).collect();
    // What is after `--` belongs to somebody else.
    for option in rest.iter().take_while(|word| **word != "--").filter_map(|word| word.strip_prefix("--")) {
        let option = option.split('=').next().unwrap_or_default();
        assert!(known.contains(option), "{place}: `{name}` has no option --{option}");
    }
}

#[test]
fn the_map_has_every_folder() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for entry in std::fs::read_dir(root().join("src")).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let name = format!("`src/{}`", entry.file_name().to_string_lossy());
        assert!(map.contains(&name), "the map lacks {name}");
    }
}

#[test]
fn every_page_can_be_found_from_the_readme() {
    let pages = pages();
    let linked = |page: &Page| -> BTreeSet<PathBuf> {
        let folder = root().join(Path::new(&page.name).parent().unwrap());
        let targets = page.text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        targets.filter_map(|target| folder.join(target).canonicalize().ok()).collect()
    };
    let all: BTreeSet<PathBuf> = pages.iter().flat_map(linked).collect();
    for page in &pages {
        let path = root().join(&page.name).canonicalize().unwrap();
        let folder = path.parent().unwrap();
        let found =
            page.name == "README.md" || all.contains(&path) || folder.ends_with("docs/adr") && all.contains(folder);
        assert!(found, "no page links to {}", page.name);
    }
}
