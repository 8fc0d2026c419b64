//! `convoke discover`: what the workers can be asked for.

use super::{Exit, Session, output, request};
use clap::Args;
use convoke::client::publish::Outgoing;
use serde_json::{Map, Value};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke discover
  convoke discover image
  convoke discover system --format json | jq .input_schema

With --format json each line is one method with its JSON Schemas. A worker answers it.";

/// Ask the workers what they can be asked for
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// Only the event types of this domain: the part before the first dot
    #[arg(value_name = "DOMAIN")]
    domain: Option<String>,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let mut payload = Map::new();
    if let Some(domain) = flags.domain {
        payload.insert("domain".into(), domain.into());
    }
    let event = Outgoing::new("system.discover", &payload);
    let found = match request::ask(&session, event, flags.timeout).await? {
        Ok(reply) => request::result(&reply)?,
        Err(error) => {
            request::complain(&session, &error);
            return Ok(Exit::Failed);
        }
    };
    let methods = found["methods"].as_array().map_or(&[][..], Vec::as_slice);
    if session.output.is_json() {
        for method in methods {
            session.output.json(method)?;
        }
    } else if methods.is_empty() {
        output::complain_line("nobody has a handler for any type there");
    } else {
        let rows: Vec<Vec<String>> = methods.iter().map(row).collect();
        let headings = ["TYPE", "INSTANCES", "TIMEOUT", "LIMIT", "DESCRIPTION"];
        session.output.table(&headings, &rows)?;
    }
    if let Some(omitted) = found["omitted"].as_u64() {
        output::complain_line(&format!(
            "at least {omitted} more types did not fit into the answer: name a domain"
        ));
    }
    Ok(Exit::Done)
}

fn row(method: &Value) -> Vec<String> {
    let text = |field: &str| method[field].as_str().unwrap_or_default().to_owned();
    let time = |ms: &Value| {
        let ms = ms.as_u64()?;
        Some(humantime::format_duration(Duration::from_millis(ms)).to_string())
    };
    let limit = &method["rate_limit"];
    let rate = limit["limit"].as_u64().zip(time(&limit["period_ms"]));
    vec![
        text("type"),
        method["instances"].to_string(),
        time(&method["timeout_ms"]).unwrap_or_else(|| "-".into()),
        rate.map_or_else(
            || "-".into(),
            |(runs, period)| match limit["per"].as_str() {
                None => format!("{runs} in {period}"),
                Some(per) => format!("{runs} in {period} per {per}"),
            },
        ),
        text("description"),
    ]
}
