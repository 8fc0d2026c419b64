//! `convoke delayed show`: one event that waits, whole.

use super::list::no_event;
use super::walk::Walk;
use super::{LOOKED_AT, Which, attempt, text};
use crate::cli::output;
use crate::cli::{Exit, Session, payload};
use clap::Args;
use convoke::operator::delayed::{Queue, Waiting};
use convoke::operator::inspect;
use convoke::protocol::event::{FIRST_FAILED, LAST_ERROR, payload_of};
use redis::aio::ConnectionLike;
use serde_json::{Map, Value, json};

/// Show one event that waits, whole
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke delayed show order-4711
  convoke delayed show 1700000000000-0 image --absolute
  convoke delayed show order-4711 --format json | jq .data")]
pub(super) struct Flags {
    /// The event's id, or that of the entry that it was, as `delayed list --entries` shows it
    #[arg(value_name = "ID")]
    id: String,
    /// Where it waits [default: wherever it is found]
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
}

pub(super) async fn run(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    let which = Which {
        streams: flags.streams.clone(),
        ids: vec![flags.id.clone()],
        ..Which::default()
    };
    let now = inspect::now(connection).await?;
    let queues = which.queues(session, &LOOKED_AT).await?;
    let mut walk = Walk::begin(session, &which, queues, now);
    let mut found = false;
    while let Some((queue, page)) = walk.next(connection).await? {
        for waiting in page {
            found = true;
            match session.output.is_json() {
                true => session.output.json(&described(&queue, &waiting, now))?,
                false => tell(session, &queue, &waiting, now)?,
            }
        }
    }
    if !found {
        anyhow::bail!(
            "{}: no event of that id waits; `convoke delayed list --entries` shows those that do",
            output::printable(&flags.id)
        );
    }
    Ok(Exit::Done)
}

/// One event that waits, for people.
fn tell(session: &Session, queue: &Queue, waiting: &Waiting, now: u64) -> anyhow::Result<()> {
    let output = &session.output;
    let Some(event) = &waiting.event else {
        return Ok(output.line(&no_event(waiting))?);
    };
    let kind = text(event, "type").unwrap_or_else(|| "no event".into());
    let title = format!("{} {} {kind}", queue.key, waiting.id());
    output.line(&output.bold(&output::printable(&title)))?;
    let line = |name: &str, value: &str| {
        let name = output.faint(&format!("{:>13}", output::printable(name)));
        output.line(&format!("{name}  {}", output::printable(value)))
    };
    let due = match session.output.is_absolute() {
        true => output::date(waiting.due_ms),
        false => format!(
            "{} ({})",
            output.ahead(waiting.due_ms, now),
            output::date(waiting.due_ms)
        ),
    };
    line("due", &due)?;
    if attempt(event) > 1 {
        line("attempt", &attempt(event).to_string())?;
    }
    if let Some(error) = text(event, LAST_ERROR) {
        line("last error", &error)?;
    }
    if let Some(first) = text(event, FIRST_FAILED).and_then(|text| text.parse().ok()) {
        line("first failed", &output.moment(first, now))?;
    }
    for (name, value) in event.pairs() {
        let name = String::from_utf8_lossy(name);
        let value = String::from_utf8_lossy(value);
        match &*name {
            "type" | "data" | "attempt" | LAST_ERROR | FIRST_FAILED => {}
            "time" | "deadline" | "notbefore" => match value.parse() {
                Ok(ms) => line(&name, &output::date(ms))?,
                Err(_) => line(&name, &value)?,
            },
            _ => line(&name, &value)?,
        }
    }
    match payload_of(event).map(|data| payload::decode(&data)) {
        None => line("payload", "none")?,
        Some(Ok(value)) => {
            line("payload", "")?;
            output.value(&value)?;
        }
        Some(Err(undecodable)) => line("payload", &undecodable.to_string())?,
    }
    Ok(())
}

/// An event that waits, as JSON.
pub(super) fn described(queue: &Queue, waiting: &Waiting, now: u64) -> Value {
    let mut object = json!({
        "stream": queue.stream.key,
        "queue": queue.key,
        "id": waiting.id(),
        "token": waiting.token,
        "due_at": waiting.due_ms,
        "due_in_ms": waiting.due_ms.saturating_sub(now),
        "bytes": waiting.bytes,
    });
    let Some(event) = &waiting.event else {
        object["no_event"] = no_event(waiting).into();
        return object;
    };
    let mut fields = Map::new();
    for (name, value) in event.pairs() {
        if !matches!(name, b"type" | b"data") {
            let name = String::from_utf8_lossy(name).into_owned();
            fields.insert(name, String::from_utf8_lossy(value).into());
        }
    }
    object["type"] = json!(text(event, "type"));
    object["attempt"] = attempt(event).into();
    object["last_error"] = json!(text(event, LAST_ERROR));
    object["fields"] = fields.into();
    payload::describe(payload_of(event).as_deref(), &mut object);
    object
}
