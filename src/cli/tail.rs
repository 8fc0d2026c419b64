//! `convoke tail`: follows streams without taking anything from anyone.

use super::choose;
use super::choose::{Condition, Moment, What};
use super::output;
use super::output::{Output, printable};
use super::payload;
use super::{Exit, Session};
use clap::Args;
use convoke::connect::backoff::Backoff;
use convoke::connect::connector::{BLOCK, Connector};
use convoke::connect::error::{BusError, Reaction};
use convoke::connect::resp::wire::Wire;
use convoke::operator::browse::{Appetite, Sight};
use convoke::operator::inspect;
use convoke::protocol::event::{Entry, EntryId, payload_of};
use convoke::streams::read::read_news;
use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};
use tracing::warn;

/// Entries of a stream in one read: bounds the memory that a read may take.
const COUNT: usize = 64;
/// How long a read waits while something is held back.
const AT_ONCE: Duration = Duration::from_millis(1);
/// The pause before several nodes are asked again that had nothing new.
const PAUSE: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  convoke tail                                 the broadcast: facts for all
  convoke tail events:image results:image      work and its results
  convoke tail dead:image --since 0            dead letters, old and new
  convoke tail 'events:*' --since 10m --no-follow
  convoke tail results:image --where width=80  by what is in the payload
  convoke tail events:system --type 'system.*beat' --limit 10
  convoke tail cb:inbox:w-1 --format json | jq .data

A STREAM is a whole key (cb:events:image) or a short name: broadcast, events:<domain>, \
results:<domain>, dead:<domain>, inbox:<instance>. A * stands for any characters in it and means the \
streams that are there now. Nothing is taken from the workers.

On a cluster with a node away the rest is shown; what it has is named, and the command exits 1.";

/// Follow streams, decoded
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// Streams to follow [default: broadcast]
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
    /// Only types like this: * stands for any characters, ? for one
    #[arg(long = "type", value_name = "GLOB")]
    kind: Option<String>,
    /// Begin there: 10m (ago), a date, after an entry id; 0 is the beginning, $ the end
    #[arg(long, value_name = "TIME|ID|0|$", value_parser = since, default_value = "$")]
    since: Since,
    /// Only entries with this field, or with this value in it: of the payload (user.name=ada, width=80), or
    /// of the event itself (source=shop, subject, id)
    #[arg(long = "where", value_name = "FIELD[=VALUE]", value_parser = choose::condition)]
    payload: Vec<Condition>,
    /// End when all that is there now has been shown
    #[arg(long)]
    no_follow: bool,
    /// End after this many entries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Since {
    End,
    From(Moment),
}

fn since(text: &str) -> Result<Since, String> {
    match text {
        "$" => Ok(Since::End),
        text => choose::moment(text).map(Since::From),
    }
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let keys = session.keys().await?;
    let wild = |name: &str| name.contains(['*', '?']);
    for name in flags.streams.iter().filter(|name| !wild(name)) {
        choose::stream_keys(&keys, name)?;
    }
    let within = session.within()?;
    let mut streams = Vec::new();
    for name in &flags.streams {
        let found = match wild(name) {
            true => {
                let names = std::slice::from_ref(name);
                let found = choose::any_streams(&within, &keys, names).await?;
                found.into_iter().map(|stream| stream.key).collect()
            }
            false => choose::stream_keys(&keys, name)?,
        };
        for key in found {
            if !streams.contains(&key) && within.reaches(&key).await? {
                streams.push(key);
            }
        }
    }
    if flags.streams.is_empty() && within.reaches(&keys.broadcast()).await? {
        streams.push(keys.broadcast());
    }
    // Before anything of the rest is shown.
    session.missing.tell();
    if streams.is_empty() {
        if !session.missing.is_any() {
            output::complain_line("no stream is like that");
        }
        return Ok(Exit::Failed);
    }
    let since = match flags.since {
        Since::End => None,
        Since::From(Moment::Entry(id)) => Some(id),
        Since::From(moment) => {
            let first = moment.first(inspect::now(&mut session.looking().await?).await?);
            Some(EntryId {
                ms: first.ms.saturating_sub(1),
                seq: u64::MAX,
            })
        }
    };
    let filters = What {
        kind: flags.kind,
        payload: flags.payload,
    };
    let mut follower =
        Follower::start(session.connector()?, session.sight()?, streams, since).await?;
    let mut left = flags.limit.unwrap_or(u64::MAX);
    while !(flags.no_follow && follower.is_at_end()) {
        let entries = follower.read().await?;
        let waits = follower.holds_back() || follower.is_cut();
        if entries.is_empty() && flags.no_follow && !waits {
            break;
        }
        for (stream, entry) in entries {
            if !filters.fit(&entry) {
                continue;
            }
            print(&session.output, &stream, &entry)?;
            left -= 1;
            if left == 0 {
                return Ok(Exit::Done);
            }
        }
    }
    filters.complain();
    Ok(Exit::Done)
}

/// Reads streams from where they were left, through cut connections.
struct Follower {
    lines: Vec<Line>,
    sight: Sight,
    appetite: Appetite,
    streams: Vec<Followed>,
}

/// The streams that are read on one connection: all, or on a cluster those of one slot.
struct Line {
    connector: Connector,
    streams: Vec<usize>,
    open: Result<Open, Cut>,
}

/// A connection.
struct Open {
    wire: Wire,
    /// The primary that it leads to.
    generation: u64,
}

/// A connection that was lost: the others are read all the same.
struct Cut {
    backoff: Backoff,
    /// When it is tried again.
    again: Instant,
}

impl Cut {
    fn failed(&mut self) {
        self.again = Instant::now() + self.backoff.failed();
    }
}

impl Open {
    async fn to(connector: &Connector) -> Result<Self, BusError> {
        let generation = connector.generation();
        let wire = connector.blocking_wire(BLOCK).await?;
        Ok(Self { wire, generation })
    }
}

impl Line {
    /// Notes that reading failed.
    fn is_cut_by(&mut self, error: &BusError) {
        warn!(%error, "reading failed; trying again");
        let mut cut = Cut {
            backoff: Backoff::default(),
            again: Instant::now(),
        };
        cut.failed();
        self.open = Err(cut);
    }

    /// Opens it again if it is cut, and it is time.
    async fn reopen(&mut self, sight: &Sight, streams: &mut [Followed]) -> Result<(), BusError> {
        let Err(cut) = &mut self.open else {
            return Ok(());
        };
        if cut.again > Instant::now() {
            return Ok(());
        }
        let opened = async {
            let open = Open::to(&self.connector).await?;
            for at in &self.streams {
                let stream = &mut streams[*at];
                // After a loss of data a stream may begin again below what was read.
                if sight.last_id(&stream.name).await? < stream.after {
                    stream.after = EntryId::default();
                }
            }
            Ok::<_, BusError>(open)
        };
        match opened.await {
            Ok(open) => self.open = Ok(open),
            Err(error) if error.reaction() == Reaction::GiveUp => return Err(error),
            Err(_) => cut.failed(),
        }
        Ok(())
    }

    /// What came after each of those ids, with the streams' places.
    async fn read(
        &mut self,
        streams: &[Followed],
        count: usize,
        block: Duration,
        limit: usize,
    ) -> Result<Vec<(usize, Vec<Entry>)>, BusError> {
        let Ok(open) = &mut self.open else {
            return Ok(Vec::new());
        };
        let wanted = self.streams.iter().copied();
        let wanted: Vec<usize> = wanted.filter(|at| streams[*at].held.is_empty()).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let from = wanted
            .iter()
            .map(|at| (streams[*at].name.as_str(), streams[*at].after));
        let from: Vec<(&str, EntryId)> = from.collect();
        self.connector.check(open.generation)?;
        let batches = read_news(&mut open.wire, &from, count, block, limit).await?;
        let batches = batches.into_iter();
        Ok(batches
            .map(|batch| (wanted[batch.stream], batch.entries))
            .collect())
    }
}

/// A stream that is followed.
struct Followed {
    name: String,
    /// The last entry that was read.
    after: EntryId,
    /// What was its last entry in the beginning.
    end: EntryId,
    /// What was read, and may come after what others still have.
    held: VecDeque<Entry>,
    /// Whether the last read may have left more.
    more: bool,
}

impl Follower {
    async fn start(
        connector: Connector,
        sight: Sight,
        names: Vec<String>,
        since: Option<EntryId>,
    ) -> Result<Self, BusError> {
        let keys: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut lines = Vec::new();
        for way in connector.ways_to(&keys) {
            let open = Ok(Open::to(&way.connector).await?);
            lines.push(Line {
                connector: way.connector,
                streams: way.places,
                open,
            });
        }
        let mut streams = Vec::with_capacity(names.len());
        for name in names {
            let end = sight.last_id(&name).await?;
            streams.push(Followed {
                name,
                after: since.unwrap_or(end),
                end,
                held: VecDeque::new(),
                more: false,
            });
        }
        Ok(Self {
            lines,
            sight,
            appetite: Appetite::default(),
            streams,
        })
    }

    /// Whether everything that was there in the beginning has been read and told.
    fn is_at_end(&self) -> bool {
        let read = self.streams.iter().all(|stream| stream.after >= stream.end);
        read && !self.holds_back()
    }

    /// Whether a connection was lost, and is not there again.
    fn is_cut(&self) -> bool {
        self.lines.iter().any(|line| line.open.is_err())
    }

    /// Whether something was read that was not told yet.
    fn holds_back(&self) -> bool {
        self.streams.iter().any(|stream| !stream.held.is_empty())
    }

    /// What came since the last time, in the order of time; nothing if nothing came for a while.
    ///
    /// A stream is read a few entries at a time. What is younger than the last of those, where there are more,
    /// is held back, and its stream is not read on meanwhile.
    async fn read(&mut self) -> Result<Vec<(String, Entry)>, BusError> {
        for line in &mut self.lines {
            line.reopen(&self.sight, &mut self.streams).await?;
        }
        // Where several nodes are asked, one that waits would hold up what the others have.
        let alone = self.lines.len() == 1;
        let block = match self.holds_back() || !alone {
            true => AT_ONCE,
            false => BLOCK,
        };
        let count = self.appetite.count().min(COUNT);
        let limit = self.sight.limit();
        let streams = &self.streams;
        let lines = self.lines.iter_mut();
        let reads = lines.map(|line| line.read(streams, count, block, limit));
        let reads = join_all(reads).await;
        let mut batches: Vec<(usize, Vec<Entry>)> = Vec::new();
        for (line, read) in self.lines.iter_mut().zip(reads) {
            match read {
                Ok(read) => batches.extend(read),
                Err(error) if error.reaction() == Reaction::GiveUp => return Err(error),
                Err(error) => line.is_cut_by(&error),
            }
        }
        for stream in &mut self.streams {
            // The others were not read.
            stream.more &= !stream.held.is_empty();
        }
        self.appetite
            .learn(batches.iter().flat_map(|(_, entries)| entries));
        if batches.is_empty() && (!alone || self.is_cut()) && !self.holds_back() {
            tokio::time::sleep(PAUSE).await;
        }
        for (at, entries) in batches {
            let stream = &mut self.streams[at];
            stream.more = entries.len() == count;
            stream.after = entries.last().map_or(stream.after, |last| last.id);
            stream.held.extend(entries);
        }
        let unfinished = self.streams.iter().filter(|stream| stream.more);
        let bound = unfinished.map(|stream| stream.after).min();
        let mut entries = Vec::new();
        for stream in &mut self.streams {
            let fits = |entry: &Entry| bound.is_none_or(|bound| entry.id <= bound);
            while let Some(entry) = stream.held.pop_front_if(|entry| fits(entry)) {
                entries.push((stream.name.clone(), entry));
            }
        }
        entries.sort_by_key(|(_, entry)| entry.id);
        Ok(entries)
    }
}

fn print(output: &Output, stream: &str, entry: &Entry) -> io::Result<()> {
    let mut kind = None;
    let mut fields = Map::new();
    for (name, value) in entry.pairs() {
        let value = || Value::from(String::from_utf8_lossy(value));
        match name {
            b"data" => {}
            b"type" if kind.is_none() => kind = Some(value()),
            name => {
                let name = String::from_utf8_lossy(name).into_owned();
                fields.entry(name).or_insert_with(value);
            }
        }
    }
    if output.is_json() {
        let mut object = json!({
            "stream": stream,
            "entry": entry.id.to_string(),
            "type": kind,
            "fields": fields,
        });
        payload::describe_entry(entry, &mut object);
        return output.json(&object);
    }
    let time = output::date(entry.id.ms);
    let head = format!("{time} {} {}", printable(stream), entry.id);
    let kind = kind.as_ref().and_then(Value::as_str).unwrap_or("?");
    let mut line = format!("{} {}", output.faint(&head), output.bold(&printable(kind)));
    for (name, value) in &fields {
        let value = value.as_str().unwrap_or_default();
        let quoted;
        let value = if value.is_empty() || value.contains([' ', '"']) {
            quoted = output::json(&value.into());
            quoted.as_str()
        } else {
            value
        };
        line.push_str(&format!(" {}={}", printable(name), printable(value)));
    }
    if let Some(said) = payload::too_large(entry) {
        line.push_str(&output.red(&format!(" {said}")));
        return output.line(&line);
    }
    match payload_of(entry).map(|data| payload::decode(&data)) {
        None => {}
        Some(Ok(value)) => line.push_str(&format!(" {}", output::json(&value))),
        Some(Err(undecodable)) => line.push_str(&output.red(&format!(" {undecodable}"))),
    }
    output.line(&line)
}
