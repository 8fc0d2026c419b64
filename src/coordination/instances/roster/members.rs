//! Who shares the partitions of a domain.

use super::PAGE;
use crate::connect::clock::ServerTime;
use crate::connect::error::BusError;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use crate::coordination::instances::orders::WorkerMode;
use redis::{FromRedisValue, Value};
use std::time::Duration;

/// Readers that are looked at: those that said so last.
const MAX_MEMBERS: usize = 4000;

/// An instance that reads the events of a type, and goes on reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// Tasks that it takes at a time.
    pub capacity: u64,
    /// In what time it is one no more, unless it pulses.
    pub left: Duration,
}

impl Instances {
    /// The instances that read the events of a type in that group: alive, and neither about to leave nor told to read
    /// nothing. Sorted by id.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn members(&self, group: &str, kind: &str) -> Result<Vec<Member>, CoordinationError> {
        let keys = &self.store.keys;
        let mut reads = redis::pipe();
        self.store.ask_time(&mut reads).await?;
        reads.cmd("ZRANGE").arg(keys.readers(group, kind)).arg(0);
        reads.arg(MAX_MEMBERS - 1).arg("REV");
        let (ServerTime(now), ids): (_, Vec<String>) = self.store.ask(&reads).await?;
        let mut members = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE) {
            let mut reads = redis::pipe();
            reads.cmd("ZMSCORE").arg(keys.active()).arg(page);
            for id in page {
                reads.cmd("HMGET").arg(keys.instance(id));
                reads.arg(&["status", "capacity", "mode"]);
            }
            let mut told: Vec<Value> = self.store.ask(&reads).await?;
            let each = told.split_off(told.len().min(1));
            let shape = |_| BusError::Reply { what: "HMGET" };
            let expiries = told.pop().unwrap_or(Value::Nil);
            let expiries = Vec::<Option<f64>>::from_redis_value(expiries).map_err(shape)?;
            let each = each
                .into_iter()
                .map(Vec::<Option<Vec<u8>>>::from_redis_value);
            let each: Vec<_> = each.collect::<Result<_, _>>().map_err(shape)?;
            for ((id, expires), fields) in page.iter().zip(expiries).zip(each) {
                let left = expires.unwrap_or(0.0) - now as f64;
                if left > 0.0
                    && let Some(capacity) = reads_on(&fields)
                {
                    let (id, left) = (id.clone(), Duration::from_millis(left as u64));
                    members.push(Member { id, capacity, left });
                }
            }
        }
        members.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        Ok(members)
    }

    /// Says that an instance is about to read no event of that type in that group any more.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn reads_no_more(
        &self,
        group: &str,
        id: &str,
        kind: &str,
    ) -> Result<(), CoordinationError> {
        let mut write = redis::pipe();
        let readers = self.store.keys.readers(group, kind);
        write.cmd("ZREM").arg(readers).arg(id).ignore();
        Ok(self.store.ask(&write).await?)
    }
}

/// How many tasks an instance takes, if it is active and goes on reading.
fn reads_on(fields: &[Option<Vec<u8>>]) -> Option<u64> {
    let field = |at: usize| fields.get(at).and_then(Option::as_deref);
    if field(0) != Some(b"active") {
        return None;
    }
    let mode = field(2).and_then(|mode| rmp_serde::from_slice::<WorkerMode>(mode).ok());
    if mode.is_some_and(|mode| mode.draining || mode.quiet) {
        return None;
    }
    let capacity = std::str::from_utf8(field(1)?).ok()?;
    capacity.parse().ok()
}
