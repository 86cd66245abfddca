//! `completions`: lets a shell complete commands and options.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, exit::Exit, output::Output};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(queue-service completions bash)
  queue-service completions zsh > ~/.zfunc/_queue-service
  queue-service completions fish > ~/.config/fish/completions/queue-service.fish")]
pub struct CompletionsArgs {
    shell: Shell,
}

pub fn run(args: &CompletionsArgs, out: &Output) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "queue-service", &mut script);
    out.line(String::from_utf8(script)?.trim_end())?;
    Ok(Exit::Done)
}
