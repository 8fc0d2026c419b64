//! `convoke dead`: what will not be retried, and why.

use super::choose::{self, Filters};
use super::confirm::confirm;
use super::output::{Cell, Column, RED, Table, count, number};
use super::payload;
use super::{Misuse, Outcome, Session, output};
use clap::{Args, Subcommand};
use convoke::bus::browse::Pages;
use convoke::bus::dead::Letter;
use convoke::bus::event::{Entry, EntryId, FIRST_FAILED};
use convoke::bus::inspect;
use convoke::bus::keys::{StreamKind, StreamName};
use convoke::bus::replay::STEP;
use redis::aio::MultiplexedConnection;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

/// Rows of a summary; what comes on top is counted together.
const ROWS: usize = 1000;

const EXAMPLES: &str = "\
Examples:
  convoke dead list                      reasons and types, with counts
  convoke dead list image --reason internal --entries
  convoke dead show 1700000000000-0      the whole story of one
  convoke dead drop image --type 'image.*' --until 30d --dry-run
  convoke replay dead image              publish them again";

/// Show dead letters: events that will not be retried, and why
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(List),
    Show(Show),
    Drop(Drop),
}

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
struct List {
    #[command(flatten)]
    which: Which,
    /// List the entries, not only counts
    #[arg(long)]
    entries: bool,
    /// End after so many entries
    #[arg(long, value_name = "N", requires = "entries", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// Show one dead letter with its whole story
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke dead show 1700000000000-0
  convoke dead show 1700000000000-0 image --absolute
  convoke dead show 1700000000000-0 --format json | jq .data")]
struct Show {
    /// The dead letter's entry id, as `dead list --entries` shows it
    #[arg(value_name = "ENTRY")]
    entry: EntryId,
    /// Where it is [default: wherever it is found]
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
}

/// Delete dead letters for good
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke dead drop --id 1700000000000-0
  convoke dead drop image --reason invalid_argument --dry-run
  convoke dead drop image --until 30d --yes

Asks before it acts. What was dropped, when and by whom is told on the broadcast \
(operator.dropped). Dropping all of a stream needs --all.")]
struct Drop {
    #[command(flatten)]
    which: Which,
    /// Drop all that is there
    #[arg(long)]
    all: bool,
    /// Only show what would be dropped
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Which dead letters.
#[derive(Args, Clone, Debug, Default)]
pub struct Which {
    /// Streams of dead letters, or domains [default: all]
    #[arg(value_name = "STREAM")]
    pub streams: Vec<String>,
    #[command(flatten)]
    pub filters: Filters,
    /// Only this reason: an error code, or poison
    #[arg(
        long,
        value_name = "REASON",
        help_heading = "Which entries (all conditions must hold)"
    )]
    pub reason: Option<String>,
    /// Only what this instance gave up
    #[arg(
        long,
        value_name = "ID",
        help_heading = "Which entries (all conditions must hold)"
    )]
    pub instance: Option<String>,
}

impl Which {
    /// Whether it is about everything.
    pub fn is_all(&self) -> bool {
        self.filters.is_empty() && self.reason.is_none() && self.instance.is_none()
    }

    /// The letter, if it fits.
    pub fn fit(&self, entry: &Entry) -> Option<Letter> {
        if !self.filters.fit_id(entry.id) {
            return None;
        }
        let letter = Letter::read(entry);
        let fits = self
            .reason
            .as_ref()
            .is_none_or(|reason| *reason == letter.reason)
            && (self.instance.is_none() || self.instance == letter.instance)
            && self.filters.fit(entry);
        fits.then_some(letter)
    }

    /// The streams with, for each, the first and the last id that may fit now.
    pub async fn spans(
        &self,
        session: &Session,
        connection: &mut MultiplexedConnection,
    ) -> anyhow::Result<Vec<(StreamName, EntryId, EntryId)>> {
        let keys = session.settings.keys()?;
        let kinds = [StreamKind::Dead];
        let streams = choose::streams(connection, &keys, &self.streams, &kinds).await?;
        let now = inspect::now(connection).await?;
        let (from, to) = self.filters.bounds(now);
        let mut spans = Vec::with_capacity(streams.len());
        for stream in streams {
            let looked = inspect::stream(connection, &stream).await?;
            if let Some(looked) = looked.filter(|looked| looked.length > 0) {
                spans.push((stream, from, to.min(looked.last)));
            }
        }
        Ok(spans)
    }
}

/// Runs the command.
pub async fn run(session: Session, flags: Flags) -> anyhow::Result<Outcome> {
    let mut connection = session.connector()?.dedicated().await?;
    match flags.command {
        Command::List(flags) if flags.entries => entries(&session, &mut connection, &flags).await,
        Command::List(flags) => summary(&session, &mut connection, &flags).await,
        Command::Show(flags) => show(&session, &mut connection, &flags).await,
        Command::Drop(flags) => drop_them(&session, &mut connection, &flags).await,
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
    connection: &mut MultiplexedConnection,
    flags: &List,
) -> anyhow::Result<Outcome> {
    let now = inspect::now(connection).await?;
    let mut sums: BTreeMap<(String, String, String), Sum> = BTreeMap::new();
    let mut total = 0;
    let spans = flags.which.spans(session, connection).await?;
    let short: HashMap<String, String> = spans
        .iter()
        .map(|(stream, ..)| (stream.key.clone(), choose::short(stream)))
        .collect();
    for (stream, from, to) in spans {
        let mut pages = Pages::new(&stream.key, from, to);
        loop {
            let page = pages.next(connection).await?;
            if page.is_empty() {
                break;
            }
            for entry in &page {
                let Some(letter) = flags.which.fit(entry) else {
                    continue;
                };
                total += 1;
                let kind = String::from_utf8_lossy(entry.get("type").unwrap_or_default());
                let mut key = (stream.key.clone(), letter.reason.clone(), kind.into_owned());
                if sums.len() >= ROWS && !sums.contains_key(&key) {
                    key = (stream.key.clone(), "…".into(), "…".into());
                }
                let sum = sums.entry(key).or_default();
                let died = died(&letter, entry);
                if sum.count == 0 || died < sum.oldest {
                    sum.oldest = died;
                }
                sum.newest = sum.newest.max(died);
                sum.count += 1;
                sum.message = letter.message;
            }
        }
    }
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by(|a, b| b.1.count.cmp(&a.1.count).then_with(|| a.0.cmp(&b.0)));
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
        return Ok(Outcome::Done);
    }
    if total > 0 {
        let columns = vec![
            Column::new("STREAM").shrinks(8).optional(),
            Column::new("REASON").shrinks(8),
            Column::new("TYPE").shrinks(8),
            Column::number("COUNT"),
            Column::number("OLDEST"),
            Column::number("NEWEST"),
            Column::new("LAST MESSAGE").shrinks(8),
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
    Ok(Outcome::Done)
}

async fn entries(
    session: &Session,
    connection: &mut MultiplexedConnection,
    flags: &List,
) -> anyhow::Result<Outcome> {
    let now = inspect::now(connection).await?;
    let spans = flags.which.spans(session, connection).await?;
    let mut listing = Listing::new(session, spans.len() > 1, now);
    let limit = flags.limit.unwrap_or(u64::MAX);
    'streams: for (stream, from, to) in spans {
        let mut pages = Pages::new(&stream.key, from, to);
        loop {
            let page = pages.next(connection).await?;
            if page.is_empty() {
                break;
            }
            for entry in &page {
                let Some(letter) = flags.which.fit(entry) else {
                    continue;
                };
                listing.add(&stream, entry, &letter)?;
                if listing.shown == limit {
                    break 'streams;
                }
            }
        }
    }
    let shown = listing.finish()?;
    if !session.output.is_json() {
        output::complain_line(&count(shown, "dead letter", "dead letters"));
    }
    Ok(Outcome::Done)
}

/// Dead letters one by one.
struct Listing<'a> {
    session: &'a Session,
    table: Table<'a>,
    several: bool,
    now: u64,
    shown: u64,
}

impl<'a> Listing<'a> {
    fn new(session: &'a Session, several: bool, now: u64) -> Self {
        let mut columns = vec![
            Column::new("ENTRY"),
            Column::new("TYPE").shrinks(10),
            Column::new("REASON").shrinks(8),
            Column::number("TRIES"),
            Column::number("DIED"),
            Column::new("INSTANCE").shrinks(8),
            Column::new("MESSAGE").shrinks(8),
        ];
        if several {
            columns.insert(0, Column::new("STREAM").shrinks(8));
        }
        Self {
            session,
            table: Table::new(&session.output, columns),
            several,
            now,
            shown: 0,
        }
    }

    fn add(&mut self, stream: &StreamName, entry: &Entry, letter: &Letter) -> anyhow::Result<()> {
        self.shown += 1;
        if self.session.output.is_json() {
            let object = described(stream, entry, letter);
            return Ok(self.session.output.json(&object)?);
        }
        let kind = String::from_utf8_lossy(entry.get("type").unwrap_or_default());
        let mut row = vec![
            entry.id.to_string().into(),
            kind.into_owned().into(),
            Cell::styled(letter.reason.clone(), RED),
            letter.attempts.to_string().into(),
            self.session
                .output
                .moment(died(letter, entry), self.now)
                .into(),
            letter.instance.clone().unwrap_or_default().into(),
            letter.message.clone().into(),
        ];
        if self.several {
            row.insert(0, choose::short(stream).into());
        }
        Ok(self.table.row(row)?)
    }

    fn finish(self) -> anyhow::Result<u64> {
        if self.shown > 0 && !self.session.output.is_json() {
            self.table.finish()?;
        }
        Ok(self.shown)
    }
}

/// When it died, in Unix ms.
fn died(letter: &Letter, entry: &Entry) -> u64 {
    letter.time.unwrap_or(entry.id.ms)
}

fn described(stream: &StreamName, entry: &Entry, letter: &Letter) -> Value {
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
    payload::describe(own.get("data"), &mut object);
    object
}

async fn show(
    session: &Session,
    connection: &mut MultiplexedConnection,
    flags: &Show,
) -> anyhow::Result<Outcome> {
    let keys = session.settings.keys()?;
    let kinds = [StreamKind::Dead];
    let streams = choose::streams(connection, &keys, &flags.streams, &kinds).await?;
    let now = inspect::now(connection).await?;
    let mut found = false;
    for stream in streams {
        let mut pages = Pages::new(&stream.key, flags.entry, flags.entry);
        for entry in pages.next(connection).await? {
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
    Ok(Outcome::Done)
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
    match own.get("data").map(payload::decode) {
        None => line("payload", "none")?,
        Some(Ok(value)) => {
            line("payload", "")?;
            output.value(&value)?;
        }
        Some(Err(undecodable)) => line("payload", &undecodable.to_string())?,
    }
    Ok(())
}

async fn drop_them(
    session: &Session,
    connection: &mut MultiplexedConnection,
    flags: &Drop,
) -> anyhow::Result<Outcome> {
    if flags.which.is_all() && !flags.all {
        return Err(Misuse::error(
            "say which (--type, --reason, --id, …), or --all",
        ));
    }
    let now = inspect::now(connection).await?;
    let spans = flags.which.spans(session, connection).await?;
    let mut listing = Listing::new(session, spans.len() > 1, now);
    let mut total = 0u64;
    for (stream, from, to) in &spans {
        let mut pages = Pages::new(&stream.key, *from, *to);
        loop {
            let page = pages.next(connection).await?;
            if page.is_empty() {
                break;
            }
            for entry in &page {
                if let Some(letter) = flags.which.fit(entry) {
                    total += 1;
                    if flags.dry_run {
                        listing.add(stream, entry, &letter)?;
                    }
                }
            }
        }
    }
    listing.finish()?;
    let letters = count(total, "dead letter", "dead letters");
    if flags.dry_run || total == 0 {
        if !session.output.is_json() {
            output::complain_line(&format!("{letters} would be dropped"));
        }
        return Ok(Outcome::Done);
    }
    if !confirm(&format!("Drop {letters} for good?"), flags.yes)? {
        output::complain_line("nothing was dropped");
        return Ok(Outcome::Failed);
    }
    let operator = session.operator(None)?;
    let mut dropped = 0u64;
    for (stream, from, to) in &spans {
        let mut pages = Pages::new(&stream.key, *from, *to);
        loop {
            let page = pages.next(connection).await?;
            if page.is_empty() {
                break;
            }
            let fitting = page.iter().filter(|entry| flags.which.fit(entry).is_some());
            let ids: Vec<EntryId> = fitting.map(|entry| entry.id).collect();
            for step in ids.chunks(STEP) {
                let done = operator.drop_dead(connection, &stream.key, step).await?;
                dropped += done.iter().filter(|there| **there).count() as u64;
            }
        }
    }
    match session.output.is_json() {
        true => session
            .output
            .json(&json!({ "dropped": dropped, "run": operator.run() }))?,
        false => session.output.line(&format!(
            "dropped {}",
            count(dropped, "dead letter", "dead letters")
        ))?,
    }
    Ok(Outcome::Done)
}
