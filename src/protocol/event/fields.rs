//! The fields that the protocol names, and the check of an entry that has them.

use super::Limits;
use super::payload::{JSON, MESSAGEPACK, not_msgpack, packed};
use super::slip;
use crate::protocol::entry::EntryId;
use crate::protocol::keys;
use crate::protocol::msgpack;

/// The fields that the protocol names, in the order of their slots.
pub(super) const KNOWN: [&str; 13] = [
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
pub(super) const TYPE: usize = 0;
pub(super) const DATA: usize = 1;
pub(super) const ID: usize = 2;
pub(super) const SOURCE: usize = 3;
pub(super) const TIME: usize = 4;
pub(super) const SUBJECT: usize = 5;
pub(super) const REPLYTO: usize = 6;
const DEADLINE: usize = 7;
pub(super) const TRACEPARENT: usize = 8;
pub(super) const ATTEMPT: usize = 9;
pub(super) const NOT_BEFORE: usize = 10;
pub(super) const CONTENT_TYPE: usize = 11;
pub(super) const DEDUP: usize = 12;

/// The latest time (Unix ms) until which an event may wait: what a sorted set's score holds exactly.
pub const LATEST: u64 = 1 << 53;
/// Fields that the bus adds to an event which is tried again: `attempt`, and `id` where it had none.
const ADDED: usize = 2;

pub(super) fn slot(name: &[u8]) -> Option<usize> {
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

/// What the field `dedup` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Once {
    /// `1`, as a publisher writes it: the entry itself names the event.
    Added,
    /// The entry as which the event was added: the bus moved it since.
    Moved(EntryId),
}

pub(super) struct Fields {
    pub(super) at: [u32; KNOWN.len()],
    pub(super) deadline: Option<u64>,
    pub(super) not_before: Option<u64>,
    pub(super) attempt: u32,
    pub(super) once: Option<Once>,
    pub(super) packed: Option<Box<[u8]>>,
    pub(super) slips: bool,
}

impl Fields {
    /// Checks names and values, each with its place.
    pub(super) fn check<'a>(
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
            let slot = slot(name);
            bounded(name, value, slot, limits)?;
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
        let number = |slot: usize| value(slot).map(|value| number(slot, value)).transpose();
        let added = if value(ATTEMPT).is_some() { ADDED } else { 0 };
        if count > limits.fields + added {
            return Err(too_many(count));
        }
        check_type(value(TYPE))?;
        for slot in [ID, SOURCE, TIME, SUBJECT, TRACEPARENT] {
            if value(slot).is_some_and(|value| std::str::from_utf8(value).is_err()) {
                return Err(format!("{}: not UTF-8", KNOWN[slot]));
            }
        }
        if value(ID).is_some_and(<[u8]>::is_empty) {
            return Err("id: empty".into());
        }
        if value(DEDUP).is_some() && value(ID).is_none() {
            return Err("dedup: needs an id".into());
        }
        let once = value(DEDUP).map(once).transpose()?;
        if let Some(key) = value(REPLYTO)
            && !allowed_reply(key, keys, events)
        {
            return Err(format!(
                "replyto: \"{}\" is neither a reply stream nor an inbox of this namespace",
                key.escape_ascii()
            ));
        }
        let deadline = number(DEADLINE)?;
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
        let json = value(CONTENT_TYPE).map(is_json).transpose()?;
        let packed = match value(DATA) {
            Some(data) if json == Some(true) => Some(packed(data, &limits.payload)?),
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

fn bounded(name: &[u8], value: &[u8], slot: Option<usize>, limits: &Limits) -> Result<(), String> {
    if name.len() > limits.name {
        return Err(format!(
            "a field name of {} bytes is over the limit of {}",
            name.len(),
            limits.name
        ));
    }
    if value.len() > limits.value && slot != Some(DATA) {
        return Err(format!(
            "{}: {} bytes are over the limit of {}",
            name.escape_ascii(),
            value.len(),
            limits.value
        ));
    }
    Ok(())
}

fn check_type(kind: Option<&[u8]>) -> Result<(), String> {
    let Some(kind) = kind else {
        return Err("type: missing".into());
    };
    if keys::is_event_type(kind) {
        return Ok(());
    }
    let shown = kind.escape_ascii();
    Err(match keys::reserved_domain(kind) {
        Some(domain) => format!("type: \"{shown}\": a domain cannot be called \"{domain}\""),
        None => format!("type: \"{shown}\" is not domain.action of a-z 0-9 _"),
    })
}

/// What the field `dedup` says.
fn once(value: &[u8]) -> Result<Once, String> {
    if value == b"1" {
        return Ok(Once::Added);
    }
    match moved_from(value) {
        Some(entry) => Ok(Once::Moved(entry)),
        None => Err(format!("dedup: \"{}\" is not 1", value.escape_ascii())),
    }
}

fn number(slot: usize, value: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        format!(
            "{}: \"{}\" is not a whole number from 0 to {}",
            KNOWN[slot],
            value.escape_ascii(),
            u64::MAX
        )
    })
}

fn is_json(content_type: &[u8]) -> Result<bool, String> {
    if content_type == JSON.as_bytes() {
        return Ok(true);
    }
    if content_type == MESSAGEPACK.as_bytes() {
        return Ok(false);
    }
    Err(format!(
        "datacontenttype: \"{}\" is neither {MESSAGEPACK} nor {JSON}",
        content_type.escape_ascii()
    ))
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

fn allowed_reply(key: &[u8], keys: &keys::Keys, events: &str) -> bool {
    std::str::from_utf8(key).is_ok_and(|key| keys.may_reply_to(key, events))
}
