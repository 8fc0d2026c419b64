//! `convoke task`: creates tasks, looks at them, and puts them right.

mod waits;
mod words;

use super::output;
use super::output::printable;
use super::request::{ask, complain, result};
use super::{Exit, Misuse, Session, input};
use clap::{Args, Subcommand};
use convoke::client::publish::Outgoing;
use convoke::protocol::json;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// The first pause between two looks at a task that is waited for, and the longest.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

const EXAMPLES: &str = "\
Examples:
  convoke task create image.resize --data '{\"width\": 80}'
  convoke task create image.resize --data @job.json --id order-17 --wait
  convoke task list --status pending
  convoke task get order-17 --format json | jq .result
  convoke task cancel order-17 --reason 'ordered twice'
  convoke task update order-17 --priority 90
  convoke task assign order-17 --to w-2

A task goes to the least loaded worker that has a handler for its kind; with nobody free it waits.";

const CREATE_EXAMPLES: &str = "\
Examples:
  convoke task create image.resize --data '{\"width\": 80}'
  convoke task create report.make --role reporter --requires pdf.write
  convoke task create image.resize --data @job.json --id order-17 --wait

Prints the task's id and what became of it; with --wait its result, as JSON, once it is completed.
A task that has failed, was cancelled, or is not done within --timeout, makes the exit code 1. The same command with
the same --id is safe to repeat: it creates one task.";

const REPORT_EXAMPLES: &str = "\
Examples:
  convoke task complete order-17 --instance w-1 --fence 1700000000000000
  convoke task fail order-17 --instance w-1 --fence 17 --error 'no such image'

Workers do this by themselves. Instance and fence are those of the assignment, as `task get` shows
them: if the task was assigned again since, it is refused.";

const CANCEL_EXAMPLES: &str = "\
Examples:
  convoke task cancel order-17
  convoke task cancel order-17 --reason 'ordered twice'

A worker that runs it is told so; what it completes later is discarded. The same again is safe. A task
that was completed or has failed is refused.";

/// Create tasks and look at them
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(Create),
    Get(Get),
    List(List),
    Cancel(Cancel),
    Complete(Complete),
    Fail(Fail),
    Update(words::Update),
    Assign(words::Assign),
    Unassign(words::Unassign),
    Claim(words::Claim),
}

/// Create a task
#[derive(Args)]
#[command(after_help = CREATE_EXAMPLES)]
struct Create {
    /// The event type whose handler runs it, such as image.resize
    #[arg(value_name = "KIND", value_parser = input::event_type)]
    kind: String,
    /// The payload: JSON, @FILE, or - for standard input; without it nil
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// The task's id [default: one made up]
    #[arg(long, value_parser = input::task)]
    id: Option<String>,
    /// 0 to 100: the highest goes first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    priority: Option<u8>,
    /// The role that the worker must hold [default: worker]
    #[arg(long, value_parser = input::role)]
    role: Option<String>,
    /// An event type that the worker must have a handler for besides; may be repeated
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = input::event_type)]
    requires: Vec<String>,
    /// How often it may be assigned before a failure is final [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    max_attempts: Option<u32>,
    /// Wait until it is completed or has failed
    #[arg(long)]
    wait: bool,
    /// How long to wait for it, and for each reply
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "30s")]
    timeout: Duration,
}

/// Show a task with its payload and its result
#[derive(Args)]
struct Get {
    /// The task's id
    #[arg(value_name = "ID", value_parser = input::task)]
    id: String,
    #[command(flatten)]
    reply: ReplyFlags,
}

/// List tasks: the assigned, the waiting in their order, the finished
#[derive(Args)]
struct List {
    /// Only those of this status
    #[arg(long, value_parser = ["pending", "assigned", "completed", "failed", "cancelled"])]
    status: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    reply: ReplyFlags,
}

/// Cancel a task that waits or that a worker holds
#[derive(Args)]
#[command(after_help = CANCEL_EXAMPLES)]
struct Cancel {
    /// The task's id
    #[arg(value_name = "ID", value_parser = input::task)]
    id: String,
    /// Why, for whoever looks at it later
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    reply: ReplyFlags,
}

/// Complete a task in the place of its holder
#[derive(Args)]
#[command(after_help = REPORT_EXAMPLES)]
struct Complete {
    #[command(flatten)]
    assignment: Assignment,
    /// The result: JSON, @FILE, or - for standard input; without it nil
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    #[command(flatten)]
    reply: ReplyFlags,
}

/// Fail a task in the place of its holder
#[derive(Args)]
#[command(after_help = REPORT_EXAMPLES)]
struct Fail {
    #[command(flatten)]
    assignment: Assignment,
    /// What went wrong
    #[arg(long, value_name = "TEXT")]
    error: String,
    /// Do not try it again, even if attempts are left
    #[arg(long)]
    permanent: bool,
    #[command(flatten)]
    reply: ReplyFlags,
}

#[derive(Args)]
struct Assignment {
    /// The task's id
    #[arg(value_name = "ID", value_parser = input::task)]
    id: String,
    /// The instance that holds it
    #[arg(long, value_name = "NAME", value_parser = input::instance)]
    instance: String,
    /// The number that it was assigned under
    #[arg(long, value_name = "N")]
    fence: u64,
}

impl Assignment {
    fn payload(&self) -> Value {
        json!({"task_id": self.id, "instance_id": self.instance, "fence": self.fence})
    }
}

#[derive(Args)]
struct ReplyFlags {
    /// How long to wait for the reply
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "30s")]
    timeout: Duration,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    match flags.command {
        Command::Create(flags) => create(&session, flags).await,
        Command::Get(flags) => {
            let payload = json!({"task_id": flags.id});
            let Some(mut task) =
                answer(&session, "task.get", &payload, flags.reply.timeout).await?
            else {
                return Ok(Exit::Failed);
            };
            // Who may ask about a task need not see the instances.
            let why = waits::reason(&session, &task).await.ok().flatten();
            if session.output.is_json() {
                if let Some(why) = &why {
                    task["why_it_waits"] = why.as_str().into();
                }
                session.output.json(&task)?;
                return Ok(Exit::Done);
            }
            show(&session, &task)?;
            if let Some(why) = why {
                output::complain_line(&printable(&format!("it waits: {why}")));
            }
            Ok(Exit::Done)
        }
        Command::List(flags) => list(&session, flags).await,
        Command::Cancel(flags) => {
            let mut payload = json!({"task_id": flags.id});
            if let Some(reason) = flags.reason {
                payload["reason"] = reason.into();
            }
            report(&session, "task.cancel", &payload, &flags.reply).await
        }
        Command::Complete(flags) => {
            let mut payload = flags.assignment.payload();
            payload["result"] = data(&session, flags.data.as_deref())?;
            report(&session, "task.complete", &payload, &flags.reply).await
        }
        Command::Fail(flags) => {
            let mut payload = flags.assignment.payload();
            payload["error"] = flags.error.into();
            payload["retryable"] = (!flags.permanent).into();
            report(&session, "task.fail", &payload, &flags.reply).await
        }
        Command::Update(flags) => words::update(&session, flags).await,
        Command::Assign(flags) => words::assign(&session, flags).await,
        Command::Unassign(flags) => words::unassign(&session, flags).await,
        Command::Claim(flags) => words::claim(&session, flags).await,
    }
}

async fn create(session: &Session, flags: Create) -> anyhow::Result<Exit> {
    let began = Instant::now();
    let mut payload = json!({"kind": flags.kind, "payload": data(session, flags.data.as_deref())?});
    let optional = [
        ("task_id", flags.id.map(Value::from)),
        ("priority", flags.priority.map(Value::from)),
        ("role", flags.role.map(Value::from)),
        ("max_attempts", flags.max_attempts.map(Value::from)),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            payload[name] = value;
        }
    }
    payload["requires"] = flags.requires.into();
    let created = answer(session, "task.create", &payload, flags.timeout).await?;
    let Some(created) = created else {
        return Ok(Exit::Failed);
    };
    if flags.wait {
        return wait(session, &created, began, flags.timeout).await;
    }
    if session.output.is_json() {
        session.output.json(&created)?;
        return Ok(Exit::Done);
    }
    place(session, &created)
}

/// One line that says where a task is.
fn place(session: &Session, task: &Value) -> anyhow::Result<Exit> {
    let (id, status) = (text(task, "task_id"), text(task, "status"));
    let line = match task.get("assigned_to") {
        Some(_) => format!("{id} assigned to {}", text(task, "assigned_to")),
        None => format!("{id} {status}"),
    };
    session.output.line(&printable(&line))?;
    Ok(Exit::Done)
}

/// Looks at a task, ever more seldom, until it is done.
async fn wait(
    session: &Session,
    created: &Value,
    began: Instant,
    timeout: Duration,
) -> anyhow::Result<Exit> {
    let id = text(created, "task_id");
    let mut pause = LOOK.0;
    loop {
        let left = timeout.saturating_sub(began.elapsed());
        let payload = json!({"task_id": id});
        let look = left.max(Duration::from_secs(1));
        let Some(task) = answer(session, "task.get", &payload, look).await? else {
            return Ok(Exit::Failed);
        };
        match text(&task, "status").as_str() {
            "completed" if session.output.is_json() => {
                session.output.json(&task)?;
                return Ok(Exit::Done);
            }
            "completed" => {
                session.output.value(&task["result"])?;
                return Ok(Exit::Done);
            }
            "failed" if session.output.is_json() => {
                session.output.json(&task)?;
                return Ok(Exit::Failed);
            }
            "failed" => {
                let line = format!("convoke: task {id} failed: {}", text(&task, "error"));
                output::complain_line(&printable(&line));
                return Ok(Exit::Failed);
            }
            "cancelled" if session.output.is_json() => {
                session.output.json(&task)?;
                return Ok(Exit::Failed);
            }
            "cancelled" => {
                let why = match text(&task, "reason") {
                    why if why.is_empty() => why,
                    why => format!(": {why}"),
                };
                let line = format!("convoke: task {id} was cancelled{why}");
                output::complain_line(&printable(&line));
                return Ok(Exit::Failed);
            }
            status if left.is_zero() => {
                let message = format!("task {id} is still {status}; see: convoke task get {id}");
                anyhow::bail!(message);
            }
            _ => {}
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(LOOK.1);
    }
}

async fn list(session: &Session, flags: List) -> anyhow::Result<Exit> {
    let mut payload = json!({"limit": flags.limit});
    if let Some(status) = flags.status {
        payload["status"] = status.into();
    }
    let listed = answer(session, "task.list", &payload, flags.reply.timeout).await?;
    let Some(listed) = listed else {
        return Ok(Exit::Failed);
    };
    let none = Vec::new();
    let tasks = listed["tasks"].as_array().unwrap_or(&none);
    if session.output.is_json() {
        for task in tasks {
            session.output.json(task)?;
        }
        return Ok(Exit::Done);
    }
    if tasks.is_empty() {
        output::complain_line("no tasks");
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = tasks
        .iter()
        .map(|task| {
            let attempts = format!("{}/{}", text(task, "attempt"), text(task, "max_attempts"));
            vec![
                text(task, "task_id"),
                text(task, "kind"),
                text(task, "status"),
                text(task, "priority"),
                attempts,
                text(task, "instance_id"),
                text(task, "error"),
            ]
        })
        .collect();
    let headings = [
        "ID", "KIND", "STATUS", "PRIORITY", "ATTEMPT", "INSTANCE", "ERROR",
    ];
    session.output.table(&headings, &rows)?;
    Ok(Exit::Done)
}

/// One line for each field that a task has.
fn show(session: &Session, task: &Value) -> anyhow::Result<()> {
    if session.output.is_json() {
        session.output.json(task)?;
        return Ok(());
    }
    let none = Map::new();
    for (name, value) in task.as_object().unwrap_or(&none) {
        if value.as_array().is_some_and(Vec::is_empty) && name == "requires" {
            continue;
        }
        let shown = match (name.as_str(), value) {
            ("created_at" | "changed_at", Value::Number(ms)) => time(ms.as_i64()),
            // As JSON, so that a text and what looks like it can be told apart.
            ("payload" | "result" | "metadata", value) => output::json(value),
            _ => text(task, name),
        };
        let label = format!("{name}:");
        session
            .output
            .line(&printable(&format!("{label:14}{shown}")))?;
    }
    Ok(())
}

async fn report(
    session: &Session,
    kind: &str,
    payload: &Value,
    flags: &ReplyFlags,
) -> anyhow::Result<Exit> {
    let Some(reported) = answer(session, kind, payload, flags.timeout).await? else {
        return Ok(Exit::Failed);
    };
    match session.output.is_json() {
        true => session.output.json(&reported)?,
        false => session
            .output
            .line(&printable(&text(&reported, "status")))?,
    }
    Ok(Exit::Done)
}

/// The result of a request; `None` if it has failed, which has been said.
async fn answer(
    session: &Session,
    kind: &str,
    payload: &Value,
    timeout: Duration,
) -> anyhow::Result<Option<Value>> {
    let event = Outgoing::encoded(kind, json::from_json(payload));
    answer_to(session, event, timeout).await
}

async fn answer_to(
    session: &Session,
    event: Outgoing,
    timeout: Duration,
) -> anyhow::Result<Option<Value>> {
    match ask(session, event, timeout).await? {
        Ok(reply) => Ok(Some(result(&reply)?)),
        Err(error) => {
            complain(session, &error);
            Ok(None)
        }
    }
}

/// What `--data` means, as JSON.
fn data(session: &Session, data: Option<&str>) -> anyhow::Result<Value> {
    let Some(data) = data else {
        return Ok(Value::Null);
    };
    let packed = input::payload(data, session.settings.max_payload)?;
    json::to_json(&packed).map_err(|error| Misuse::error(format_args!("--data: {error}")))
}

fn text(of: &Value, field: &str) -> String {
    match of.get(field) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            let items = items.iter().map(|item| item.as_str().unwrap_or_default());
            items.collect::<Vec<_>>().join(",")
        }
        Some(other) => other.to_string(),
    }
}

fn time(ms: Option<i64>) -> String {
    let stamp = ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    stamp.map_or_else(String::new, |stamp| stamp.to_string())
}
