//! An event: the fields of a stream entry ⇄ what they mean ([protocol](crate::docs::protocol#an-event)).
//!
//! An [`Event`] keeps the entry's fields as they came and knows where the protocol's own are. So
//! retries and dead letters carry everything on, unknown fields included, and the hot path copies
//! nothing.

mod fields;
mod malformed;
mod payload;
mod slip;
#[cfg(test)]
mod tests;

pub use crate::protocol::entry::{Entry, EntryId, ParseEntryIdError};
pub use fields::LATEST;
pub(crate) use fields::check;
pub use malformed::Malformed;
pub(crate) use payload::in_kind;
pub use payload::{JSON, is_json, payload_of};

use crate::protocol::digits::IdText;
use crate::protocol::keys;
use crate::protocol::msgpack::PayloadLimits;
use fields::{
    ATTEMPT, CONTENT_TYPE, DATA, DEDUP, Fields, ID, KNOWN, NOT_BEFORE, Once, REPLYTO, SOURCE,
    SUBJECT, TIME, TRACEPARENT, TYPE,
};
use malformed::malformed;

/// The field with the id of the event whose run published an event.
pub const CAUSE: &str = "causationid";

/// Bounds on one event, checked before anything of it is decoded ([protocol](crate::docs::protocol#an-event)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bounds on `data`.
    pub payload: PayloadLimits,
    /// Fields in an entry.
    pub fields: usize,
    /// Bytes in a field's name.
    pub name: usize,
    /// Bytes in the value of a field other than `data`.
    pub value: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload: PayloadLimits::default(),
            fields: 32,
            name: 64,
            value: 256,
        }
    }
}

impl Limits {
    /// Bytes of an entry that may be held in memory: a payload, and room for the other fields.
    pub fn entry(&self) -> usize {
        self.payload.bytes.saturating_add(BESIDES)
    }
}

/// Room for what an entry has besides its payload.
const BESIDES: usize = 64 * 1024;

/// What the last failed attempt said, as the bus notes it on a retry.
pub const LAST_ERROR: &str = "lasterror";
/// When the first attempt failed, in Unix ms, as the bus notes it on a retry.
pub const FIRST_FAILED: &str = "firstfailed";

/// How often an operator replayed an event.
pub const REPLAYS: &str = "replays";

/// MessagePack's nil: what an absent `data` means.
const NIL: &[u8] = &[0xc0];

/// An event whose fields have been checked. Its payload is one well-formed MessagePack value.
#[derive(Clone, Debug)]
pub struct Event {
    entry: Entry,
    /// Where the value of each known field stands in the entry; 0 (a name's place) if absent.
    at: [u32; KNOWN.len()],
    deadline: Option<u64>,
    not_before: Option<u64>,
    attempt: u32,
    once: Option<Once>,
    /// The payload as MessagePack, where it came as JSON.
    packed: Option<Box<[u8]>>,
    /// Whether a field's name looks like a slip.
    slips: bool,
}

impl Event {
    /// Checks the fields of an entry that arrived on the stream `events`.
    pub fn parse(
        entry: Entry,
        limits: &Limits,
        keys: &keys::Keys,
        events: &str,
    ) -> Result<Event, Box<Malformed>> {
        let checked = match entry.cut() {
            Some(bytes) => Err(format!(
                "the entry has {bytes} bytes, over the limit of {}: its fields are kept in part",
                limits.entry()
            )),
            None if entry.is_empty() => {
                Err("the entry has no fields (its payload was deleted or trimmed)".into())
            }
            None => Fields::check(entry.places(), limits, keys, events),
        };
        match checked {
            Ok(fields) => Ok(Event {
                entry,
                at: fields.at,
                deadline: fields.deadline,
                not_before: fields.not_before,
                attempt: fields.attempt,
                once: fields.once,
                packed: fields.packed,
                slips: fields.slips,
            }),
            Err(message) => Err(Box::new(malformed(entry, message, limits, keys, events))),
        }
    }

    fn text(&self, slot: usize) -> Option<&str> {
        match self.at[slot] {
            0 => None,
            at => std::str::from_utf8(self.entry.word_at(at)).ok(),
        }
    }

    /// The entry's id on its stream.
    pub fn entry_id(&self) -> EntryId {
        self.entry.id
    }

    /// The event type.
    pub fn kind(&self) -> &str {
        self.text(TYPE).unwrap_or_default()
    }

    /// The domain: the type up to its first dot.
    pub fn domain(&self) -> &str {
        keys::domain_of(self.kind())
    }

    /// The payload: one MessagePack value; nil if the event carried none.
    pub fn data(&self) -> &[u8] {
        match (&self.packed, self.at[DATA]) {
            (Some(packed), _) => packed,
            (None, 0) => NIL,
            (None, at) => self.entry.word_at(at),
        }
    }

    /// Whether the payload came as JSON text: a reply is in kind.
    pub fn is_json(&self) -> bool {
        self.text(CONTENT_TYPE) == Some(JSON)
    }

    /// The publisher's id, if it gave one.
    pub fn given_id(&self) -> Option<&str> {
        self.text(ID)
    }

    /// The publisher's id, or else the entry's.
    pub fn id(&self) -> String {
        self.text(ID).map_or_else(
            || IdText::from(self.entry.id).as_str().to_owned(),
            str::to_owned,
        )
    }

    /// Who published it.
    pub fn source(&self) -> Option<&str> {
        self.text(SOURCE)
    }

    /// When it was published, as the publisher wrote it.
    pub fn time(&self) -> Option<&str> {
        self.text(TIME)
    }

    /// The ordering and partition key.
    pub fn subject(&self) -> Option<&str> {
        self.text(SUBJECT)
    }

    /// The stream that gets the reply; checked against the namespace.
    pub fn reply_to(&self) -> Option<&str> {
        self.text(REPLYTO)
    }

    /// Past this time (Unix ms) the event is not run.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Before this time (Unix ms) the event is not run.
    pub fn not_before(&self) -> Option<u64> {
        self.not_before
    }

    /// The name of an event that is to take effect once within a window: the entry as which it was added.
    /// It stays the same when the bus moves the event to another entry.
    pub fn once(&self) -> Option<EntryId> {
        Some(match self.once? {
            Once::Added => self.entry.id,
            Once::Moved(from) => from,
        })
    }

    /// Whether such an event runs only if no other one of its id came before it. Not if an operator wants it
    /// to run once more, nor if its name was lost: a worker that does not know the field moved it.
    pub fn asks_once(&self) -> bool {
        match self.once {
            None => false,
            Some(Once::Added) => self.at[ATTEMPT] == 0 && self.entry.get(REPLAYS).is_none(),
            Some(Once::Moved(_)) => true,
        }
    }

    /// Whether the bus or an operator moved it here: then its id may be that of its first entry.
    #[doc(hidden)]
    pub fn came_again(&self) -> bool {
        self.at[ATTEMPT] != 0 || self.entry.get(REPLAYS).is_some()
    }

    /// The W3C trace context.
    pub fn traceparent(&self) -> Option<&str> {
        self.text(TRACEPARENT)
    }

    /// The id of the event whose run published it.
    pub fn cause(&self) -> Option<&str> {
        std::str::from_utf8(self.entry.get(CAUSE)?).ok()
    }

    /// 1 on the first try.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Makes it that try, whatever its entry says: noted beside the stream (see [`hold`](crate::streams::hold)).
    #[cfg(feature = "worker")]
    pub(crate) fn tried(&mut self, attempt: u32) {
        self.attempt = attempt;
    }

    /// The names of fields that nobody reads and that look like others, each with the field that was most likely
    /// meant: `reply_to` for `replyto`.
    pub fn slips(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let places = self.slips.then(|| self.entry.places()).into_iter();
        places.flatten().filter_map(|(name, _, _)| {
            let meant = slip::meant(name)?;
            Some((std::str::from_utf8(name).ok()?, meant))
        })
    }

    /// The entry as it came.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The entry as it came.
    pub fn into_entry(self) -> Entry {
        self.entry
    }

    /// The fields of the same event for its next attempt: `attempt` raised, and `id` set so that
    /// it stays the same event on another entry.
    pub fn next_attempt(&self) -> Vec<Vec<u8>> {
        self.again(self.attempt + 1)
    }

    /// Like [`next_attempt`](Self::next_attempt), noting for people why it failed (at most 200 bytes
    /// are kept) and when it did so first. Left out where the event has no room for more fields.
    pub fn next_attempt_after(&self, error: &str, now_ms: u64) -> Vec<Vec<u8>> {
        let mut fields = self.next_attempt();
        let error = &error[..error.floor_char_boundary(200)];
        let mut note = |name: &str, value: &str, replace: bool| {
            let value = value.as_bytes().to_vec();
            let known = fields
                .chunks_exact(2)
                .position(|pair| pair[0] == name.as_bytes());
            match known {
                Some(at) if replace => fields[2 * at + 1] = value,
                None if fields.len() / 2 < Limits::default().fields => {
                    fields.extend([name.into(), value]);
                }
                _ => {}
            }
        };
        note(LAST_ERROR, error, true);
        note(FIRST_FAILED, &now_ms.to_string(), false);
        fields
    }

    /// The fields of the same event for another try that does not count as an attempt.
    pub fn same_attempt(&self) -> Vec<Vec<u8>> {
        self.again(self.attempt)
    }

    fn again(&self, attempt: u32) -> Vec<Vec<u8>> {
        let attempt = attempt.to_string().into_bytes();
        // Whether or not anybody asked under it by now.
        let once = self.once().filter(|_| self.asks_once());
        let mut fields = Vec::with_capacity(2 * KNOWN.len());
        for (name, value, place) in self.entry.places() {
            // It has waited, or it waits from here on.
            if place == self.at[NOT_BEFORE] {
                continue;
            }
            fields.push(name.to_vec());
            fields.push(match once {
                _ if place == self.at[ATTEMPT] => attempt.clone(),
                Some(once) if place == self.at[DEDUP] => once.to_string().into_bytes(),
                _ => value.to_vec(),
            });
        }
        if self.at[ATTEMPT] == 0 {
            fields.extend([KNOWN[ATTEMPT].into(), attempt]);
        }
        if self.at[ID] == 0 {
            let id = self.entry.id.to_string().into_bytes();
            fields.extend([KNOWN[ID].into(), id]);
        }
        fields
    }
}
