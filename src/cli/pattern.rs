//! `convoke pattern`: in which pattern system events are answered.

use super::request::{ask, complain, result};
use super::{Exit, Session, output, who};
use clap::{Args, Subcommand};
use convoke::client::publish::Outgoing;
use convoke::protocol::pattern::Patterned;
use serde_json::{Value, json};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke pattern list
  convoke pattern set health hybrid
  convoke pattern set health distributed --version 3
  convoke pattern clear health

What is set here holds for all workers of the namespace, at once; cleared, each one's setting counts \
again (`patterns.health` in its file, CONVOKE_PATTERNS_HEALTH, --pattern health=hybrid). The event and its \
result stay the same. `convoke docs patterns` says which to choose.";

/// Choose in which pattern system events are answered
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    command: Command,
    /// How long to wait for the answer
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

#[derive(Subcommand)]
enum Command {
    /// List the events that have several, and the one of each
    List,
    /// Choose one for all workers
    Set {
        /// The system event, such as health
        #[arg(value_parser = event)]
        event: Patterned,
        /// centralized, distributed or hybrid
        pattern: String,
        /// Only if this is the version of the present choice
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Take the choice back: each worker's setting counts again
    Clear {
        /// The system event
        #[arg(value_parser = event)]
        event: Patterned,
        /// Only if this is the version of the present choice
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
}

fn event(name: &str) -> Result<Patterned, String> {
    Patterned::named(name)
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let (kind, mut data) = match &flags.command {
        Command::List => ("system.pattern.get", json!({})),
        Command::Set { event, pattern, .. } => (
            "system.pattern.set",
            json!({"event": event.as_str(), "pattern": pattern}),
        ),
        Command::Clear { event, .. } => ("system.pattern.clear", json!({"event": event.as_str()})),
    };
    if let Command::Set { version, .. } | Command::Clear { version, .. } = flags.command
        && let Some(version) = version
    {
        data["version"] = version.into();
    }
    let request = Outgoing::new(kind, &data).source(who());
    let said = match ask(&session, request, flags.timeout).await? {
        Ok(reply) => result(&reply)?,
        Err(error) => {
            complain(&session, &error);
            return Ok(Exit::Failed);
        }
    };
    match flags.command {
        Command::List => list(&session, &said)?,
        _ if session.output.is_json() => session.output.json(&said)?,
        _ => {
            let pattern = said["pattern"].as_str().unwrap_or("as each worker is set");
            let line = format!(
                "{}: {pattern}, version {}",
                text(&said["event"]),
                said["version"]
            );
            session.output.line(&output::printable(&line))?;
        }
    }
    Ok(Exit::Done)
}

fn list(session: &Session, said: &Value) -> anyhow::Result<()> {
    let patterns = said["patterns"].as_array().map_or(&[][..], Vec::as_slice);
    if session.output.is_json() {
        for one in patterns {
            session.output.json(one)?;
        }
        return Ok(());
    }
    let row = |one: &Value| {
        let built = one["built"].as_array().into_iter().flatten().map(text);
        vec![
            text(&one["event"]),
            text(&one["pattern"]),
            text(&one["from"]),
            text(&one["version"]),
            text(&one["by"]),
            built.collect::<Vec<_>>().join(","),
        ]
    };
    let rows: Vec<Vec<String>> = patterns.iter().map(row).collect();
    let headings = ["EVENT", "PATTERN", "FROM", "VERSION", "BY", "THERE ARE"];
    Ok(session.output.table(&headings, &rows)?)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
