//! How much of the server's memory is used, and by which keys.

use crate::connect::error::BusError;
use crate::operator::server::allowed;
use crate::protocol::keys::Keys;
use redis::Value;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use std::collections::HashMap;

/// Keys that one step of a scan looks at, about.
const STEP: usize = 500;
/// Parts of a key that the server looks at to tell its size.
const SAMPLES: usize = 5;
/// Keys that are looked at at the most.
const LOOKED_AT: usize = 50_000;

/// What a server uses of what it may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in use, as far as they count for the limit.
    pub used: u64,
    /// `maxmemory` in bytes; 0 is no limit.
    pub limit: u64,
}

impl Memory {
    /// Reads what `INFO` told; `None` if it did not tell.
    pub fn told(info: &HashMap<String, String>) -> Option<Self> {
        let number = |name: &str| info.get(name)?.parse::<u64>().ok();
        // What is written to replicas and the append-only file does not count.
        let besides = number("mem_not_counted_for_evict").unwrap_or(0);
        Some(Self {
            used: number("used_memory")?.saturating_sub(besides),
            limit: number("maxmemory")?,
        })
    }

    /// Asks the server; `None` if the user may not ask or the server does not tell.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub async fn look(connection: &mut impl ConnectionLike) -> Result<Option<Self>, BusError> {
        let text = redis::cmd("INFO")
            .arg("memory")
            .query_async(connection)
            .await;
        let text: Option<String> = allowed(text.map_err(BusError::from))?;
        Ok(text.and_then(|text| Self::told(&pairs(&text))))
    }

    /// Which part of the limit is used; `None` without one.
    pub fn share(self) -> Option<f64> {
        (self.limit > 0).then(|| self.used as f64 / self.limit as f64)
    }
}

/// The names and values of an answer to `INFO`.
pub(crate) fn pairs(text: &str) -> HashMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    let owned = pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    owned.collect()
}

/// The bytes that each of these keys takes, estimated; `None` for one that the user may not ask about, or that
/// is not there.
///
/// # Errors
/// If the server cannot be asked.
pub async fn of_keys(
    connection: &mut MultiplexedConnection,
    keys: &[&str],
) -> Result<Vec<Option<u64>>, BusError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut reads = redis::pipe();
    for key in keys {
        reads.cmd("MEMORY").arg("USAGE").arg(*key);
        reads.arg("SAMPLES").arg(SAMPLES);
    }
    // Who may not ask is answered so for each.
    reads.ignore_errors();
    let answers: Vec<Value> = reads.query_async(connection).await?;
    let bytes = |answer| match answer {
        Value::Int(bytes) => u64::try_from(bytes).ok(),
        _ => None,
    };
    Ok(answers.into_iter().map(bytes).collect())
}

/// The largest keys of the namespace with their bytes, the largest first; none if the user may not ask.
/// Walks the server's keys in small steps, and looks at 50,000 of them at the most.
///
/// # Errors
/// If the server cannot be asked.
pub async fn largest(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    count: usize,
) -> Result<Vec<(String, u64)>, BusError> {
    let mut largest: Vec<(String, u64)> = Vec::new();
    let mut seen = 0;
    for pattern in keys.patterns() {
        let mut cursor = "0".to_owned();
        loop {
            let page = redis::cmd("SCAN")
                .arg(&cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(STEP)
                .query_async(connection)
                .await;
            let page: Option<(String, Vec<String>)> = allowed(page.map_err(BusError::from))?;
            let Some((next, page)) = page else {
                return Ok(largest);
            };
            seen += page.len();
            let names: Vec<&str> = page.iter().map(String::as_str).collect();
            let bytes = of_keys(connection, &names).await?;
            let sized = page.into_iter().zip(bytes);
            largest.extend(sized.filter_map(|(key, bytes)| Some((key, bytes?))));
            largest.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
            largest.dedup();
            largest.truncate(count);
            cursor = next;
            if cursor == "0" || seen >= LOOKED_AT {
                break;
            }
        }
    }
    Ok(largest)
}
