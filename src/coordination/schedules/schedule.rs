//! One schedule: what is put, what is known of it, and the bounds on both.

use super::plan::{Clockwork, Missed};
use super::timing::{MAX_JITTER, Timing, When, rfc3339};
use crate::coordination::bounds::{invalid, named};
use crate::coordination::error::CoordinationError;
use crate::protocol::event::{self, Limits};
use crate::protocol::keys::{self, Keys};
use crate::protocol::msgpack::{self, PayloadLimits};
use serde::{Deserialize, Serialize};

/// How many schedules a namespace may have.
pub const MAX_SCHEDULES: usize = 500;
/// Bytes of the payload of a schedule's events.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Bytes of the name of who changes one.
pub(super) const MAX_BY: usize = 128;
/// Times that are told in advance.
pub const SHOWN: usize = 5;

/// A schedule as somebody wants it.
#[derive(Clone, Debug)]
pub struct ScheduleDraft {
    /// Its name.
    pub name: String,
    /// When it ticks.
    pub when: When,
    /// The type of its events.
    pub kind: String,
    /// Their payload, one MessagePack value.
    pub payload: Option<Vec<u8>>,
    /// Their subject.
    pub subject: Option<String>,
    /// What becomes of missed ticks.
    pub missed: Missed,
    /// Up to how long after its tick each event is stored.
    pub jitter_ms: u64,
    /// Whether it does not tick for now.
    pub paused: bool,
}

/// What is kept of it, except for the payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// When it ticks.
    #[serde(flatten)]
    pub when: When,
    /// The type of its events.
    #[serde(rename = "type")]
    pub kind: String,
    /// Their subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What becomes of missed ticks.
    pub missed: Missed,
    /// Up to how long after its tick each event is stored.
    pub jitter_ms: u64,
    /// Whether it does not tick for now.
    pub paused: bool,
    /// Bytes of the payload.
    pub payload_bytes: u64,
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// Rises with each change of the definition.
    pub version: u64,
    /// Who changed it last.
    pub by: String,
    /// When, Unix ms on the server.
    pub changed: u64,
    /// The tick that comes next.
    pub tick: Option<u64>,
    /// The last one that an event was stored for.
    pub last: Option<Stored>,
    /// Events that were stored so far.
    pub stored: u64,
    /// Ticks that none was stored for.
    pub left_out: u64,
}

/// The event of a tick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The tick, Unix ms.
    pub tick: u64,
    /// Its entry; of another slot than the control plane's it is not known, since an outbox moves it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// When it was stored, Unix ms on the server.
    pub at: u64,
    /// Where.
    pub stream: String,
}

impl ScheduleDraft {
    /// Checks it, and says when it ticks.
    pub(super) fn check(&self, keys: &Keys) -> Result<Timing, CoordinationError> {
        named("name", keys::check_name("schedule", &self.name))?;
        named("type", keys::check_event_type(&self.kind))?;
        if self.jitter_ms > MAX_JITTER {
            return Err(invalid(format!(
                "jitter_ms: {} is over the limit of {MAX_JITTER}",
                self.jitter_ms
            )));
        }
        if let Some(payload) = &self.payload {
            let limits = PayloadLimits {
                bytes: MAX_PAYLOAD,
                ..PayloadLimits::default()
            };
            msgpack::scan(payload, &limits)
                .map_err(|error| invalid(format!("payload: {error}")))?;
        }
        // The readers' own check, of an event as it will be.
        let id = event_id(&self.name, 1);
        let stream = keys.events(keys::domain_of(&self.kind), 0);
        let words = self.words();
        let pairs = words.chunks_exact(2);
        let pairs = pairs.map(|pair| (pair[0].as_slice(), pair[1].as_slice()));
        let pairs = pairs.chain([(&b"id"[..], id.as_bytes())]);
        event::check(pairs, &Limits::default(), keys, &stream)
            .map_err(|error| invalid(error.to_string()))?;
        self.when.timing()
    }

    /// The fields of its events, except for what each has of its own.
    pub(super) fn words(&self) -> Vec<Vec<u8>> {
        let mut words = vec![b"type".to_vec(), self.kind.clone().into_bytes()];
        if let Some(payload) = &self.payload {
            words.extend([b"data".to_vec(), payload.clone()]);
        }
        if let Some(subject) = &self.subject {
            words.extend([b"subject".to_vec(), subject.clone().into_bytes()]);
        }
        words
    }

    pub(super) fn definition(&self) -> Definition {
        Definition {
            when: self.when.clone(),
            kind: self.kind.clone(),
            subject: self.subject.clone(),
            missed: self.missed,
            jitter_ms: self.jitter_ms,
            paused: self.paused,
            payload_bytes: self.payload.as_ref().map_or(0, |data| data.len() as u64),
        }
    }

    pub(super) fn clockwork<'a>(&'a self, timing: &'a Timing) -> Clockwork<'a> {
        Clockwork {
            name: &self.name,
            timing,
            missed: self.missed,
            jitter: self.jitter_ms,
        }
    }
}

impl Definition {
    pub(super) fn clockwork<'a>(&self, name: &'a str, timing: &'a Timing) -> Clockwork<'a> {
        Clockwork {
            name,
            timing,
            missed: self.missed,
            jitter: self.jitter_ms,
        }
    }

    /// The stream for an event of that id.
    pub(super) fn stream(&self, keys: &Keys, id: &str) -> String {
        let domain = keys::domain_of(&self.kind);
        let key = self.subject.as_deref().unwrap_or(id);
        keys.events(domain, keys.partition_of(domain, key))
    }
}

/// The id of the event of a tick.
pub(super) fn event_id(name: &str, tick: u64) -> String {
    format!("{name}@{}", rfc3339(tick))
}
