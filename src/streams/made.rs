//! Which partitions had their streams made: a mark of each, in the slot of the control plane.
//!
//! On a cluster a failover while a slot is moved may lose the slot's way: the promoted node says that there is no stream,
//! while the real one is at another node, with its events. One that is made now would hide it for good. The mark tells a
//! stream that nobody made yet from one that is lost or out of reach. It stays; only an operator takes it away.

use crate::connect::error::BusError;
#[cfg(any(feature = "worker", feature = "operator"))]
use crate::connect::resp::wire::server_error;
use crate::protocol::domain::MAX_PARTITIONS;
use crate::protocol::keys::{Keys, slot_of};
use crate::streams::read;
use redis::aio::ConnectionLike;
use redis::{Cmd, FromRedisValue, RedisError, Value};

/// The code of an error that says so.
pub(crate) const NO_STREAM: &str = "NOSTREAM";

/// What is said of a stream that was made, and is not there.
pub(crate) const GONE: &str = "the stream of the partition is not there, though it was made once: if its slot was being \
     moved, `redis-cli --cluster fix` brings it back (convoke doctor)";

/// What became of a group that a reader needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// The group was there.
    There,
    /// The group is made.
    Made,
    /// Nothing was made: the stream was made once, and is not there.
    Gone,
}

/// Asks for the marks of a domain.
pub(crate) fn ask(keys: &Keys, domain: &str) -> Cmd {
    let mut ask = redis::cmd("GETRANGE");
    let last = MAX_PARTITIONS / 8 - 1;
    ask.arg(keys.made(domain)).arg(0).arg(last);
    ask
}

/// Notes what the server answered. What one may not look at, or is of another type, counts as not known.
pub(crate) fn answered(keys: &Keys, domain: &str, answer: Value) {
    let marks = answer.extract_error().and_then(|marks| {
        let marks = Vec::<u8>::from_redis_value(marks);
        marks.map_err(RedisError::from)
    });
    match marks {
        Ok(marks) => keys.learn_made(domain, &marks),
        Err(error) => {
            tracing::debug!(domain, %error, "which partitions were made may not be looked at: none counts as made");
        }
    }
}

/// Looks at the marks of a domain; `keys` knows them from then on.
///
/// # Errors
/// The server did not say.
pub async fn look(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    domain: &str,
) -> Result<(), BusError> {
    let mut asks = redis::pipe();
    asks.add_command(ask(keys, domain)).ignore_errors();
    let answers: Vec<Value> = asks.query_async(connection).await?;
    for answer in answers {
        answered(keys, domain, answer);
    }
    Ok(())
}

/// Marks a partition, or takes its mark away: whoever reads it then makes its stream again.
///
/// # Errors
/// `Bus`.
pub async fn mark(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    (domain, partition): (&str, u16),
    made: bool,
) -> Result<(), BusError> {
    let mut set = redis::cmd("SETBIT");
    set.arg(keys.made(domain))
        .arg(partition)
        .arg(u8::from(made));
    set.exec_async(connection).await?;
    look(connection, keys, domain).await
}

/// Whether a stream that was made is not there.
///
/// # Errors
/// `Bus`: it is not known, or the slot is on its way.
pub async fn is_gone(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    place: (&str, u16),
) -> Result<bool, BusError> {
    if is_there(connection, &keys.events(place.0, place.1)).await? {
        return Ok(false);
    }
    look(connection, keys, place.0).await?;
    Ok(keys.is_made(place.0, place.1))
}

/// Refuses to add to a stream that was made, as far as is known, and is not there. Asks only where it was made.
///
/// # Errors
/// `NOSTREAM`, or the server did not say.
#[cfg(any(feature = "worker", feature = "operator"))]
pub(crate) async fn ensure_there(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    stream: &str,
) -> Result<(), BusError> {
    match keys.is_made_stream(stream) && !is_there(connection, stream).await? {
        true => Err(server_error(
            format!("{NO_STREAM} {stream}: {GONE}").as_bytes(),
        )),
        false => Ok(()),
    }
}

async fn is_there(connection: &mut impl ConnectionLike, stream: &str) -> Result<bool, BusError> {
    let mut exists = redis::cmd("EXISTS");
    Ok(exists.arg(stream).query_async(connection).await?)
}

/// Makes a group of a partition on a cluster, and the stream if nobody made it before, and leaves the mark.
///
/// # Errors
/// `Bus`: it is not known, or the slot is on its way.
pub async fn ensure_group(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    place: (&str, u16),
    group: &str,
) -> Result<Ensured, BusError> {
    let stream = keys.events(place.0, place.1);
    if is_gone(connection, keys, place).await? {
        return Ok(Ensured::Gone);
    }
    let made = read::ensure_group(connection, &stream, group).await?;
    // It is read all the same: the node of the control plane may be away while this one serves. Who reads it marks it later.
    if !keys.is_made(place.0, place.1)
        && let Err(error) = mark(connection, keys, place, true).await
    {
        tracing::debug!(stream, %error, "not marked as made yet");
    }
    Ok(match made {
        true => Ensured::Made,
        false => Ensured::There,
    })
}

/// Tells that a stream which was made is not there.
pub fn tell(stream: &str) {
    tracing::error!(
        stream,
        slot = slot_of(stream.as_bytes()),
        "{GONE}. Nothing is made in its place; looking again"
    );
}
