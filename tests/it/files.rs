//! The files for operators: what can't be run here is at least read by whoever reads it in earnest, and NATS's settings
//! are run for real.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use queue_service::dev::{nats::Nats, process::find};
use serde_json::{Value, json};

use crate::harness::Place;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The value of a shell variable that script/bootstrap sets.
fn pinned(name: &str) -> String {
    let script = read("script/bootstrap");
    let line = script.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
    line.unwrap_or_else(|| panic!("script/bootstrap sets no {name}")).split_whitespace().next().unwrap().to_owned()
}

mod compose {
    use super::*;

    fn compose() -> Value {
        serde_saphyr::from_str(&read("docker-compose.yml")).unwrap()
    }

    /// `${NAME:-default}` and `${NAME:?message}`, as Compose fills them in when nothing but what must be set is set.
    fn filled_in(text: &str) -> String {
        let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
        let (variable, after) = rest.split_once('}').unwrap();
        let value = match variable.split_once(":-") {
            Some((_, default)) => default.to_owned(),
            None => "set".repeat(8),
        };
        format!("{before}{value}{}", filled_in(after))
    }

    #[test]
    fn it_has_all_that_the_service_needs_and_opens_nothing_to_other_machines() {
        let compose = compose();
        let services = compose["services"].as_object().unwrap();
        assert_eq!(services.keys().collect::<Vec<_>>(), ["mail", "nats", "postgres", "service"]);
        for (name, service) in services {
            let image = service["image"].as_str().unwrap();
            let is_pinned = image.split_once(':').is_some_and(|(_, tag)| tag.contains(|c: char| c.is_ascii_digit()));
            assert!(is_pinned || service["build"] == ".", "{name}: {image} has no version");
            for port in service["ports"].as_array().unwrap() {
                assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
            }
            assert!(service["healthcheck"]["test"].is_array(), "{name} has no health check");
            assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{name}");
        }
        let nats = services["nats"]["image"].as_str().unwrap();
        assert!(nats.contains(&pinned("nats_server")), "{nats} is not the version of script/bootstrap");
        for volume in ["postgres", "nats"] {
            assert!(compose["volumes"].as_object().unwrap().contains_key(volume));
        }
        for wanted in services["service"]["depends_on"].as_object().unwrap().keys() {
            assert!(services.contains_key(wanted), "{wanted}");
        }
    }

    #[test]
    fn its_settings_are_settings_that_the_service_knows() {
        let compose = compose();
        let environment = compose["services"]["service"]["environment"].as_object().unwrap();
        let environment = environment.iter().map(|(name, value)| (name.clone(), filled_in(value.as_str().unwrap())));
        let none = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        let loaded = queue_service::config::load(Some(none.path()), environment, &[]).unwrap();
        assert_eq!(loaded.config.http.bind.to_string(), "0.0.0.0:8080");
        assert_eq!(loaded.config.nats.url, "nats://service:queue@nats:4222");
        assert!(loaded.config.http.token.is_some() && loaded.config.smtp.url.is_some());
    }
}

mod dockerfile {
    use super::*;

    /// Instructions with their continuation lines joined.
    fn instructions() -> Vec<(String, String)> {
        let text: String = read("Dockerfile")
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .map(|l| format!("{l}\n"))
            .collect();
        let joined = text.replace("\\\n", " ");
        let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty());
        lines
            .map(|line| line.split_once(' ').unwrap_or((line, "")))
            .map(|(word, rest)| (word.to_owned(), rest.to_owned()))
            .collect()
    }

    #[test]
    fn it_has_stages_pinned_images_and_a_user_who_is_not_root() {
        let known = ["FROM", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "ENTRYPOINT", "CMD"];
        let all = instructions();
        for (word, rest) in &all {
            assert!(known.contains(&word.as_str()) && !rest.is_empty(), "{word} {rest}");
        }
        let stages: Vec<&str> = all.iter().filter(|(word, _)| word == "FROM").map(|(_, rest)| rest.as_str()).collect();
        assert!(stages.len() >= 2, "{stages:?}");
        let names: Vec<&str> = stages.iter().filter_map(|stage| Some(stage.split_once(" AS ")?.1)).collect();
        for stage in &stages {
            let image = stage.split_whitespace().next().unwrap();
            let has_version = image.split_once(':').is_some_and(|(_, tag)| !tag.starts_with("latest"));
            assert!(names.contains(&image) || has_version, "{stage} is not pinned");
        }
        let last = &all[all.iter().rposition(|(word, _)| word == "FROM").unwrap()..];
        let user = last.iter().rfind(|(word, _)| word == "USER").map(|(_, rest)| rest.as_str());
        assert!(user.is_some_and(|user| !user.starts_with("root") && !user.starts_with('0')), "{user:?}");
        for (word, rest) in last.iter().filter(|(word, _)| word == "ENTRYPOINT" || word == "CMD") {
            // In the form of a list, so that signals reach the program and not a shell.
            assert!(serde_json::from_str::<Vec<String>>(rest).is_ok(), "{word} {rest}");
        }
        let rust = read("Cargo.toml");
        let rust = rust.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
        assert!(stages[0].starts_with(&format!("rust:{rust}-")), "{} is not Rust {rust}", stages[0]);
    }
}

#[test]
fn the_justfile_has_the_everyday_recipes_a_line_each() {
    let text = read("justfile");
    let mut recipes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut current = "";
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if line.starts_with(' ') {
            recipes.get_mut(current).expect("a command before any recipe").push(line.trim());
        } else {
            let (head, _) = line.split_once(':').unwrap_or_else(|| panic!("'{line}' is no recipe"));
            current = head.split_whitespace().next().unwrap();
            recipes.insert(current, Vec::new());
        }
    }
    for wanted in
        ["dev", "test", "test-watch", "coverage", "check", "lint", "fmt", "migrate", "bench", "soak", "deploy"]
    {
        let commands = recipes.get(wanted).unwrap_or_else(|| panic!("no recipe '{wanted}'"));
        // And before it what says how to get what it needs, or makes it.
        let does =
            commands.iter().filter(|command| !command.starts_with("@command -v") && !command.starts_with("[ -e"));
        assert_eq!(does.count(), 1, "{wanted}: {commands:?}");
    }
    let words = recipes.values().flatten().flat_map(|command| command.split_whitespace());
    for script in words.filter(|word| word.starts_with("script/") || word.starts_with(".ci/")) {
        assert!(root().join(script).exists(), "{script} is not there");
    }
}

#[test]
fn the_shell_scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt;
    let mut scripts: Vec<PathBuf> =
        std::fs::read_dir(root().join("script")).unwrap().map(|e| e.unwrap().path()).collect();
    scripts.push(root().join(".ci/run"));
    for script in scripts {
        let checked = Command::new("bash").arg("-n").arg(&script).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        let mode = std::fs::metadata(&script).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{} is not executable", script.display());
    }
}

#[test]
fn the_streams_are_named_as_their_files() {
    for entry in std::fs::read_dir(root().join("nats/streams")).unwrap() {
        let path = entry.unwrap().path();
        let stream: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(stream["name"], path.file_stem().unwrap().to_str().unwrap());
    }
}

/// Settings of NATS, and what they allow in earnest.
mod nats_settings {
    use std::{process::Stdio, time::Duration};

    use async_nats::{Client, ConnectOptions, Event, ServerError};
    use futures_util::StreamExt;
    use queue_service::dev::postgres::free_port;
    use tokio::sync::mpsc;

    use super::*;
    use crate::harness::{PATIENCE, Running, until};

    const USERS: [&str; 7] = ["SERVICE", "CALLER", "READER", "HANDLER", "PULLER", "PUBLISHER", "TENANT"];

    fn server() -> PathBuf {
        let own = root().join(".tools/bin/nats-server");
        let found = if own.exists() { Some(own) } else { find("nats-server") };
        found.expect("nats-server is missing: run script/bootstrap")
    }

    fn checked(config: &Path, environment: &[(String, String)]) -> Output {
        Command::new(server()).args(["-t", "-c"]).arg(config).envs(environment.iter().cloned()).output().unwrap()
    }

    fn passwords() -> Vec<(String, String)> {
        USERS.iter().map(|user| (format!("NATS_{user}_PASSWORD"), format!("pass-{user}"))).collect()
    }

    /// `server.conf` with the permissions included as their comment says, on a port and a store of the test.
    fn with_permissions(folder: &Path, port: u16) -> PathBuf {
        let text = read("nats/server.conf");
        let begin = text.find("authorization {").expect("server.conf has the block that the comment names");
        let end = begin + text[begin..].find("\n}").unwrap() + 2;
        let text = format!("{}include ./permissions.conf{}", &text[..begin], &text[end..]);
        let text = text
            .replace("0.0.0.0:4222", &format!("127.0.0.1:{port}"))
            .replace("http: \"127.0.0.1:8222\"", "")
            .replace("/data", &folder.join("store").display().to_string());
        std::fs::write(folder.join("permissions.conf"), read("nats/permissions.conf.example")).unwrap();
        let path = folder.join("server.conf");
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn nats_server_accepts_them() {
        let password = [("NATS_PASSWORD".to_owned(), "secret".to_owned())];
        let output = checked(&root().join("nats/server.conf"), &password);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let folder = tempfile::tempdir().unwrap();
        let output = checked(&with_permissions(folder.path(), 4222), &passwords());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A server with the permissions of the example, and the whole service logged in to it.
    struct Guarded {
        url: String,
        place: Place,
        service: queue_service::service::Service,
        _server: tokio::process::Child,
        _folder: tempfile::TempDir,
    }

    impl Guarded {
        async fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let port = free_port().unwrap();
            let config = with_permissions(folder.path(), port);
            let mut command = tokio::process::Command::new(server());
            command.arg("-c").arg(config).envs(passwords()).stdout(Stdio::null()).stderr(Stdio::null());
            let server = command.kill_on_drop(true).spawn().unwrap();
            let url = format!("127.0.0.1:{port}");
            until(|| async { tokio::net::TcpStream::connect(&url).await.ok() }).await;

            let mut place = Place::new().await;
            place.config.nats.prefix = "queue".into();
            place.config.nats.url = format!("nats://service:pass-SERVICE@{url}");
            place.config.nats.inbox_prefix = "_INBOX.service".into();
            let probe = crate::probe::Probe { journal: place.journal.clone() };
            let types = |types: queue_service::handlers::Registry| Ok(types.with(probe)?);
            let config = place.config.clone();
            let start = queue_service::service::Service::start_with(config, axum::Router::new(), types);
            let service = start.await.unwrap();
            assert!(tokio::time::timeout(PATIENCE, service.ready()).await.unwrap());
            Self { url, place, service, _server: server, _folder: folder }
        }

        async fn user(&self, name: &str, password: &str) -> User {
            let (tell, refusals) = mpsc::unbounded_channel();
            let options = ConnectOptions::new()
                .user_and_password(name.into(), format!("pass-{password}"))
                .custom_inbox_prefix(format!("_INBOX.{name}"))
                .event_callback(move |event| {
                    let tell = tell.clone();
                    async move {
                        if let Event::ServerError(ServerError::Other(text)) = event {
                            let _ = tell.send(text);
                        }
                    }
                });
            User { client: options.connect(&self.url).await.unwrap(), refusals }
        }

        /// How many jobs there are, asked without NATS.
        async fn jobs(&self) -> i64 {
            sqlx::query_scalar("SELECT count(*) FROM all_jobs").fetch_one(&self.place.database().await).await.unwrap()
        }
    }

    struct User {
        client: Client,
        refusals: mpsc::UnboundedReceiver<String>,
    }

    impl User {
        async fn ask(&self, subject: &str, body: &Value) -> Value {
            let asked = self.client.request(subject.to_owned(), body.to_string().into());
            let answer = tokio::time::timeout(PATIENCE, asked).await.expect(subject).unwrap();
            serde_json::from_slice(&answer.payload).unwrap()
        }

        /// Publishes, and demands that the server refuses it.
        async fn may_not_publish(&mut self, subject: &str) {
            self.client.publish(subject.to_owned(), "{}".into()).await.unwrap();
            let said = tokio::time::timeout(PATIENCE, self.refusals.recv()).await.expect(subject).unwrap();
            assert!(said.to_lowercase().contains("publish") && said.contains(subject), "{said}");
        }

        async fn may_not_subscribe(&mut self, subject: &str) {
            let _subscription = self.client.subscribe(subject.to_owned()).await.unwrap();
            let said = tokio::time::timeout(PATIENCE, self.refusals.recv()).await.expect(subject).unwrap();
            assert!(said.to_lowercase().contains("subscription") && said.contains(subject), "{said}");
        }
    }

    fn mail() -> Value {
        json!({"payload": {"to": "ada@example.com", "subject": "Hello", "body": "It works."}, "delay": "1h"})
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_caller_enqueues_its_type_and_nothing_else_and_a_reader_only_looks() {
        let guarded = Guarded::start().await;
        let mut caller = guarded.user("caller-email", "CALLER").await;
        let id = caller.ask("queue.enqueue.send-email", &mail()).await["jobId"].as_str().unwrap().to_owned();
        let job = caller.ask("queue.getJob.send-email", &json!({"jobId": id})).await;
        assert_eq!(job["status"], "pending", "{job}");
        for subject in
            ["queue.enqueue", "queue.enqueue.webhook-delivery", "queue.getJob", "queue.jobs.send-email.normal"]
        {
            caller.may_not_publish(subject).await;
        }
        let mut lying = mail();
        lying["type"] = json!("probe");
        assert_eq!(caller.ask("queue.enqueue.send-email", &lying).await["code"], "invalid_request");
        caller.may_not_subscribe("queue.events.>").await;
        caller.may_not_subscribe("_INBOX.>").await;

        let mut reader = guarded.user("reader", "READER").await;
        assert_eq!(reader.ask("queue.getStats", &json!({})).await["pending"], 1);
        assert_eq!(reader.ask("queue.getJob", &json!({"jobId": id})).await["id"], *id);
        for subject in ["queue.enqueue", "queue.enqueue.send-email", "queue.cancelJob", "queue.pauseType"] {
            reader.may_not_publish(subject).await;
        }
        reader.may_not_subscribe("queue.handlers.>").await;
        let mut events = reader.client.subscribe("queue.events.>").await.unwrap();
        reader.client.flush().await.unwrap();
        caller.ask("queue.cancelJob.send-email", &json!({"jobId": id})).await;
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap();
        assert_eq!(event.subject.as_str(), format!("queue.events.send-email.cancelled.{id}"));

        let mut handler = guarded.user("handler-email", "HANDLER").await;
        handler.may_not_subscribe("queue.handlers.send-email").await;
        handler.may_not_publish("queue.enqueue.send-email").await;
        assert_eq!(guarded.jobs().await, 1);
        guarded.service.stop(Default::default()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_makes_the_service_publish_for_him() {
        let guarded = Guarded::start().await;
        let caller = guarded.user("caller-email", "CALLER").await;
        let id = caller.ask("queue.enqueue.send-email", &mail()).await["jobId"].as_str().unwrap().to_owned();
        let reader = guarded.user("reader", "READER").await;
        let everything = guarded.user("service", "SERVICE").await;
        let mut listener = everything.client.subscribe("queue.>").await.unwrap();
        // The server knows of the listener before anything is asked.
        everything.client.request("$JS.API.INFO", "".into()).await.unwrap();
        for reply in [
            "queue.enqueue.send-email",
            "queue.enqueue",
            "queue.dlq.send-email",
            "$JS.API.STREAM.DELETE.background-jobs",
        ] {
            let body = json!({"jobId": id}).to_string();
            caller.client.publish_with_reply("queue.getJob.send-email", reply, body.clone().into()).await.unwrap();
            reader.client.publish_with_reply("queue.getJob", reply, body.into()).await.unwrap();
        }
        // Answered after what was sent before it, on both connections.
        caller.ask("queue.getJob.send-email", &json!({"jobId": id})).await;
        reader.ask("queue.getJob", &json!({"jobId": id})).await;
        let mut seen = Vec::new();
        while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(300), listener.next()).await {
            seen.push(message.subject.to_string());
        }
        assert!(seen.len() >= 8, "the requests themselves are seen: {seen:?}");
        assert!(
            seen.iter().all(|subject| subject.starts_with("queue.getJob") || subject.starts_with("queue.jobs")),
            "{seen:?}"
        );
        assert_eq!(guarded.jobs().await, 1);
        guarded.service.stop(Default::default()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_services_own_user_may_do_all_that_the_service_does() {
        let guarded = Guarded::start().await;
        let (nats, itself) = (guarded.user("reader", "READER").await, guarded.user("service", "SERVICE").await);
        let running = Running { service: guarded.service, nats: nats.client, config: guarded.place.config.clone() };
        let client = reqwest::Client::new();
        let enqueue = async |payload: Value| {
            let body = json!({"type": "probe", "payload": payload, "maxAttempts": 2});
            crate::load::post(&client, &running.url(""), &body).await.1["jobId"].as_str().unwrap().to_owned()
        };
        let done = enqueue(json!({"fail": 1, "progress": 50.0})).await;
        let failed = enqueue(json!({"permanent": true})).await;
        let cancelled = enqueue(json!({"wait": true})).await;
        assert_eq!(running.finished(&done).await["attempts"], 2);
        assert_eq!(running.finished(&failed).await["status"], "failed");
        running.until_status(&cancelled, "processing").await;
        client.delete(running.url(&format!("/jobs/{cancelled}"))).send().await.unwrap();
        assert_eq!(running.finished(&cancelled).await["status"], "cancelled");

        // The dead letter is in its stream, and every wake-up has been acknowledged.
        for (stream, messages) in [("background-jobs-dlq", 1), ("background-jobs", 0)] {
            until(|| async {
                let info = itself.ask(&format!("$JS.API.STREAM.INFO.{stream}"), &json!({})).await;
                (info["state"]["messages"] == messages).then_some(())
            })
            .await;
        }
        let database = guarded.place.database().await;
        until(|| async {
            let left: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&database).await.unwrap();
            (left == 0).then_some(())
        })
        .await;
        running.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_nats_command_line_makes_streams_of_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::start(folder.path(), queue_service::dev::nats::PortChoice::Any).await.unwrap();
        for entry in std::fs::read_dir(root().join("nats/streams")).unwrap() {
            let path = entry.unwrap().path();
            let mut command = Command::new(crate::foreign::tool("nats"));
            command.args(["--server", &nats.url(), "stream", "add", "--config"]).arg(&path).env("HOME", folder.path());
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
}
