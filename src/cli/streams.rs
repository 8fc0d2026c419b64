//! `convoke streams`: how much waits where, and with whom.

use super::domain::Owned;
use super::output::{Cell, Column, FAINT, GREEN, RED, Table, YELLOW, number, span};
use super::{Exit, Session, choose, output};
use clap::Args;
use convoke::operator::delayed::{self, Depth, Queue};
use convoke::operator::inspect::{self, Consumer, Group, Stream};
use convoke::operator::memory;
use convoke::operator::parked::{self, ParkedKind};
use convoke::protocol::domain::DomainOrder;
use convoke::protocol::event::EntryId;
use convoke::protocol::keys::{Keys, StreamKind, StreamName};
use redis::aio::ConnectionLike;
use serde_json::{Value, json};
use std::collections::HashMap;

mod totals;

/// Consumers of a group that are shown.
const SHOWN: usize = 10;

const EXAMPLES: &str = "\
Examples:
  convoke streams
  convoke streams image                     one domain's events
  convoke streams 'events:*' 'dead:*'
  convoke streams --format json | jq -r 'select(.groups[].lag > 1000).stream'

Of a stream: its entries, and about how many BYTES of the server's memory they take (- where the user may \
not ask). Of a group: LAG, what nobody was given yet, PENDING, what was given and \
not acknowledged, OLDEST, since when the oldest of both waits. Of a consumer: what it holds, and \
since when it asked for nothing (IDLE). Delayed is what waits for its time: `convoke delayed` shows it. \
Parked is what is paused, by type: `convoke policy list` says by whom. Of a type with a total: how many run in all \
workers, and how many wait for that. A consumer is an instance; one that is gone and holds \
entries loses them to the others soon. Streams of replies are shown with --all.";

/// Show streams, groups and consumers: length, lag, pending, oldest, idle
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// Streams, or domains [default: all but replies]
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
    /// Show streams of replies and every consumer as well
    #[arg(long)]
    all: bool,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    use StreamKind::{Broadcast, Dead, Events, Inbox, Reply, Results};
    let keys = session.keys().await?;
    let mut connection = session.looking().await?;
    let mut kinds = vec![Events, Inbox, Dead, Results, Broadcast];
    if flags.all || !flags.streams.is_empty() {
        kinds.push(Reply);
    }
    let mut names = choose::streams(&session.within()?, &keys, &flags.streams, &kinds).await?;
    if flags.streams.is_empty() {
        // What was published for later only has no stream yet.
        let queues = session.within()?.queues(&keys).await?;
        names.extend(queues.into_iter().map(|queue| queue.stream));
        names.sort();
        names.dedup();
    }
    let depths = depths(&mut connection, &keys, &names).await?;
    let mut seats = totals::read(&session, &names).await?;
    let mut owners = session.owners()?;
    let now = inspect::now(&mut connection).await?;
    let mut table = Table::new(
        &session.output,
        vec![
            Column::new("STREAM / GROUP / CONSUMER").shrinks(20),
            Column::number("LENGTH"),
            Column::number("BYTES"),
            Column::number("LAG"),
            Column::number("PENDING"),
            Column::number("OLDEST"),
            Column::number("IDLE"),
        ],
    );
    let mut found = 0;
    for name in names {
        let depth = depths.get(&name.key).copied().unwrap_or_default();
        let stream = match inspect::stream(&mut connection, &name).await? {
            Some(stream) => stream,
            None if depth.count > 0 => Stream::empty(&name),
            None => continue,
        };
        found += 1;
        let size = memory::of_keys(&mut connection, &[&name.key]).await?;
        let size = size.into_iter().next().flatten();
        let parked = match parked::beside(&keys, &name) {
            Some(route) => parked::kinds(&mut connection, &route).await?,
            None => Vec::new(),
        };
        let seats = totals::take(&mut seats, &name);
        let mut groups = Vec::new();
        for group in &stream.groups {
            let consumers = inspect::consumers(&mut connection, &name.key, &group.name).await?;
            owners
                .learn(consumers.iter().map(|c| c.name.as_str()))
                .await?;
            let owned = owned(&session, &keys, &name, &group.name).await?;
            groups.push((group, consumers, owned));
        }
        if session.output.is_json() {
            let groups = groups.iter().map(|(group, consumers, owned)| {
                let consumers = consumers.iter().map(|consumer| {
                    json!({
                        "consumer": consumer.name,
                        "alive": owners.lives(&consumer.name),
                        "pending": consumer.pending,
                        "idle_ms": consumer.idle_ms,
                    })
                });
                let mut said = described_group(group, consumers.collect(), now);
                if let Some(owned) = owned {
                    said["owner"] = owned.told();
                    said["held"] = owned.held.into();
                }
                said
            });
            let mut said = described(&stream, size, depth, groups.collect(), now);
            let parked = parked.iter().map(
                |one| json!({ "type": one.kind, "count": one.count, "first_at": one.first_ms }),
            );
            said["parked"] = parked.collect();
            said["seats"] = seats.iter().map(totals::described).collect();
            session.output.json(&said)?;
            continue;
        }
        let dead = stream.name.kind == StreamKind::Dead && stream.length > 0;
        let length = number(stream.length);
        table.row(vec![
            name.key.as_str().into(),
            if dead {
                Cell::styled(length, RED)
            } else {
                length.into()
            },
            size.map_or_else(|| "-".to_owned(), output::bytes).into(),
            "".into(),
            "".into(),
            "".into(),
            "".into(),
        ])?;
        if groups.is_empty() && name.kind == StreamKind::Events {
            let mut row = vec![Cell::styled("  no group: nobody reads it", YELLOW)];
            row.resize(7, "".into());
            table.row(row)?;
        }
        if depth.count > 0 {
            table.row(delayed_row(depth, &session.output, now))?;
        }
        for one in &parked {
            table.row(parked_row(one, &session.output, now))?;
        }
        for one in &seats {
            table.row(totals::row(one))?;
        }
        for (group, consumers, owned) in &groups {
            table.row(group_row(group, owned.as_ref(), &session.output, now))?;
            let limit = if flags.all { usize::MAX } else { SHOWN };
            for consumer in consumers.iter().take(limit) {
                let alive = owners.lives(&consumer.name);
                table.row(consumer_row(consumer, alive))?;
            }
            if let Some(more) = consumers.len().checked_sub(limit).filter(|more| *more > 0) {
                let more = format!("    and {} more (--all)", number(more as u64));
                let mut row = vec![Cell::styled(more, FAINT)];
                row.resize(7, "".into());
                table.row(row)?;
            }
        }
    }
    if found == 0 {
        let namespace = &session.settings.namespace;
        output::complain_line(&format!("no such streams in namespace {namespace}"));
    } else if !session.output.is_json() {
        table.finish()?;
    }
    Ok(Exit::Done)
}

/// What waits in the delay queues of those streams, by their keys.
async fn depths(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    names: &[StreamName],
) -> anyhow::Result<HashMap<String, Depth>> {
    let queues = names.iter().filter_map(|name| Queue::of(keys, name));
    let queues: Vec<Queue> = queues.collect();
    let asked: Vec<&Queue> = queues.iter().collect();
    let depths = delayed::depths(connection, &asked).await?;
    let keys = queues.into_iter().map(|queue| queue.stream.key);
    Ok(keys.zip(depths).collect())
}

fn delayed_row(depth: Depth, output: &output::Output, now: u64) -> Vec<Cell> {
    let next = depth.next_due_ms.map_or_else(String::new, |due| {
        format!(", next {}", output.ahead(due, now))
    });
    let mut row = vec![
        format!("  delayed{next}").into(),
        number(depth.count).into(),
    ];
    row.resize(7, "".into());
    row
}

fn parked_row(parked: &ParkedKind, output: &output::Output, now: u64) -> Vec<Cell> {
    let first = parked
        .first_ms
        .map_or_else(String::new, |at| match output.is_absolute() {
            true => output::date(at),
            false => span(now.saturating_sub(at)),
        });
    vec![
        Cell::styled(format!("  parked {}", parked.kind), YELLOW),
        number(parked.count).into(),
        "".into(),
        "".into(),
        "".into(),
        first.into(),
        "".into(),
    ]
}

/// Who owns a partition whose subjects have an order.
async fn owned(
    session: &Session,
    keys: &Keys,
    name: &StreamName,
    group: &str,
) -> anyhow::Result<Option<Owned>> {
    let is = keys.domain(&name.part);
    let ordered = is.is_some_and(|is| is.order == DomainOrder::Subject);
    if name.kind != StreamKind::Events || !ordered {
        return Ok(None);
    }
    let place = (name.part.as_str(), name.partition);
    let owned = Owned::of(&session.connector()?, keys, place, group).await?;
    // Groups of others read as they like.
    let is_owned = owned.owner.is_some() || *group == session.settings.group;
    Ok(is_owned.then_some(owned))
}

fn group_row(group: &Group, owned: Option<&Owned>, output: &output::Output, now: u64) -> Vec<Cell> {
    let owned = owned.map_or_else(String::new, |owned| {
        let held = match owned.held {
            0 => String::new(),
            held => format!(", {} held", number(held)),
        };
        match &owned.owner {
            Some(owner) => format!(" (owner {}{held})", owner.instance),
            None => format!(" (no owner{held})"),
        }
    });
    let oldest = group
        .oldest
        .map_or_else(String::new, |id| match output.is_absolute() {
            true => output::date(id.ms),
            false => span(now.saturating_sub(id.ms)),
        });
    let lag = group.lag.map_or_else(|| "?".to_owned(), number);
    vec![
        format!("  {}{owned}", group.name).into(),
        "".into(),
        "".into(),
        if lag == "0" {
            lag.into()
        } else {
            Cell::styled(lag, YELLOW)
        },
        number(group.pending).into(),
        oldest.into(),
        "".into(),
    ]
}

fn consumer_row(consumer: &Consumer, alive: Option<bool>) -> Vec<Cell> {
    let (word, style) = match alive {
        Some(true) => ("alive", GREEN),
        Some(false) if consumer.pending > 0 => ("gone", RED),
        Some(false) => ("gone", FAINT),
        None => ("not known whether it lives", FAINT),
    };
    vec![
        Cell::styled(format!("    {} ({word})", consumer.name), style),
        "".into(),
        "".into(),
        "".into(),
        number(consumer.pending).into(),
        "".into(),
        span(consumer.idle_ms).into(),
    ]
}

fn described(
    stream: &Stream,
    size: Option<u64>,
    depth: Depth,
    groups: Vec<Value>,
    now: u64,
) -> Value {
    let id = |id: EntryId| id.to_string();
    json!({
        "stream": stream.name.key,
        "kind": stream.name.kind.as_str(),
        "length": stream.length,
        "first_entry": stream.first.map(id),
        "last_entry": id(stream.last),
        "age_ms": stream.first.map(|first| now.saturating_sub(first.ms)),
        "bytes": size,
        "delayed": { "count": depth.count, "next_due_at": depth.next_due_ms },
        "groups": groups,
    })
}

fn described_group(group: &Group, consumers: Vec<Value>, now: u64) -> Value {
    json!({
        "group": group.name,
        "lag": group.lag,
        "pending": group.pending,
        "last_delivered": group.delivered.to_string(),
        "oldest_entry": group.oldest.map(|id| id.to_string()),
        "oldest_ms": group.oldest.map(|id| now.saturating_sub(id.ms)),
        "consumers": consumers,
    })
}
