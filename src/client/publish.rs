//! What is published, and the three things that [a publisher knows](crate::docs::protocol#what-a-publisher-knows).
//!
//! *Stored*, *rejected* or *unknown*: an error reply of the server means that nothing was stored,
//! for every command that is sent here; no reply at all means that nobody knows.

mod command;
mod outcome;

pub(crate) use command::{Defaults, Prepared, Streams};
pub(crate) use outcome::Answer;
pub use outcome::{Doubt, PublishError, Published};

use crate::connect::script::script;
use crate::protocol::keys::{self, Keys};
use redis::Script;
use serde::Serialize;
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

/// The script that publishes later, or once only.
pub(crate) static PUBLISH: LazyLock<Script> = LazyLock::new(|| script(include_str!("publish.lua")));

/// An event to be published.
#[derive(Clone)]
pub struct Outgoing {
    kind: String,
    data: Result<Option<Vec<u8>>, String>,
    pub(crate) id: Option<String>,
    source: Option<String>,
    subject: Option<String>,
    time: Option<String>,
    pub(crate) reply_to: Option<String>,
    pub(crate) deadline: Option<u64>,
    traceparent: Option<String>,
    extra: Vec<(String, Vec<u8>)>,
    pub(crate) dedup: bool,
    pub(crate) when: When,
    pub(crate) confirm: Option<Confirm>,
    /// The partition that it was given to, whatever the bus says by now.
    place: Option<u16>,
}

/// When an event is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Now,
    /// A number of ms from now by the server's clock.
    After(u64),
    /// At that time, Unix ms by the server's clock.
    At(u64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirm {
    pub replicas: u32,
    pub within: Duration,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the payload: it may hold what must not be in a log.
        f.debug_struct("Outgoing")
            .field("type", &self.kind)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Outgoing {
    /// An event with a payload; structs become maps. A payload that cannot be encoded is rejected
    /// when the event is published.
    pub fn new<P: Serialize + ?Sized>(kind: impl Into<String>, payload: &P) -> Self {
        let data = rmp_serde::to_vec_named(payload)
            .map(Some)
            .map_err(|error| format!("data: cannot be encoded: {error}"));
        Self::with(kind.into(), data)
    }

    /// An event whose payload is encoded already: one MessagePack value.
    pub fn encoded(kind: impl Into<String>, data: Vec<u8>) -> Self {
        Self::with(kind.into(), Ok(Some(data)))
    }

    /// An event without payload, which means nil.
    pub fn bare(kind: impl Into<String>) -> Self {
        Self::with(kind.into(), Ok(None))
    }

    fn with(kind: String, data: Result<Option<Vec<u8>>, String>) -> Self {
        Self {
            kind,
            data,
            id: None,
            source: None,
            subject: None,
            time: None,
            reply_to: None,
            deadline: None,
            traceparent: None,
            extra: Vec::new(),
            dedup: false,
            when: When::Now,
            confirm: None,
            place: None,
        }
    }

    /// The publisher's unique id, 1 to 256 bytes. Without one the entry id serves.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Who publishes it; the client's source if not given.
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The ordering and partition key.
    #[must_use]
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// When it was published, RFC 3339 or Unix ms; the local clock's time if not given.
    #[must_use]
    pub fn time(mut self, time: impl Into<String>) -> Self {
        self.time = Some(time.into());
        self
    }

    /// The stream that gets the reply: a reply stream or an inbox. [`request`](crate::client::Client::request) sets it itself.
    #[must_use]
    pub fn reply_to(mut self, stream: impl Into<String>) -> Self {
        self.reply_to = Some(stream.into());
        self
    }

    /// Past this time (Unix ms) it is not run.
    #[must_use]
    pub fn deadline(mut self, unix_ms: u64) -> Self {
        self.deadline = Some(unix_ms);
        self
    }

    /// The W3C trace context that the handler's span belongs to.
    #[must_use]
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// A field of one's own: lower-case letters and digits, not one of the protocol's names. The field `dedup` of
    /// a plain `XADD` is refused beside [`dedup`](Self::dedup): an event would be a repeat of itself.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.extra.push((name.into(), value.into()));
        self
    }

    /// Whether the event is stored once only, however often it is published within the window.
    /// Needs an id; the same id belongs to the same type's domain and the same subject.
    #[must_use]
    pub fn dedup(mut self, dedup: bool) -> Self {
        self.dedup = dedup;
        self
    }

    /// Has the event run no sooner than after `delay`.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.when = When::After(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Has the event run no sooner than at that time (Unix ms, server clock).
    #[must_use]
    pub fn at(mut self, unix_ms: u64) -> Self {
        self.when = When::At(unix_ms);
        self
    }

    /// Counts the event as stored only when this many replicas have it, at least 1, within that time. A failover
    /// keeps it for sure if that is all of them: which one is promoted does not depend on who has it.
    #[must_use]
    pub fn confirm(mut self, replicas: u32, within: Duration) -> Self {
        self.confirm = Some(Confirm { replicas, within });
        self
    }

    /// The type.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Bytes of payload.
    pub(crate) fn size(&self) -> usize {
        match &self.data {
            Ok(Some(data)) => data.len(),
            _ => 0,
        }
    }

    /// Gives it to a partition, where its `replyto` lies.
    #[cfg(feature = "worker")]
    pub(crate) fn in_partition(mut self, partition: u16) -> Self {
        self.place = Some(partition);
        self
    }

    /// Which partition of its domain it belongs to: by subject, else by id, else any.
    pub(crate) fn partition(&self, keys: &Keys) -> u16 {
        if let Some(partition) = self.place {
            return partition;
        }
        let domain = keys::domain_of(&self.kind);
        match self.subject.as_ref().or(self.id.as_ref()) {
            Some(key) => keys.partition_of(domain, key),
            None => fastrand::u16(0..keys.partitions(domain)),
        }
    }
}
