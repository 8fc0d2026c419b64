//! `convoke group list`: every group of every stream, and who reads for it.

use super::{Seen, look};
use crate::cli::output::{self, Cell, Column, RED, Table, YELLOW, count, number};
use crate::cli::{Exit, Session, choose};
use clap::Args;
use convoke::operator::inspect;
use redis::aio::ConnectionLike;
use serde_json::{Value, json};

/// Show consumer groups: who reads which stream, and how far
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke group list
  convoke group list image --format json | jq 'select(.readers == [])'

READERS asked for something within a minute; instances that live, within ten. A group that nobody reads for holds its stream: no entry is trimmed before every \
group has settled it. LAG is what was not delivered, PENDING what was delivered and not acknowledged.")]
pub(super) struct Flags {
    /// Streams, or domains [default: all]
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
}

pub(super) async fn run(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    let now = inspect::now(connection).await?;
    let seen = look(session, connection, &flags.streams, None).await?;
    show(session, &seen, now)?;
    if !session.output.is_json() {
        output::complain_line(&count(seen.len() as u64, "group", "groups"));
    }
    Ok(Exit::Done)
}

/// Groups, a row each.
pub(super) fn show(session: &Session, seen: &[Seen], now: u64) -> anyhow::Result<()> {
    if session.output.is_json() {
        for one in seen {
            session.output.json(&described(one, now))?;
        }
        return Ok(());
    }
    if seen.is_empty() {
        return Ok(());
    }
    let columns = vec![
        Column::new("GROUP").shrinks(8),
        Column::new("STREAM").shrinks(8),
        Column::new("READERS").shrinks(8),
        Column::number("LAG"),
        Column::number("PENDING"),
        Column::number("OLDEST"),
    ];
    let mut table = Table::new(&session.output, columns);
    for one in seen {
        let Seen { stream, group, .. } = one;
        let readers = match one.readers.len() {
            0 => Cell::styled("nobody", RED),
            1 => one.readers[0].clone().into(),
            n => format!("{} and {} more", one.readers[0], n - 1).into(),
        };
        let lag = group.lag.map_or_else(|| "?".to_owned(), number);
        let oldest = group.oldest.map(|id| session.output.moment(id.ms, now));
        table.row(vec![
            group.name.clone().into(),
            choose::short(&stream.name).into(),
            readers,
            match lag.as_str() {
                "0" => lag.into(),
                _ => Cell::styled(lag, YELLOW),
            },
            number(group.pending).into(),
            oldest.unwrap_or_default().into(),
        ])?;
    }
    Ok(table.finish()?)
}

fn described(one: &Seen, now: u64) -> Value {
    let group = &one.group;
    json!({
        "group": group.name,
        "stream": one.stream.name.key,
        "readers": one.readers,
        "lag": group.lag,
        "pending": group.pending,
        "last_delivered": group.delivered.to_string(),
        "oldest_entry": group.oldest.map(|id| id.to_string()),
        "oldest_ms": group.oldest.map(|id| now.saturating_sub(id.ms)),
    })
}
