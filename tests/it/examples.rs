//! The examples in other languages do what they say, with the real official clients against the real service.

use std::{path::PathBuf, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    foreign::{python, tool},
    harness::{PATIENCE, Running, start, until},
};

pub fn example(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)
}

/// A program with the variables that all examples read.
fn command(service: &Running, program: PathBuf, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    let tools = tool("nats").parent().unwrap().display().to_string();
    let path = format!("{tools}:{}", std::env::var("PATH").unwrap_or_default());
    command.args(arguments).env("NATS_URL", &service.config.nats.url).env("QUEUE_PREFIX", &service.config.nats.prefix);
    command.env("PATH", path).env("XDG_CONFIG_HOME", std::env::temp_dir()).kill_on_drop(true);
    command
}

/// A handler that runs until it is told to stop.
struct Handler(Child);

impl Handler {
    async fn start(mut command: Command, ready: &str) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wait = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(ready) {
                    return;
                }
            }
            panic!("the handler has ended");
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the handler is not ready");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self(child)
    }

    /// Asks it to end, and demands that it does so in good order.
    async fn stop(mut self) {
        kill_process(Pid::from_raw(self.0.id().unwrap() as i32).unwrap(), Signal::TERM).unwrap();
        let ended = tokio::time::timeout(PATIENCE, self.0.wait()).await.expect("the handler goes on").unwrap();
        // Java has the exit code of the signal after an end in good order, too.
        assert!(ended.success() || ended.code() == Some(128 + 15), "{ended}");
    }
}

/// Exit code and what was printed.
async fn output(mut command: Command) -> (i32, Value, String) {
    let output = tokio::time::timeout(PATIENCE * 2, command.output()).await.expect("the client does not end").unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), serde_json::from_str(&out).unwrap_or_default(), err.into_owned())
}

/// What script/bootstrap has built of the examples in a language that is compiled.
fn built(path: &str) -> PathBuf {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".tools/examples").join(path);
    assert!(program.exists(), "{} is missing: run script/bootstrap --test", program.display());
    program
}

/// How a language is run: a program, and what goes before the example's own arguments.
pub struct Language {
    pub program: PathBuf,
    client: Vec<String>,
    pub handler: Vec<String>,
}

impl Language {
    pub fn python() -> Self {
        let script = |name: &str| vec![example("python").join(name).display().to_string()];
        Self { program: python(), client: script("client.py"), handler: script("handler.py") }
    }

    pub fn typescript() -> Self {
        let script = |name: &str| vec![built("typescript/dist").join(name).display().to_string()];
        Self { program: tool("node"), client: script("client.js"), handler: script("handler.js") }
    }

    pub fn go() -> Self {
        // A program that runs another one is one more way to have a program and what goes before.
        let program = |name: &str| vec![built("go").join(name).display().to_string()];
        Self { program: tool("env"), client: program("client"), handler: program("handler") }
    }

    pub fn java() -> Self {
        let target = built("java/target");
        let class = |name: &str| {
            let path = format!("{}:{}/*", target.join("classes").display(), target.join("dependency").display());
            vec!["-cp".to_owned(), path, name.to_owned()]
        };
        Self { program: tool("java"), client: class("JobClient"), handler: class("JobHandler") }
    }

    fn command(&self, service: &Running, example: &[String], arguments: &[&str]) -> Command {
        let all: Vec<&str> = example.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        command(service, self.program.clone(), &all)
    }
}

/// The examples do the same in each language, in the manner of the language.
async fn does_all_that_the_protocol_has(language: Language) {
    let (_place, service) = start().await;
    let handler = Handler::start(language.command(&service, &language.handler, &[]), "ready").await;
    let run = async |payload: Value| {
        output(language.command(&service, &language.client, &["word-count", &payload.to_string()])).await
    };
    let (code, result, told) = run(json!({"texts": ["to be or", "not to be"]})).await;
    assert_eq!((code, &result["words"]), (0, &json!(6)), "{told}");
    let (code, result, told) = run(json!({"texts": ["one two", "busy"]})).await;
    // The first text was counted in the first attempt, and kept.
    assert_eq!((code, result), (0, json!({"words": 3, "attempt": 2})), "{told}");
    let (code, result, told) = run(json!({"texts": ["one", ""]})).await;
    assert_eq!((code, result), (1, json!({"error": "422: text 1 is empty"})), "{told}");
    let (code, _, told) = run(json!({"texts": "none"})).await;
    assert!(code == 2 && told.contains("invalid_payload"), "{told}");

    let slow = json!({"type": "word-count", "payload": {"texts": vec!["x"; 100], "pauseMs": 200}});
    let id = service.enqueue(slow).await;
    until(|| async { (service.job(&id).await["progress"]["percent"].as_f64() > Some(0.0)).then_some(()) }).await;
    service.call("cancelJob", json!({"jobId": id})).await;
    assert_eq!(service.finished(&id).await["status"], "cancelled");
    handler.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_can_do_all_that_the_protocol_has_and_needs_no_configuration() {
    does_all_that_the_protocol_has(Language::python()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn typescript_can_do_all_that_the_protocol_has() {
    does_all_that_the_protocol_has(Language::typescript()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go_can_do_all_that_the_protocol_has() {
    does_all_that_the_protocol_has(Language::go()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn java_can_do_all_that_the_protocol_has() {
    does_all_that_the_protocol_has(Language::java()).await;
}

/// Programs of this crate; built where a run of single tests has left them out.
fn rust_example(name: &str) -> PathBuf {
    let build = ["build", "--quiet", "--locked", "--example", name];
    let built = std::process::Command::new(env!("CARGO")).args(build).status().unwrap();
    assert!(built.success(), "{built}");
    let tests = std::env::current_exe().unwrap();
    tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_program_does_jobs_inside_itself_and_another_one_hands_them_in() {
    let (_place, service) = start().await;
    let mut worker = command(&service, rust_example("worker"), &[]);
    worker.env("DATABASE_URL", &service.config.database.url);
    let worker = Handler::start(worker, "ready").await;
    let client = rust_example("client");
    let run = async |job_type: &str, payload: Value| {
        output(command(&service, client.clone(), &[job_type, &payload.to_string()])).await
    };
    let (code, result, told) = run("resize", json!({"width": 1024, "pauseMs": 10})).await;
    assert_eq!((code, result), (0, json!({"widths": [512, 256, 128]})), "{told}");
    let (code, result, told) = run("greet", json!({"name": "busy"})).await;
    assert_eq!((code, result), (0, json!("Hello, busy, you are number 1")), "{told}");
    let (code, result, _) = run("greet", json!({"name": ""})).await;
    assert_eq!((code, result), (1, json!({"error": "nobody has no name"})));
    let (code, _, told) = run("resize", json!({"width": "wide"})).await;
    assert!(code == 2 && told.contains("/payload/width"), "{told}");
    worker.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_pull_worker_fetches_its_work_and_gives_none_up_when_it_stops() {
    let (_place, service) = start().await;
    service.call("registerType", json!({"type": "square", "handler": "pull"})).await;
    let script = example("python/puller.py").display().to_string();
    let worker = Handler::start(command(&service, python(), &[&script]), "fetching").await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(service.enqueue(json!({"type": "square", "payload": {"n": n, "pauseMs": 10}})).await);
    }
    for (n, id) in ids.iter().enumerate() {
        let job = service.finished(id).await;
        assert_eq!((&job["result"], &job["attempts"]), (&json!(n * n), &json!(1)), "{job}");
    }
    let failing = service.enqueue(json!({"type": "square", "payload": {"n": "x"}, "maxAttempts": 1})).await;
    assert!(service.finished(&failing).await["error"].as_str().unwrap().contains("TypeError"));
    worker.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shell_can_hand_work_in_and_do_it() {
    let (_place, service) = start().await;
    service.call("registerType", json!({"type": "shout", "handler": "nats"})).await;
    let mut handler = command(&service, example("shell/handler.sh"), &[]);
    let mut handler = handler.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (code, job, told) =
        output(command(&service, example("shell/client.sh"), &["shout", r#"{"text": "hello"}"#])).await;
    assert_eq!((code, &job["status"], &job["result"]), (0, &json!("completed"), &json!("HELLO!")), "{told}");
    let (code, ..) = output(command(&service, example("shell/client.sh"), &["nobody-does-this", "{}"])).await;
    assert_eq!(code, 2);
    handler.kill().await.unwrap();
    service.stop().await;
}
