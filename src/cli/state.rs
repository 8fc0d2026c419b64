//! `convoke state`: all that there is, at one look.

use super::output;
use super::output::Output;
use super::{Exit, Session, request};
use clap::Args;
use convoke::client::publish::Outgoing;
use serde_json::{Value, json};
use std::io;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke state
  convoke state --recent 30
  convoke state --format json | jq '.streams[] | select(.lag > 1000)'

A worker answers it, from what is in Redis at that moment.";

/// Ask a worker for the state of everything
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// How many of the latest facts
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=100))]
    recent: u64,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let event = Outgoing::new("system.get_state", &json!({ "recent": flags.recent }));
    let state = match request::ask(&session, event, flags.timeout).await? {
        Ok(reply) => request::result(&reply)?,
        Err(error) => {
            request::complain(&session, &error);
            return Ok(Exit::Failed);
        }
    };
    match session.output.is_json() {
        true => session.output.json(&state)?,
        false => print(&session.output, &state)?,
    }
    Ok(Exit::Done)
}

/// The columns of a part: heading, and what stands under it.
type Columns<'a> = &'a [(&'static str, &'a dyn Fn(&Value) -> String)];

fn print(output: &Output, state: &Value) -> io::Result<()> {
    let at = state["at"].as_u64().unwrap_or(0);
    let age = |time: &Value| match time.as_u64() {
        Some(time) => output.moment(time, at),
        None => "-".to_owned(),
    };
    output.line(&output::printable(&format!(
        "state {} (told by version {}); leader: {}; instances: {}",
        text(&state["version"]),
        text(&state["worker_version"]),
        text(&state["leader"]),
        text(&state["instances_total"]),
    )))?;
    if let Some(ago) = state["merged_ms"].as_u64() {
        let ago = output::span(ago);
        output.line(&format!("as the leader saw it {ago} ago"))?;
    }
    if let Some(used) = state["redis"]["used_bytes"].as_u64() {
        let limit = match state["redis"]["limit_bytes"].as_u64() {
            Some(limit) => output::bytes(limit),
            None => "no limit".to_owned(),
        };
        let nodes = match state["redis"]["nodes"].as_u64() {
            Some(nodes) => format!(", {nodes} nodes"),
            None => String::new(),
        };
        let fullest = &state["redis"]["fullest"];
        let fullest = fullest.as_f64().map_or_else(String::new, |share| {
            let node = text(&state["redis"]["fullest_node"]);
            format!(", the fullest {node} with {:.0} %", share * 100.0)
        });
        let line = format!("redis: {} of {limit}{nodes}{fullest}", output::bytes(used));
        output.line(&output::printable(&line))?;
    }
    for away in state["unreachable"].as_array().into_iter().flatten() {
        let (node, error) = (text(&away["node"]), text(&away["error"]));
        let line = format!("{node} does not answer, its streams are missing: {error}");
        output.line(&output.red(&output::printable(&line)))?;
    }
    if let Some(patterns) = state["patterns"].as_object().filter(|all| !all.is_empty()) {
        let told = patterns
            .iter()
            .map(|(event, pattern)| format!("{event} {}", text(pattern)));
        let told = told.collect::<Vec<_>>().join(", ");
        output.line(&output::printable(&format!("patterns: {told}")))?;
    }
    let tasks = &state["tasks"];
    let count = |status: &str| format!("{} {status}", text(&tasks[status]));
    let counts = ["pending", "assigned", "completed", "failed", "cancelled"].map(count);
    output.line(&output::printable(&format!("tasks: {}", counts.join(", "))))?;
    part(
        output,
        "tasks",
        &tasks["items"],
        &[
            ("TASK", &|v| text(&v["task_id"])),
            ("STATUS", &|v| text(&v["status"])),
            ("KIND", &|v| text(&v["kind"])),
            ("PRIORITY", &|v| text(&v["priority"])),
            ("INSTANCE", &|v| text(&v["instance_id"])),
            ("CHANGED", &|v| age(&v["changed_at"])),
        ],
    )?;
    let part = |title: &str, columns: Columns<'_>| part(output, title, &state[title], columns);
    part(
        "instances",
        &[
            ("ID", &|v| text(&v["id"])),
            ("STATUS", &|v| text(&v["status"])),
            ("ROLES", &|v| words(&v["roles"])),
            ("CAPACITY", &|v| text(&v["capacity"])),
            ("LOAD", &|v| text(&v["load"])),
            ("PULSE", &|v| age(&v["last_seen"])),
            ("UP", &|v| age(&v["started_at"])),
            ("RESTARTS", &|v| text(&v["restarts"])),
        ],
    )?;
    part(
        "batches",
        &[
            ("BATCH", &|v| text(&v["batch_id"])),
            ("STATUS", &|v| text(&v["status"])),
            ("ITEMS", &|v| text(&v["item_type"])),
            ("DONE", &|v| text(&v["items_processed"])),
            ("FAILED", &|v| text(&v["items_failed"])),
            ("TOTAL", &|v| text(&v["total"])),
            ("HOLDER", &|v| text(&v["processor_id"])),
            ("PROGRESS", &|v| age(&v["updated_at"])),
        ],
    )?;
    part(
        "decisions",
        &[
            ("DECISION", &|v| text(&v["decision"])),
            ("STATUS", &|v| text(&v["status"])),
            ("VOTES", &|v| text(&v["vote_count"])),
            ("QUORUM", &|v| text(&v["quorum"])),
            ("ELECTORATE", &|v| text(&v["electorate"])),
            ("OPENED", &|v| age(&v["opened_at"])),
            ("DECIDED", &|v| match v.get("final_decision") {
                Some(value) => value.to_string(),
                None => "-".to_owned(),
            }),
        ],
    )?;
    part(
        "streams",
        &[
            ("STREAM", &|v| text(&v["name"])),
            ("LENGTH", &|v| text(&v["length"])),
            ("PENDING", &|v| text(&v["pending"])),
            ("LAG", &|v| text(&v["lag"])),
        ],
    )?;
    part(
        "recent_events",
        &[
            ("FACT", &|v| text(&v["id"])),
            ("AGE", &|v| age(&v["time"])),
            ("TYPE", &|v| text(&v["type"])),
            ("DATA", &|v| v["data"].to_string()),
        ],
    )
}

fn part(output: &Output, title: &str, items: &Value, columns: Columns<'_>) -> io::Result<()> {
    let items = items.as_array().map_or(&[][..], Vec::as_slice);
    if items.is_empty() {
        return output.line(&format!("\nno {}", title.replace('_', " ")));
    }
    output.line("")?;
    let headings: Vec<&str> = columns.iter().map(|(heading, _)| *heading).collect();
    let row = |item: &Value| columns.iter().map(|(_, cell)| cell(item)).collect();
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    output.table(&headings, &rows)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn words(value: &Value) -> String {
    let words: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
    words.join(",")
}
