//! `convoke delayed list`: counts by stream and type, or one by one.

use super::show::described;
use super::walk::Walk;
use super::{LOOKED_AT, Which, attempt, reason, text};
use crate::cli::listing::Listing;
use crate::cli::output::{self, Cell, Column, RED, Table, count, number};
use crate::cli::{Exit, Session, choose, payload};
use clap::Args;
use convoke::operator::delayed::{Queue, Waiting};
use convoke::operator::inspect;
use convoke::protocol::event::payload_of;
use redis::aio::ConnectionLike;
use serde_json::json;
use std::collections::BTreeMap;

/// Rows of a summary; what exceeds them is counted together.
const ROWS: usize = 1000;

/// Count events that wait by stream and type, or list them
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke delayed list
  convoke delayed list image --retries
  convoke delayed list --entries --due-after 365d
  convoke delayed list --entries --format json | jq -r .id

NEXT is when the first of them is due. What is due and still here is moved by a worker within a \
second; where it stays, no worker serves that domain.")]
pub(super) struct Flags {
    #[command(flatten)]
    which: Which,
    /// List the events, not only counts
    #[arg(long)]
    entries: bool,
    /// End after this many events
    #[arg(long, value_name = "N", requires = "entries", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

pub(super) async fn run(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    match flags.entries {
        true => entries(session, connection, flags).await,
        false => summary(session, connection, flags).await,
    }
}

#[derive(Default)]
struct Sum {
    count: u64,
    retries: u64,
    next: u64,
    last: u64,
}

async fn summary(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    let now = inspect::now(connection).await?;
    let queues = flags.which.queues(session, &LOOKED_AT).await?;
    let mut walk = Walk::begin(session, &flags.which, queues, now);
    let mut sums: BTreeMap<(String, String), Sum> = BTreeMap::new();
    let mut total = 0;
    while let Some((queue, page)) = walk.next(connection).await? {
        for waiting in page {
            total += 1;
            let event = waiting.event.as_ref();
            let kind = event.and_then(|event| text(event, "type"));
            let mut key = (choose::short(&queue.stream), kind.unwrap_or_default());
            if sums.len() >= ROWS && !sums.contains_key(&key) {
                key.1 = "…".into();
            }
            let sum = sums.entry(key).or_default();
            if sum.count == 0 || waiting.due_ms < sum.next {
                sum.next = waiting.due_ms;
            }
            sum.last = sum.last.max(waiting.due_ms);
            sum.count += 1;
            sum.retries += u64::from(event.is_some_and(|event| attempt(event) > 1));
        }
    }
    flags.which.what.complain();
    if session.output.is_json() {
        for ((stream, kind), sum) in sums {
            session.output.json(&json!({
                "stream": stream,
                "type": kind,
                "count": sum.count,
                "retries": sum.retries,
                "next_due_at": sum.next,
                "last_due_at": sum.last,
            }))?;
        }
        return Ok(Exit::Done);
    }
    if total > 0 {
        let columns = vec![
            Column::new("STREAM").shrinks(8),
            Column::new("TYPE").shrinks(8),
            Column::number("COUNT"),
            Column::number("RETRIES"),
            Column::number("NEXT"),
            Column::number("LAST"),
        ];
        let mut table = Table::new(&session.output, columns);
        for ((stream, kind), sum) in sums {
            table.row(vec![
                stream.into(),
                kind.into(),
                number(sum.count).into(),
                number(sum.retries).into(),
                session.output.ahead(sum.next, now).into(),
                session.output.ahead(sum.last, now).into(),
            ])?;
        }
        table.finish()?;
    }
    output::complain_line(&count(total, "event waits", "events wait"));
    Ok(Exit::Done)
}

async fn entries(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    let now = inspect::now(connection).await?;
    let queues = flags.which.queues(session, &LOOKED_AT).await?;
    let mut listing = listing(session, queues.len() > 1);
    let mut walk = Walk::begin(session, &flags.which, queues, now);
    let limit = flags.limit.unwrap_or(u64::MAX);
    'queues: while let Some((queue, page)) = walk.next(connection).await? {
        for waiting in page {
            add(&mut listing, &queue, &waiting, now)?;
            if listing.shown == limit {
                break 'queues;
            }
        }
    }
    let shown = listing.finish()?;
    flags.which.what.complain();
    if !session.output.is_json() {
        output::complain_line(&count(shown, "event waits", "events wait"));
    }
    Ok(Exit::Done)
}

/// Events that wait, one by one.
pub(super) fn listing(session: &Session, several: bool) -> Listing<'_> {
    let columns = vec![
        Column::new("ID").shrinks(10),
        Column::new("TYPE").shrinks(10),
        Column::new("SUBJECT").shrinks(6).optional(),
        Column::number("DUE"),
        Column::new("WHY").shrinks(10).optional(),
        Column::new("PAYLOAD").shrinks(8),
    ];
    Listing::new(session, several, columns)
}

/// Shows one of them.
pub(super) fn add(
    listing: &mut Listing<'_>,
    queue: &Queue,
    waiting: &Waiting,
    now: u64,
) -> anyhow::Result<()> {
    let output = &listing.session.output;
    let event = waiting.event.as_ref();
    let text = |name| {
        event
            .and_then(|event| text(event, name))
            .unwrap_or_default()
    };
    let payload = || match event {
        Some(event) => payload::preview(payload_of(event).as_deref()).into(),
        None => Cell::styled(no_event(waiting), RED),
    };
    let row = || {
        vec![
            waiting.id().into(),
            text("type").into(),
            text("subject").into(),
            output.ahead(waiting.due_ms, now).into(),
            event.map_or_else(String::new, reason).into(),
            payload(),
        ]
    };
    listing.add(&queue.stream, || described(queue, waiting, now), row)
}

/// What is said of a member that is no event.
pub(super) fn no_event(waiting: &Waiting) -> String {
    let bytes = output::bytes(waiting.bytes);
    match waiting.is_whole() {
        true => format!("no event ({bytes}): becomes a dead letter when it is due"),
        false => format!("too large for an event ({bytes}): becomes a dead letter when it is due"),
    }
}
