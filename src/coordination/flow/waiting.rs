//! A group with something that it did not settle.

use crate::protocol::keys::StreamName;
use redis::{FromRedisValue, Value};
use std::collections::HashMap;

/// A group of a stream with something that it did not settle.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) stream: StreamName,
    pub(super) group: String,
    pub(super) consumers: u64,
    pub(super) pending: u64,
    /// Entries that nobody was given yet, as far as the server can tell.
    pub(super) lag: Option<u64>,
    pub(super) delivered: String,
    pub(super) settled: Option<u64>,
}

impl Waiting {
    pub(super) fn read(name: &StreamName, group: &Value) -> Option<Self> {
        let fields: HashMap<String, Value> = FromRedisValue::from_redis_value_ref(group).ok()?;
        let number = |field: &str| match fields.get(field) {
            Some(Value::Int(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let text = |field: &str| match fields.get(field) {
            Some(Value::BulkString(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        };
        let pending = number("pending")?;
        let read = number("entries-read");
        Some(Self {
            stream: name.clone(),
            group: text("name")?,
            consumers: number("consumers")?,
            pending,
            lag: number("lag"),
            delivered: text("last-delivered-id")?,
            settled: read.map(|read| read.saturating_sub(pending)),
        })
    }

    pub(super) fn waits(&self) -> bool {
        self.pending > 0 || self.lag != Some(0)
    }

    pub(super) fn undelivered(&self) -> String {
        match self.lag {
            Some(lag) => format!("{lag} entries"),
            None => "entries".to_owned(),
        }
    }
}
