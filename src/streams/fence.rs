//! The fence of a partition that one worker owns: what its former owner still sends changes nothing.
//!
//! Each change of owner raises a number beside the stream. Whoever owns the partition knows the number that it was raised
//! to, and every step that settles an entry, notes something of it or takes it over goes through only while it is that
//! one: a script by `fenced.lua`, a transaction since it watches the key. The number is never learned again: where it is
//! another one, or is gone, the partition is lost for good, and its lane ends.

use crate::connect::epoch::Epoch;
use crate::connect::error::BusError;
use crate::mutex::locked;
use crate::protocol::entry::EntryId;
use redis::ScriptInvocation;
use std::collections::HashSet;
use std::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// What is put before the scripts that only the owner may run.
pub(crate) const FENCED: &str = include_str!("fenced.lua");
/// What such a script says to anybody else.
const NOT_OWNER: &str = "NOTOWNER";

/// See the module.
#[derive(Debug)]
pub struct Fence {
    key: String,
    number: String,
    held: String,
    /// Entries of which something may be noted.
    noted: Mutex<HashSet<EntryId>>,
    lost: CancellationToken,
    /// The history of the server's data in which the partition became its own.
    epoch: Option<Epoch>,
}

impl Fence {
    /// Of a partition whose fence was raised to that number. What waits in its place is noted under `held`; `lost` is told
    /// when there is another owner.
    #[doc(hidden)]
    pub fn new(key: &str, number: u64, held: &str, lost: CancellationToken) -> Self {
        Self {
            key: key.to_owned(),
            number: number.to_string(),
            held: held.to_owned(),
            noted: Mutex::default(),
            lost,
            epoch: None,
        }
    }

    /// The same, only in that history of the server's data: in another one an outcome may be forgotten that was committed,
    /// and what is known here is out of order.
    #[doc(hidden)]
    #[must_use]
    pub fn in_epoch(self, epoch: Epoch) -> Self {
        let epoch = Some(epoch);
        Self { epoch, ..self }
    }

    /// The only history in which it counts, if there is one.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The key of the number.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The hash of what waits in its place.
    pub(crate) fn held(&self) -> &str {
        &self.held
    }

    /// Whether there is another owner.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Takes what the server says of the number.
    pub(crate) fn stands_at(&self, number: Option<&[u8]>) {
        if number != Some(self.number.as_bytes()) {
            self.lost.cancel();
        }
    }

    /// Whether an error says that there is another owner; it is known from then on.
    pub fn hears(&self, error: &BusError) -> bool {
        let is_lost = error.code() == Some(NOT_OWNER);
        if is_lost {
            self.lost.cancel();
        }
        is_lost
    }

    /// Adds what a script with [`FENCED`] before it asks for, behind all else.
    pub(crate) fn add_to(&self, call: &mut ScriptInvocation<'_>) {
        call.key(&self.key).arg(&self.number);
    }

    /// Notes that something may be noted of an entry, from now until that is settled.
    #[doc(hidden)]
    pub fn notes(&self, entry: EntryId) {
        locked(&self.noted).insert(entry);
    }

    /// Notes that nothing is any more.
    #[doc(hidden)]
    pub fn forgets(&self, entry: EntryId) {
        locked(&self.noted).remove(&entry);
    }

    /// Gives the entries of which something may be noted.
    pub(crate) fn noted_of(&self, entries: impl Iterator<Item = EntryId>) -> Vec<EntryId> {
        let noted = locked(&self.noted);
        match noted.is_empty() {
            true => Vec::new(),
            false => entries.filter(|entry| noted.contains(entry)).collect(),
        }
    }
}
