//! `convoke domain show --held`: which subjects wait for the next try of an event of theirs, and why.

use crate::cli::output::{Cell, Column, RED, Table, count};
use crate::cli::within::Within;
use crate::cli::{Exit, Session, output, payload};
use convoke::connect::connector::Connector;
use convoke::operator::held::{HeldEvent, held_up};
use convoke::operator::inspect;
use convoke::protocol::domain::Domain;
use convoke::protocol::event::payload_of;
use convoke::protocol::keys::Keys;
use serde_json::{Value, json};

/// Subjects that are shown.
const SHOWN: usize = 1000;

/// Shows the subjects of a domain that are held up, the oldest of each partition first.
pub(super) async fn show(
    session: &Session,
    keys: &Keys,
    name: &str,
    is: &Domain,
) -> anyhow::Result<Exit> {
    let (connector, within) = (session.connector()?, session.within()?);
    let columns = vec![
        Column::number("PARTITION"),
        Column::new("SUBJECT").shrinks(6),
        Column::new("ENTRY"),
        Column::new("TYPE").shrinks(8),
        Column::number("ATTEMPT"),
        Column::number("SINCE"),
        Column::number("DUE"),
        Column::new("ERROR").wraps(),
    ];
    let mut table = Table::new(&session.output, columns);
    let (mut shown, mut more) = (0, false);
    for partition in 0..is.partitions {
        let most = SHOWN - shown;
        if most == 0 {
            more = true;
            break;
        }
        let place = (name, partition);
        let Some((held, now)) = of(session, &connector, &within, keys, place, most).await? else {
            continue;
        };
        more |= held.1;
        for one in held.0 {
            shown += 1;
            match session.output.is_json() {
                true => session.output.json(&told(&one, keys, place))?,
                false => table.row(row(session, &one, partition, now))?,
            }
        }
    }
    if session.output.is_json() {
        return Ok(Exit::Done);
    }
    if shown > 0 {
        table.finish()?;
    }
    let more = if more { ", and there are more" } else { "" };
    let held = count(
        shown as u64,
        "event holds its subject up",
        "events hold their subjects up",
    );
    output::complain_line(&format!("{held}{more}"));
    Ok(Exit::Done)
}

/// What is held up in one partition, whether there is more, and the time by its node's clock; `None` if that is away.
async fn of(
    session: &Session,
    connector: &Connector,
    within: &Within,
    keys: &Keys,
    place: (&str, u16),
    most: usize,
) -> anyhow::Result<Option<((Vec<HeldEvent>, bool), u64)>> {
    let stream = keys.events(place.0, place.1);
    if !within.reaches(&stream).await? {
        return Ok(None);
    }
    let connection = &mut connector.toward(&stream).pooled().await?;
    let (sight, group) = (session.sight()?, &session.settings.group);
    let held = held_up(connection, &sight, keys, place, group, most).await?;
    let now = inspect::now(connection).await?;
    Ok(Some(((held.events, held.more), now)))
}

fn text(one: &HeldEvent, name: &str) -> Option<String> {
    let value = one.event.as_ref()?.get(name)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// What it failed with.
pub(in crate::cli) fn why(one: &HeldEvent) -> String {
    match one.note.message.as_str() {
        "" => one.note.code.clone(),
        message => format!("{}: {message}", one.note.code),
    }
}

/// Whose order waits: the subject, or without one the event itself.
pub(in crate::cli) fn whose(one: &HeldEvent) -> String {
    let of_event = text(one, "subject").or_else(|| text(one, "id"));
    of_event.unwrap_or_else(|| one.entry.to_string())
}

fn row(session: &Session, one: &HeldEvent, partition: u16, now: u64) -> Vec<Cell> {
    let output = &session.output;
    let due = match output.is_absolute() {
        true => output::date(one.note.due),
        false => output.ahead(one.note.due, now),
    };
    vec![
        partition.to_string().into(),
        whose(one).into(),
        one.entry.to_string().into(),
        text(one, "type").unwrap_or_else(|| "deleted".into()).into(),
        one.note.attempt.to_string().into(),
        output.moment(one.entry.ms, now).into(),
        due.into(),
        Cell::styled(why(one), RED),
    ]
}

fn told(one: &HeldEvent, keys: &Keys, (domain, partition): (&str, u16)) -> Value {
    let payload = one.event.as_ref().and_then(payload_of);
    let mut told = json!({
        "domain": domain,
        "partition": partition,
        "stream": keys.events(domain, partition),
        "entry": one.entry.to_string(),
        "subject": text(one, "subject"),
        "id": text(one, "id").unwrap_or_else(|| one.entry.to_string()),
        "type": text(one, "type"),
        "attempt": one.note.attempt,
        "due_at": one.note.due,
        "code": one.note.code,
        "message": one.note.message,
        "deleted": one.event.is_none(),
    });
    payload::describe(payload.as_deref(), &mut told);
    told
}
