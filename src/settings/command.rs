//! A command of the user's, which may hold a token.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A command line for `sh`. It may hold a token, so it never prints itself.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandLine(String);

impl CommandLine {
    /// The command: for running it, nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for CommandLine {
    fn from(command: String) -> Self {
        Self(command)
    }
}

impl fmt::Debug for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "***" })
    }
}
