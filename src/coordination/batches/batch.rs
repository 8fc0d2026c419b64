//! One batch: what is asked of it, what it came to, and the bounds on both.

use crate::coordination::bounds::invalid;
use crate::coordination::error::CoordinationError;
use crate::protocol::bounds::LEASE_MS;
use crate::protocol::keys;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha1_smol::Sha1;
use std::collections::HashMap;
use std::time::Duration;

/// Items of one batch.
pub const MAX_ITEMS: usize = 65_536;
/// Bytes of all items of one batch. The payload limit of events is usually the smaller one.
pub const MAX_BYTES: usize = 64 << 20;
/// Finished items that one commit covers at the most: this many are run again after a crash, and the
/// one that was under way.
pub const TOGETHER: usize = 32;
/// Failures of items that are recorded with a batch; all of them are counted.
pub const MAX_FAILURES: usize = 100;
/// Bytes of the reason why a batch is cancelled, and of who cancels it.
pub const MAX_REASON: usize = 256;
/// Bytes of a recorded failure's message.
pub const MAX_MESSAGE: usize = 256;

/// Who runs the items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The holder, one after another.
    #[default]
    Exclusive,
    /// All replicas over the bus; the holder coordinates.
    FanOut,
}

impl Mode {
    /// The name on the bus.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Exclusive => "exclusive",
            Mode::FanOut => "fan_out",
        }
    }
}

/// How far a batch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatus {
    /// Items are missing.
    #[default]
    Running,
    /// Every item is finished.
    Completed,
    /// Somebody cancelled it: what was finished stays, and nothing more is.
    Cancelled,
}

impl BatchStatus {
    /// The name on the bus.
    pub const fn as_str(self) -> &'static str {
        match self {
            BatchStatus::Running => "running",
            BatchStatus::Completed => "completed",
            BatchStatus::Cancelled => "cancelled",
        }
    }
}

/// What is to be done, as far as the shared state knows it: the items themselves stay with the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    pub(crate) id: String,
    pub(crate) item_type: String,
    pub(crate) mode: Mode,
    pub(crate) total: usize,
    pub(crate) lease_ms: u64,
    pub(crate) digest: String,
}

impl BatchPlan {
    /// Checks a batch; each item is one encoded MessagePack value.
    ///
    /// # Errors
    /// `Invalid`, naming the field.
    pub fn new(
        id: &str,
        item_type: &str,
        mode: Mode,
        items: &[Vec<u8>],
        lease_ms: u64,
    ) -> Result<Self, CoordinationError> {
        check_id(id)?;
        keys::check_event_type(item_type)
            .map_err(|error| invalid(format!("item_type: {error}")))?;
        if items.len() > MAX_ITEMS {
            let count = items.len();
            return Err(invalid(format!(
                "items: {count} are over the limit of {MAX_ITEMS}: make several batches"
            )));
        }
        let bytes: usize = items.iter().map(Vec::len).sum();
        if bytes > MAX_BYTES {
            return Err(invalid(format!(
                "items: {bytes} bytes are over the limit of {MAX_BYTES}: make several batches"
            )));
        }
        if !LEASE_MS.contains(&lease_ms) {
            let (least, most) = (LEASE_MS.start(), LEASE_MS.end());
            return Err(invalid(format!(
                "lease_ms: {lease_ms} is not {least} to {most}"
            )));
        }
        // It tells contents apart by accident only: who means to deceive may publish what it likes.
        let mut hash = Sha1::new();
        for part in [item_type.as_bytes(), b" ", mode.as_str().as_bytes()] {
            hash.update(part);
        }
        for item in items {
            hash.update(&(item.len() as u64).to_be_bytes());
            hash.update(item);
        }
        Ok(Self {
            id: id.to_owned(),
            item_type: item_type.to_owned(),
            mode,
            total: items.len(),
            lease_ms,
            digest: hash.digest().to_string(),
        })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How long its holder may keep it without a sign of life.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
}

/// An item that failed for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Failure {
    /// Which item, from 0.
    pub index: usize,
    /// The error code.
    pub code: String,
    /// What happened; cut to [`MAX_MESSAGE`] bytes.
    pub message: String,
}

/// A batch as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Its id.
    pub id: String,
    /// The event type of its items.
    pub item_type: String,
    /// Who runs the items.
    pub mode: Mode,
    /// How far it is.
    pub status: BatchStatus,
    /// The instance that holds it, or held it last.
    pub processor_id: String,
    /// Items that succeeded.
    pub processed: u64,
    /// Items that failed for good.
    pub failed: u64,
    /// All its items.
    pub total: u64,
    /// Rises with every holder.
    pub fence: u64,
    /// When its lease runs out, in Unix ms; 0 if nobody holds it.
    pub expires_at: u64,
    /// When it was first held, in Unix ms.
    pub started_at: u64,
    /// The last takeover or progress, in Unix ms.
    pub updated_at: u64,
    /// The first [`MAX_FAILURES`] failures, by index.
    pub failures: Vec<Failure>,
    /// By whom it was cancelled, and why.
    pub cancelled: Option<(String, String)>,
}

impl Batch {
    /// Reads the hash; `None` if it is gone.
    pub fn from_hash(hash: &HashMap<String, String>) -> Option<Batch> {
        let text = |name: &str| hash.get(name).map(String::as_str).unwrap_or_default();
        let number = |name: &str| text(name).parse().unwrap_or_default();
        let id = hash.get("id")?.clone();
        let mut failures: Vec<Failure> = hash
            .iter()
            .filter_map(|(field, value)| {
                let index = field.strip_prefix("failure:")?.parse().ok()?;
                let (code, message) = value.split_once(' ')?;
                Some(Failure {
                    index,
                    code: code.to_owned(),
                    message: message.to_owned(),
                })
            })
            .collect();
        failures.sort_by_key(|failure| failure.index);
        Some(Batch {
            id,
            item_type: text("item_type").to_owned(),
            mode: match text("mode") {
                "fan_out" => Mode::FanOut,
                _ => Mode::Exclusive,
            },
            status: match text("status") {
                "completed" => BatchStatus::Completed,
                "cancelled" => BatchStatus::Cancelled,
                _ => BatchStatus::Running,
            },
            processor_id: text("processor").to_owned(),
            processed: number("processed"),
            failed: number("failed"),
            total: number("total"),
            fence: number("fence"),
            expires_at: number("expires"),
            started_at: number("started_at"),
            updated_at: number("updated_at"),
            failures,
            cancelled: (text("status") == "cancelled")
                .then(|| (text("by").to_owned(), text("reason").to_owned())),
        })
    }
}

pub(crate) fn check_id(id: &str) -> Result<(), CoordinationError> {
    keys::check_name("batch", id).map_err(|error| invalid(format!("batch_id: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(id: &str, kind: &str, items: &[Vec<u8>], lease_ms: u64) -> String {
        match BatchPlan::new(id, kind, Mode::Exclusive, items, lease_ms) {
            Err(CoordinationError::Invalid(message)) => message,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn what_is_asked_is_bounded_and_the_message_names_the_field() {
        assert!(BatchPlan::new("b", "a.b", Mode::Exclusive, &[], 100).is_ok());
        assert!(refused("", "a.b", &[], 100).starts_with("batch_id: "));
        assert!(refused("a b", "a.b", &[], 100).starts_with("batch_id: "));
        assert!(refused("b", "a", &[], 100).starts_with("item_type: "));
        assert!(refused("b", "a.b", &[], 99).starts_with("lease_ms: "));
        assert!(refused("b", "a.b", &[], 86_400_001).starts_with("lease_ms: "));
        let many = vec![Vec::new(); MAX_ITEMS + 1];
        assert!(refused("b", "a.b", &many, 100).starts_with("items: 65537"));
        let long = [vec![0; MAX_BYTES], vec![0]];
        assert!(refused("b", "a.b", &long, 100).starts_with("items: 67108865"));
    }

    #[test]
    fn another_content_has_another_digest() {
        let of = |kind: &str, mode: Mode, items: &[&[u8]]| {
            let items: Vec<Vec<u8>> = items.iter().map(|item| item.to_vec()).collect();
            BatchPlan::new("b", kind, mode, &items, 100).unwrap().digest
        };
        let digests = [
            of("a.b", Mode::Exclusive, &[b"xy", b"z"]),
            of("a.c", Mode::Exclusive, &[b"xy", b"z"]),
            of("a.b", Mode::FanOut, &[b"xy", b"z"]),
            of("a.b", Mode::Exclusive, &[b"x", b"yz"]),
            of("a.b", Mode::Exclusive, &[b"z", b"xy"]),
            of("a.b", Mode::Exclusive, &[b"xyz"]),
        ];
        let different: std::collections::HashSet<&String> = digests.iter().collect();
        assert_eq!(different.len(), digests.len());
        assert_eq!(digests[0], of("a.b", Mode::Exclusive, &[b"xy", b"z"]));
    }
}
