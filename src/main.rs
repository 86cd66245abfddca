//! Reads the command line, runs one command, and tells how it ended.

use std::process::ExitCode;

use clap::Parser;
use queue_service::cli::{Cli, exit::report, output::Output, run};

fn main() -> ExitCode {
    // One TLS implementation for everything; whoever asks first would choose otherwise.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let out = Output::new(cli.global.json, cli.global.quiet);
    run(cli, &out).unwrap_or_else(|error| report(&error, &out)).into()
}
