//! A program that stays alive as the handler of an event type.

use crate::settings::CommandLine;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// The most processes of one type.
const MAX_WORKERS: u16 = 256;
/// The most events that one process holds.
const MAX_OUTSTANDING: u16 = 1024;

/// A program that stays alive and gets events, one after the other, on its standard input: see
/// [the protocol](crate::docs::protocol#foreign-workers). In a file it is a command alone, or a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pipe {
    /// The command, for `sh -c`. It may hold a token: it shows in no output and no log.
    pub command: CommandLine,
    /// How many processes of it run: 1 to 256.
    pub workers: u16,
    /// How it is spoken to.
    pub format: PipeFormat,
    /// How many events one process holds at a time, at most: 1 to 1024. 0: as many as it answers within 10 ms,
    /// which is one at a time where it is slow.
    pub outstanding: u16,
}

/// How a program is spoken to that stays alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PipeFormat {
    /// One line of JSON for each message.
    #[default]
    Json,
    /// A length of four bytes, the highest first, and that many bytes of MessagePack for each message.
    Msgpack,
}

impl PipeFormat {
    /// The format of that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "json" => Some(Self::Json),
            "msgpack" => Some(Self::Msgpack),
            _ => None,
        }
    }
}

impl Pipe {
    /// One process of that command, which speaks JSON.
    pub fn new(command: impl Into<String>) -> Self {
        Self {
            command: CommandLine::from(command.into()),
            workers: 1,
            format: PipeFormat::default(),
            outstanding: 0,
        }
    }

    /// What is wrong with it.
    pub(super) fn problem(&self) -> Option<String> {
        if self.command.expose().trim().is_empty() {
            return Some("no command".to_owned());
        }
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            let workers = self.workers;
            return Some(format!("workers: {workers} is not 1 to {MAX_WORKERS}"));
        }
        if self.outstanding > MAX_OUTSTANDING {
            let outstanding = self.outstanding;
            return Some(format!(
                "outstanding: {outstanding} is not 0 to {MAX_OUTSTANDING}"
            ));
        }
        None
    }
}

/// The form of a table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    command: CommandLine,
    #[serde(default = "one")]
    workers: u16,
    #[serde(default)]
    format: PipeFormat,
    #[serde(default)]
    outstanding: u16,
}

fn one() -> u16 {
    1
}

impl<'de> Deserialize<'de> for Pipe {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reading)
    }
}

struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Pipe;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a command, or a table with command, workers, format and outstanding")
    }

    fn visit_str<E: Error>(self, command: &str) -> Result<Pipe, E> {
        Ok(Pipe::new(command))
    }

    fn visit_map<A: MapAccess<'de>>(self, from: A) -> Result<Pipe, A::Error> {
        let Table {
            command,
            workers,
            format,
            outstanding,
        } = Table::deserialize(MapAccessDeserializer::new(from))?;
        Ok(Pipe {
            command,
            workers,
            format,
            outstanding,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_alone_or_a_table() {
        let read = |text: &str| serde_json::from_str::<Pipe>(text);
        assert_eq!(read(r#""./up.py""#).unwrap(), Pipe::new("./up.py"));
        let table = r#"{"command": "./up.py", "workers": 3, "format": "msgpack"}"#;
        let pipe = read(table).unwrap();
        assert_eq!((pipe.workers, pipe.outstanding), (3, 0));
        assert_eq!(pipe.format, PipeFormat::Msgpack);
        for (wrong, said) in [
            (r#"{"workers": 3}"#, "command"),
            (r#"{"command": "a", "worker": 3}"#, "worker"),
            (r#"{"command": "a", "format": "xml"}"#, "xml"),
            ("7", "a table with command"),
        ] {
            let problem = read(wrong).unwrap_err().to_string();
            assert!(problem.contains(said), "{wrong}: {problem}");
        }
        assert!(!format!("{pipe:?}").contains("up.py"));
    }
}
