//! Which entry of one id came first, within a window.
//!
//! Whoever reads an entry that is to take effect once writes the entry's id into the key that publishing with
//! deduplication uses as well, unless another one stands there. That entry is the event, also when it is
//! delivered again or taken over.

use super::read::entries_of;
use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::protocol::event::{Entry, EntryId};
use redis::aio::ConnectionLike;
use std::time::Duration;

/// Replies of a stream among which the first one's is looked for.
const LOOKED_AT: usize = 100;

/// Names this entry as the first of its id; where another one is, what the key says of that: an entry's id, or
/// the time when it is due.
///
/// # Errors
/// Without an answer nobody knows which it is.
pub async fn claim(
    connection: &mut impl ConnectionLike,
    key: &str,
    entry: EntryId,
    window: Duration,
) -> Result<Option<String>, BusError> {
    let (this, window) = (entry.to_string(), whole_ms(window).max(1));
    let set = |unless: &[&str]| {
        let mut set = redis::cmd("SET");
        set.arg(key).arg(&this).arg("PX").arg(window).arg(unless);
        set
    };
    let first: Option<String> = set(&["NX", "GET"]).query_async(connection).await?;
    match first {
        Some(first) if first == this => Ok(None),
        // An empty key counts as none.
        Some(first) if first.is_empty() => {
            set(&[]).exec_async(connection).await?;
            Ok(None)
        }
        first => Ok(first),
    }
}

/// The entry of that id, if it is still there.
///
/// # Errors
/// The server did not answer.
pub async fn entry(
    connection: &mut impl ConnectionLike,
    stream: &str,
    id: &str,
) -> Result<Option<Entry>, BusError> {
    Ok(latest(connection, stream, (id, id), 1).await?.pop())
}

/// The reply to the event of that id, if it is among the last ones of the stream.
///
/// # Errors
/// The server did not answer.
pub async fn reply(
    connection: &mut impl ConnectionLike,
    stream: &str,
    id: &str,
) -> Result<Option<Entry>, BusError> {
    let replies = latest(connection, stream, ("+", "-"), LOOKED_AT).await?;
    let mut replies = replies.into_iter();
    Ok(replies.find(|reply| reply.get("correlationid") == Some(id.as_bytes())))
}

async fn latest(
    connection: &mut impl ConnectionLike,
    stream: &str,
    (from, to): (&str, &str),
    most: usize,
) -> Result<Vec<Entry>, BusError> {
    let mut read = redis::cmd("XREVRANGE");
    read.arg(stream).arg(from).arg(to).arg("COUNT").arg(most);
    match read.query_async(connection).await {
        Ok(reply) => entries_of(reply),
        // What is no entry's id names no entry, and a key of another type has no replies.
        Err(error) if matches!(error.code(), Some("ERR" | "WRONGTYPE")) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}
