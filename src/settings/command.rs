//! A command of the user's, which may hold a token.

use crate::connect::secret::SecretFile;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A command line for `sh`. It may hold a token, so it never prints itself.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct CommandLine {
    text: String,
    /// Where it stands; who starts it looks there again.
    #[cfg_attr(
        not(feature = "mcp"),
        expect(dead_code, reason = "nothing else starts it")
    )]
    file: Option<SecretFile>,
}

impl CommandLine {
    /// The command: for running it, nothing else.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The same, which that file holds.
    #[cfg(feature = "config")]
    pub(crate) fn of_file(self, file: SecretFile) -> Self {
        let file = Some(file);
        Self { file, ..self }
    }

    /// The command as the file says it now.
    #[cfg(feature = "mcp")]
    pub(crate) fn now(&self) -> String {
        match &self.file {
            Some(file) => file.read_again(|_| Ok(())),
            None => self.text.clone(),
        }
    }
}

impl From<String> for CommandLine {
    fn from(command: String) -> Self {
        Self {
            text: command,
            file: None,
        }
    }
}

impl From<CommandLine> for String {
    fn from(command: CommandLine) -> Self {
        command.text
    }
}

impl PartialEq for CommandLine {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CommandLine {}

impl fmt::Debug for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() { "none" } else { "***" })
    }
}
