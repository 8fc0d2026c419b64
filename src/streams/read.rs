//! Reading a consumer group.
//!
//! What a group reads is walked where it arrived: each entry costs one allocation. Other reads walk the
//! client library's values; its ready-made stream type builds maps and copies, and alone makes the
//! client slower than the server.

use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::connect::resp::sieve::Shape;
use crate::connect::resp::wire::{Commands, Token, Tokens, Wire, number, server_error};
use crate::protocol::digits::Digits;
use crate::protocol::event::{Entry, EntryId};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{RedisError, Value};
use std::time::Duration;

/// Room for an entry that is given to it before it is known how much it takes.
const LITTLE: usize = 1024;

/// Entries of one stream, in order.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrivals {
    /// Which of the streams that were asked for.
    pub stream: usize,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// Reads new entries of several streams for a consumer: at most `count` from each, waiting for up
/// to `block` if there are no new ones.
///
/// Not cancel safe: the server hands the next entry to a read that was given up. Always await it to
/// its end, on a connection of its own. Of an entry over `limit` bytes only a part is held (see
/// [`Entry::cut`]).
pub async fn read_group(
    wire: &mut Wire,
    group: &str,
    consumer: &str,
    streams: &[&str],
    count: usize,
    block: Duration,
    limit: usize,
) -> Result<Vec<Arrivals>, BusError> {
    let mut command = Commands::default();
    ask_group(&mut command, group, consumer, streams, count, block);
    wire.send(&mut command).await?;
    delivered(wire.sifted(Shape::Streams, limit).await?, streams)
}

/// What is pending in a stream: see [`read_group_and_look`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(hidden)]
pub struct Look {
    /// How much with the consumer that looks.
    pub mine: usize,
    /// Whether anything is with anybody else.
    pub others: bool,
}

/// The same of one stream, and what is pending there after that.
#[doc(hidden)]
pub async fn read_group_and_look(
    wire: &mut Wire,
    group: &str,
    consumer: &str,
    stream: &str,
    count: usize,
    block: Duration,
    limit: usize,
) -> Result<(Vec<Arrivals>, Look), BusError> {
    let mut commands = Commands::default();
    ask_group(&mut commands, group, consumer, &[stream], count, block);
    commands.add(&[b"XPENDING", stream.as_bytes(), group.as_bytes()]);
    wire.send(&mut commands).await?;
    let read = delivered(wire.sifted(Shape::Streams, limit).await?, &[stream])?;
    Ok((read, look(wire.reply().await?, consumer)?))
}

/// Reads a summary of what is pending.
fn look(mut summary: Tokens<'_>, consumer: &str) -> Result<Look, BusError> {
    const SUMMARY: BusError = BusError::Reply { what: "XPENDING" };
    match summary.token()? {
        Token::Array(4) => {}
        Token::Error(text) => return Err(server_error(text)),
        _ => return Err(SUMMARY),
    }
    for _ in 0..3 {
        summary.token()?;
    }
    let holders = match summary.token()? {
        Token::Array(holders) => holders,
        Token::Nil => 0,
        _ => return Err(SUMMARY),
    };
    let mut look = Look::default();
    for _ in 0..holders {
        let (Token::Array(2), Token::Bulk(name), Token::Bulk(count)) =
            (summary.token()?, summary.token()?, summary.token()?)
        else {
            return Err(SUMMARY);
        };
        let count = std::str::from_utf8(count).ok();
        let count = count.and_then(|count| count.parse().ok()).ok_or(SUMMARY)?;
        match name == consumer.as_bytes() {
            true => look.mine = count,
            false => look.others |= count > 0,
        }
    }
    Ok(look)
}

fn ask_group(
    command: &mut Commands,
    group: &str,
    consumer: &str,
    streams: &[&str],
    count: usize,
    block: Duration,
) {
    command.begin(9 + 2 * streams.len());
    command.word(b"XREADGROUP");
    command.word(b"GROUP");
    command.word(group.as_bytes());
    command.word(consumer.as_bytes());
    command.word(b"COUNT");
    command.word(Digits::of(count as u64).as_ref());
    command.word(b"BLOCK");
    command.word(Digits::of(whole_ms(block)).as_ref());
    command.word(b"STREAMS");
    for stream in streams {
        command.word(stream.as_bytes());
    }
    for _ in streams {
        command.word(b">");
    }
}

/// Reads single entries, as many as there are ids; `None` for one that is not in the stream. Of an entry over
/// `limit` bytes only a part is held.
pub async fn read_each(
    wire: &mut Wire,
    stream: &str,
    ids: &[EntryId],
    limit: usize,
) -> Result<Vec<Option<Entry>>, BusError> {
    let mut entries = Vec::with_capacity(ids.len());
    let mut commands = Commands::default();
    // A few at a time: the server makes ready what it answers, however large.
    for some in ids.chunks(8) {
        for id in some {
            let id = id.to_string();
            commands.add(&[
                b"XREVRANGE",
                stream.as_bytes(),
                id.as_bytes(),
                id.as_bytes(),
            ]);
        }
        wire.send(&mut commands).await?;
        for _ in some {
            let mut reply = wire.sifted(Shape::Entries, limit).await?;
            entries.push(match reply.token()? {
                Token::Array(0) => None,
                Token::Array(1) => Some(delivered_entry(&mut reply)?),
                Token::Error(text) => return Err(server_error(text)),
                _ => return Err(SHAPE),
            });
        }
    }
    Ok(entries)
}

/// Reads entries from one place of a stream to another, in order or from the end. Of an entry over `limit`
/// bytes only a part is held.
pub async fn read_range(
    wire: &mut Wire,
    command: &[u8],
    stream: &str,
    (from, to): (&str, &str),
    count: usize,
    limit: usize,
) -> Result<Vec<Entry>, BusError> {
    let mut commands = Commands::default();
    commands.add(&[
        command,
        stream.as_bytes(),
        from.as_bytes(),
        to.as_bytes(),
        b"COUNT",
        Digits::of(count as u64).as_ref(),
    ]);
    wire.send(&mut commands).await?;
    let mut reply = wire.sifted(Shape::Entries, limit).await?;
    match reply.token()? {
        Token::Array(length) => (0..length).map(|_| delivered_entry(&mut reply)).collect(),
        Token::Error(text) => Err(server_error(text)),
        _ => Err(SHAPE),
    }
}

/// Reads what came after each given id, without a group. Of an entry over `limit` bytes only a part is held.
///
/// Give the wire up after cancelling.
pub async fn read_news(
    wire: &mut Wire,
    streams: &[(&str, EntryId)],
    count: usize,
    block: Duration,
    limit: usize,
) -> Result<Vec<Arrivals>, BusError> {
    let names: Vec<&str> = streams.iter().map(|(name, _)| *name).collect();
    let mut command = Commands::default();
    command.begin(6 + 2 * streams.len());
    command.word(b"XREAD");
    command.word(b"COUNT");
    command.word(Digits::of(count as u64).as_ref());
    command.word(b"BLOCK");
    command.word(Digits::of(whole_ms(block)).as_ref());
    command.word(b"STREAMS");
    for name in &names {
        command.word(name.as_bytes());
    }
    for (_, after) in streams {
        command.word(after.to_string().as_bytes());
    }
    wire.send(&mut command).await?;
    delivered(wire.sifted(Shape::Streams, limit).await?, &names)
}

/// The entries in the reply of a group read.
fn delivered(mut reply: Tokens<'_>, streams: &[&str]) -> Result<Vec<Arrivals>, BusError> {
    let length = match reply.token()? {
        Token::Nil => return Ok(Vec::new()),
        Token::Array(length) => length,
        Token::Error(text) => return Err(server_error(text)),
        _ => return Err(SHAPE),
    };
    let mut batches = Vec::with_capacity(length.min(streams.len()));
    for _ in 0..length {
        let (Token::Array(2), Token::Bulk(name), Token::Array(count)) =
            (reply.token()?, reply.token()?, reply.token()?)
        else {
            return Err(SHAPE);
        };
        let stream = streams.iter().position(|s| s.as_bytes() == name);
        // An entry is at least 20 bytes.
        let mut entries = Vec::with_capacity(count.min(reply.rest().len() / 20));
        let mut room = usize::MAX;
        for _ in 0..count {
            let entry = delivered_entry_in(&mut reply, room)?;
            // Most are like the ones before them.
            room = entry.size();
            entries.push(entry);
        }
        batches.push(Arrivals {
            stream: stream.ok_or(SHAPE)?,
            entries,
        });
    }
    Ok(batches)
}

fn delivered_entry(reply: &mut Tokens<'_>) -> Result<Entry, BusError> {
    delivered_entry_in(reply, usize::MAX)
}

/// The same, in as much room as it may take if that is little; else in what it does take, which is reckoned first.
fn delivered_entry_in(reply: &mut Tokens<'_>, room: usize) -> Result<Entry, BusError> {
    let (Token::Array(2), Token::Bulk(id)) = (reply.token()?, reply.token()?) else {
        return Err(SHAPE);
    };
    let id = EntryId::parse(id).ok_or(SHAPE)?;
    let words = match reply.token()? {
        Token::Array(words) if words % 2 == 0 => words,
        // Deleted from its stream.
        Token::Nil => 0,
        _ => return Err(SHAPE),
    };
    let mut entry = match room {
        0..=LITTLE => Entry::with_capacity(id, room, 0),
        _ => {
            let mut ahead = reply.clone();
            let mut bytes = 0;
            for _ in 0..words {
                let Token::Bulk(word) = ahead.token()? else {
                    return Err(SHAPE);
                };
                bytes += word.len();
            }
            Entry::with_capacity(id, bytes, words)
        }
    };
    for _ in 0..words {
        let Token::Bulk(word) = reply.token()? else {
            return Err(SHAPE);
        };
        entry.push(word);
    }
    if reply.rest().first() == Some(&b'+')
        && let Token::Status(bytes) = reply.token()?
    {
        let bytes = number(bytes).and_then(|bytes| bytes.try_into().ok());
        entry.was_cut(bytes.ok_or(SHAPE)?);
    }
    Ok(entry)
}

/// Reads what came after each given id, without a group.
///
/// Cancel safe: nothing is handed to anyone; but give the connection up after cancelling.
pub async fn read_after(
    connection: &mut MultiplexedConnection,
    streams: &[(&str, EntryId)],
    count: usize,
    block: Duration,
) -> Result<Vec<Arrivals>, BusError> {
    let mut command = redis::cmd("XREAD");
    command
        .arg("COUNT")
        .arg(count)
        .arg("BLOCK")
        .arg(whole_ms(block))
        .arg("STREAMS");
    let names: Vec<&str> = streams.iter().map(|(name, _)| *name).collect();
    for name in &names {
        command.arg(*name);
    }
    for (_, after) in streams {
        command.arg(after.to_string());
    }
    let reply = connection.send_packed_command(&command).await?;
    batches(reply, &names)
}

/// Acknowledges entries, without a look at who holds them: for a group whose effects may be repeated.
pub async fn acknowledge(
    connection: &mut MultiplexedConnection,
    stream: &str,
    group: &str,
    entries: &[EntryId],
) -> Result<(), BusError> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut command = redis::cmd("XACK");
    command.arg(stream).arg(group);
    for id in entries {
        command.arg(id.to_string());
    }
    Ok(command.exec_async(connection).await?)
}

/// Creates the group, and the stream with it, at the stream's beginning: an event that was published
/// before the first worker started is not missed, nor is one from before a lost group. Whether the group
/// was not there.
pub async fn ensure_group(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
) -> Result<bool, BusError> {
    let mut command = redis::cmd("XGROUP");
    command
        .arg("CREATE")
        .arg(stream)
        .arg(group)
        .arg("0")
        .arg("MKSTREAM");
    match connection.req_packed_command(&command).await {
        Ok(Value::ServerError(error)) if error.code() == "BUSYGROUP" => Ok(false),
        Ok(Value::ServerError(error)) => Err(RedisError::from(error).into()),
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some("BUSYGROUP") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

const SHAPE: BusError = BusError::Reply {
    what: "a stream read",
};

fn batches(reply: Value, streams: &[&str]) -> Result<Vec<Arrivals>, BusError> {
    let replies = match reply {
        Value::Nil => return Ok(Vec::new()),
        Value::Array(replies) => replies,
        Value::ServerError(error) => return Err(RedisError::from(error).into()),
        _ => return Err(SHAPE),
    };
    let mut batches = Vec::with_capacity(replies.len());
    for reply in replies {
        let Value::Array(pair) = reply else {
            return Err(SHAPE);
        };
        let [Value::BulkString(name), entries] = <[Value; 2]>::try_from(pair).map_err(|_| SHAPE)?
        else {
            return Err(SHAPE);
        };
        let stream = streams.iter().position(|s| s.as_bytes() == name);
        batches.push(Arrivals {
            stream: stream.ok_or(SHAPE)?,
            entries: entries_of(entries)?,
        });
    }
    Ok(batches)
}

/// The entries of a reply of `XRANGE` form.
pub fn entries_of(reply: Value) -> Result<Vec<Entry>, BusError> {
    match reply {
        Value::Array(entries) => entries.into_iter().map(entry_of).collect(),
        Value::Nil => Ok(Vec::new()),
        Value::ServerError(error) => Err(RedisError::from(error).into()),
        _ => Err(SHAPE),
    }
}

/// One entry: its id and its fields (nil for one that was deleted).
fn entry_of(reply: Value) -> Result<Entry, BusError> {
    let Value::Array(pair) = reply else {
        return Err(SHAPE);
    };
    let [Value::BulkString(id), fields] = <[Value; 2]>::try_from(pair).map_err(|_| SHAPE)? else {
        return Err(SHAPE);
    };
    let id = EntryId::parse(&id).ok_or(SHAPE)?;
    let words = match &fields {
        Value::Array(words) if words.len().is_multiple_of(2) => words.as_slice(),
        Value::Nil => &[],
        _ => return Err(SHAPE),
    };
    let words = words.iter().map(|word| match word {
        Value::BulkString(bytes) => Ok(bytes),
        _ => Err(SHAPE),
    });
    Ok(Entry::new(id, words.collect::<Result<Vec<_>, _>>()?))
}

/// The id of a stream's last entry; 0-0 if it has none or does not exist.
pub async fn last_id(
    connection: &mut MultiplexedConnection,
    stream: &str,
) -> Result<EntryId, BusError> {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(stream).arg("+").arg("-").arg("COUNT").arg(1);
    let reply = connection.send_packed_command(&command).await?;
    let last = entries_of(reply)?.into_iter().next();
    Ok(last.map_or_else(EntryId::default, |entry| entry.id))
}
