//! Events that wait: retries and what was published to run later.
//!
//! A delay queue is a sorted set; the score is the due time in Unix milliseconds by the server's
//! clock. A member is a MessagePack array: a token that keeps equal events apart, then the event's
//! fields, name and value in turn. Whoever calls [`promote`] moves what is due to the stream; it
//! may be called by any number of processes at once.

use crate::connect::clock::{ClockSource, ServerClock, ServerTime};
use crate::connect::error::BusError;
use crate::connect::script::{script, script_with};
use crate::protocol::keys::StreamKeys;
use crate::protocol::msgpack::{self, PayloadLimits};
use redis::aio::ConnectionLike;
use redis::{Cmd, Script, Value};
use serde_bytes::ByteBuf;
use std::sync::LazyLock;

/// What tells a member that is an event from others: put before the scripts that take members apart.
pub const MEMBER: &str = include_str!("member.lua");

/// What shows a part of a delay queue; workers and operators load it for those who may not load scripts.
pub static LOOK: LazyLock<Script> = LazyLock::new(|| script(include_str!("delayed_look.lua")));
static PROMOTE: LazyLock<Script> =
    LazyLock::new(|| script_with(&[MEMBER], include_str!("promote.lua")));

/// The latest due time, Unix ms.
pub const MAX_DUE: u64 = crate::protocol::event::LATEST;

/// Members that one call moves at the most.
pub const AT_ONCE: usize = 150;

/// What a call of [`promote`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// Events that entered the stream.
    pub moved: u64,
    /// Members that were no events and became dead letters.
    pub dead: u64,
    /// When the next member is due (Unix ms, server clock); in the past if the limit was reached.
    pub next_due_ms: Option<u64>,
}

/// Moves what is due, at most `limit` members, from a route's delay queue to its stream. A member of more
/// than `most` bytes is no event.
///
/// # Errors
/// Fails if the stream cannot be written; nothing leaves the queue then.
pub async fn promote(
    connection: &mut impl ConnectionLike,
    route: &StreamKeys,
    limit: usize,
    most: usize,
) -> Result<Promoted, BusError> {
    let (moved, dead, next): (u64, u64, f64) = PROMOTE
        .key(&route.delayed)
        .key(&route.events)
        .key(&route.dead)
        .arg(limit)
        .arg(most)
        .invoke_async(connection)
        .await?;
    Ok(Promoted {
        moved,
        dead,
        next_due_ms: (next >= 0.0).then_some(next as u64),
    })
}

/// Which queues hold what is due by then (Unix ms, server clock), and the server's clock, which is asked for beside a key
/// of the same slot. Costs one round trip, and little where nothing is due.
///
/// # Errors
/// Fails without an answer. A queue that cannot be looked at counts as one with nothing due.
pub async fn due_by(
    connection: &mut impl ConnectionLike,
    routes: &[&StreamKeys],
    (clock, beside): (ClockSource, &str),
    until_ms: u64,
) -> Result<(Vec<bool>, ServerClock), BusError> {
    let mut look = redis::pipe();
    look.add_command(clock.question(beside));
    for route in routes {
        look.add_command(count_due(&route.delayed, until_ms));
    }
    let replies = connection.req_packed_commands(&look, 0, look.len()).await?;
    let mut replies = replies.into_iter();
    let time = replies.next().unwrap_or(Value::Nil).extract_error()?;
    let ServerTime(now) = redis::from_redis_value(time).map_err(redis::RedisError::from)?;
    let due = replies.map(|count| matches!(count, Value::Int(1..)));
    let clock = ServerClock::told(now);
    Ok((due.collect(), clock))
}

/// Asks how many members of a queue are due by then (Unix ms, server clock).
pub(crate) fn count_due(queue: &str, until_ms: u64) -> Cmd {
    let mut count = redis::cmd("ZCOUNT");
    count.arg(queue).arg("-inf").arg(until_ms);
    count
}

/// A member of a delay queue: `fields` are names and values in turn, `token` (an entry id or a
/// publish id) makes it unlike any other member.
///
/// All are MessagePack *strings*, whatever their bytes: the server's decoder does not know `bin`.
pub fn encode_member<F: AsRef<[u8]>>(token: &str, fields: &[F]) -> Vec<u8> {
    let bytes: usize = fields.iter().map(|field| field.as_ref().len() + 5).sum();
    let mut member = Vec::with_capacity(bytes + token.len() + 10);
    let mut head = |marker: u8, length: usize, body: &[u8]| {
        member.push(marker);
        member.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        member.extend_from_slice(body);
    };
    head(ARRAY_32, fields.len() + 1, &[]);
    head(STR_32, token.len(), token.as_bytes());
    for field in fields {
        head(STR_32, field.as_ref().len(), field.as_ref());
    }
    member
}

const ARRAY_32: u8 = 0xdd;
const STR_32: u8 = 0xdb;

/// The token and the fields of a member of a delay queue, names and values in turn; `None` if it is no
/// event. `limit` bounds its bytes.
pub fn decode_member(member: &[u8], limit: usize) -> Option<(String, Vec<Vec<u8>>)> {
    let limits = PayloadLimits {
        bytes: limit,
        depth: 1,
        ..PayloadLimits::default()
    };
    msgpack::scan(member, &limits).ok()?;
    let parts: Vec<ByteBuf> = rmp_serde::from_slice(member).ok()?;
    if parts.len() < 3 || parts.len().is_multiple_of(2) {
        return None;
    }
    let mut parts = parts.into_iter().map(ByteBuf::into_vec);
    let token = String::from_utf8_lossy(&parts.next()?).into_owned();
    Some((token, parts.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_round_trip() {
        let fields = [
            b"type".to_vec(),
            b"a.b".to_vec(),
            b"data".to_vec(),
            vec![0xff; 70_000],
        ];
        let member = encode_member("1-0", &fields);
        let decoded = Some(("1-0".to_owned(), fields.to_vec()));
        assert_eq!(decode_member(&member, 1 << 20), decoded);
        assert_eq!(decode_member(&member, 1000), None);
        assert_ne!(member, encode_member("1-1", &fields));
    }

    #[test]
    fn what_is_no_event_is_none() {
        let odd = encode_member("1-0", &["type"]);
        let nothing = encode_member::<&str>("1-0", &[]);
        for bad in [&odd[..], &nothing, b"", b"text", &[0x93, 1, 2, 3], &[0xc1]] {
            assert_eq!(decode_member(bad, 1000), None, "{bad:?}");
        }
    }
}
