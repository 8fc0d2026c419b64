//! An event as it is published again, and the stream that it goes back to.

use super::EDITED;
use crate::protocol::dead::Letter;
use crate::protocol::event::{Entry, EntryId, JSON, REPLAYS};
use crate::protocol::json;
use crate::protocol::keys::{Keys, StreamKind, StreamName, domain_of, is_event_type};
use serde::{Deserialize, Serialize};

/// Where an event is replayed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The dead letters.
    #[default]
    Dead,
    /// What is delivered and not acknowledged.
    Pending,
    /// Entries that the group is done with.
    Range,
}

impl Source {
    /// As facts and plans name it.
    #[doc(hidden)]
    pub const fn as_str(self) -> &'static str {
        match self {
            Source::Dead => "dead",
            Source::Pending => "pending",
            Source::Range => "range",
        }
    }
}

/// An event as it is to be published again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// Names and values in turn.
    pub fields: Vec<Vec<u8>>,
    /// How often it has been replayed then.
    pub replays: u32,
}

/// The fields with which an event is published again.
pub fn again(fields: &[Vec<u8>], own_id: Option<EntryId>, source: Source, now_ms: u64) -> Again {
    let mut replays = 0u32;
    // Unless its name was lost, or an operator wanted it to run once more.
    let is_named = !fields
        .chunks_exact(2)
        .any(|pair| matches!(pair[0].as_slice(), b"replays" | b"attempt"));
    let mut kept: Vec<Vec<u8>> = Vec::with_capacity(fields.len() + 4);
    let mut has_id = false;
    let answered = source != Source::Pending;
    for pair in fields.chunks_exact(2) {
        let text = || std::str::from_utf8(&pair[1]).unwrap_or_default();
        match pair[0].as_slice() {
            b"replays" => replays = text().parse().unwrap_or(u32::MAX),
            b"attempt" | b"lasterror" | b"firstfailed" => continue,
            b"replyto" if answered => continue,
            b"deadline" if answered && text().parse().is_ok_and(|at: u64| at <= now_ms) => continue,
            // What is dead or done runs once more without asking whether it was the first of its id.
            b"dedup" if answered && text().parse::<EntryId>().is_ok() => {
                kept.extend([b"dedup".to_vec(), b"1".to_vec()]);
            }
            // What is pending is moved like by a retry: it asks, under the name that it has.
            b"dedup" if !answered && is_named && pair[1] == b"1" => {
                let name = own_id.map_or_else(|| "1".to_owned(), |id| id.to_string());
                kept.extend([b"dedup".to_vec(), name.into_bytes()]);
            }
            name => {
                has_id |= name == b"id";
                kept.extend_from_slice(pair);
            }
        }
    }
    if let (false, Some(id)) = (has_id, own_id) {
        kept.extend([b"id".to_vec(), id.to_string().into_bytes()]);
    }
    let replays = replays.saturating_add(1);
    kept.extend([REPLAYS.into(), replays.to_string().into_bytes()]);
    Again {
        fields: kept,
        replays,
    }
}

/// How much time an event has at the least, where it is replayed with a deadline.
const TIME_LEFT_MS: u64 = 60_000;

/// Takes off a deadline that has passed by now, or soon will: nobody waits for what was dead or done, and past its
/// deadline it would only be dropped.
pub fn drop_deadline(fields: &mut Vec<Vec<u8>>, now_ms: u64) {
    let soon = now_ms.saturating_add(TIME_LEFT_MS);
    let pairs = fields.chunks_exact(2).enumerate();
    let past = pairs.filter(|(_, pair)| {
        let at = std::str::from_utf8(&pair[1])
            .ok()
            .and_then(|at| at.parse().ok());
        pair[0] == b"deadline" && at.is_some_and(|at: u64| at <= soon)
    });
    let past: Vec<usize> = past.map(|(place, _)| place).collect();
    for place in past.into_iter().rev() {
        fields.drain(2 * place..2 * place + 2);
    }
}

/// Sets a field: the last one of that name, which is the one that counts, or a new one.
pub fn set_field(fields: &mut Vec<Vec<u8>>, name: &str, value: &[u8]) {
    let mut pairs = fields.chunks_exact(2);
    match pairs.rposition(|pair| pair[0] == name.as_bytes()) {
        Some(at) => fields[2 * at + 1] = value.to_vec(),
        None => fields.extend([name.into(), value.to_vec()]),
    }
}

/// Puts another payload (MessagePack) into an event, in the form that it is in, and notes who did it.
pub fn edit(fields: &mut Vec<Vec<u8>>, data: &[u8], by: &str) {
    let is_json = fields
        .chunks_exact(2)
        .any(|pair| pair[0] == b"datacontenttype" && pair[1] == JSON.as_bytes());
    let text = json::to_json(data).ok().filter(|_| is_json);
    match text {
        Some(value) => set_field(fields, "data", value.to_string().as_bytes()),
        None => {
            let mut pairs = fields.chunks_exact(2);
            if let Some(at) = pairs.position(|pair| pair[0] == b"datacontenttype") {
                fields.drain(2 * at..2 * at + 2);
            }
            set_field(fields, "data", data);
        }
    }
    set_field(fields, EDITED, by.as_bytes());
}

/// Why a dead letter has no stream to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoWayBack {
    /// Its type is missing or no event type.
    #[error("no event")]
    NoEvent,
    /// A reply that could not be stored.
    #[error("a reply, not an event")]
    Reply,
    /// The event stood in the inbox of one instance: what it told that instance is out of date.
    #[error("from an inbox: its task was assigned again")]
    Inbox,
    /// The stream that it stood on lies in another slot.
    #[error("its stream lies in another slot")]
    OtherSlot,
    /// The stream of the type that it is to get lies in another slot.
    #[error(
        "on a cluster a letter keeps its domain, and its new type is of another one: publish what `convoke dead show` shows by `convoke publish`, then `convoke dead drop` it"
    )]
    OtherDomain,
}

/// The events stream that a dead letter goes back to: the one it names if that is one of this
/// namespace, else its type's.
pub fn way_back(keys: &Keys, dead: &StreamName, letter: &Letter) -> Result<String, NoWayBack> {
    let entry = Entry::new(EntryId::default(), &letter.fields);
    let kind = entry.get("type").filter(|kind| is_event_type(kind));
    let kind = kind.and_then(|kind| std::str::from_utf8(kind).ok());
    let kind = kind.ok_or(NoWayBack::NoEvent)?;
    if kind.ends_with(".result") && entry.get("correlationid").is_some() {
        return Err(NoWayBack::Reply);
    }
    let named = letter
        .stream
        .as_deref()
        .and_then(|key| keys.stream_name(key));
    let to = match named {
        Some(name) if name.kind == StreamKind::Inbox => return Err(NoWayBack::Inbox),
        Some(name) if name.kind == StreamKind::Events => name.key,
        _ => keys.events(domain_of(kind), dead.partition),
    };
    match keys.share_slot(&to, &dead.key) {
        true => Ok(to),
        false => Err(NoWayBack::OtherSlot),
    }
}
