//! What waits in its place, in a partition that one worker owns: an event that is to be tried again stays pending, and so
//! holds up those of its subject that came later.
//!
//! What is to be known of it is noted in a hash beside the stream, so that whoever owns the partition next goes on where
//! this one was. The step that settles the entry removes its note.

use crate::connect::error::BusError;
use crate::connect::script::script_with;
use crate::protocol::entry::EntryId;
use crate::protocol::msgpack::{self, PayloadLimits};
use crate::streams::fence::{FENCED, Fence};
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, RedisError, Script, Value};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::LazyLock;

static HOLD: LazyLock<Script> = LazyLock::new(|| script_with(&[FENCED], include_str!("hold.lua")));

/// Entries that one call notes, or looks up, at the most.
pub const HELD: usize = 100;
/// Bytes of a note at the most.
const MAX_NOTE: usize = 1024;
/// Bytes of a message that are kept.
const MAX_MESSAGE: usize = 200;
/// Entries whose notes are looked through at the most for those that nobody waits for any more.
const SWEPT: usize = 10_000;

/// What is noted of an entry that waits in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which try is the next one.
    pub attempt: u32,
    /// When it is due, Unix ms by the server's clock.
    pub due: u64,
    /// How often the entry was delivered by then: in none of these deliveries it killed its worker.
    pub deliveries: u32,
    /// Why it did not end; empty of one that has not begun, and waits behind others.
    pub code: String,
    /// What was said of that, in part.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Held {
    /// With as much of the message as is kept.
    #[must_use]
    pub fn saying(mut self, message: &str) -> Self {
        message[..message.floor_char_boundary(MAX_MESSAGE)].clone_into(&mut self.message);
        self
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        // Numbers and text have a form in MessagePack.
        rmp_serde::to_vec_named(self).unwrap_or_default()
    }

    /// Reads what somebody stored; `None` if it is something else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let limits = PayloadLimits {
            bytes: MAX_NOTE,
            ..PayloadLimits::default()
        };
        msgpack::scan(bytes, &limits).ok()?;
        let held: Self = rmp_serde::from_slice(bytes).ok()?;
        (1..=1_000_000).contains(&held.attempt).then_some(held)
    }
}

/// Notes of at most [`HELD`] entries (id, delivery count) that they wait in their place; returns those that are not `me`'s
/// any more.
///
/// # Errors
/// `Bus`; where there is another owner by now, [`Fence::hears`] it.
pub async fn hold(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    me: &str,
    fence: &Fence,
    entries: &[(EntryId, u32, &Held)],
) -> Result<Vec<EntryId>, BusError> {
    let mut call = HOLD.prepare_invoke();
    call.key(stream).key(fence.held()).arg(group).arg(me);
    for (id, deliveries, held) in entries {
        fence.notes(*id);
        call.arg(id.to_string()).arg(*deliveries).arg(held.encode());
    }
    fence.add_to(&mut call);
    let lost: Vec<usize> = call.invoke_async(connection).await?;
    let entry = |at: usize| Some(entries.get(at.checked_sub(1)?)?.0);
    lost.into_iter()
        .map(|at| entry(at).ok_or(BusError::Reply { what: "hold.lua" }))
        .collect()
}

/// What is noted of these entries. What cannot be read counts as not noted.
///
/// # Errors
/// `Bus`; a key of another type counts as one that is not there.
pub async fn noted(
    connection: &mut impl ConnectionLike,
    fence: &Fence,
    entries: &[EntryId],
) -> Result<HashMap<EntryId, Held>, BusError> {
    let mut all = HashMap::new();
    for some in entries.chunks(HELD) {
        let mut read = redis::cmd("HMGET");
        read.arg(fence.held());
        for id in some {
            read.arg(id.to_string());
        }
        let notes = match read.query_async::<Vec<Option<Vec<u8>>>>(connection).await {
            Err(error) if error.code() == Some("WRONGTYPE") => return Ok(all),
            notes => notes?,
        };
        for (id, note) in some.iter().zip(notes) {
            if note.is_some() {
                fence.notes(*id);
            }
            if let Some(held) = note.and_then(|note| Held::decode(&note)) {
                all.insert(*id, held);
            }
        }
    }
    Ok(all)
}

/// Removes the notes of entries that nobody waits for any more: they were taken away by other means. For who has just begun
/// to own the partition, and has looked up what is noted of all that is pending.
///
/// # Errors
/// `Bus`.
pub async fn sweep(connection: &mut impl ConnectionLike, fence: &Fence) -> Result<usize, BusError> {
    let mut length = redis::cmd("HLEN");
    let length = length.arg(fence.held()).query_async::<usize>(connection);
    if !(1..=SWEPT).contains(&length.await?) {
        return Ok(0);
    }
    let mut names = redis::cmd("HKEYS");
    let names: Value = names.arg(fence.held()).query_async(connection).await?;
    let names = Vec::<Vec<u8>>::from_redis_value(names).map_err(RedisError::from)?;
    let waits = |name: &Vec<u8>| {
        EntryId::parse(name).is_some_and(|entry| !fence.noted_of([entry].into_iter()).is_empty())
    };
    let gone: Vec<Vec<u8>> = names.into_iter().filter(|name| !waits(name)).collect();
    for some in gone.chunks(HELD) {
        let mut remove = redis::cmd("HDEL");
        remove.arg(fence.held()).arg(some);
        remove.exec_async(connection).await?;
    }
    Ok(gone.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_as_it_was_written_with_as_much_of_its_message_as_is_kept() {
        let held = Held {
            attempt: 3,
            due: 1_700_000_000_000,
            deliveries: 2,
            code: "internal".into(),
            message: String::new(),
        };
        let held = held.saying(&"é".repeat(500));
        assert_eq!(held.message.len(), MAX_MESSAGE);
        assert_eq!(Held::decode(&held.encode()), Some(held));
    }

    #[test]
    fn what_is_no_note_is_none() {
        for bytes in [&b""[..], b"\xc1", b"\x07", &[0xc0; MAX_NOTE + 1]] {
            assert_eq!(Held::decode(bytes), None);
        }
        let odd = serde_json::json!({"attempt": 0, "due": 1, "deliveries": 1, "code": "x"});
        assert_eq!(Held::decode(&rmp_serde::to_vec_named(&odd).unwrap()), None);
    }
}
