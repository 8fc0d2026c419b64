//! How much of the server's memory is used.

use crate::connect::error::{BusError, allowed};
use crate::connect::reach::{Reach, address_of};
use futures_util::future::join_all;
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

/// What a server uses, or all nodes of a cluster together that answer and tell.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq)]
pub struct Together {
    /// The sum; without a limit where one has none.
    pub memory: Memory,
    /// How many nodes it is of.
    pub nodes: usize,
    /// Where the one is that uses most of its limit, and which part of it: it refuses what others would take. `None`
    /// where there are no several nodes, or no limits.
    pub fullest: Option<(String, f64)>,
}

impl Together {
    /// Asks all of them; `None` if none tells.
    ///
    /// # Errors
    /// If the only one cannot be asked.
    pub async fn look(reach: &Reach) -> Result<Option<Self>, BusError> {
        let alone = reach.nodes().len() == 1 && reach.is_whole();
        let asked = reach.nodes().iter().map(async |node| {
            let memory = Memory::look(&mut node.pooled().await?).await?;
            let address = match alone {
                true => String::new(),
                false => address_of(node).await,
            };
            Ok::<_, BusError>(memory.map(|memory| (address, memory)))
        });
        let mut each = Vec::new();
        for told in join_all(asked).await {
            match told {
                Err(error) if alone => return Err(error),
                // It is named where it is missed.
                Err(_) => {}
                Ok(told) => each.extend(told),
            }
        }
        Ok(Self::of(each).map(|told| match alone {
            true => Self {
                fullest: None,
                ..told
            },
            false => told,
        }))
    }

    /// Which part of its limit the fullest uses; `None` without limits.
    pub fn share(&self) -> Option<f64> {
        match &self.fullest {
            Some((_, share)) => Some(*share),
            None => self.memory.share(),
        }
    }

    /// Adds up what each tells; `None` if none does.
    fn of(each: Vec<(String, Memory)>) -> Option<Self> {
        let unlimited = each.iter().any(|(_, node)| node.limit == 0);
        let sum = |sum: u64, more: u64| sum.saturating_add(more);
        let memory = Memory {
            used: each.iter().map(|(_, node)| node.used).fold(0, sum),
            limit: match unlimited {
                true => 0,
                false => each.iter().map(|(_, node)| node.limit).fold(0, sum),
            },
        };
        let nodes = each.len();
        let shares = each.into_iter();
        let shares = shares.filter_map(|(address, node)| Some((address, node.share()?)));
        (nodes > 0).then(|| Self {
            memory,
            nodes,
            fullest: shares.max_by(|one, other| one.1.total_cmp(&other.1)),
        })
    }
}

/// The names and values of an answer to `INFO`.
pub(crate) fn pairs(text: &str) -> HashMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    let owned = pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    owned.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(each: &[(&str, u64, u64)]) -> Option<Together> {
        let each = each.iter().map(|(address, used, limit)| {
            let memory = Memory {
                used: *used,
                limit: *limit,
            };
            ((*address).to_owned(), memory)
        });
        Together::of(each.collect())
    }

    #[test]
    fn nodes_are_added_up_and_the_fullest_is_named() {
        let all = told(&[("a", 10, 100), ("b", 90, 100), ("c", 20, 100)]).unwrap();
        assert_eq!(
            (all.memory.used, all.memory.limit, all.nodes),
            (120, 300, 3)
        );
        assert_eq!(all.fullest, Some(("b".to_owned(), 0.9)));
    }

    #[test]
    fn where_one_has_no_limit_all_have_none_together() {
        let all = told(&[("a", 10, 0), ("b", 50, 100)]).unwrap();
        assert_eq!((all.memory.used, all.memory.limit), (60, 0));
        assert_eq!(all.fullest, Some(("b".to_owned(), 0.5)));
        assert_eq!(told(&[]), None);
    }
}
