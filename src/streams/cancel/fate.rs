//! How an event is named that is to be cancelled, how it stands, and what became of it.

use super::found::{Found, Place};
use crate::connect::error::BusError;
use crate::protocol::entry::EntryId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of a reason at the most.
pub const MAX_REASON: usize = 256;

/// Which event is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// The event of that id: its own, or its entry's if it has none.
    Id(String),
    /// The event that was added, or moved, as that entry.
    Entry(EntryId),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Id(id) => f.write_str(id),
            Name::Entry(entry) => entry.fmt(f),
        }
    }
}

/// How an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Known to nobody: never here, or trimmed since.
    Unknown,
    /// Ended.
    Finished,
    /// Not read yet, or parked.
    Waiting,
    /// In the delay queue: for its time, or for its next try.
    Delayed,
    /// In the hands of a worker.
    Running,
}

impl Standing {
    /// Its word in the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Unknown => "unknown",
            Standing::Finished => "finished",
            Standing::Waiting => "waiting",
            Standing::Delayed => "delayed",
            Standing::Running => "running",
        }
    }
}

/// Who cancels, why, and what becomes of the events.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Who.
    pub by: String,
    /// Why: requesters are told.
    pub reason: String,
    /// Whether they become dead letters.
    pub keep: bool,
}

/// The note that an event was cancelled, which is kept for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancellation {
    /// By whom.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When, in Unix ms on the server.
    pub at: u64,
}

/// What became of an event that was to be cancelled, or would.
#[derive(Clone, Debug)]
pub struct Fate {
    /// How it was named.
    pub name: Name,
    /// How it stood.
    pub state: Standing,
    /// Whether it is cancelled now, by this call or an earlier one.
    pub cancelled: bool,
    /// The event's id, where it was found.
    pub id: Option<String>,
    /// Its type.
    pub kind: Option<String>,
    /// Its entry, where it is, or was, in its stream.
    pub entry: Option<EntryId>,
    /// Who had it in hand.
    pub instance: Option<String>,
    /// Whether whoever asked for it was told; `None` if nobody asked.
    pub told: Option<bool>,
    /// The earlier cancellation.
    pub earlier: Option<Cancellation>,
    /// Whether entries of several partitions are called so: then nothing is done.
    pub several: bool,
}

impl Fate {
    /// Of an event that nobody knows.
    pub fn of(name: &Name) -> Self {
        Self {
            name: name.clone(),
            state: Standing::Unknown,
            cancelled: false,
            id: None,
            kind: None,
            entry: None,
            instance: None,
            told: None,
            earlier: None,
            several: false,
        }
    }

    /// Takes in what was found. Of several the one that is in most hands counts.
    pub(super) fn see(&mut self, found: &Found) {
        if found.state < self.state || self.cancelled {
            return;
        }
        self.state = found.state;
        self.id = Some(found.id());
        self.kind = found.kind().map(str::to_owned);
        self.entry = found.place.entry();
        self.instance = match &found.place {
            Place::Entry { owner, .. } if !owner.is_empty() => Some(owner.clone()),
            _ => None,
        };
    }
}

/// Why nothing, or not all, was cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// The way to the server.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The domain cannot be.
    #[error("domain: {0}")]
    Domain(String),
    /// The reason is too long.
    #[error("reason: {0} bytes are over the limit of {MAX_REASON}")]
    Reason(usize),
    /// More entries would be looked at than may be.
    #[error(
        "the stream, the delay queue and what is parked of {domain} hold over {limit} entries: name the entry, or use `convoke cancel`, which looks through all of them"
    )]
    TooMany {
        /// The domain.
        domain: String,
        /// How many may be.
        limit: usize,
    },
    /// The server refused to write.
    #[error("{0}: nothing of it was written")]
    Refused(String),
}
