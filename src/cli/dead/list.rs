//! `convoke dead list`: counts by reason and type, or one by one.

use super::show::described;
use super::{Which, died};
use crate::cli::choose;
use crate::cli::listing::Listing;
use crate::cli::output::{self, Cell, Column, RED, Table, count, number};
use crate::cli::{Exit, Session, payload};
use clap::Args;
use convoke::operator::inspect;
use convoke::protocol::dead::Letter;
use convoke::protocol::event::Entry;
use convoke::protocol::keys::StreamName;
use redis::aio::ConnectionLike;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

/// Rows of a summary; what comes on top is counted together.
const ROWS: usize = 1000;

/// Count dead letters by reason and type, or list them
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke dead list
  convoke dead list image --since 1h
  convoke dead list --reason poison --entries
  convoke dead list --entries --format json | jq -r .message | sort | uniq -c

--since and --until mean the time of death. Reasons are the error codes of the protocol, and \
poison: delivered again and again without ever being committed.")]
pub(super) struct Flags {
    #[command(flatten)]
    which: Which,
    /// List the entries, not only counts
    #[arg(long)]
    entries: bool,
    /// End after this many entries
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
    oldest: u64,
    newest: u64,
    message: String,
}

async fn summary(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    let now = inspect::now(connection).await?;
    let mut sums: BTreeMap<(String, String, String), Sum> = BTreeMap::new();
    let mut total = 0;
    let sight = session.sight()?;
    let spans = flags.which.spans(session, connection).await?;
    let short: HashMap<String, String> = spans
        .iter()
        .map(|span| (span.stream.key.clone(), choose::short(&span.stream)))
        .collect();
    for span in spans {
        let mut letters = flags.which.letters(&sight, &span);
        while let Some((entry, letter)) = letters.next().await? {
            total += 1;
            let stream = &span.stream.key;
            let kind = String::from_utf8_lossy(entry.get("type").unwrap_or_default());
            let mut key = (stream.clone(), letter.reason.clone(), kind.into_owned());
            if sums.len() >= ROWS && !sums.contains_key(&key) {
                key = (stream.clone(), "…".into(), "…".into());
            }
            let sum = sums.entry(key).or_default();
            let died = died(&letter, &entry);
            if sum.count == 0 || died < sum.oldest {
                sum.oldest = died;
            }
            sum.newest = sum.newest.max(died);
            sum.count += 1;
            sum.message = payload::too_large(&entry).unwrap_or(letter.message);
        }
    }
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by(|a, b| b.1.count.cmp(&a.1.count).then_with(|| a.0.cmp(&b.0)));
    flags.which.filters.complain();
    if session.output.is_json() {
        for ((stream, reason, kind), sum) in rows {
            session.output.json(&json!({
                "stream": stream,
                "reason": reason,
                "type": kind,
                "count": sum.count,
                "oldest_at": sum.oldest,
                "newest_at": sum.newest,
                "message": sum.message,
            }))?;
        }
        return Ok(Exit::Done);
    }
    if total > 0 {
        let columns = vec![
            Column::new("STREAM").shrinks(8).optional(),
            Column::new("REASON"),
            Column::new("TYPE").shrinks(8),
            Column::number("COUNT"),
            Column::number("OLDEST"),
            Column::number("NEWEST"),
            Column::new("LAST MESSAGE").wraps(),
        ];
        let mut table = Table::new(&session.output, columns);
        for ((stream, reason, kind), sum) in rows {
            // One stream needs no column on a terminal.
            let stream = match short.len() {
                1 if session.output.width().is_some() => String::new(),
                _ => short.get(&stream).cloned().unwrap_or(stream),
            };
            table.row(vec![
                stream.into(),
                Cell::styled(reason, RED),
                kind.into(),
                number(sum.count).into(),
                session.output.moment(sum.oldest, now).into(),
                session.output.moment(sum.newest, now).into(),
                sum.message.into(),
            ])?;
        }
        table.finish()?;
    }
    output::complain_line(&count(total, "dead letter", "dead letters"));
    Ok(Exit::Done)
}

async fn entries(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    let now = inspect::now(connection).await?;
    let sight = session.sight()?;
    let spans = flags.which.spans(session, connection).await?;
    let mut listing = listing(session, spans.len() > 1);
    let limit = flags.limit.unwrap_or(u64::MAX);
    'streams: for span in spans {
        let mut letters = flags.which.letters(&sight, &span);
        while let Some((entry, letter)) = letters.next().await? {
            add(&mut listing, &span.stream, &entry, &letter, now)?;
            if listing.shown == limit {
                break 'streams;
            }
        }
    }
    let shown = listing.finish()?;
    flags.which.filters.complain();
    if !session.output.is_json() {
        output::complain_line(&count(shown, "dead letter", "dead letters"));
    }
    Ok(Exit::Done)
}

/// Dead letters one by one.
pub(super) fn listing(session: &Session, several: bool) -> Listing<'_> {
    let columns = vec![
        Column::new("ENTRY"),
        Column::new("TYPE").shrinks(10),
        Column::new("REASON"),
        Column::number("TRIES"),
        Column::number("DIED"),
        Column::new("INSTANCE").shrinks(8),
        Column::new("MESSAGE").wraps(),
    ];
    Listing::new(session, several, columns)
}

/// Shows one of them.
pub(super) fn add(
    listing: &mut Listing<'_>,
    stream: &StreamName,
    entry: &Entry,
    letter: &Letter,
    now: u64,
) -> anyhow::Result<()> {
    let output = &listing.session.output;
    let kind = String::from_utf8_lossy(entry.get("type").unwrap_or_default());
    let row = || {
        vec![
            entry.id.to_string().into(),
            kind.into_owned().into(),
            Cell::styled(letter.reason.clone(), RED),
            letter.attempts.to_string().into(),
            output.moment(died(letter, entry), now).into(),
            letter.instance.clone().unwrap_or_default().into(),
            payload::too_large(entry)
                .unwrap_or_else(|| letter.message.clone())
                .into(),
        ]
    };
    listing.add(stream, || described(stream, entry, letter), row)
}
