//! Seats of a type, which all workers share: as many of its runs go on at a time in all of them.
//!
//! Each worker says how many seats it needs, again and again; what it has counts until its lease ends. So the seats of a
//! killed worker come back after a lease at the most, and a count that was wrong is right with the next call.

use super::store::Store;
use crate::connect::clock::{ServerTime, whole_ms};
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::script::script;
use crate::protocol::keys::Keys;
use redis::Script;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

static SEATS: LazyLock<Script> = LazyLock::new(|| script(include_str!("seats.lua")));

/// The longest lease in ms, and the longest value of the hash.
const DAY: u64 = 24 * 3600 * 1000;
const WIDEST: usize = 160;

/// What a worker says of one type.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// The type.
    pub kind: &'a str,
    /// Which call of the worker's process it is: the number rises.
    pub call: u64,
    /// How many seats there are.
    pub total: usize,
    /// How many it needs for what goes on.
    pub has: usize,
    /// How many more it could use.
    pub wants: usize,
}

/// What a worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// How many seats more it has from now on.
    pub gets: usize,
    /// How many it is to keep at the most, once what runs on the others has ended.
    pub keep: usize,
    /// When it is to ask again, if it waits or others do; else for how long it may keep what nobody uses there.
    pub again: Duration,
    /// Whether others wait that get none.
    pub others_wait: bool,
}

/// The seats of one namespace, as one process of a worker has them.
#[derive(Clone, Debug)]
pub struct Seats {
    store: Store,
    /// The worker and its process: the next one of its id says nothing of this one's runs.
    holder: String,
    lease: Duration,
}

impl Seats {
    /// Of that worker, which has its seats for so long.
    pub fn new(connector: Connector, keys: Keys, instance: &str, lease: Duration) -> Self {
        Self {
            store: Store::new(connector, keys),
            holder: format!("{instance}:{:016x}", fastrand::u64(..)),
            lease,
        }
    }

    /// Says what the worker needs, and takes what it gets.
    ///
    /// # Errors
    /// Without an answer: it may have got what it wanted. The next call gives that back.
    pub async fn take(&self, needs: Needs<'_>) -> Result<Given, BusError> {
        let mut call = SEATS.prepare_invoke();
        call.key(self.store.keys.seats(needs.kind))
            .arg(&self.holder)
            .arg(needs.call)
            .arg(whole_ms(self.lease))
            .arg(needs.total)
            .arg(needs.has)
            .arg(needs.wants);
        let answer: Vec<u64> = self.store.invoke(&call).await?;
        let [gets, keep, again, others_wait] = answer[..] else {
            return Err(BusError::Reply { what: "seats.lua" });
        };
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(Given {
            gets: number(gets).min(needs.wants),
            keep: number(keep),
            again: Duration::from_millis(again),
            others_wait: others_wait > 0,
        })
    }
}

/// Who has the seats of a type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// How many are taken.
    pub seats: u64,
    /// How many runs more wait for one, in the workers that have their events.
    pub waits: u64,
    /// In how many workers.
    pub workers: u64,
    /// Since when the one waits that has waited for the longest, in ms.
    pub waits_ms: Option<u64>,
}

/// Looks who has the seats of a type.
///
/// # Errors
/// Without an answer.
pub async fn look(connector: &Connector, keys: &Keys, kind: &str) -> Result<Taken, BusError> {
    let store = Store::new(connector.clone(), keys.clone());
    let mut read = redis::pipe();
    read.cmd("HGETALL").arg(keys.seats(kind));
    store.ask_time(&mut read).await?;
    let (all, ServerTime(now)): (HashMap<Vec<u8>, Vec<u8>>, _) = store.ask(&read).await?;
    let mut taken = Taken::default();
    for one in all.values() {
        let Some([till, lease, _, has, wants, since, again, _]) = numbers_of(one) else {
            continue;
        };
        if till <= now {
            continue;
        }
        // The clock went back.
        let till = till.min(now + lease);
        taken.seats = taken.seats.saturating_add(has);
        if wants > 0 && again > now && again <= till && since <= now {
            taken.workers += 1;
            taken.waits = taken.waits.saturating_add(wants);
            taken.waits_ms = taken.waits_ms.into_iter().chain([now - since]).max();
        }
    }
    Ok(taken)
}

/// A value of the hash as the script reads it.
fn numbers_of(value: &[u8]) -> Option<[u64; 8]> {
    let is_plain = |byte: &u8| byte.is_ascii_digit() || *byte == b' ';
    let text = str::from_utf8(value).ok()?;
    if value.len() > WIDEST || !value.iter().all(is_plain) {
        return None;
    }
    let numbers: Result<Vec<u64>, _> = text.split(' ').map(str::parse).collect();
    let numbers: [u64; 8] = numbers.ok()?.try_into().ok()?;
    let are_exact = numbers.iter().all(|number| *number < 1 << 53);
    (are_exact && numbers[1] <= DAY).then_some(numbers)
}
