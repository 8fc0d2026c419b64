//! Asking before something is changed.

use super::Misuse;
use std::io::{self, BufRead, IsTerminal, Write};

/// Asks on the terminal; with `yes` it does not. Without a terminal nobody can answer.
pub(super) fn confirm(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(Misuse::error(format_args!(
            "{question} Nobody is there to answer: repeat with --yes, or with --dry-run to see what would happen"
        )));
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
