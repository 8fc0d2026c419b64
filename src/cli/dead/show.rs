//! `convoke dead show`: the whole story of one dead letter.

use super::died;
use crate::cli::output::{self, count};
use crate::cli::{Exit, Session, choose, payload};
use clap::Args;
use convoke::operator::browse::Pages;
use convoke::operator::inspect;
use convoke::protocol::dead::Letter;
use convoke::protocol::event::{Entry, EntryId, FIRST_FAILED, payload_of};
use convoke::protocol::keys::{StreamKind, StreamName};
use redis::aio::ConnectionLike;
use serde_json::{Map, Value, json};

/// Show one dead letter with its whole story
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke dead show 1700000000000-0
  convoke dead show 1700000000000-0 image --absolute
  convoke dead show 1700000000000-0 --format json | jq .data")]
pub(super) struct Flags {
    /// The dead letter's entry id, as `dead list --entries` shows it
    #[arg(value_name = "ENTRY")]
    entry: EntryId,
    /// Where it is [default: wherever it is found]
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
}

pub(super) async fn run(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    let keys = session.keys().await?;
    let kinds = [StreamKind::Dead];
    let streams = choose::streams(&session.within()?, &keys, &flags.streams, &kinds).await?;
    let now = inspect::now(connection).await?;
    let sight = session.sight()?;
    let mut found = false;
    for stream in streams {
        let mut pages = Pages::new(&sight, &stream.key, flags.entry, flags.entry);
        for entry in pages.next().await? {
            found = true;
            let letter = Letter::read(&entry);
            match session.output.is_json() {
                true => session.output.json(&described(&stream, &entry, &letter))?,
                false => tell(session, &stream, &entry, &letter, now)?,
            }
        }
    }
    if !found {
        anyhow::bail!(
            "{}: no such dead letter; `convoke dead list --entries` shows them",
            flags.entry
        );
    }
    Ok(Exit::Done)
}

/// The story of one dead letter, for people.
fn tell(
    session: &Session,
    stream: &StreamName,
    entry: &Entry,
    letter: &Letter,
    now: u64,
) -> anyhow::Result<()> {
    let output = &session.output;
    let own = Entry::new(entry.id, &letter.fields);
    let text = |name: &str| {
        own.get(name)
            .map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let kind = text("type").unwrap_or_else(|| "no event".into());
    output.line(&output.bold(&output::printable(&format!(
        "{} {} {kind}",
        stream.key, entry.id
    ))))?;
    let line = |name: &str, value: &str| {
        let name = output.faint(&format!("{:>13}", output::printable(name)));
        output.line(&format!("{name}  {}", output::printable(value)))
    };
    let reason = output.red(&output::printable(&letter.reason));
    output.line(&format!(
        "{}  {reason}: {}",
        output.faint("       reason"),
        output::printable(&letter.message)
    ))?;
    let deliveries = count(letter.deliveries, "delivery", "deliveries");
    line(
        "tries",
        &format!("{}; {deliveries} of its last entry", letter.attempts),
    )?;
    if let Some(first) = text(FIRST_FAILED).and_then(|text| text.parse().ok()) {
        line("first failed", &output.moment(first, now))?;
    }
    let by = letter.instance.as_deref().unwrap_or("?");
    let when = output.moment(died(letter, entry), now);
    line("died", &format!("{when}, given up by {by}"))?;
    if let Some(from) = &letter.stream {
        let at = letter.entry.map_or_else(String::new, |id| format!(" {id}"));
        line("stood on", &format!("{from}{at}"))?;
    }
    for (name, value) in own.pairs() {
        let name = String::from_utf8_lossy(name);
        let value = String::from_utf8_lossy(value);
        match &*name {
            "type" | "data" | FIRST_FAILED => {}
            "time" | "deadline" => match value.parse() {
                Ok(ms) => line(&name, &output.moment(ms, now))?,
                Err(_) => line(&name, &value)?,
            },
            _ => line(&name, &value)?,
        }
    }
    if let Some(said) = payload::too_large(entry) {
        return line("payload", &said).map_err(Into::into);
    }
    match payload_of(&own).map(|data| payload::decode(&data)) {
        None => line("payload", "none")?,
        Some(Ok(value)) => {
            line("payload", "")?;
            output.value(&value)?;
        }
        Some(Err(undecodable)) => line("payload", &undecodable.to_string())?,
    }
    Ok(())
}

/// A dead letter as JSON.
pub(super) fn described(stream: &StreamName, entry: &Entry, letter: &Letter) -> Value {
    let own = Entry::new(entry.id, &letter.fields);
    let mut fields = Map::new();
    for (name, value) in own.pairs() {
        if !matches!(name, b"type" | b"data") {
            let name = String::from_utf8_lossy(name).into_owned();
            fields.insert(name, String::from_utf8_lossy(value).into());
        }
    }
    let text = |name| {
        own.get(name)
            .map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let mut object = json!({
        "stream": stream.key,
        "entry": entry.id.to_string(),
        "type": text("type"),
        // Without an id of its own that of the entry that died serves.
        "id": text("id").or_else(|| letter.entry.map(|id| id.to_string())),
        "reason": letter.reason,
        "message": letter.message,
        "attempts": letter.attempts,
        "deliveries": letter.deliveries,
        "instance": letter.instance,
        "from_stream": letter.stream,
        "from_entry": letter.entry.map(|id| id.to_string()),
        "first_failed_at": text(FIRST_FAILED).and_then(|text| text.parse::<u64>().ok()),
        "died_at": died(letter, entry),
        "replays": text("replays").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0),
        "fields": fields,
    });
    match entry.cut() {
        None => payload::describe(payload_of(&own).as_deref(), &mut object),
        Some(_) => payload::describe_entry(entry, &mut object),
    }
    object
}
