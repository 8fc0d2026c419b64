//! `convoke man`: the manual pages, from the same source as the help.

use super::{Cli, Exit, Session};
use anyhow::Context;
use clap::{Args, CommandFactory, ValueHint};
use clap_mangen::Man;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  convoke man | man -l -                        the page of convoke itself
  convoke man replay | man -l -                 … of one command
  convoke man --dir ~/.local/share/man/man1     a page for each command";

/// Print a manual page, or write all of them
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// The command, such as `replay` or `dead list` [default: convoke itself]
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,
    /// Write the pages of all commands into this directory, which is made if it is not there
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(session: Session, flags: &Flags) -> anyhow::Result<Exit> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    if let Some(dir) = &flags.dir {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let mut written = Vec::new();
        write_pages(&root, dir, &mut written)?;
        for page in written {
            session.output.line(&page.display().to_string())?;
        }
        return Ok(Exit::Done);
    }
    let mut command = &root;
    for name in &flags.command {
        let found = command.find_subcommand(name);
        command = found.ok_or_else(|| {
            super::Misuse::error(format_args!(
                "there is no command {:?}",
                flags.command.join(" ")
            ))
        })?;
    }
    io::stdout().write_all(&page(command)?)?;
    Ok(Exit::Done)
}

fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(command.clone()).render(&mut text)?;
    Ok(text)
}

fn write_pages(command: &clap::Command, dir: &Path, into: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let path = dir.join(format!("{name}.1"));
    fs::write(&path, page(command)?).with_context(|| path.display().to_string())?;
    into.push(path);
    for inner in command.get_subcommands() {
        write_pages(inner, dir, into)?;
    }
    Ok(())
}
