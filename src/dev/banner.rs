//! What `dev` tells whoever started it, on standard error beside the log.

use std::{io::IsTerminal, path::Path};

use super::Ready;

pub(super) fn starting(folder: &Path) {
    eprintln!("Starting Postgres and nats-server; their data is in {}", folder.display());
}

pub(super) fn stopping() {
    eprintln!("Stopping: running jobs may finish (Ctrl-C again to hurry)");
}

pub(super) fn ready(ready: &Ready) {
    let plain = !std::io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let bold = |text: &str| if plain { text.to_owned() } else { format!("\x1b[1m{text}\x1b[0m") };
    let Ready { nats_url, database_url, http_url, .. } = ready;
    // Clients find the usual address by themselves.
    let server = if nats_url.ends_with(":4222") { String::new() } else { format!(" --server {nats_url}") };
    let own = if server.is_empty() { String::new() } else { format!("NATS_URL={nats_url} ") };
    eprintln!(
        "
{}

  HTTP       {http_url}   (the sandbox: {http_url}/dev)
  NATS       {nats_url}
  Postgres   {database_url}

{}

  curl {http_url}/jobs -H 'Content-Type: application/json' \\
    -d '{{\"type\":\"send-email\",\"payload\":{{\"to\":\"ada@example.com\",\"subject\":\"Hello\",\"body\":\"It works.\"}}}}'

  nats{server} req queue.enqueue '{{\"type\":\"generate-content\",\"payload\":{{\"prompt\":\"A haiku about queues\"}}}}'

  {own}queue-service list

Ctrl-C stops everything; the data is kept for the next time unless it was started with --ephemeral.
",
        bold("queue-service is ready"),
        bold("Try it"),
    );
}
