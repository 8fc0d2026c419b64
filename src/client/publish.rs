//! What is published, and the three things that [a publisher knows](crate::docs::protocol#what-a-publisher-knows).
//!
//! *Stored*, *rejected* or *unknown*: an error reply of the server means that nothing was stored,
//! for every command that is sent here; no reply at all means that nobody knows.

use crate::connect::clock::{local_now, whole_ms};
use crate::connect::error::BusError;
use crate::connect::loaded::ADVICE;
use crate::connect::resp::wire::{Commands, Token, Tokens, server_error};
use crate::connect::script::script;
use crate::protocol::digits::Digits;
use crate::protocol::event::{self, EntryId, Limits};
use crate::protocol::keys::{self, Keys};
use crate::streams::delay;
use redis::{Cmd, RedisError, Script, Value};
use serde::Serialize;
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;
use uuid::Uuid;

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
}

/// When an event is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Now,
    /// This many ms from now by the server's clock.
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

    /// It counts as stored only when this many replicas have it, at least 1, within that time. A failover
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

    /// Which partition of its domain it belongs to: by subject, else by id, else any.
    pub(crate) fn partition(&self, keys: &Keys) -> u16 {
        let domain = keys::domain_of(&self.kind);
        match self.subject.as_ref().or(self.id.as_ref()) {
            Some(key) => keys.partition_of(domain, key),
            None => fastrand::u16(0..keys.partitions(domain)),
        }
    }

    /// Checks it against the protocol and makes the command that stores it in that partition.
    pub(crate) fn prepare(
        &self,
        keys: &Keys,
        partition: u16,
        defaults: &Defaults,
    ) -> Result<Prepared, PublishError> {
        let mut command = Cmd::new();
        self.write(&mut command, &mut Streams::of(keys), partition, defaults)?;
        let scripted = self.is_scripted();
        Ok(Prepared { command, scripted })
    }

    /// Whether storing it calls [`PUBLISH`].
    pub(crate) fn is_scripted(&self) -> bool {
        self.dedup || self.when != When::Now
    }

    /// Checks it against the protocol and writes the command that stores it in that partition. What
    /// is rejected leaves nothing behind.
    pub(crate) fn write(
        &self,
        to: &mut impl Words,
        streams: &mut Streams<'_>,
        partition: u16,
        defaults: &Defaults,
    ) -> Result<(), PublishError> {
        keys::check_event_type(&self.kind).map_err(PublishError::rejected)?;
        let keys = streams.keys;
        let domain = keys::domain_of(&self.kind);
        let stream = streams.name(domain, partition);
        let (now, deadline) = (Digits::of(local_now()), self.deadline.map(Digits::of));
        let fields = self.fields(defaults, &now, deadline.as_ref())?;
        // The reader's own check, so that what passes here passes there.
        event::check(fields.pairs(), &defaults.limits, keys, stream)
            .map_err(PublishError::rejected)?;
        if let Some(confirm) = self.confirm
            && (confirm.replicas == 0 || confirm.within.is_zero())
        {
            return Err(PublishError::rejected(
                "confirm: needs at least 1 replica and 1 ms",
            ));
        }
        if !self.is_scripted() {
            to.begin(3 + 2 * fields.count());
            to.word(b"XADD");
            to.word(stream.as_bytes());
            to.word(b"*");
            fields.words().for_each(|word| to.word(word));
            return Ok(());
        }
        let dedup_key = match (&self.id, self.dedup) {
            (_, false) => None,
            (Some(id), true) => Some(keys.dedup(domain, partition, id)),
            (None, true) => return Err(PublishError::rejected("dedup: needs an id")),
        };
        let later = match self.when {
            When::Now => None,
            When::After(ms) | When::At(ms) if ms >= delay::MAX_DUE / 2 => {
                let reason = "delay, at: farther away than the delay queue can tell";
                return Err(PublishError::rejected(reason));
            }
            When::After(ms) => Some((&b"after"[..], ms)),
            When::At(ms) => Some((&b"at"[..], ms)),
        };
        let arguments = match later {
            None => 1 + 2 * fields.count(),
            Some(_) => 3,
        };
        let keys_count = if dedup_key.is_some() { 3 } else { 2 };
        to.begin(4 + keys_count + arguments);
        to.word(b"EVALSHA");
        to.word(PUBLISH.get_hash().as_bytes());
        to.word(Digits::of(keys_count as u64).as_ref());
        to.word(stream.as_bytes());
        to.word(keys.delayed(domain, partition).as_bytes());
        if let Some(key) = dedup_key {
            to.word(key.as_bytes());
        }
        let window = whole_ms(defaults.dedup_window).max(1);
        to.word(Digits::of(window).as_ref());
        match later {
            None => {
                to.word(b"now");
                fields.words().for_each(|word| to.word(word));
            }
            Some((word, ms)) => {
                to.word(word);
                to.word(Digits::of(ms).as_ref());
                let (token, words) = (Uuid::now_v7().to_string(), fields.words());
                let words: Vec<&[u8]> = words.collect();
                to.word(&delay::encode_member(&token, &words));
            }
        }
        Ok(())
    }

    /// Its fields; fails if the payload could not be encoded or a name is not the publisher's to give.
    fn fields<'a>(
        &'a self,
        defaults: &'a Defaults,
        now: &'a Digits,
        deadline: Option<&'a Digits>,
    ) -> Result<Fields<'a>, PublishError> {
        let data = self.data.as_ref().map_err(PublishError::rejected)?;
        for (name, _) in &self.extra {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            if name.is_empty()
                || !name.bytes().all(plain)
                || name == "attempt"
                || (self.dedup && name == "dedup")
            {
                return Err(PublishError::rejected(format_args!(
                    "field {name:?}: is the bus's, or not of lower-case letters and digits"
                )));
            }
        }
        fn text(text: &Option<String>) -> Option<&[u8]> {
            text.as_deref().map(str::as_bytes)
        }
        let source = text(&self.source).or(text(&defaults.source));
        let known = [
            ("type", Some(self.kind.as_bytes())),
            ("data", data.as_deref()),
            ("id", text(&self.id)),
            ("source", source),
            ("subject", text(&self.subject)),
            ("replyto", text(&self.reply_to)),
            ("traceparent", text(&self.traceparent)),
            ("time", text(&self.time).or(Some(now.as_ref()))),
            ("deadline", deadline.map(AsRef::as_ref)),
        ];
        let extra = &self.extra;
        Ok(Fields { known, extra })
    }
}

/// The fields of an event, to be checked and written.
struct Fields<'a> {
    known: [(&'static str, Option<&'a [u8]>); 9],
    extra: &'a [(String, Vec<u8>)],
}

impl Fields<'_> {
    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let known = self.known.iter();
        let known = known.filter_map(|(name, value)| Some((name.as_bytes(), (*value)?)));
        let extra = self.extra.iter();
        known.chain(extra.map(|(name, value)| (name.as_bytes(), value.as_slice())))
    }

    fn words(&self) -> impl Iterator<Item = &[u8]> {
        self.pairs().flat_map(|(name, value)| [name, value])
    }

    fn count(&self) -> usize {
        self.pairs().count()
    }
}

/// Takes a command word by word.
pub(crate) trait Words {
    /// A command of this many words follows.
    fn begin(&mut self, words: usize);
    /// The next word.
    fn word(&mut self, word: &[u8]);
}

impl Words for Commands {
    fn begin(&mut self, words: usize) {
        Commands::begin(self, words);
    }

    fn word(&mut self, word: &[u8]) {
        Commands::word(self, word);
    }
}

impl Words for Cmd {
    fn begin(&mut self, _: usize) {}

    fn word(&mut self, word: &[u8]) {
        self.arg(word);
    }
}

/// Names of streams of events; the last one is kept, which most events in a row share.
pub(crate) struct Streams<'a> {
    keys: &'a Keys,
    last: Option<(String, u16, String)>,
}

impl<'a> Streams<'a> {
    pub(crate) fn of(keys: &'a Keys) -> Self {
        Self { keys, last: None }
    }

    pub(crate) fn keys(&self) -> &'a Keys {
        self.keys
    }

    fn name(&mut self, domain: &str, partition: u16) -> &str {
        let last = self.last.take();
        let same = last.filter(|(of, at, _)| of == domain && *at == partition);
        let make = || {
            (
                domain.to_owned(),
                partition,
                self.keys.events(domain, partition),
            )
        };
        &self.last.insert(same.unwrap_or_else(make)).2
    }
}

/// What holds for every event of one client.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    pub source: Option<String>,
    pub limits: Limits,
    pub dedup_window: Duration,
}

/// A command that stores one event.
pub(crate) struct Prepared {
    pub command: Cmd,
    /// Whether it calls [`PUBLISH`].
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
        /// Whether the event itself is at fault, so that it would be refused again.
        lasting: bool,
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
#[non_exhaustive]
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
    /// It is stored, and the server cannot tell how many replicas have it.
    #[error("stored, but it cannot be confirmed here, the server refuses WAIT: {reason}")]
    NoConfirmation {
        /// Where it is.
        published: Published,
        /// What the server said.
        reason: String,
    },
}

fn id_in_brackets(id: &Option<String>) -> String {
    id.as_ref().map_or(String::new(), |id| format!(" ({id:?})"))
}

impl PublishError {
    /// The event cannot be published as it is.
    pub(crate) fn rejected(reason: impl fmt::Display) -> Self {
        PublishError::Rejected {
            reason: reason.to_string(),
            code: None,
            lasting: true,
        }
    }

    /// There was no connection to send it on.
    pub(crate) fn unsent(reason: impl fmt::Display) -> Self {
        PublishError::Rejected {
            reason: reason.to_string(),
            code: None,
            lasting: false,
        }
    }

    /// After the command was sent. An error reply means that it did not run.
    pub(crate) fn after_sending(error: RedisError, id: &Option<String>) -> Self {
        match error.code() {
            Some("NOSCRIPT") => PublishError::no_script(),
            Some(code) => PublishError::Rejected {
                reason: error.to_string(),
                code: Some(code.to_owned()),
                lasting: false,
            },
            None => PublishError::no_answer(error.into(), id),
        }
    }

    /// The server lacks the script, and this user may not load it.
    pub(crate) fn no_script() -> Self {
        PublishError::Rejected {
            reason: format!("delay, at, dedup: {ADVICE}"),
            code: Some("NOSCRIPT".into()),
            lasting: false,
        }
    }

    pub(crate) fn no_answer(error: BusError, id: &Option<String>) -> Self {
        PublishError::Unknown {
            id: id.clone(),
            source: Doubt::NoAnswer(error),
        }
    }
}

/// What a server said to a command that stores an event.
pub(crate) enum Answer<'a> {
    /// Where the event is: an entry id or a due time.
    Stored(&'a [u8]),
    /// The same from [`PUBLISH`], whether it is a duplicate, and whether something was written.
    Scripted(&'a [u8], bool, bool),
    Refused(RedisError),
    Unclear,
}

impl<'a> From<&'a Value> for Answer<'a> {
    fn from(reply: &'a Value) -> Self {
        match reply {
            Value::ServerError(error) => Answer::Refused(error.clone().into()),
            Value::BulkString(place) => Answer::Stored(place),
            Value::Array(parts) => match parts.as_slice() {
                [
                    Value::BulkString(place),
                    Value::Int(duplicate),
                    Value::Int(renewed),
                ] => Answer::Scripted(place, *duplicate == 1, *renewed == 1),
                _ => Answer::Unclear,
            },
            _ => Answer::Unclear,
        }
    }
}

impl<'a> From<Tokens<'a>> for Answer<'a> {
    fn from(mut reply: Tokens<'a>) -> Self {
        match reply.token() {
            Ok(Token::Error(text)) => match server_error(text) {
                BusError::Redis(error) => Answer::Refused(error),
                _ => Answer::Unclear,
            },
            Ok(Token::Bulk(place)) => Answer::Stored(place),
            Ok(Token::Array(3)) => match (reply.token(), reply.token(), reply.token()) {
                (Ok(Token::Bulk(place)), Ok(Token::Int(duplicate)), Ok(Token::Int(renewed))) => {
                    Answer::Scripted(place, duplicate == 1, renewed == 1)
                }
                _ => Answer::Unclear,
            },
            _ => Answer::Unclear,
        }
    }
}

impl Answer<'_> {
    /// Where the event is, and whether what `WAIT` confirms next includes it.
    pub(crate) fn published(self, id: &Option<String>) -> Result<(Published, bool), PublishError> {
        let (place, duplicate, covered) = match self {
            Answer::Stored(place) => (place, false, true),
            Answer::Scripted(place, duplicate, renewed) => (place, duplicate, renewed),
            Answer::Refused(error) => return Err(PublishError::after_sending(error, id)),
            Answer::Unclear => return Err(unclear(id)),
        };
        if let Some(entry) = EntryId::parse(place).filter(|_| place.contains(&b'-')) {
            return Ok((Published::Stored { entry, duplicate }, covered));
        }
        let due = std::str::from_utf8(place).ok().and_then(|p| p.parse().ok());
        let due_ms = due.ok_or_else(|| unclear(id))?;
        Ok((Published::Scheduled { due_ms, duplicate }, covered))
    }
}

fn unclear(id: &Option<String>) -> PublishError {
    PublishError::no_answer(BusError::Reply { what: "publish" }, id)
}
