//! `convoke docs`: the pages that the library's documentation shows, in the terminal.

use super::{Exit, Misuse, Session};
use clap::Args;
use convoke::docs::PAGES;

const EXAMPLES: &str = "\
Examples:
  convoke docs                        which pages there are
  convoke docs protocol | less        how to write a client in any language";

/// Print a page: the protocol, what holds, operating, security and more
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// The page [default: a list of them]
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Runs the command.
pub(super) fn run(session: Session, flags: &Flags) -> anyhow::Result<Exit> {
    let Some(name) = &flags.name else {
        for page in PAGES {
            session
                .output
                .line(&format!("{:14} {}", page.name, page.about))?;
        }
        return Ok(Exit::Done);
    };
    let page = PAGES.into_iter().find(|page| page.name == name);
    let Some(page) = page else {
        let names: Vec<&str> = PAGES.iter().map(|page| page.name).collect();
        return Err(Misuse::error(format_args!(
            "there is no page {name:?}: it is one of {}",
            names.join(", ")
        )));
    };
    session.output.line(page.text.trim_end())?;
    Ok(Exit::Done)
}
