//! What `dev` tells whoever started it, on standard error beside the log.

use std::{io::IsTerminal, path::Path};

use super::Ready;
use crate::telemetry::say;

pub(super) fn starting(folder: &Path) {
    say(format!("Starting Postgres and nats-server; their data is in {}", folder.display()));
}

pub(super) fn stopping() {
    say("Stopping: running jobs may finish (Ctrl-C again to hurry)");
}

/// `kept`: whether the data outlives this process.
pub(super) fn ready(ready: &Ready, kept: bool) {
    let plain = !std::io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let bold = |text: &str| if plain { text.to_owned() } else { format!("\x1b[1m{text}\x1b[0m") };
    let Ready { nats_url, database_url, http_url, .. } = ready;
    // Clients find the usual address by themselves.
    let server = if nats_url.ends_with(":4222") { String::new() } else { format!(" --server {nats_url}") };
    let this = this_program();
    let end = if kept { "the data is kept for the next time" } else { "the data is removed then" };
    let own = if server.is_empty() { String::new() } else { format!("NATS_URL={nats_url} ") };
    say(format!(
        "
{}

  HTTP       {http_url}
  Sandbox    {http_url}/dev   (the mailbox and other stand-ins)
  NATS       {nats_url}
  Postgres   {database_url}

{}

  curl {http_url}/jobs -H 'Content-Type: application/json' \\
    -d '{{\"type\":\"send-email\",\"payload\":{{\"to\":\"ada@example.com\",\"subject\":\"Hello\",\"body\":\"It works.\"}}}}'

  nats{server} req queue.enqueue \\
    '{{\"type\":\"generate-content\",\"payload\":{{\"prompt\":\"A haiku about queues\"}}}}'

  {own}{this} list

{}

  Python      examples/python/client.py, handler.py        pip install nats-py
  TypeScript  examples/typescript/client.ts, handler.ts    npm install @nats-io/transport-node
  Go          examples/go/client, handler                  go get github.com/nats-io/nats.go
  Java        examples/java                                io.nats:jnats
  Rust        docs/rust.md                                 this crate
  HTTP        {http_url}/docs

Ctrl-C stops everything; {end}.
",
        bold("queue-service is ready"),
        bold("Try it"),
        bold("From your own program"),
    ));
}

/// This program as it was called, so that what is shown can be typed.
pub(super) fn this_program() -> String {
    std::env::args().next().unwrap_or_else(|| env!("CARGO_PKG_NAME").to_owned())
}
