//! `convoke completions`: what a shell needs to complete the commands.

use super::{Cli, Exit, Session};
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::{Shell, generate};
use std::io::{self, Write};

const EXAMPLES: &str = "\
Examples:
  convoke completions bash > ~/.local/share/bash-completion/completions/convoke
  convoke completions zsh > ~/.zfunc/_convoke        (~/.zfunc is in fpath)
  convoke completions fish > ~/.config/fish/completions/convoke.fish";

/// Print completions for a shell
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: For,
}

#[derive(Clone, Copy, ValueEnum)]
enum For {
    Bash,
    Zsh,
    Fish,
}

/// Runs the command.
pub(super) fn run(_: Session, flags: &Flags) -> anyhow::Result<Exit> {
    let shell = match flags.shell {
        For::Bash => Shell::Bash,
        For::Zsh => Shell::Zsh,
        For::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "convoke", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Exit::Done)
}
