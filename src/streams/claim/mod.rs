//! Who holds which pending entry: taking over what the dead held, renewing the lease of what runs
//! long, handing over what another one can do.
//!
//! Every rule compares the owner **and** the delivery count that the caller saw: a consumer's name
//! alone does not tell a process from the one that was started in its place.

use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::connect::resp::wire::Wire;
use crate::connect::script::{script, script_with};
use crate::connect::silence::CallTime;
use crate::protocol::event::{Entry, EntryId};
use crate::streams::fence::{FENCED, Fence};
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, Script, Value};
use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

/// How long the claim counter of a consumer that is gone is kept.
pub const CLAIMS_TTL: Duration = Duration::from_secs(24 * 3600);

/// Entries whose lease one call renews, or whose delivery it takes back, at the most.
pub const RENEWED: usize = 250;
/// Entries that one call takes over at the most.
pub const TAKEN: usize = 100;

static TAKE: LazyLock<Script> = LazyLock::new(|| script(include_str!("take.lua")));
static TAKE_OWNED: LazyLock<Script> =
    LazyLock::new(|| script_with(&[FENCED], include_str!("take.lua")));
static RENEW: LazyLock<Script> = LazyLock::new(|| script(include_str!("renew.lua")));
static UNDELIVER: LazyLock<Script> = LazyLock::new(|| script(include_str!("undeliver.lua")));
static GIVE: LazyLock<Script> = LazyLock::new(|| script(include_str!("give.lua")));
static FORGET: LazyLock<Script> = LazyLock::new(|| script(include_str!("forget.lua")));

/// Entries of each consumer that a page of many consumers' has room for at the least.
const FEWEST: usize = 4;

/// A pending entry as the group knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The entry.
    pub id: EntryId,
    /// Who holds it; what is not UTF-8 in the name is shown as U+FFFD.
    pub consumer: String,
    /// The same as the server has it: a consumer of others may have any name.
    pub consumer_bytes: Vec<u8>,
    /// Since when nobody renewed it.
    pub idle: Duration,
    /// How often it was delivered.
    pub deliveries: u32,
}

/// How long an entry must have been idle to be taken over, and when that can be judged.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// At least so long.
    pub least: Duration,
    /// At another time nothing is taken (see [`crate::connect::silence`]).
    pub within: CallTime,
}

impl From<Duration> for Idle {
    fn from(least: Duration) -> Self {
        let within = CallTime::ANY;
        Self { least, within }
    }
}

/// An entry that was taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The entry; without fields until [`fields`] has read them.
    pub entry: Entry,
    /// Whether it has been deleted from the stream; nobody can run or acknowledge it any more.
    pub deleted: bool,
    /// How often it has been delivered now.
    pub deliveries: u32,
}

/// One page of pending entries, from `from` on in the order of their ids; of one consumer or of all.
///
/// O(log n + count) for all consumers or one.
pub async fn pending(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    from: EntryId,
    count: usize,
    consumer: Option<&str>,
) -> Result<Vec<Pending>, BusError> {
    let consumers = [consumer];
    let page = pending_with(connection, stream, group, from, count, &consumers);
    Ok(page.await?.0)
}

/// The same of several consumers together, `None` for all; and whether that is the last page. Where there are
/// many, a page may hold up to [`FEWEST`] of each.
pub(crate) async fn pending_with(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    from: EntryId,
    count: usize,
    consumers: &[Option<&str>],
) -> Result<(Vec<Pending>, bool), BusError> {
    if consumers.is_empty() {
        return Ok((Vec::new(), true));
    }
    let each = (count / consumers.len()).max(FEWEST.min(count));
    let mut asks = redis::pipe();
    for consumer in consumers {
        asks.cmd("XPENDING")
            .arg(stream)
            .arg(group)
            .arg(from.to_string())
            .arg("+")
            .arg(each);
        if let Some(consumer) = consumer {
            asks.arg(*consumer);
        }
    }
    type Row = (String, Vec<u8>, u64, u32);
    let told = connection.req_packed_commands(&asks, 0, consumers.len());
    let (mut page, mut horizon) = (Vec::new(), None);
    for rows in told.await? {
        // Not as a pipeline's error, which has no code.
        let rows = Vec::<Row>::from_redis_value(rows.extract_error()?)
            .map_err(|_| BusError::Reply { what: "XPENDING" })?;
        let is_full = rows.len() == each;
        for (id, consumer, idle, deliveries) in rows {
            page.push(Pending {
                id: id
                    .parse()
                    .map_err(|_| BusError::Reply { what: "XPENDING" })?,
                consumer: String::from_utf8_lossy(&consumer).into_owned(),
                consumer_bytes: consumer,
                idle: Duration::from_millis(idle),
                deliveries,
            });
        }
        // What this one holds besides is younger than that, and what others hold may be younger still.
        if is_full && let Some(last) = page.last() {
            let last: EntryId = last.id;
            horizon = Some(horizon.map_or(last, |horizon: EntryId| horizon.min(last)));
        }
    }
    page.sort_unstable_by_key(|entry| entry.id);
    if let Some(horizon) = horizon {
        page.retain(|entry| entry.id <= horizon);
    }
    Ok((page, horizon.is_none()))
}

/// Takes entries over, if they are still pending as `wanted` says and idle for so long.
///
/// `claims` gives the claim counter's key for a consumer.
pub async fn take(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    me: &str,
    idle: impl Into<Idle>,
    wanted: &[Pending],
    claims: impl Fn(&str) -> String,
) -> Result<Vec<Taken>, BusError> {
    take_owned(connection, stream, group, me, idle, wanted, claims, None).await
}

/// The same; where the stream is one that is owned, only while the fence stands.
#[doc(hidden)]
#[expect(clippy::too_many_arguments, reason = "those of `take`, and the fence")]
pub async fn take_owned(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    me: &str,
    idle: impl Into<Idle>,
    wanted: &[Pending],
    claims: impl Fn(&str) -> String,
    fence: Option<&Fence>,
) -> Result<Vec<Taken>, BusError> {
    let idle = idle.into();
    let mut owners: Vec<&[u8]> = wanted
        .iter()
        .map(|entry| entry.consumer_bytes.as_slice())
        .collect();
    owners.sort_unstable();
    owners.dedup();
    let mut call = match fence {
        None => TAKE.prepare_invoke(),
        Some(_) => TAKE_OWNED.prepare_invoke(),
    };
    call.key(stream);
    for owner in &owners {
        call.key(claims(&String::from_utf8_lossy(owner)));
    }
    call.arg(group)
        .arg(me)
        .arg(format!(
            "{} {} {}",
            idle.least.as_millis(),
            idle.within.from,
            idle.within.until
        ))
        .arg(whole_ms(CLAIMS_TTL))
        .arg(owners.len());
    for owner in &owners {
        call.arg(*owner);
    }
    for entry in wanted {
        let owner = owners
            .binary_search(&entry.consumer_bytes.as_slice())
            .unwrap_or(0)
            + 1;
        call.arg(entry.id.to_string())
            .arg(owner)
            .arg(entry.deliveries);
    }
    if let Some(fence) = fence {
        fence.add_to(&mut call);
    }
    let rows: Vec<(String, u32, bool)> = call.invoke_async(connection).await?;
    rows.into_iter()
        .map(|(id, deliveries, there)| {
            let id = id.parse();
            let id = id.map_err(|_| BusError::Reply { what: "take.lua" })?;
            Ok(Taken {
                entry: Entry::new(id, Vec::<Vec<u8>>::new()),
                deleted: !there,
                deliveries,
            })
        })
        .collect()
}

/// Reads the fields of what was taken over. Of an entry over `limit` bytes only a part is held.
pub async fn fields(
    wire: &mut Wire,
    stream: &str,
    taken: &mut [Taken],
    limit: usize,
) -> Result<(), BusError> {
    let there = taken.iter().filter(|taken| !taken.deleted);
    let ids: Vec<EntryId> = there.map(|taken| taken.entry.id).collect();
    let mut entries = crate::streams::read::read_each(wire, stream, &ids, limit)
        .await?
        .into_iter();
    for taken in taken.iter_mut().filter(|taken| !taken.deleted) {
        match entries.next().flatten() {
            Some(entry) => taken.entry = entry,
            None => taken.deleted = true,
        }
    }
    Ok(())
}

/// Renews the lease of entries (id, delivery count); returns those that are no longer `me`'s.
pub async fn renew(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    me: &str,
    held: &[(EntryId, u32)],
) -> Result<Vec<(EntryId, u32)>, BusError> {
    let mut call = RENEW.prepare_invoke();
    call.key(stream).arg(group).arg(me);
    for (id, deliveries) in held {
        call.arg(id.to_string()).arg(*deliveries);
    }
    let lost: Vec<usize> = call.invoke_async(connection).await?;
    let entry = |at: usize| Some(*held.get(at.checked_sub(1)?)?);
    lost.into_iter()
        .map(|at| entry(at).ok_or(BusError::Reply { what: "renew.lua" }))
        .collect()
}

/// Takes back at most [`RENEWED`] deliveries (id, delivery count) of which nothing was begun, so that they are not
/// counted; returns how many were still `me`'s.
///
/// To be called once for a delivery, and only by who drops it: where the answer is lost, a second call could take
/// back the delivery of whoever came next under the same name.
pub async fn undeliver(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    me: &str,
    unbegun: &[(EntryId, u32)],
) -> Result<usize, BusError> {
    let mut call = UNDELIVER.prepare_invoke();
    call.key(stream).arg(group).arg(me);
    for (id, deliveries) in unbegun {
        call.arg(id.to_string()).arg(*deliveries);
    }
    Ok(call.invoke_async(connection).await?)
}

/// An entry that is to be handed over, and to whom.
#[derive(Clone, Copy, Debug)]
pub struct Handing<'a> {
    /// The consumer that gives.
    pub from: &'a str,
    /// The consumer that receives.
    pub to: &'a str,
    /// The entry.
    pub entry: EntryId,
    /// Its delivery count.
    pub deliveries: u32,
    /// The key under which it is counted how often it was handed over.
    pub handed: &'a str,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// The receiver has it.
    Given,
    /// The entry was no longer the giver's.
    Lost,
    /// The entry was handed over [`HANDOVERS`] times already.
    TooOften,
}

/// How often one entry is handed over.
pub const HANDOVERS: u32 = 4;

/// Hands an entry to another consumer; that it did is remembered as long as claims are.
pub async fn give(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    handing: Handing<'_>,
) -> Result<Given, BusError> {
    give_for(connection, stream, group, handing, CLAIMS_TTL).await
}

/// The same; that it did is remembered for so long.
pub async fn give_for(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    handing: Handing<'_>,
    remembered: Duration,
) -> Result<Given, BusError> {
    let mut call = GIVE.prepare_invoke();
    call.key(stream)
        .key(handing.handed)
        .arg(group)
        .arg(handing.from)
        .arg(handing.to)
        .arg(handing.entry.to_string())
        .arg(handing.deliveries)
        .arg(HANDOVERS)
        .arg(whole_ms(remembered));
    match call.invoke_async::<u8>(connection).await? {
        0 => Ok(Given::Lost),
        1 => Ok(Given::Given),
        _ => Ok(Given::TooOften),
    }
}

/// Removes a consumer that nothing is pending with; false if something is.
pub async fn forget(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    consumer: &str,
) -> Result<bool, BusError> {
    let mut call = FORGET.prepare_invoke();
    call.key(stream).arg(group).arg(consumer);
    Ok(call.invoke_async(connection).await?)
}

/// The consumers of a group that hold nothing and have not been heard of for that long.
pub async fn idle(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    for_at_least: Duration,
) -> Result<Vec<String>, BusError> {
    let rows: Vec<HashMap<String, Value>> = redis::cmd("XINFO")
        .arg("CONSUMERS")
        .arg(stream)
        .arg(group)
        .query_async(connection)
        .await?;
    let number = |row: &HashMap<String, Value>, name: &str| match row.get(name) {
        Some(Value::Int(number)) => u64::try_from(*number).ok(),
        _ => None,
    };
    let idle = rows.iter().filter_map(|row| {
        let idle = number(row, "pending")? == 0
            && u128::from(number(row, "idle")?) >= for_at_least.as_millis();
        match row.get("name")? {
            Value::BulkString(name) if idle => String::from_utf8(name.clone()).ok(),
            _ => None,
        }
    });
    Ok(idle.collect())
}

/// The consumers of a group with something pending.
pub async fn holders(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
) -> Result<Vec<String>, BusError> {
    holders_in(ask_holders(stream, group).query_async(connection).await?)
}

/// Asks for them.
pub(crate) fn ask_holders(stream: &str, group: &str) -> redis::Cmd {
    let mut summary = redis::cmd("XPENDING");
    summary.arg(stream).arg(group);
    summary
}

/// Reads who they are.
pub(crate) fn holders_in(summary: Value) -> Result<Vec<String>, BusError> {
    let Value::Array(mut parts) = summary.extract_error()? else {
        return Err(BusError::Reply { what: "XPENDING" });
    };
    match parts.pop() {
        None | Some(Value::Nil) => Ok(Vec::new()),
        Some(list) => {
            let holders = Vec::<(Vec<u8>, Value)>::from_redis_value(list)
                .map_err(|_| BusError::Reply { what: "XPENDING" })?;
            let names = holders.into_iter().map(|(name, _)| name);
            Ok(names
                .map(|name| String::from_utf8_lossy(&name).into_owned())
                .collect())
        }
    }
}
