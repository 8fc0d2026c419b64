//! Who owns a partition of a domain with an order: the lease, and the fence that each change of owner raises.
//!
//! Both lie in the partition's slot. The lease only says when another one may take the partition; that nothing of a former
//! owner changes anything is up to the fence, which is compared in the step of each change.

use crate::connect::clock::{ClockSource, ServerTime, whole_ms};
use crate::connect::error::BusError;
use crate::connect::script::script;
use crate::protocol::keys::Keys;
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, Script, Value};
use std::sync::LazyLock;
use std::time::Duration;

static OWN: LazyLock<Script> = LazyLock::new(|| script(include_str!("own.lua")));
static RENEW: LazyLock<Script> = LazyLock::new(|| script(include_str!("own_renew.lua")));
static LEAVE: LazyLock<Script> = LazyLock::new(|| script(include_str!("own_leave.lua")));

/// How long it is remembered who owned a partition last, and under which fence.
pub const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Leases that one call renews at the most.
pub const RENEWED: usize = 128;
/// The longest lease that is believed.
const LONGEST: Duration = Duration::from_secs(3600);

/// The keys of one partition for one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnKeys {
    /// Who owns it.
    pub owner: String,
    /// What each change of owner raises.
    pub fence: String,
}

impl OwnKeys {
    /// Names those of a partition.
    pub fn of(keys: &Keys, domain: &str, partition: u16, group: &str) -> Self {
        Self {
            owner: keys.owner(domain, partition, group),
            fence: keys.fence(domain, partition, group),
        }
    }
}

/// The process that owns a partition, as its node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its instance.
    pub instance: String,
    /// The name that no other process has.
    pub process: String,
    /// Until when its lease lasts unless it renews it, Unix ms by the node's clock; as it stands there.
    pub till: String,
    /// How long a renewal lasts.
    pub ttl: Duration,
    /// Since when it owns it, Unix ms by the node's clock.
    pub since: u64,
}

impl Owner {
    /// What is left of its lease at that time of the node's clock.
    pub fn left(&self, now: u64) -> Duration {
        let till: u64 = self.till.parse().unwrap_or(0);
        Duration::from_millis(till.saturating_sub(now)).min(self.ttl)
    }
}

/// What a look at the owners of some partitions of one node found.
#[derive(Clone, Debug)]
pub struct Looked {
    /// Unix ms by the node's clock.
    pub now: u64,
    /// Each one's owner, in the order in which they were asked for; why it cannot be read, where it cannot.
    pub owners: Vec<Result<Option<Owner>, String>>,
}

/// Looks at who owns partitions whose keys one node has.
///
/// # Errors
/// `Bus`.
pub async fn look(
    connection: &mut impl ConnectionLike,
    source: ClockSource,
    keys: &[OwnKeys],
) -> Result<Looked, BusError> {
    let Some(first) = keys.first() else {
        return Ok(Looked {
            now: 0,
            owners: Vec::new(),
        });
    };
    let mut ask = redis::pipe();
    ask.add_command(source.question(&first.owner));
    for key in keys {
        ask.cmd("HMGET").arg(&key.owner);
        ask.arg(&["instance", "process", "till", "ttl", "since"]);
    }
    ask.ignore_errors();
    let told: Vec<Value> = ask.query_async(connection).await?;
    let mut told = told.into_iter();
    let now = told.next().unwrap_or(Value::Nil).extract_error()?;
    let ServerTime(now) =
        ServerTime::from_redis_value(now).map_err(|_| BusError::Reply { what: "TIME" })?;
    let owners = told.map(owner_of).collect::<Vec<_>>();
    match owners.len() == keys.len() {
        true => Ok(Looked { now, owners }),
        false => Err(BusError::Reply { what: "HMGET" }),
    }
}

fn owner_of(told: Value) -> Result<Option<Owner>, String> {
    let told = told.extract_error().map_err(|error| error.to_string())?;
    let fields = Vec::<Option<Vec<u8>>>::from_redis_value(told);
    let fields = fields.map_err(|error| error.to_string())?;
    let text = |at: usize| {
        let field = fields.get(at)?.as_deref()?;
        Some(String::from_utf8_lossy(field).into_owned())
    };
    let Some(process) = text(1) else {
        return Ok(None);
    };
    let number = |at: usize| text(at).and_then(|text| text.parse::<u64>().ok());
    Ok(Some(Owner {
        instance: text(0).unwrap_or_default(),
        process,
        till: text(2).unwrap_or_default(),
        ttl: Duration::from_millis(number(3).unwrap_or(0)).min(LONGEST),
        since: number(4).unwrap_or(0),
    }))
}

/// A process that wants a partition.
#[derive(Clone, Copy, Debug)]
pub struct Taking<'a> {
    /// Its instance.
    pub instance: &'a str,
    /// The name that no other process has.
    pub process: &'a str,
    /// How long its lease lasts.
    pub ttl: Duration,
    /// Whose lease ended, as the caller saw it.
    pub ended: Option<&'a Owner>,
    /// Until when by the node's clock the call may be run: it may lie in the buffers of a node that stood still.
    pub until: u64,
    /// What another process of this instance owns, too: it is gone, or is to be.
    pub replaces: bool,
}

/// Takes a partition; gives the fence if it is the process's now.
///
/// # Errors
/// `Bus`.
pub async fn take(
    connection: &mut impl ConnectionLike,
    keys: &OwnKeys,
    taking: Taking<'_>,
) -> Result<Option<u64>, BusError> {
    let seen = taking.ended.map(|owner| (&*owner.process, &*owner.till));
    let (process, till) = seen.unwrap_or_default();
    let mut call = OWN.prepare_invoke();
    call.key(&keys.owner)
        .key(&keys.fence)
        .arg(taking.instance)
        .arg(taking.process)
        .arg(whole_ms(taking.ttl))
        .arg(process)
        .arg(till)
        .arg(taking.until)
        .arg(u8::from(taking.replaces))
        .arg(whole_ms(KEPT));
    let (taken, fence): (bool, String) = call.invoke_async(connection).await?;
    let fence = fence.parse().ok().filter(|_| taken);
    match fence.is_some() == taken {
        true => Ok(fence),
        false => Err(BusError::Reply { what: "own.lua" }),
    }
}

/// Renews leases, [`RENEWED`] at the most, on one node; on a cluster those of one partition. Says of each whether it is
/// still that process's.
///
/// # Errors
/// `Bus`.
pub async fn renew(
    connection: &mut impl ConnectionLike,
    process: &str,
    ttl: Duration,
    leases: &[(OwnKeys, u64)],
) -> Result<Vec<bool>, BusError> {
    let mut call = RENEW.prepare_invoke();
    call.arg(process).arg(whole_ms(ttl)).arg(whole_ms(KEPT));
    for (keys, fence) in leases {
        call.key(&keys.owner).key(&keys.fence).arg(*fence);
    }
    let renewed: Vec<bool> = call.invoke_async(connection).await?;
    let what = "own_renew.lua";
    match renewed.len() == leases.len() {
        true => Ok(renewed),
        false => Err(BusError::Reply { what }),
    }
}

/// Lets a partition go; whether it was that process's.
///
/// # Errors
/// `Bus`.
pub async fn leave(
    connection: &mut impl ConnectionLike,
    keys: &OwnKeys,
    process: &str,
    fence: u64,
) -> Result<bool, BusError> {
    let mut call = LEAVE.prepare_invoke();
    call.key(&keys.owner).key(&keys.fence);
    call.arg(process).arg(fence);
    Ok(call.invoke_async(connection).await?)
}
