//! What a run publishes into another slot of a cluster.
//!
//! One step writes to one slot only. So the commit adds such an event to the outbox in its own slot, and it is moved
//! from there: `move.lua` adds it to its stream and notes its id in the same step, so that it is added once, however
//! often and by however many workers it is moved. Only then it leaves the outbox.

use crate::connect::error::BusError;
use crate::connect::script::script;
use crate::protocol::entry::{Entry, EntryId};
use crate::protocol::keys::{Keys, slot_of};
use crate::streams::read::entries_of;
use redis::aio::ConnectionLike;
use redis::{Script, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

static MOVE: LazyLock<Script> = LazyLock::new(|| script(include_str!("move.lua")));

/// The field that names the stream which an event is for. No event has one of that name.
pub(crate) const TO: &str = "@stream";
/// Entries that are looked at at a time: as large as they may be, one answer holds them.
const PAGE: usize = 16;
/// Pages that are looked at in one round.
const PAGES: usize = 64;
/// Bytes that a call of the script moves, about.
const BYTES: u64 = 1 << 20;

/// How far somebody is in an outbox. At its end one begins again at its start.
#[derive(Debug, Default)]
pub struct Way {
    after: EntryId,
    /// Slots that something before could not be moved to. What is behind it must not overtake it.
    stuck: BTreeSet<u16>,
}

impl Way {
    /// Whether all that was there was looked at, or nothing yet.
    pub fn is_at_start(&self) -> bool {
        self.after == EntryId::default()
    }
}

/// How moving went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Entries that left the outbox.
    pub moved: usize,
    /// What stays since its stream takes none, and why: its stream and what the server said.
    pub refused: Option<(String, String)>,
}

/// Whether one step may write to both keys.
pub(crate) fn is_beside(a: &str, b: &str) -> bool {
    slot_of(a.as_bytes()) == slot_of(b.as_bytes())
}

/// Asks how much is in an outbox.
#[cfg(feature = "worker")]
pub(crate) fn length(outbox: &str) -> redis::Cmd {
    let mut length = redis::cmd("XLEN");
    length.arg(outbox);
    length
}

/// Moves what is in an outbox, from where the last call ended on; a call looks at a bounded number. What cannot
/// be moved stays, and so does what is behind it for the same slot; the rest of what was looked at leaves.
///
/// # Errors
/// Nothing was moved, as far as is known.
pub async fn empty(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    outbox: &str,
    way: &mut Way,
) -> Result<Moved, BusError> {
    let mut round = Round::default();
    for _ in 0..PAGES {
        // Who gives up in the middle knows nothing of what is stuck there: the start is where nobody can be wrong.
        let Way { after, mut stuck } = std::mem::take(way);
        let entries = page_of(connection, outbox, after).await?;
        let Some(last) = entries.last() else {
            break;
        };
        round
            .take(connection, keys, outbox, &entries, &mut stuck)
            .await?;
        if entries.len() < PAGE {
            break;
        }
        let after = last.id;
        *way = Way { after, stuck };
    }
    match round.failed {
        Some(error) if round.moved == 0 => Err(error),
        _ => Ok(Moved {
            moved: round.moved,
            refused: round.refused,
        }),
    }
}

/// What came of a look at some pages.
#[derive(Default)]
struct Round {
    moved: usize,
    failed: Option<BusError>,
    refused: Option<(String, String)>,
}

impl Round {
    /// Moves what it can of a page.
    async fn take(
        &mut self,
        connection: &mut impl ConnectionLike,
        keys: &Keys,
        outbox: &str,
        entries: &[Entry],
        stuck: &mut BTreeSet<u16>,
    ) -> Result<(), BusError> {
        let mut slots: BTreeMap<u16, Vec<(&str, &Entry)>> = BTreeMap::new();
        let mut done: Vec<EntryId> = Vec::with_capacity(entries.len());
        for entry in entries {
            let to = entry.get(TO).and_then(|to| std::str::from_utf8(to).ok());
            match to.filter(|to| keys.is_own(to)) {
                Some(to) => slots
                    .entry(slot_of(to.as_bytes()))
                    .or_default()
                    .push((to, entry)),
                None => {
                    tracing::error!(outbox, entry = %entry.id, "an entry of an outbox that names no stream is removed");
                    done.push(entry.id);
                }
            }
        }
        for (slot, entries) in slots {
            if stuck.contains(&slot) {
                continue;
            }
            let (moved, rest) = move_to_slot(connection, keys, outbox, &entries).await;
            done.extend(entries.iter().take(moved).map(|(_, entry)| entry.id));
            match rest {
                None => continue,
                Some(Stuck::Unknown(error)) => self.failed = Some(error),
                Some(Stuck::Refused(stream, why)) => self.refused = Some((stream, why)),
            }
            stuck.insert(slot);
        }
        if !done.is_empty() {
            let mut remove = redis::cmd("XDEL");
            remove.arg(outbox);
            for id in &done {
                remove.arg(id.to_string());
            }
            remove.exec_async(connection).await?;
            self.moved += done.len();
        }
        Ok(())
    }
}

/// Why entries stay in the outbox.
enum Stuck {
    /// Whether they were moved is not known.
    Unknown(BusError),
    /// The stream takes none, and why.
    Refused(String, String),
}

/// The entries of an outbox behind one of them.
async fn page_of(
    connection: &mut impl ConnectionLike,
    outbox: &str,
    after: EntryId,
) -> Result<Vec<Entry>, BusError> {
    let mut page = redis::cmd("XREAD");
    page.arg("COUNT").arg(PAGE).arg("STREAMS").arg(outbox);
    page.arg(after.to_string());
    let streams: Option<Vec<(Value, Value)>> = page.query_async(connection).await?;
    match streams.unwrap_or_default().pop() {
        Some((_, entries)) => entries_of(entries),
        None => Ok(Vec::new()),
    }
}

/// Moves entries to the streams of one slot: how many of them, and why not more.
async fn move_to_slot(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    outbox: &str,
    entries: &[(&str, &Entry)],
) -> (usize, Option<Stuck>) {
    let mut rest = entries;
    let mut done = 0;
    while let Some((first, _)) = rest.first() {
        let mut bytes = 0;
        let fits = |(_, entry): &&(&str, &Entry)| {
            let before = bytes;
            bytes += entry.bytes();
            before == 0 || bytes <= BYTES
        };
        let count = rest.iter().take_while(fits).count();
        let (some, later) = rest.split_at(count.max(1));
        rest = later;
        let mut streams: Vec<&str> = some.iter().map(|(to, _)| *to).collect();
        streams.sort_unstable();
        streams.dedup();
        let mut call = MOVE.prepare_invoke();
        call.key(keys.moved_beside(first));
        for stream in &streams {
            call.key(*stream);
        }
        let made = |stream: &&str| {
            if keys.is_made_stream(stream) {
                '1'
            } else {
                '0'
            }
        };
        let made: String = streams.iter().map(made).collect();
        call.arg(outbox).arg(made);
        for (to, entry) in some {
            let at = streams.binary_search(to).unwrap_or(0) + 1;
            let words: Vec<&[u8]> = entry
                .pairs()
                .filter(|(name, _)| *name != TO.as_bytes())
                .flat_map(|(name, value)| [name, value])
                .collect();
            call.arg(entry.id.ms).arg(entry.id.seq).arg(at);
            call.arg(words.len());
            for word in words {
                call.arg(word);
            }
        }
        let answer: Result<(usize, Option<String>), _> = call.invoke_async(connection).await;
        let (moved, why) = match answer {
            Ok(answer) => answer,
            Err(error) => return (done, Some(Stuck::Unknown(error.into()))),
        };
        done += moved;
        if let Some(why) = why {
            let stream = some.get(moved).map_or("", |(to, _)| *to).to_owned();
            return (done, Some(Stuck::Refused(stream, why)));
        }
    }
    (done, None)
}
