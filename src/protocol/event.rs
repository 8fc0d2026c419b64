//! An event: the fields of a stream entry ⇄ what they mean ([protocol](crate::docs::protocol#an-event)).
//!
//! An [`Event`] keeps the entry's fields as they came and knows where the protocol's own are. So
//! retries and dead letters carry everything on, unknown fields included, and the hot path copies
//! nothing.

mod slip;

pub use crate::protocol::entry::{Entry, EntryId, ParseEntryIdError};
use crate::protocol::json;
use crate::protocol::keys;
use crate::protocol::msgpack::{self, PayloadLimits};
use std::borrow::Cow;

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

/// The fields that the protocol names, in the order of their slots.
const KNOWN: [&str; 13] = [
    "type",
    "data",
    "id",
    "source",
    "time",
    "subject",
    "replyto",
    "deadline",
    "traceparent",
    "attempt",
    "notbefore",
    "datacontenttype",
    "dedup",
];
const TYPE: usize = 0;
const DATA: usize = 1;
const ID: usize = 2;
const SOURCE: usize = 3;
const TIME: usize = 4;
const SUBJECT: usize = 5;
const REPLYTO: usize = 6;
const DEADLINE: usize = 7;
const TRACEPARENT: usize = 8;
const ATTEMPT: usize = 9;
const NOT_BEFORE: usize = 10;
const CONTENT_TYPE: usize = 11;
const DEDUP: usize = 12;

/// The `datacontenttype` of a payload that is JSON text.
pub const JSON: &str = "application/json";
const MESSAGEPACK: &str = "application/msgpack";
/// The latest time (Unix ms) until which an event may wait: what a sorted set's score holds exactly.
pub const LATEST: u64 = 1 << 53;
/// Fields that the bus adds to an event which is tried again: `attempt`, and `id` where it had none.
const ADDED: usize = 2;

/// What the last failed attempt said, as the bus notes it on a retry.
pub const LAST_ERROR: &str = "lasterror";
/// When the first attempt failed, in Unix ms, as the bus notes it on a retry.
pub const FIRST_FAILED: &str = "firstfailed";

/// How often an operator replayed an event.
pub const REPLAYS: &str = "replays";

/// MessagePack's nil: what an absent `data` means.
const NIL: &[u8] = &[0xc0];

fn slot(name: &[u8]) -> Option<usize> {
    // By length first: a handful of byte comparisons instead of thirteen.
    let slot = match (name.len(), name.first()?) {
        (2, _) => ID,
        (4, b't') if name[1] == b'y' => TYPE,
        (4, b't') => TIME,
        (4, _) => DATA,
        (5, _) => DEDUP,
        (6, _) => SOURCE,
        (7, b's') => SUBJECT,
        (7, b'r') => REPLYTO,
        (7, _) => ATTEMPT,
        (8, _) => DEADLINE,
        (9, _) => NOT_BEFORE,
        (11, _) => TRACEPARENT,
        (15, _) => CONTENT_TYPE,
        _ => return None,
    };
    (KNOWN[slot].as_bytes() == name).then_some(slot)
}

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

/// What the field `dedup` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Once {
    /// `1`, as a publisher writes it: the entry itself names the event.
    Added,
    /// The entry as which the event was added: the bus moved it since.
    Moved(EntryId),
}

/// An entry that is no event: the message says why, naming the field.
#[derive(Clone, Debug)]
pub struct Malformed {
    /// The entry as it came.
    pub entry: Entry,
    /// What is wrong, with which field.
    pub message: String,
    /// Where to answer, if the entry names a place where a publisher may ask for replies.
    pub reply_to: Option<String>,
    /// The type, if it is one.
    pub kind: Option<String>,
}

impl Malformed {
    /// What a reply to it is correlated with: its `id` if that can be used, else its entry id.
    pub fn correlation_id(&self) -> String {
        match self.entry.get("id") {
            Some(id) if (1..=256).contains(&id.len()) => {
                String::from_utf8(id.to_vec()).unwrap_or_else(|_| self.entry.id.to_string())
            }
            _ => self.entry.id.to_string(),
        }
    }
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
        self.text(ID)
            .map_or_else(|| self.entry.id.to_string(), str::to_owned)
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

    /// The W3C trace context.
    pub fn traceparent(&self) -> Option<&str> {
        self.text(TRACEPARENT)
    }

    /// 1 on the first try.
    pub fn attempt(&self) -> u32 {
        self.attempt
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

struct Fields {
    at: [u32; KNOWN.len()],
    deadline: Option<u64>,
    not_before: Option<u64>,
    attempt: u32,
    once: Option<Once>,
    packed: Option<Box<[u8]>>,
    slips: bool,
}

impl Fields {
    /// Checks names and values, each with its place.
    fn check<'a>(
        places: impl Iterator<Item = (&'a [u8], &'a [u8], u32)>,
        limits: &Limits,
        keys: &keys::Keys,
        events: &str,
    ) -> Result<Self, String> {
        let mut at = [0u32; KNOWN.len()];
        let mut values = [None::<&[u8]>; KNOWN.len()];
        let mut slips = false;
        let mut places = places.enumerate();
        let too_many = |count| format!("{count} fields are over the limit of {}", limits.fields);
        let mut count = 0;
        while let Some((index, (name, value, place))) = places.next() {
            count = index + 1;
            if count > limits.fields + ADDED {
                return Err(too_many(count + places.count()));
            }
            if name.len() > limits.name {
                return Err(format!(
                    "a field name of {} bytes is over the limit of {}",
                    name.len(),
                    limits.name
                ));
            }
            let slot = slot(name);
            if value.len() > limits.value && slot != Some(DATA) {
                return Err(format!(
                    "{}: {} bytes are over the limit of {}",
                    name.escape_ascii(),
                    value.len(),
                    limits.value
                ));
            }
            if let Some(slot) = slot {
                if values[slot].is_some() {
                    return Err(format!("{}: given twice", KNOWN[slot]));
                }
                values[slot] = Some(value);
                at[slot] = place;
            } else {
                slips |= slip::meant(name).is_some();
            }
        }
        let value = |slot: usize| values[slot];
        let added = if value(ATTEMPT).is_some() { ADDED } else { 0 };
        if count > limits.fields + added {
            return Err(too_many(count));
        }
        match value(TYPE) {
            None => return Err("type: missing".into()),
            Some(kind) if !keys::is_event_type(kind) => {
                if let Some(domain) = keys::reserved_domain(kind) {
                    return Err(format!(
                        "type: \"{}\": a domain cannot be called \"{domain}\"",
                        kind.escape_ascii()
                    ));
                }
                return Err(format!(
                    "type: \"{}\" is not domain.action of a-z 0-9 _",
                    kind.escape_ascii()
                ));
            }
            Some(_) => {}
        }
        for slot in [ID, SOURCE, TIME, SUBJECT, TRACEPARENT] {
            if value(slot).is_some_and(|value| std::str::from_utf8(value).is_err()) {
                return Err(format!("{}: not UTF-8", KNOWN[slot]));
            }
        }
        if value(ID).is_some_and(<[u8]>::is_empty) {
            return Err("id: empty".into());
        }
        let once = match value(DEDUP) {
            None => None,
            Some(_) if value(ID).is_none() => return Err("dedup: needs an id".into()),
            Some(b"1") => Some(Once::Added),
            Some(name) => match moved_from(name) {
                Some(entry) => Some(Once::Moved(entry)),
                None => return Err(format!("dedup: \"{}\" is not 1", name.escape_ascii())),
            },
        };
        if let Some(key) = value(REPLYTO)
            && !allowed_reply(key, keys, events)
        {
            return Err(format!(
                "replyto: \"{}\" is neither a reply stream nor an inbox of this namespace",
                key.escape_ascii()
            ));
        }
        let number = |slot: usize| match value(slot) {
            None => Ok(None),
            Some(value) => match std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()) {
                Some(number) => Ok(Some(number)),
                None => Err(format!(
                    "{}: \"{}\" is not a whole number from 0 to {}",
                    KNOWN[slot],
                    value.escape_ascii(),
                    u64::MAX
                )),
            },
        };
        let deadline: Option<u64> = number(DEADLINE)?;
        let attempt = match number(ATTEMPT)? {
            None => 1,
            Some(attempt @ 1..=1_000_000) => attempt as u32,
            Some(attempt) => return Err(format!("attempt: {attempt} is not 1 to 1000000")),
        };
        let not_before = match number(NOT_BEFORE)? {
            Some(time) if time > LATEST => {
                return Err(format!("notbefore: {time} is over {LATEST}, in Unix ms"));
            }
            time => time,
        };
        let json = match value(CONTENT_TYPE) {
            None => false,
            Some(kind) if kind == JSON.as_bytes() => true,
            Some(kind) if kind == MESSAGEPACK.as_bytes() => false,
            Some(kind) => {
                return Err(format!(
                    "datacontenttype: \"{}\" is neither {MESSAGEPACK} nor {JSON}",
                    kind.escape_ascii()
                ));
            }
        };
        let packed = match value(DATA) {
            Some(data) if json => Some(packed(data, &limits.payload)?),
            Some(data) => {
                msgpack::scan(data, &limits.payload).map_err(|error| not_msgpack(data, &error))?;
                None
            }
            None => None,
        };
        Ok(Self {
            at,
            deadline,
            not_before,
            attempt,
            once,
            packed,
            slips,
        })
    }
}

/// The entry that the bus noted in the field `dedup` when it moved the event.
fn moved_from(name: &[u8]) -> Option<EntryId> {
    let entry = EntryId::parse(name)?;
    (entry.to_string().as_bytes() == name).then_some(entry)
}

/// Checks the fields of an event that is to be published on the stream `events`, as its reader will.
///
/// # Errors
/// What is wrong, with which field.
pub(crate) fn check<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    limits: &Limits,
    keys: &keys::Keys,
    events: &str,
) -> Result<(), String> {
    let places = fields.map(|(name, value)| (name, value, 0));
    Fields::check(places, limits, keys, events).map(|_| ())
}

/// JSON text as MessagePack, within the same bounds.
fn packed(text: &[u8], limits: &PayloadLimits) -> Result<Box<[u8]>, String> {
    if text.len() > limits.bytes {
        let (bytes, most) = (text.len(), limits.bytes);
        return Err(format!("data: {bytes} bytes are over the limit of {most}"));
    }
    let data = json::parse(text).map_err(|error| format!("data: not one JSON value: {error}"))?;
    msgpack::scan(&data, limits).map_err(|error| error.to_string())?;
    Ok(data.into())
}

fn not_msgpack(data: &[u8], error: &msgpack::ScanError) -> String {
    match looks_like_json(data) {
        true => {
            "data: this looks like JSON text, and must be one MessagePack value, unless the field \
            datacontenttype says application/json (`convoke publish` turns JSON into MessagePack)"
                .to_owned()
        }
        false => error.to_string(),
    }
}

/// Whether an entry calls its payload JSON.
pub fn is_json(entry: &Entry) -> bool {
    entry.get(KNOWN[CONTENT_TYPE]) == Some(JSON.as_bytes())
}

/// The payload of an entry as MessagePack, as far as that can be said: what is called JSON and is not comes as
/// it is.
pub fn payload_of(entry: &Entry) -> Option<Cow<'_, [u8]>> {
    let data = entry.get("data")?;
    let packed = is_json(entry).then(|| packed(data, &PayloadLimits::default()).ok());
    Some(match packed.flatten() {
        Some(packed) => Cow::Owned(packed.into()),
        None => Cow::Borrowed(data),
    })
}

/// Whether what is no MessagePack value is one JSON value. Never of more than a payload's limit: whoever asks
/// scanned it.
fn looks_like_json(data: &[u8]) -> bool {
    let begins = data.trim_ascii_start().first();
    begins.is_some_and(|byte| b"{[\"-0123456789tfn".contains(byte))
        && data.len() <= PayloadLimits::default().bytes
        && serde_json::from_slice::<serde::de::IgnoredAny>(data).is_ok()
}

fn allowed_reply(key: &[u8], keys: &keys::Keys, events: &str) -> bool {
    std::str::from_utf8(key).is_ok_and(|key| keys.may_reply_to(key, events))
}

fn malformed(
    entry: Entry,
    message: String,
    limits: &Limits,
    keys: &keys::Keys,
    events: &str,
) -> Malformed {
    let text = |name: &str| {
        entry
            .get(name)
            .filter(|value| value.len() <= limits.value)
            .and_then(|value| std::str::from_utf8(value).ok())
            .map(str::to_owned)
    };
    let reply_to = text("replyto").filter(|key| keys.may_reply_to(key, events));
    let kind = text("type").filter(|kind| keys::is_event_type(kind.as_bytes()));
    Malformed {
        message,
        reply_to,
        kind,
        entry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::keys::Keys;
    use proptest::prelude::*;

    fn entry(fields: &[(&str, &[u8])]) -> Entry {
        let words = fields
            .iter()
            .flat_map(|(name, value)| [name.as_bytes(), value]);
        Entry::new(EntryId { ms: 7, seq: 1 }, words)
    }

    fn parse(fields: &[(&str, &[u8])]) -> Result<Event, Box<Malformed>> {
        let keys = Keys::new("cb").unwrap();
        Event::parse(entry(fields), &Limits::default(), &keys, "cb:events:a")
    }

    fn refused(fields: &[(&str, &[u8])]) -> String {
        parse(fields).unwrap_err().message
    }

    #[test]
    fn every_known_field_is_found() {
        for (index, name) in KNOWN.iter().enumerate() {
            assert_eq!(slot(name.as_bytes()), Some(index), "{name}");
        }
        for unknown in ["", "x", "typo", "datb", "subjecz", "Type"] {
            assert_eq!(slot(unknown.as_bytes()), None, "{unknown}");
        }
    }

    #[test]
    fn an_event_with_only_a_type() {
        let event = parse(&[("type", b"a.b")]).unwrap();
        assert_eq!(event.kind(), "a.b");
        assert_eq!(event.domain(), "a");
        assert_eq!(event.id(), "7-1");
        assert_eq!(event.data(), NIL);
        assert_eq!(event.attempt(), 1);
        assert_eq!(event.reply_to(), None);
    }

    #[test]
    fn the_next_attempt_keeps_unknown_fields_and_the_identity() {
        let event = parse(&[("x", b"\xff"), ("type", b"a.b"), ("data", &[1])]).unwrap();
        let keys = Keys::new("cb").unwrap();
        let again = Entry::new(EntryId { ms: 9, seq: 0 }, event.next_attempt());
        let again = Event::parse(again, &Limits::default(), &keys, "cb:events:a").unwrap();
        assert_eq!(again.attempt(), 2);
        assert_eq!(again.id(), "7-1");
        assert_eq!(again.entry().get("x"), Some(&b"\xff"[..]));
        assert_eq!(again.data(), [1]);
        let third = again.next_attempt();
        assert_eq!(third.iter().filter(|f| *f == b"attempt").count(), 1);
    }

    #[test]
    fn a_retry_tells_why_and_keeps_when_it_failed_first() {
        let event = parse(&[("type", b"a.b")]).unwrap();
        let keys = Keys::new("cb").unwrap();
        let again = |fields| {
            let id = EntryId { ms: 9, seq: 0 };
            let entry = Entry::new(id, fields);
            Event::parse(entry, &Limits::default(), &keys, "cb:events:a").unwrap()
        };
        let second = again(event.next_attempt_after("internal: no", 100));
        let long = "é".repeat(300);
        let third = again(second.next_attempt_after(&long, 200));
        let told = |event: &Event, name: &str| {
            String::from_utf8(event.entry().get(name).unwrap().to_vec()).unwrap()
        };
        assert_eq!(told(&second, LAST_ERROR), "internal: no");
        assert_eq!(told(&third, LAST_ERROR), "é".repeat(100));
        assert_eq!(told(&third, FIRST_FAILED), "100");
        assert_eq!((third.attempt(), third.entry().words().count()), (3, 10));

        let mut full: Vec<_> = (0..30).map(|_| ("x", &b"y"[..])).collect();
        full.push(("type", b"a.b"));
        let full = parse(&full).unwrap();
        assert_eq!(
            full.next_attempt_after("no", 1).len(),
            full.next_attempt().len()
        );
    }

    #[test]
    fn what_is_moved_keeps_the_name_of_the_entry_as_which_it_was_added() {
        let fields: [(&str, &[u8]); 3] = [("type", b"a.b"), ("id", b"e1"), ("dedup", b"1")];
        let first = parse(&fields).unwrap();
        assert!(first.asks_once());
        let keys = Keys::new("cb").unwrap();
        let mut event = first.clone();
        for (ms, fails) in [(8, true), (9, false), (10, true)] {
            let again = match fails {
                true => event.next_attempt_after("no", 1),
                false => event.same_attempt(),
            };
            let entry = Entry::new(EntryId { ms, seq: 0 }, again);
            event = Event::parse(entry, &Limits::default(), &keys, "cb:events:a").unwrap();
            assert_eq!((event.once(), event.asks_once()), (first.once(), true));
        }
        assert_eq!(event.once(), Some(EntryId { ms: 7, seq: 1 }));
        assert_eq!(parse(&fields[..2]).unwrap().once(), None);
        // It was moved by who did not note its name, or replayed.
        for (name, value) in [("attempt", b"2"), ("replays", b"1")] {
            let event = parse(&[&fields[..], &[(name, value)]].concat()).unwrap();
            assert!(!event.asks_once(), "{name}");
            let again = Entry::new(EntryId { ms: 8, seq: 0 }, event.same_attempt());
            let again = Event::parse(again, &Limits::default(), &keys, "cb:events:a").unwrap();
            assert!(!again.asks_once(), "{name}");
        }
    }

    #[test]
    fn bad_fields_are_named() {
        assert!(refused(&[]).contains("no fields"));
        assert!(refused(&[("data", &[1])]).starts_with("type: missing"));
        assert!(refused(&[("type", b"a")]).starts_with("type:"));
        assert!(refused(&[("type", b"a.\xff")]).starts_with("type:"));
        assert!(refused(&[("type", b"inbox.a")]).contains("cannot be called"));
        assert!(refused(&[("type", b"a.b"), ("type", b"a.c")]).contains("given twice"));
        assert!(refused(&[("type", b"a.b"), ("id", b"\xff")]).starts_with("id:"));
        assert!(refused(&[("type", b"a.b"), ("id", b"")]).starts_with("id:"));
        assert!(refused(&[("type", b"a.b"), ("dedup", b"1")]).starts_with("dedup: needs"));
        for bad in [&b""[..], b"0", b"yes", b"7", b"07-1", b"7-"] {
            let said = refused(&[("type", b"a.b"), ("id", b"e"), ("dedup", bad)]);
            assert!(said.starts_with("dedup: \""), "{said}");
        }
        assert!(refused(&[("type", b"a.b"), ("deadline", b"-1")]).starts_with("deadline:"));
        assert!(refused(&[("type", b"a.b"), ("attempt", b"4294967296")]).starts_with("attempt:"));
        assert!(refused(&[("type", b"a.b"), ("attempt", b"0")]).starts_with("attempt:"));
        assert!(refused(&[("type", b"a.b"), ("replyto", b"cb:events:a")]).starts_with("replyto:"));
        assert!(refused(&[("type", b"a.b"), ("data", b"")]).starts_with("data:"));
        let long = [b'x'; 257];
        assert!(refused(&[("type", b"a.b"), ("other", &long)]).starts_with("other:"));
        let many: Vec<_> = (0..33).map(|_| ("x", &b"y"[..])).collect();
        assert!(refused(&many).contains("33 fields"));
    }

    #[test]
    fn json_is_told_from_other_bad_bytes() {
        for json in [
            "{\"a\": 1}",
            "[1, 2]",
            "\"text\"",
            " {}\n",
            "12.5",
            "-1",
            "true",
            "null",
        ] {
            let said = refused(&[("type", b"a.b"), ("data", json.as_bytes())]);
            assert!(said.contains("looks like JSON"), "{json}: {said}");
        }
        for other in [&b"{\"a\": "[..], b"hello", b"\xc1", b"{}{}", b"\x92\x01"] {
            let said = refused(&[("type", b"a.b"), ("data", other)]);
            assert!(!said.contains("JSON"), "{said}");
        }
    }

    #[test]
    fn what_is_malformed_can_still_be_answered() {
        let bad = parse(&[
            ("type", b"a.b"),
            ("id", b"e1"),
            ("replyto", b"cb:reply:me"),
            ("data", &[0xc1]),
        ])
        .unwrap_err();
        assert_eq!(bad.reply_to.as_deref(), Some("cb:reply:me"));
        assert_eq!(bad.kind.as_deref(), Some("a.b"));
        assert_eq!(bad.correlation_id(), "e1");
        let hostile = parse(&[("type", b"a.b"), ("replyto", b"cb:broadcast")]).unwrap_err();
        assert_eq!(hostile.reply_to, None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(fields in proptest::collection::vec(
            (prop_oneof![proptest::sample::select(&KNOWN[..]).prop_map(|n| n.as_bytes().to_vec()),
                         proptest::collection::vec(any::<u8>(), 0..70)],
             proptest::collection::vec(any::<u8>(), 0..40)), 0..40)) {
            let keys = Keys::new("cb").unwrap();
            let words = fields.into_iter().flat_map(|(n, v)| [n, v]);
            let entry = Entry::new(EntryId::default(), words);
            match Event::parse(entry.clone(), &Limits::default(), &keys, "cb:events:a") {
                Ok(event) => {
                    prop_assert!(keys::is_event_type(event.kind().as_bytes()));
                    prop_assert_eq!(event.entry(), &entry);
                }
                Err(bad) => {
                    bad.correlation_id();
                    prop_assert_eq!(bad.entry, entry);
                }
            }
        }
    }
}
