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
use std::collections::BTreeMap;
use std::sync::LazyLock;

static MOVE: LazyLock<Script> = LazyLock::new(|| script(include_str!("move.lua")));

/// The field that names the stream which an event is for. No event has one of that name.
pub(crate) const TO: &str = "@stream";
/// Entries that are looked at at a time.
const PAGE: usize = 100;
/// Bytes that a call of the script moves, about.
const BYTES: u64 = 1 << 20;

/// How moving went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Entries that left the outbox.
    pub moved: usize,
    /// Whether there may be more.
    pub more: bool,
}

/// Whether one step may write to both keys.
pub(crate) fn is_beside(a: &str, b: &str) -> bool {
    slot_of(a.as_bytes()) == slot_of(b.as_bytes())
}

/// Moves what is in an outbox, from its start on. What cannot be moved stays, and so does what is behind it for the same
/// slot; the rest of what was looked at leaves.
///
/// # Errors
/// Nothing was moved, as far as is known.
pub async fn empty(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    outbox: &str,
) -> Result<Moved, BusError> {
    let entries = first_of(connection, outbox).await?;
    let mut slots: BTreeMap<u16, Vec<(&str, &Entry)>> = BTreeMap::new();
    let mut done: Vec<EntryId> = Vec::with_capacity(entries.len());
    for entry in &entries {
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
    let mut failed = None;
    for (_, entries) in slots {
        match move_to_slot(connection, keys, outbox, &entries).await {
            Ok(moved) => done.extend(entries.iter().take(moved).map(|(_, entry)| entry.id)),
            Err(error) => failed = Some(error),
        }
    }
    if !done.is_empty() {
        let mut remove = redis::cmd("XDEL");
        remove.arg(outbox);
        for id in &done {
            remove.arg(id.to_string());
        }
        remove.exec_async(connection).await?;
    }
    match failed {
        Some(error) if done.is_empty() => Err(error),
        _ => Ok(Moved {
            moved: done.len(),
            more: !done.is_empty() && entries.len() == PAGE,
        }),
    }
}

/// The first entries of an outbox.
async fn first_of(
    connection: &mut impl ConnectionLike,
    outbox: &str,
) -> Result<Vec<Entry>, BusError> {
    let mut page = redis::cmd("XREAD");
    page.arg("COUNT").arg(PAGE).arg("STREAMS").arg(outbox);
    let streams: Option<Vec<(Value, Value)>> = page.arg("0").query_async(connection).await?;
    match streams.unwrap_or_default().pop() {
        Some((_, entries)) => entries_of(entries),
        None => Ok(Vec::new()),
    }
}

/// Moves entries to the streams of one slot: how many of them.
async fn move_to_slot(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    outbox: &str,
    entries: &[(&str, &Entry)],
) -> Result<usize, BusError> {
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
        call.arg(outbox);
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
        let (moved, why): (usize, Option<String>) = call.invoke_async(connection).await?;
        done += moved;
        if let Some(why) = why {
            let stream = some.get(moved).map(|(to, _)| *to);
            tracing::error!(
                outbox,
                stream,
                why,
                "an event stays in the outbox: its stream takes none"
            );
            break;
        }
    }
    Ok(done)
}
