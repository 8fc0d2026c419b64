//! The fact that tells a cancellation.

use crate::protocol::entry::{Entry, EntryId};
use crate::protocol::event::payload_of;
use crate::streams::commit::Publication;
use serde::{Deserialize, Serialize};

/// Its type.
const FACT: &str = "event.cancelled";

/// What it holds.
#[derive(Serialize)]
pub(super) struct Told<'a> {
    pub(super) id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) r#type: Option<&'a str>,
    pub(super) stream: &'a str,
    pub(super) entry: &'a str,
    pub(super) state: &'a str,
    pub(super) by: &'a str,
    pub(super) reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) instance: Option<&'a str>,
    pub(super) kept: bool,
}

impl Told<'_> {
    /// Its entry on the broadcast.
    pub(super) fn publication(&self, broadcast: String, now: u64) -> Publication {
        // Text can always be encoded.
        let data = rmp_serde::to_vec_named(self).unwrap_or_default();
        Publication::fact(&broadcast, FACT, self.by, now, data)
    }
}

/// An event that was taken from the consumer that had it in hand.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Taken {
    /// Its stream.
    pub stream: String,
    /// Its entry.
    entry: String,
    /// The consumer.
    pub instance: String,
    /// Who cancelled it.
    #[serde(default)]
    pub by: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

impl Taken {
    /// The entry.
    pub fn entry(&self) -> Option<EntryId> {
        EntryId::parse(self.entry.as_bytes())
    }

    /// Why, for people.
    pub fn why(&self) -> String {
        super::why(&self.by, &self.reason)
    }
}

/// What an entry of the broadcast says of an event that somebody had in hand, if it does.
pub fn taken_in(fact: &Entry) -> Option<Taken> {
    if fact.get("type") != Some(FACT.as_bytes()) {
        return None;
    }
    rmp_serde::from_slice(&payload_of(fact)?).ok()
}
