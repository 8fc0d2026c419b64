//! `convoke task update`, `assign`, `unassign` and `claim`.

use super::{ReplyFlags, answer, answer_to, data, place, text};
use crate::cli::output::{self, printable};
use crate::cli::{Exit, Misuse, Session, input};
use clap::Args;
use convoke::client::publish::Outgoing;
use convoke::protocol::json;
use serde_json::{Value, json};

const UPDATE_EXAMPLES: &str = "\
Examples:
  convoke task update order-17 --priority 90
  convoke task update order-17 --data @job.json
  convoke task update order-17 --metadata '{\"ticket\": \"OPS-4\"}'
  convoke task update order-17 --no-requires

Only a task that waits can be changed: cancel one that a worker holds, and create another one. What is not
named stays as it is, and so does the task's age.";

const ASSIGN_EXAMPLES: &str = "\
Examples:
  convoke task assign order-17 --to w-2

The instance must be active, hold the role, have the capabilities and have room: what it lacks is said. A
task that another one holds moves: that one is told so, and what it completes later is discarded.";

const UNASSIGN_EXAMPLES: &str = "\
Examples:
  convoke task unassign order-17

It goes to another worker that has room; else it waits, and goes to whoever can take it next. The worker
that runs it is told so, and what it completes later is discarded. No attempt is spent.";

const CLAIM_EXAMPLES: &str = "\
Examples:
  convoke task claim --instance mine
  convoke task claim --instance mine --limit 5 --kind image.resize
  convoke task claim --instance mine --id claim-17 --format json

With --id the command is safe to repeat: it takes nothing more, and answers the same. For programs
without an inbox: register (system.register), pulse (system.heartbeat), claim, then `task complete` or
`task fail` with the fence that is shown. Workers get their tasks by themselves: nobody claims for them.";

/// Change a task that waits
#[derive(Args)]
#[command(after_help = UPDATE_EXAMPLES)]
pub(super) struct Update {
    /// The task's id
    #[arg(value_name = "ID", value_parser = input::task)]
    id: String,
    /// 0 to 100: the highest goes first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    priority: Option<u8>,
    /// The payload: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// All event types that the worker must have handlers for besides; may be repeated
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = input::event_type)]
    requires: Vec<String>,
    /// The worker needs no handler besides that of the kind
    #[arg(long, conflicts_with = "requires")]
    no_requires: bool,
    /// What else people should know of it: a JSON object
    #[arg(long, value_name = "JSON|@FILE|-")]
    metadata: Option<String>,
    #[command(flatten)]
    reply: ReplyFlags,
}

/// Give a task to a worker of your choice
#[derive(Args)]
#[command(after_help = ASSIGN_EXAMPLES)]
pub(super) struct Assign {
    /// The task's id
    #[arg(value_name = "ID", value_parser = input::task)]
    id: String,
    /// The instance that gets it
    #[arg(long, value_name = "NAME", value_parser = input::instance)]
    to: String,
    #[command(flatten)]
    reply: ReplyFlags,
}

/// Take a task from the worker that holds it
#[derive(Args)]
#[command(after_help = UNASSIGN_EXAMPLES)]
pub(super) struct Unassign {
    /// The task's id
    #[arg(value_name = "ID", value_parser = input::task)]
    id: String,
    #[command(flatten)]
    reply: ReplyFlags,
}

/// Take tasks for an instance that is no worker
#[derive(Args)]
#[command(after_help = CLAIM_EXAMPLES)]
pub(super) struct Claim {
    /// The instance that takes them
    #[arg(long, value_name = "NAME", value_parser = input::instance)]
    instance: String,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=50))]
    limit: u32,
    /// Only tasks of this kind; may be repeated
    #[arg(long = "kind", value_name = "TYPE", value_delimiter = ',', value_parser = input::event_type)]
    kinds: Vec<String>,
    /// The claim's own id: the same again takes nothing more [default: one made up]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    reply: ReplyFlags,
}

pub(super) async fn update(session: &Session, flags: Update) -> anyhow::Result<Exit> {
    let mut payload = json!({"task_id": flags.id});
    if let Some(priority) = flags.priority {
        payload["priority"] = priority.into();
    }
    if flags.data.is_some() {
        payload["payload"] = data(session, flags.data.as_deref())?;
    }
    if flags.no_requires || !flags.requires.is_empty() {
        payload["requires"] = flags.requires.into();
    }
    if let Some(metadata) = &flags.metadata {
        payload["metadata"] = data(session, Some(metadata))?;
    }
    if payload.as_object().is_some_and(|fields| fields.len() == 1) {
        return Err(Misuse::error(
            "nothing to change: name --priority, --data, --requires, --no-requires or --metadata",
        ));
    }
    word(session, "task.update", &payload, &flags.reply).await
}

pub(super) async fn assign(session: &Session, flags: Assign) -> anyhow::Result<Exit> {
    let payload = json!({"task_id": flags.id, "instance_id": flags.to});
    word(session, "task.assign", &payload, &flags.reply).await
}

pub(super) async fn unassign(session: &Session, flags: Unassign) -> anyhow::Result<Exit> {
    let payload = json!({"task_id": flags.id});
    word(session, "task.unassign", &payload, &flags.reply).await
}

pub(super) async fn claim(session: &Session, flags: Claim) -> anyhow::Result<Exit> {
    let mut payload = json!({"instance_id": flags.instance, "limit": flags.limit});
    if !flags.kinds.is_empty() {
        payload["kinds"] = flags.kinds.into();
    }
    let mut event = Outgoing::encoded("task.claim", json::from_json(&payload));
    if let Some(id) = flags.id {
        event = event.id(id);
    }
    let Some(claimed) = answer_to(session, event, flags.reply.timeout).await? else {
        return Ok(Exit::Failed);
    };
    let none = Vec::new();
    let tasks = claimed["tasks"].as_array().unwrap_or(&none);
    if session.output.is_json() {
        for task in tasks {
            session.output.json(task)?;
        }
        return Ok(Exit::Done);
    }
    if tasks.is_empty() {
        output::complain_line("nothing waits that it can take, or it has no room");
        return Ok(Exit::Done);
    }
    let row = |task: &Value| {
        let texts = ["task_id", "kind", "attempt", "fence"].map(|field| text(task, field));
        let mut row = texts.to_vec();
        row.push(printable(&output::json(&task["payload"])).into_owned());
        row
    };
    let rows: Vec<Vec<String>> = tasks.iter().map(row).collect();
    let headings = ["ID", "KIND", "ATTEMPT", "FENCE", "PAYLOAD"];
    session.output.table(&headings, &rows)?;
    Ok(Exit::Done)
}

async fn word(
    session: &Session,
    kind: &str,
    payload: &Value,
    flags: &ReplyFlags,
) -> anyhow::Result<Exit> {
    let Some(placed) = answer(session, kind, payload, flags.timeout).await? else {
        return Ok(Exit::Failed);
    };
    if session.output.is_json() {
        session.output.json(&placed)?;
        return Ok(Exit::Done);
    }
    place(session, &placed)
}
