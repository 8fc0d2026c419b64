//! What is published, and the three things that a publisher learns (PROTOCOL §4).
//!
//! *Stored*, *rejected* or *unknown*: an error reply of the server means that nothing was stored,
//! for every command that is sent here; no reply at all means that nobody knows.

use super::delay;
use super::error::BusError;
use super::event::{Entry, EntryId, Event, Limits};
use super::keys::{self, Keys};
use redis::{Cmd, RedisError, Script, Value};
use serde::Serialize;
use std::fmt;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

pub(super) static PUBLISH: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("publish.lua")));

/// An event to be published.
#[derive(Clone)]
pub struct Outgoing {
    kind: String,
    data: Result<Option<Vec<u8>>, String>,
    pub(super) id: Option<String>,
    source: Option<String>,
    subject: Option<String>,
    time: Option<String>,
    pub(super) reply_to: Option<String>,
    pub(super) deadline: Option<u64>,
    traceparent: Option<String>,
    extra: Vec<(String, Vec<u8>)>,
    pub(super) dedup: bool,
    pub(super) when: When,
    pub(super) confirm: Option<Confirm>,
}

/// When an event is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Now,
    /// So many ms from now by the server's clock.
    After(u64),
    /// At that time, Unix ms by the server's clock.
    At(u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Confirm {
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
    /// An event with a payload; structs become maps. A payload that can not be encoded is rejected
    /// when the event is published.
    pub fn new<P: Serialize + ?Sized>(kind: impl Into<String>, payload: &P) -> Self {
        let data = rmp_serde::to_vec_named(payload)
            .map(Some)
            .map_err(|error| format!("data: can not be encoded: {error}"));
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

    /// The stream that gets the reply: a reply stream or an inbox. [`request`](super::client::Client::request) sets it itself.
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

    /// A field of one's own: lower-case letters and digits, not one of the protocol's names.
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

    /// It is to run no sooner than after `delay`.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.when = When::After(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// It is to run no sooner than at that time (Unix ms, server clock).
    #[must_use]
    pub fn at(mut self, unix_ms: u64) -> Self {
        self.when = When::At(unix_ms);
        self
    }

    /// It counts as stored only when so many replicas have it, at least 1, within that time.
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
    pub(super) fn size(&self) -> usize {
        match &self.data {
            Ok(Some(data)) => data.len(),
            _ => 0,
        }
    }

    /// Which partition of its domain it belongs to: by subject, else by id, else any.
    pub(super) fn partition(&self, keys: &Keys) -> u16 {
        let domain = keys::domain_of(&self.kind);
        match self.subject.as_ref().or(self.id.as_ref()) {
            Some(key) => keys.partition_of(domain, key),
            None => fastrand::u16(0..keys.partitions(domain)),
        }
    }

    /// Checks it against the protocol and makes the command that stores it in that partition.
    pub(super) fn prepare(
        &self,
        keys: &Keys,
        partition: u16,
        defaults: &Defaults,
    ) -> Result<Prepared, PublishError> {
        keys::check_event_type(&self.kind).map_err(PublishError::rejected)?;
        let domain = keys::domain_of(&self.kind);
        let stream = keys.events(domain, partition);
        let fields = self.checked_fields(keys, &stream, defaults)?;
        if let Some(confirm) = self.confirm
            && (confirm.replicas == 0 || confirm.within.is_zero())
        {
            return Err(PublishError::rejected(
                "confirm: needs at least 1 replica and 1 ms",
            ));
        }
        let dedup_key = match (&self.id, self.dedup) {
            (_, false) => None,
            (Some(id), true) => Some(keys.dedup(domain, partition, id)),
            (None, true) => return Err(PublishError::rejected("dedup: needs an id")),
        };
        let delayed = keys.delayed(domain, partition);
        if dedup_key.is_none() && self.when == When::Now {
            let mut command = redis::cmd("XADD");
            command.arg(&stream).arg("*").arg(&fields);
            let scripted = false;
            return Ok(Prepared { command, scripted });
        }
        let mut command = redis::cmd("EVALSHA");
        command.arg(PUBLISH.get_hash());
        command.arg(if dedup_key.is_some() { 3 } else { 2 });
        command.arg(&stream).arg(&delayed).arg(&dedup_key);
        command.arg(defaults.dedup_window.as_millis().max(1) as u64);
        match self.when {
            When::Now => command.arg("now").arg(&fields),
            When::After(ms) | When::At(ms) => {
                if ms >= delay::MAX_DUE / 2 {
                    let reason = "delay, at: farther away than the delay queue can tell";
                    return Err(PublishError::rejected(reason));
                }
                let word = match self.when {
                    When::At(_) => "at",
                    _ => "after",
                };
                let token = Uuid::now_v7().to_string();
                command
                    .arg(word)
                    .arg(ms)
                    .arg(delay::encode_member(&token, &fields))
            }
        };
        let scripted = true;
        Ok(Prepared { command, scripted })
    }

    fn checked_fields(
        &self,
        keys: &Keys,
        stream: &str,
        defaults: &Defaults,
    ) -> Result<Vec<Vec<u8>>, PublishError> {
        let data = self.data.as_ref().map_err(PublishError::rejected)?;
        let mut fields: Vec<Vec<u8>> = Vec::with_capacity(12 + 2 * self.extra.len());
        let mut put = |name: &str, value: &[u8]| fields.extend([name.into(), value.into()]);
        put("type", self.kind.as_bytes());
        if let Some(data) = data {
            put("data", data);
        }
        let texts = [
            ("id", &self.id),
            (
                "source",
                if self.source.is_some() {
                    &self.source
                } else {
                    &defaults.source
                },
            ),
            ("subject", &self.subject),
            ("replyto", &self.reply_to),
            ("traceparent", &self.traceparent),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                put(name, value.as_bytes());
            }
        }
        match &self.time {
            Some(time) => put("time", time.as_bytes()),
            None => put("time", unix_ms().to_string().as_bytes()),
        }
        if let Some(deadline) = self.deadline {
            put("deadline", deadline.to_string().as_bytes());
        }
        for (name, value) in &self.extra {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            if name.is_empty() || !name.bytes().all(plain) || name == "attempt" {
                return Err(PublishError::rejected(format_args!(
                    "field {name:?}: is the bus's, or not of lower-case letters and digits"
                )));
            }
            put(name, value);
        }
        // The reader's own check, so that what passes here passes there.
        let entry = Entry::new(EntryId::default(), &fields);
        Event::parse(entry, &defaults.limits, keys, stream)
            .map(|_| fields)
            .map_err(|malformed| PublishError::rejected(malformed.message))
    }
}

/// What holds for every event of one client.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    pub source: Option<String>,
    pub limits: Limits,
    pub dedup_window: Duration,
}

/// A command that stores one event.
pub(super) struct Prepared {
    pub command: Cmd,
    /// Whether it calls [`PUBLISH`], which the server may have to be given first.
    pub scripted: bool,
}

/// Where a published event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// On its stream.
    Stored {
        /// Its entry id.
        entry: EntryId,
        /// Whether an earlier publish of the same id stored it (it may be an earlier try of this one).
        duplicate: bool,
    },
    /// In the delay queue.
    Scheduled {
        /// When it is due, Unix ms by the server's clock.
        due_ms: u64,
        /// Whether an earlier publish of the same id scheduled it.
        duplicate: bool,
    },
}

impl Published {
    /// The entry id; none if the event waits in the delay queue.
    pub fn entry(&self) -> Option<EntryId> {
        match *self {
            Published::Stored { entry, .. } => Some(entry),
            Published::Scheduled { .. } => None,
        }
    }

    /// Whether an earlier publish of the same id stored it.
    pub fn is_duplicate(&self) -> bool {
        match *self {
            Published::Stored { duplicate, .. } | Published::Scheduled { duplicate, .. } => {
                duplicate
            }
        }
    }
}

/// Why an event is not known to be stored.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Certainly not stored.
    #[error("not stored: {reason}")]
    Rejected {
        /// Why, and with which field or error code.
        reason: String,
        /// The server's error code, such as `OOM`, if it was the server that refused.
        code: Option<String>,
    },
    /// May be stored. Only an event with an id and `dedup` can be published again safely.
    #[error("may be stored{}: {source}", id_in_brackets(.id))]
    Unknown {
        /// The event's id, if it was given one.
        id: Option<String>,
        /// What is missing.
        source: Doubt,
    },
}

/// Why nobody knows whether an event is stored for good.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    /// No reply came, or none that makes sense.
    #[error("no answer: {0}")]
    NoAnswer(#[source] BusError),
    /// It is stored, but fewer replicas confirmed it than were asked for.
    #[error("stored, but confirmed by {confirmed} of {wanted} replicas in time")]
    Unconfirmed {
        /// Where it is.
        published: Published,
        /// Replicas that have it for sure.
        confirmed: u32,
        /// Replicas that were asked for.
        wanted: u32,
    },
}

fn id_in_brackets(id: &Option<String>) -> String {
    id.as_ref().map_or(String::new(), |id| format!(" ({id:?})"))
}

impl PublishError {
    pub(super) fn rejected(reason: impl fmt::Display) -> Self {
        PublishError::Rejected {
            reason: reason.to_string(),
            code: None,
        }
    }

    /// After the command was sent. An error reply means that it did not run.
    pub(super) fn after_sending(error: RedisError, id: &Option<String>) -> Self {
        match error.code() {
            Some(code) => PublishError::Rejected {
                reason: error.to_string(),
                code: Some(code.to_owned()),
            },
            None => PublishError::no_answer(error.into(), id),
        }
    }

    pub(super) fn no_answer(error: BusError, id: &Option<String>) -> Self {
        PublishError::Unknown {
            id: id.clone(),
            source: Doubt::NoAnswer(error),
        }
    }
}

/// What the reply to a [`Prepared`] command says, and whether what `WAIT` confirms next includes the event.
pub(super) fn published(
    reply: Value,
    id: &Option<String>,
) -> Result<(Published, bool), PublishError> {
    let unclear = || PublishError::no_answer(BusError::Reply { what: "publish" }, id);
    let place_of = |place: &[u8], duplicate: bool| {
        if let Some(entry) = EntryId::parse(place).filter(|_| place.contains(&b'-')) {
            return Ok(Published::Stored { entry, duplicate });
        }
        let due = std::str::from_utf8(place).ok().and_then(|p| p.parse().ok());
        due.map(|due_ms| Published::Scheduled { due_ms, duplicate })
            .ok_or_else(unclear)
    };
    match reply {
        Value::ServerError(error) => Err(PublishError::after_sending(error.into(), id)),
        Value::BulkString(place) => Ok((place_of(&place, false)?, true)),
        Value::Array(parts) => match parts.as_slice() {
            [
                Value::BulkString(place),
                Value::Int(duplicate),
                Value::Int(renewed),
            ] => Ok((place_of(place, *duplicate == 1)?, *renewed == 1)),
            _ => Err(unclear()),
        },
        _ => Err(unclear()),
    }
}

/// Unix milliseconds by the local clock.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
