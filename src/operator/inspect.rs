//! Streams, groups and consumers as the server counts them.

use crate::connect::clock::{ClockSource, ServerTime, local_now};
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::greeting::offered;
use crate::protocol::event::EntryId;
use crate::protocol::keys::{Keys, StreamKind, StreamName};
use crate::streams::read::entries_of;
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, Value};
use std::collections::{BTreeSet, HashMap};

/// Keys that one step of a scan looks at, about.
const STEP: usize = 500;

/// A stream as it is now.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Which.
    pub name: StreamName,
    /// Entries in it.
    pub length: u64,
    /// The id of its first entry.
    pub first: Option<EntryId>,
    /// The last id that was ever given out.
    pub last: EntryId,
    /// How many entries were ever added to it; `None` if the server cannot tell.
    pub added: Option<u64>,
    /// Its groups.
    pub groups: Vec<Group>,
}

impl Stream {
    /// A stream that does not exist yet.
    pub fn empty(name: &StreamName) -> Self {
        Self {
            name: name.clone(),
            length: 0,
            first: None,
            last: EntryId::default(),
            added: None,
            groups: Vec::new(),
        }
    }
}

/// How much is in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Size {
    /// Entries in it.
    pub length: u64,
    /// Entries that its groups did not settle, all together; without a group all, if it is of events.
    pub waiting: u64,
    /// How many entries were ever added to it; `None` if no group tells.
    pub added: Option<u64>,
    /// How many of them its groups settled, all together; `None` if not all tell.
    pub settled: Option<u64>,
}

/// A consumer group of a stream.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// How many consumers it knows.
    pub consumers: u64,
    /// Entries delivered and not acknowledged.
    pub pending: u64,
    /// Entries not delivered yet; `None` if the server cannot tell.
    pub lag: Option<u64>,
    /// How many of the entries ever added were delivered; `None` if the server cannot tell.
    pub read: Option<u64>,
    /// What was delivered last.
    pub delivered: EntryId,
    /// The oldest entry that is not acknowledged, delivered or not.
    pub oldest: Option<EntryId>,
}

/// A consumer of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Consumer {
    /// Its name: an instance's id.
    pub name: String,
    /// Entries that it holds.
    pub pending: u64,
    /// How long ago it last asked for anything, in ms.
    pub idle_ms: u64,
}

/// The streams of the namespace, sorted by kind and name. Walks all keys of the server, or of each node of the
/// cluster, in small steps.
///
/// # Errors
/// `Bus`: what one node does not tell would be missing without a word.
pub async fn streams(connector: &Connector, keys: &Keys) -> Result<Vec<StreamName>, BusError> {
    streams_within(&connector.nodes().await?, keys).await
}

/// The same of these nodes: of those of a cluster that answer, where not all do.
///
/// # Errors
/// `Bus`.
#[doc(hidden)]
pub async fn streams_within(nodes: &[Connector], keys: &Keys) -> Result<Vec<StreamName>, BusError> {
    scan(nodes, keys, "stream", |key| keys.stream_name(key)).await
}

/// The same of one server, a replica as well.
///
/// # Errors
/// `Bus`.
pub async fn streams_on(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
) -> Result<Vec<StreamName>, BusError> {
    let found = scan_on(connection, keys, "stream", |key| keys.stream_name(key)).await?;
    Ok(found.into_iter().collect())
}

/// What the keys of one Redis type in the namespace stand for, sorted.
pub(super) async fn scan<T: Ord>(
    nodes: &[Connector],
    keys: &Keys,
    redis_type: &str,
    stands_for: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, BusError> {
    let mut found = BTreeSet::new();
    for node in nodes {
        let connection = &mut node.pooled().await?;
        found.extend(scan_on(connection, keys, redis_type, &stands_for).await?);
    }
    Ok(found.into_iter().collect())
}

async fn scan_on<T: Ord>(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    redis_type: &str,
    stands_for: impl Fn(&str) -> Option<T>,
) -> Result<BTreeSet<T>, BusError> {
    let mut found = BTreeSet::new();
    for pattern in keys.patterns() {
        let mut cursor = "0".to_owned();
        loop {
            let (next, page): (String, Vec<Vec<u8>>) = redis::cmd("SCAN")
                .arg(&cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(STEP)
                .arg("TYPE")
                .arg(redis_type)
                .query_async(connection)
                .await?;
            let names = page
                .into_iter()
                .filter_map(|key| stands_for(&String::from_utf8(key).ok()?));
            found.extend(names);
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
    }
    Ok(found)
}

/// Looks at one stream; `None` if it does not exist.
pub async fn stream(
    connection: &mut impl ConnectionLike,
    name: &StreamName,
) -> Result<Option<Stream>, BusError> {
    let info = redis::cmd("XINFO")
        .arg("STREAM")
        .arg(&name.key)
        .query_async(connection)
        .await;
    let info: Value = match info {
        Err(error) if is_no_such_key(&error) => return Ok(None),
        info => info?,
    };
    let mut info = named(info);
    let first = match info.remove("first-entry") {
        Some(entry @ Value::Array(_)) => entries_of(Value::Array(vec![entry]))?.pop(),
        _ => None,
    };
    let last = id(&mut info, "last-generated-id")?;
    Ok(Some(Stream {
        name: name.clone(),
        length: number(&mut info, "length")?,
        first: first.map(|entry| entry.id),
        last,
        added: maybe(&mut info, "entries-added"),
        groups: groups(connection, &name.key, last).await?,
    }))
}

/// How much is in each of these streams, without a look at their entries; nothing in one that is gone.
pub async fn sizes(
    connection: &mut impl ConnectionLike,
    names: &[&StreamName],
) -> Result<Vec<Size>, BusError> {
    let mut reads = redis::pipe();
    for name in names {
        reads.cmd("XLEN").arg(&name.key);
        if name.kind != StreamKind::Dead {
            reads.cmd("XINFO").arg("GROUPS").arg(&name.key);
        }
    }
    // Any of them may be gone by now.
    reads.ignore_errors();
    let answers: Vec<Value> = reads.query_async(connection).await?;
    let mut answers = answers.into_iter();
    let size = |name: &&StreamName| {
        let length = match answers.next() {
            Some(Value::Int(length)) => u64::try_from(length).unwrap_or(0),
            _ => 0,
        };
        let groups = match name.kind {
            StreamKind::Dead => None,
            _ => answers.next(),
        };
        size(name.kind, length, groups)
    };
    Ok(names.iter().map(size).collect())
}

fn size(kind: StreamKind, length: u64, groups: Option<Value>) -> Size {
    let mut size = Size {
        length,
        ..Size::default()
    };
    let groups = match groups {
        Some(Value::Array(groups)) if !groups.is_empty() => groups,
        _ => {
            if kind == StreamKind::Events {
                size.waiting = length;
            }
            return size;
        }
    };
    size.settled = Some(0);
    for group in groups {
        let mut group = named(group);
        let pending = maybe(&mut group, "pending").unwrap_or(0);
        let lag = maybe(&mut group, "lag");
        let read = maybe(&mut group, "entries-read");
        size.waiting += pending + lag.unwrap_or(0);
        size.added = size.added.or_else(|| Some(read? + lag?));
        let settled = read.map(|read| read.saturating_sub(pending));
        size.settled = size.settled.zip(settled).map(|(sum, more)| sum + more);
    }
    size
}

async fn groups(
    connection: &mut impl ConnectionLike,
    key: &str,
    last: EntryId,
) -> Result<Vec<Group>, BusError> {
    let infos: Vec<Value> = redis::cmd("XINFO")
        .arg("GROUPS")
        .arg(key)
        .query_async(connection)
        .await?;
    let mut groups = Vec::with_capacity(infos.len());
    for info in infos {
        let mut info = named(info);
        let name = text(&mut info, "name")?;
        let delivered = id(&mut info, "last-delivered-id")?;
        let pending = number(&mut info, "pending")?;
        let lag = maybe(&mut info, "lag");
        let read = maybe(&mut info, "entries-read");
        let oldest = if pending > 0 {
            let rows: Vec<(String, Value, Value, Value)> = redis::cmd("XPENDING")
                .arg(key)
                .arg(&name)
                .arg(&["-", "+", "1"])
                .query_async(connection)
                .await?;
            rows.first().and_then(|row| row.0.parse().ok())
        } else if delivered < last {
            let reply = redis::cmd("XRANGE")
                .arg(key)
                .arg(delivered.next().to_string())
                .arg(&["+", "COUNT", "1"])
                .query_async(connection)
                .await?;
            entries_of(reply)?.first().map(|entry| entry.id)
        } else {
            None
        };
        groups.push(Group {
            consumers: number(&mut info, "consumers")?,
            name,
            pending,
            lag,
            read,
            delivered,
            oldest,
        });
    }
    Ok(groups)
}

/// What a group has, without a look at any entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStanding {
    /// Entries delivered and not acknowledged.
    pub pending: u64,
    /// What was delivered last.
    pub delivered: EntryId,
}

/// Looks at one group of a stream; `None` if there is no such group.
///
/// # Errors
/// `Bus`.
pub async fn standing(
    connection: &mut impl ConnectionLike,
    key: &str,
    group: &str,
) -> Result<Option<GroupStanding>, BusError> {
    let infos = redis::cmd("XINFO")
        .arg("GROUPS")
        .arg(key)
        .query_async(connection)
        .await;
    let infos: Vec<Value> = match infos {
        Err(error) if is_no_such_key(&error) => return Ok(None),
        infos => infos?,
    };
    for info in infos {
        let mut info = named(info);
        if text(&mut info, "name")? == group {
            return Ok(Some(GroupStanding {
                pending: number(&mut info, "pending")?,
                delivered: id(&mut info, "last-delivered-id")?,
            }));
        }
    }
    Ok(None)
}

/// The consumers of a group, sorted by name; none if the group is gone.
pub async fn consumers(
    connection: &mut impl ConnectionLike,
    key: &str,
    group: &str,
) -> Result<Vec<Consumer>, BusError> {
    let infos = redis::cmd("XINFO")
        .arg("CONSUMERS")
        .arg(key)
        .arg(group)
        .query_async(connection)
        .await;
    let infos: Vec<Value> = match infos {
        Err(error) if is_no_such_key(&error) || error.code() == Some("NOGROUP") => Vec::new(),
        infos => infos?,
    };
    let mut consumers = Vec::with_capacity(infos.len());
    for info in infos {
        let mut info = named(info);
        consumers.push(Consumer {
            name: text(&mut info, "name")?,
            pending: number(&mut info, "pending")?,
            idle_ms: number(&mut info, "idle")?,
        });
    }
    consumers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(consumers)
}

/// The server's time, in Unix ms; this machine's, where the server does not tell it.
pub async fn now(connection: &mut impl ConnectionLike) -> Result<u64, BusError> {
    let told = ClockSource::Time.question("").query_async(connection).await;
    Ok(match offered(told)? {
        Some(ServerTime(now)) => now,
        None => local_now(),
    })
}

fn is_no_such_key(error: &redis::RedisError) -> bool {
    error
        .detail()
        .is_some_and(|text| text.contains("no such key"))
        || error.to_string().contains("no such key")
}

const SHAPE: BusError = BusError::Reply { what: "XINFO" };

fn named(info: Value) -> HashMap<String, Value> {
    HashMap::from_redis_value(info).unwrap_or_default()
}

fn number(info: &mut HashMap<String, Value>, name: &str) -> Result<u64, BusError> {
    match info.remove(name) {
        Some(Value::Int(number)) => Ok(u64::try_from(number).unwrap_or(0)),
        _ => Err(SHAPE),
    }
}

fn maybe(info: &mut HashMap<String, Value>, name: &str) -> Option<u64> {
    match info.remove(name) {
        Some(Value::Int(number)) => u64::try_from(number).ok(),
        _ => None,
    }
}

fn text(info: &mut HashMap<String, Value>, name: &str) -> Result<String, BusError> {
    match info.remove(name) {
        Some(Value::BulkString(bytes)) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        _ => Err(SHAPE),
    }
}

fn id(info: &mut HashMap<String, Value>, name: &str) -> Result<EntryId, BusError> {
    text(info, name)?.parse().map_err(|_| SHAPE)
}
