//! What the documentation shows works as it stands there.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Output,
};

use queue_service::{config::reference, dev::sandbox::Sandbox};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{child::Program, harness::PATIENCE, harness::Place};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All pages of the repository.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for folder in [".", "docs", "docs/adr"] {
        let entries = std::fs::read_dir(root().join(folder)).unwrap().flatten();
        pages.extend(entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "md")));
    }
    pages
}

/// The fenced blocks of a page whose first line is `kind`.
fn blocks(page: &str, kind: &str) -> Vec<String> {
    let open = format!("```{kind}\n");
    page.split(&open).skip(1).filter_map(|rest| rest.split("\n```").next()).map(str::to_owned).collect()
}

#[test]
fn links_to_files_lead_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || link.contains("://") {
                continue;
            }
            assert!(page.parent().unwrap().join(file).exists(), "{} links to {link}", page.display());
        }
    }
}

#[test]
fn the_configuration_page_is_what_the_program_knows() {
    // To renew it: queue-service config --reference > docs/configuration.md
    assert!(read("docs/configuration.md").trim() == reference::markdown().trim(), "docs/configuration.md is old");
}

#[test]
fn the_map_names_what_there_is() {
    let map = read("ARCHITECTURE.md");
    for name in map.split('`').skip(1).step_by(2).filter(|name| name.starts_with("src/") && !name.contains(['{', '<']))
    {
        let is_the_example = name.ends_with("greet.rs");
        assert!(is_the_example || root().join(name).exists(), "the map names {name}");
    }
    let named: BTreeSet<&str> = map.split('`').skip(1).step_by(2).collect();
    for folder in std::fs::read_dir(root().join("src")).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let name = format!("src/{}/", folder.file_name().to_string_lossy());
        assert!(named.contains(name.as_str()), "the map lacks {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snippets_of_the_readme_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ready.json");
    let arguments = ["dev", "--ephemeral", "--http", "127.0.0.1:0", "--ready-file", file.to_str().unwrap()];
    let program = Program::start(&arguments, None);
    program.logged("queue-service is ready").await;
    let ready: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let (nats, http) = (ready["natsUrl"].as_str().unwrap(), ready["httpUrl"].as_str().unwrap());
    let page = read("README.md").replace("nats://127.0.0.1:4222", nats).replace("http://127.0.0.1:8080", http);
    let (shell, python) = (blocks(&page, "sh run"), blocks(&page, "python run"));
    assert!(shell.len() >= 4 && python.len() == 1, "the snippets are marked otherwise now");
    for snippet in shell {
        run(Command::new("bash").args(["-euo", "pipefail", "-c", &snippet]), nats, &snippet).await;
    }
    let interpreter = root().join(".tools/python/bin/python");
    assert!(interpreter.exists(), "the Python client is missing: run script/bootstrap --test");
    for snippet in python {
        run(Command::new(&interpreter).args(["-c", &snippet]), nats, &snippet).await;
    }
    program.stop().await;
}

async fn run(command: &mut Command, nats: &str, snippet: &str) {
    let own = Path::new(env!("CARGO_BIN_EXE_queue-service")).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [own, root().join(".tools/bin")].into_iter().chain(std::env::split_paths(&path));
    let home = tempfile::tempdir().unwrap();
    command
        .env("PATH", std::env::join_paths(folders).unwrap())
        .env("NATS_URL", nats)
        .env("HOME", home.path())
        .env("XDG_CONFIG_HOME", home.path())
        .current_dir(home.path())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await;
    let Output { status, stdout, stderr } = ended.unwrap_or_else(|_| panic!("it does not end: {snippet}")).unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{snippet}\n{stdout}\n{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_all_job_types_complete() {
    let sandbox = Sandbox::start().await.unwrap();
    let mut place = Place::new().await;
    sandbox.apply(&mut place.config, |_| false);
    let service = place.start().await;
    let mut done = BTreeSet::new();
    for example in blocks(&read("docs/job-types.md"), "json") {
        let mut request: Value = serde_json::from_str(&example).unwrap();
        let Some(job_type) = request["type"].as_str().map(str::to_owned) else { continue };
        // What an example asks of somebody else's server, the sandbox answers.
        match job_type.as_str() {
            "webhook-delivery" => request["payload"]["url"] = json!(sandbox.url("/dev/webhooks/example")),
            "crawl-website" => request["payload"]["url"] = json!(sandbox.site_url()),
            _ => {}
        }
        let id = service.enqueue(request).await;
        let job = service.finished(&id).await;
        assert_eq!(job["status"], "completed", "{example}\n{job}");
        done.insert(job_type);
    }
    let known: BTreeSet<String> =
        queue_service::handlers::registry::BUILTIN_TYPES.iter().map(ToString::to_string).collect();
    assert_eq!(done, known);
    service.stop().await;
}
