//! Events that are paused wait beside their stream, in order: parked.
//!
//! What waits in a stream is in the way of what comes behind it, is held in memory by whoever read it, and keeps the
//! stream from being trimmed. So what is paused leaves the stream in the step in which it is settled ([`weigh`]), and
//! comes back to its end when the pause is over ([`release`]): it is in one of the two at any time, whoever dies. No
//! attempt is spent.
//!
//! # Order
//!
//! Of the events with one subject (a *line*) those that came first are begun first, however often they are paused. What
//! was parked keeps its **place**: the entry as which it was parked first. As long as one of a line waits (parked, or
//! released and not begun) whatever is behind it by its place is parked as well, paused or not. Whether that is so is
//! looked up in the step that parks or lets begin, in what is kept there, and by no count. What was released and ended
//! unweighed (its deadline passed, somebody deleted it) is found by its entry: neither pending nor unread.
//!
//! Events without a subject have no order among them. Those that were parked come back in the order in which they were.

use crate::connect::error::BusError;
use crate::connect::script::script_with;
use crate::protocol::entry::EntryId;
use crate::protocol::event::Event;
use crate::protocol::keys::StreamKeys;
use crate::streams::commit::Receipt;
use crate::streams::delay::{self, MEMBER};
use crate::streams::fence::{FENCED, Fence};
use redis::aio::ConnectionLike;
use redis::{Cmd, RedisError, Script, Value};
use std::collections::HashMap;
use std::sync::LazyLock;

/// What takes a parked member apart: put before the scripts that do.
pub(crate) const PLACES: &str = include_str!("places.lua");
static PARK: LazyLock<Script> = LazyLock::new(|| script_with(&[PLACES], include_str!("park.lua")));
static PARK_OWNED: LazyLock<Script> =
    LazyLock::new(|| script_with(&[FENCED, PLACES], include_str!("park.lua")));
static RELEASE: LazyLock<Script> =
    LazyLock::new(|| script_with(&[PLACES, MEMBER], include_str!("release.lua")));

/// Bytes of a parked member before its event: a letter, its place and its line.
pub(crate) const HEAD: usize = 1 + 41 + 40;
/// Entries that one call weighs at the most.
pub const WEIGHED: usize = 32;
/// Events that one call releases at the most.
pub const RELEASED: usize = 100;

/// How an event is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Not paused.
    Not,
    /// Not paused, and not to be parked: somebody waits for its answer.
    Asked,
    /// All of its type are.
    Type,
    /// All of its subject are.
    Subject,
}

/// A pending entry that may begin, or is to be parked.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The entry.
    pub entry: EntryId,
    /// Its delivery count.
    pub deliveries: u32,
    /// Its subject.
    pub subject: Option<&'a str>,
    /// How it is paused.
    pub how: How,
    /// The event as a member of a delay queue.
    pub member: Vec<u8>,
}

impl<'a> Candidate<'a> {
    /// Of an event that was delivered so.
    pub fn of(event: &'a Event, receipt: &Receipt, how: How) -> Self {
        Self {
            entry: receipt.entry,
            deliveries: receipt.deliveries,
            subject: event.subject(),
            how,
            member: delay::encode_member(&receipt.entry.to_string(), &event.same_attempt()),
        }
    }
}

/// What becomes of such an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighed {
    /// Another consumer's by now, or nobody's.
    Gone,
    /// Parked.
    Parked,
    /// Free to begin.
    May,
    /// Behind others of its subject, and not to be parked.
    Behind,
}

/// Weighs pending entries of one type, in their order. Repeated after a lost answer, what was parked is
/// [`Gone`](Weighed::Gone).
///
/// # Errors
/// Without an answer nobody knows what is parked.
pub async fn weigh(
    connection: &mut impl ConnectionLike,
    route: &StreamKeys,
    group: &str,
    consumer: &str,
    kind: &str,
    entries: &[Candidate<'_>],
) -> Result<Vec<Weighed>, BusError> {
    weigh_owned(connection, route, group, consumer, kind, entries, None).await
}

/// The same; where the stream is one that is owned, only while the fence stands.
///
/// # Errors
/// As [`weigh`].
#[doc(hidden)]
pub async fn weigh_owned(
    connection: &mut impl ConnectionLike,
    route: &StreamKeys,
    group: &str,
    consumer: &str,
    kind: &str,
    entries: &[Candidate<'_>],
    fence: Option<&Fence>,
) -> Result<Vec<Weighed>, BusError> {
    let mut call = match fence {
        None => PARK.prepare_invoke(),
        Some(_) => PARK_OWNED.prepare_invoke(),
    };
    call.key(&route.events)
        .key(route.parked_of(kind))
        .key(&route.parked)
        .arg(group)
        .arg(consumer)
        .arg(kind);
    for one in entries {
        let how = match one.how {
            How::Not => "n",
            How::Asked => "a",
            How::Type => "t",
            How::Subject => "s",
        };
        call.arg(one.entry.to_string())
            .arg(one.deliveries)
            .arg(one.subject.unwrap_or_default())
            .arg(how)
            .arg(one.member.as_slice());
    }
    if let Some(fence) = fence {
        fence.add_to(&mut call);
    }
    let said: Vec<u8> = call.invoke_async(connection).await?;
    if said.len() != entries.len() {
        return Err(BusError::Reply { what: "park.lua" });
    }
    Ok(said
        .into_iter()
        .map(|one| match one {
            3 => Weighed::Behind,
            2 => Weighed::May,
            1 => Weighed::Parked,
            _ => Weighed::Gone,
        })
        .collect())
}

/// Releases parked events of one type, except for those of subjects that are paused. Returns how many, and whether there
/// may be more.
///
/// # Errors
/// Fails if the stream cannot be written; what did not fit stays parked.
pub async fn release(
    connection: &mut impl ConnectionLike,
    route: &StreamKeys,
    group: &str,
    kind: &str,
    limit: usize,
    most: usize,
    paused: impl Iterator<Item = &str>,
) -> Result<(u64, bool), BusError> {
    let mut call = RELEASE.prepare_invoke();
    call.key(&route.events)
        .key(route.parked_of(kind))
        .key(&route.parked)
        .key(&route.dead)
        .arg(group)
        .arg(kind)
        .arg(limit)
        .arg(most);
    for subject in paused {
        call.arg(subject);
    }
    Ok(call.invoke_async(connection).await?)
}

/// The types of which something is parked in each of these streams, or was released and is not begun.
///
/// # Errors
/// Fails without an answer. A key of another type, or that the user may not see, counts as one that is not there.
pub async fn kinds(
    connection: &mut impl ConnectionLike,
    routes: &[&StreamKeys],
) -> Result<Vec<Vec<String>>, BusError> {
    let mut look = redis::pipe();
    for route in routes {
        look.add_command(ask_kinds(&route.parked));
    }
    let replies = connection.req_packed_commands(&look, 0, look.len()).await?;
    replies.into_iter().map(fields).collect()
}

/// Asks for the types of which something is parked, by the key of those of a stream.
pub(crate) fn ask_kinds(parked: &str) -> Cmd {
    let mut look = redis::cmd("HGETALL");
    look.arg(parked);
    look
}

/// Whether that answer says that nothing is.
#[cfg(feature = "worker")]
pub(crate) fn is_empty(answer: &Value) -> bool {
    match answer {
        Value::Array(fields) => fields.is_empty(),
        _ => false,
    }
}

/// How many events are parked beside a stream: those of one type, of one subject that is paused, or all.
///
/// # Errors
/// Fails without an answer.
pub async fn count(
    connection: &mut impl ConnectionLike,
    route: &StreamKeys,
    kind: Option<&str>,
    subject: Option<&str>,
) -> Result<u64, BusError> {
    let kinds = match kind {
        Some(kind) => vec![kind.to_owned()],
        None => {
            let found = kinds(connection, &[route]).await?;
            found.into_iter().flatten().collect()
        }
    };
    let (from, to) = match subject {
        None => ("[s".to_owned(), "(u".to_owned()),
        // Digits follow its line.
        Some(subject) => {
            let line = sha1_smol::Sha1::from(subject).digest();
            (format!("[s{line}"), format!("(s{line}~"))
        }
    };
    let mut counts = redis::pipe();
    for kind in &kinds {
        let key = route.parked_of(kind);
        counts.cmd("ZLEXCOUNT").arg(key).arg(&from).arg(&to);
    }
    if kinds.is_empty() {
        return Ok(0);
    }
    let counts: Vec<u64> = counts.query_async(connection).await?;
    Ok(counts.into_iter().sum())
}

/// The fields of a hash, without those that are no text.
fn fields(reply: Value) -> Result<Vec<String>, BusError> {
    let reply = match reply.extract_error() {
        Err(error) if matches!(error.code(), Some("WRONGTYPE" | "NOPERM")) => return Ok(Vec::new()),
        reply => reply?,
    };
    let map: HashMap<Vec<u8>, Vec<u8>> =
        redis::from_redis_value(reply).map_err(RedisError::from)?;
    let names = map.into_keys();
    Ok(names
        .filter_map(|name| String::from_utf8(name).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::fields;

    #[test]
    fn a_server_that_cannot_answer_now_does_not_say_that_nothing_is_parked() {
        let said = |text: &str| fields(redis::parse_redis_value(text.as_bytes()).unwrap());
        assert!(said("-LOADING Redis is loading\r\n").is_err());
        assert!(said("-CLUSTERDOWN The cluster is down\r\n").is_err());
        let of_another_type = said("-WRONGTYPE Operation against a key\r\n");
        assert!(of_another_type.unwrap().is_empty());
    }
}
