//! How much of the server's memory is used.

use crate::connect::error::{BusError, allowed};
use redis::aio::ConnectionLike;
use std::collections::HashMap;

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
