//! What becomes of a delivery, and the commands that make it so.

use crate::connect::clock::whole_ms;
use crate::connect::epoch::Epoch;
use crate::connect::error::BusError;
use crate::protocol::dead::DeadLetter;
use crate::protocol::digits::{Digits, IdText};
use crate::protocol::entry::EntryId;
use crate::protocol::keys::StreamKeys;
use crate::streams::delay;
use crate::streams::outbox;
use redis::aio::ConnectionLike;
use std::time::{Duration, Instant};

/// Events that one run may publish: they are all stored in one step.
pub const MAX_PUBLICATIONS: usize = 250;

/// A reply or a result, ready to be stored.
#[derive(Clone, Debug)]
pub struct ReplyEntry {
    /// The stream that the requester named; `None` for the results of the domain.
    pub to: Option<String>,
    /// The event's id.
    pub correlation_id: String,
    /// The event's type followed by `.result`.
    pub kind: String,
    /// `ok` or an error code.
    pub status: &'static str,
    /// The result or the error.
    pub data: Vec<u8>,
    /// What `data` is, if it is not MessagePack.
    pub content: Option<&'static str>,
}

/// An entry for a stream: names and values in turn.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The stream.
    pub stream: String,
    /// Names and values in turn.
    pub fields: Vec<Vec<u8>>,
}

impl Publication {
    /// A fact for all who read that stream: whose it is, and when it was so, in ms since 1970.
    pub(crate) fn fact(stream: &str, kind: &str, source: &str, at: u64, data: Vec<u8>) -> Self {
        let fields: [(&str, Vec<u8>); 4] = [
            ("type", kind.into()),
            ("source", source.into()),
            ("time", at.to_string().into_bytes()),
            ("data", data),
        ];
        let pairs = fields
            .into_iter()
            .flat_map(|(name, value)| [name.into(), value]);
        Self {
            stream: stream.to_owned(),
            fields: pairs.collect(),
        }
    }

    /// Stores it now, by itself.
    pub async fn store(&self, connection: &mut impl ConnectionLike) -> Result<(), BusError> {
        let mut command = redis::cmd("XADD");
        command.arg(&self.stream).arg("*").arg(&self.fields);
        Ok(command.exec_async(connection).await?)
    }
}

/// What is remembered for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Its key.
    pub key: String,
    /// What it says.
    pub value: Vec<u8>,
    /// For how long.
    pub kept: Duration,
}

/// What becomes of the event itself.
#[derive(Clone, Debug)]
pub enum Disposition {
    /// The event is done with.
    Done,
    /// The event runs again after a wait, as these fields.
    Later {
        /// The fields of the event that will be published.
        fields: Vec<Vec<u8>>,
        /// From now on.
        wait: Duration,
    },
    /// The event will not run again, and its reply says so; where that cannot be written, this is kept.
    Told(Box<DeadLetter>),
    /// The event will not run again.
    Dead(Box<DeadLetter>),
}

/// Which delivery of which entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// Index of the stream among those of the committer.
    pub stream: usize,
    /// The entry.
    pub entry: EntryId,
    /// How often it was delivered when it was handed to us.
    pub deliveries: u32,
    /// The claim counter that was known before the entry was read.
    pub claims: u64,
    /// When it was handed to us.
    pub since: Instant,
}

/// The end of one delivery: what to write, and then to acknowledge.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Which delivery.
    pub receipt: Receipt,
    /// What the requester gets, or the results stream.
    pub reply: Option<ReplyEntry>,
    /// What the handler publishes.
    pub publications: Vec<Publication>,
    /// What becomes of the event.
    pub disposition: Disposition,
    /// The history of the server in which the run began, where the outcome reports what the run wrote
    /// there by itself, or in which the event was judged to be the first of its id, or a repeat; `None` for others.
    pub epoch: Option<Epoch>,
    /// What is remembered of the event.
    pub notes: Vec<Note>,
}

/// How the settlements of a batch ended.
#[derive(Debug, Default)]
pub struct Tally {
    /// Written and acknowledged.
    pub committed: u64,
    /// Of those, events that are tried again.
    pub retried: u64,
    /// Of those, events that became dead letters.
    pub dead: u64,
    /// Not ours any more: discarded whole.
    pub fenced: u64,
    /// Left pending: the server is in a later history than the run, which is to be repeated.
    pub outdated: u64,
    /// Left pending: a key that must be written has the wrong type. With what happened.
    pub refused: Vec<(Receipt, String)>,
    /// Left pending since the committer was told to stop while the server was away.
    pub abandoned: u64,
    /// Which ones were not written, for whatever reason.
    pub unwritten: Vec<Receipt>,
}

impl Tally {
    /// Counts one that was written.
    pub(crate) fn count(&mut self, disposition: &Disposition) {
        self.committed += 1;
        match disposition {
            Disposition::Done | Disposition::Told(_) => {}
            Disposition::Later { .. } => self.retried += 1,
            Disposition::Dead(_) => self.dead += 1,
        }
    }
}

/// One command of a settlement, and what it is worth.
pub struct Effect<'a> {
    /// Name, key, arguments.
    pub words: &'a [&'a [u8]],
    /// The type that the key must have, or none; [`ANY`] replaces whatever is there.
    pub key_type: &'static str,
    /// What becomes of the settlement without it.
    pub worth: Worth,
}

/// The type of a key that may hold what it likes.
pub const ANY: &str = "any";

/// What becomes of a settlement where one of its commands has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// The settlement does not go through.
    Needed,
    /// The settlement goes through.
    Optional,
    /// The settlement goes through; the command needs a key that is there, and makes none.
    There,
    /// The command is run only where the one before it could not be.
    Instead,
}

impl Worth {
    /// The word for `commit.lua`.
    pub fn as_str(self) -> &'static str {
        match self {
            Worth::Needed => "needed",
            Worth::Optional => "optional",
            Worth::There => "there",
            Worth::Instead => "instead",
        }
    }
}

impl Effect<'_> {
    /// The key that is written.
    pub fn key(&self) -> &[u8] {
        self.words[1]
    }

    /// The key as text: where a dead letter says that it was to go.
    pub fn stream(&self) -> String {
        String::from_utf8_lossy(self.key()).into_owned()
    }

    /// The fields of what is added to a stream.
    pub fn fields(&self) -> Vec<Vec<u8>> {
        let fields = self.words.iter().skip_while(|word| **word != b"*").skip(1);
        fields.map(|word| word.to_vec()).collect()
    }
}

/// What the commands of a settlement depend on besides it.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The keys of the delivery's stream.
    pub route: &'a StreamKeys,
    /// The consumer's name.
    pub consumer: &'a str,
    /// Unix milliseconds on the server.
    pub now: u64,
    /// Whether what is published into another slot goes through the outbox.
    pub outbox: bool,
    /// About how many replies a reply stream keeps; `None` where the next reply to it, in the same
    /// transaction, sees to that.
    pub reply_history: Option<u64>,
}

impl Settlement {
    /// Whether its reply goes to the same stream as the other's.
    pub(crate) fn replies_where(&self, other: &Settlement) -> bool {
        match (&self.reply, &other.reply) {
            (Some(own), Some(other)) => own.to == other.to,
            _ => false,
        }
    }

    /// Gives each command, without the acknowledgement.
    pub fn effects(&self, place: Place<'_>, mut give: impl FnMut(Effect<'_>)) {
        let Place { route, .. } = place;
        match &self.disposition {
            Disposition::Done | Disposition::Told(_) => {}
            Disposition::Later { fields, wait } => {
                let due = Digits::of(place.now.saturating_add(whole_ms(*wait)));
                let member = delay::encode_member(&self.receipt.entry.to_string(), fields);
                give(Effect {
                    words: &[b"ZADD", route.delayed.as_bytes(), due.as_ref(), &member],
                    key_type: "zset",
                    worth: Worth::Needed,
                });
            }
            Disposition::Dead(letter) => {
                add(&route.dead, &letter.fields(), Worth::Needed, &mut give)
            }
        }
        for publication in &self.publications {
            let Publication { stream, fields } = publication;
            if !place.outbox || outbox::is_beside(stream, &route.events) {
                add(stream, fields, Worth::Needed, &mut give);
                continue;
            }
            let mut words: Vec<&[u8]> = Vec::with_capacity(5 + fields.len());
            words.extend([&b"XADD"[..], route.outbox.as_bytes(), b"*"]);
            words.extend([outbox::TO.as_bytes(), stream.as_bytes()]);
            words.extend(fields.iter().map(Vec::as_slice));
            give(Effect {
                words: &words,
                key_type: "stream",
                worth: Worth::Needed,
            });
        }
        if let Some(reply) = &self.reply {
            reply.effect(place, &mut give);
        }
        if let Disposition::Told(letter) = &self.disposition {
            add(&route.dead, &letter.fields(), Worth::Instead, &mut give);
        }
        for Note { key, value, kept } in &self.notes {
            let kept = Digits::of(whole_ms(*kept).max(1));
            give(Effect {
                words: &[b"SET", key.as_bytes(), value, b"PX", kept.as_ref()],
                key_type: ANY,
                worth: Worth::Needed,
            });
        }
    }

    /// Whether whoever asked may be impossible to tell: its stream must be there already.
    pub(crate) fn may_not_reach(&self) -> bool {
        let to_inbox = |reply: &ReplyEntry| reply.to.as_deref().is_some_and(is_inbox);
        matches!(self.disposition, Disposition::Told(_)) && self.reply.as_ref().is_none_or(to_inbox)
    }
}

/// Whether a place for replies is an inbox.
pub(crate) fn is_inbox(key: &str) -> bool {
    key.contains(":inbox:")
}

fn add(stream: &str, fields: &[Vec<u8>], worth: Worth, give: &mut impl FnMut(Effect<'_>)) {
    let mut words: Vec<&[u8]> = Vec::with_capacity(3 + fields.len());
    words.extend([&b"XADD"[..], stream.as_bytes(), b"*"]);
    words.extend(fields.iter().map(Vec::as_slice));
    give(Effect {
        words: &words,
        key_type: "stream",
        worth,
    });
}

impl ReplyEntry {
    fn effect(&self, place: Place<'_>, give: &mut impl FnMut(Effect<'_>)) {
        let kept = place.reply_history.filter(|_| self.to.is_some());
        let most = Digits::of(kept.unwrap_or_default());
        let now = Digits::of(place.now);
        let key = self.to.as_deref().unwrap_or(&place.route.results);
        let inbox = self.to.as_deref().is_some_and(is_inbox);
        // An inbox that a reply would make is nobody's, and would stay for good. A result stream is trimmed
        // by the workers, with an eye on its groups.
        let make_none: Option<&[u8]> = inbox.then_some(b"NOMKSTREAM");
        let cap = |word: &'static [u8]| kept.map(|_| word);
        let mut words: [&[u8]; 21] = [b""; 21];
        let mut length = 0;
        for word in [
            Some(&b"XADD"[..]),
            Some(key.as_bytes()),
            make_none,
            cap(b"MAXLEN"),
            cap(b"~"),
            kept.map(|_| most.as_ref()),
            Some(b"*"),
            Some(b"correlationid"),
            Some(self.correlation_id.as_bytes()),
            Some(b"type"),
            Some(self.kind.as_bytes()),
            Some(b"status"),
            Some(self.status.as_bytes()),
            Some(b"source"),
            Some(place.consumer.as_bytes()),
            Some(b"time"),
            Some(now.as_ref()),
            self.content.map(|_| &b"datacontenttype"[..]),
            self.content.map(str::as_bytes),
            Some(b"data"),
            Some(&self.data),
        ]
        .into_iter()
        .flatten()
        {
            words[length] = word;
            length += 1;
        }
        give(Effect {
            words: &words[..length],
            key_type: "stream",
            worth: if inbox { Worth::There } else { Worth::Optional },
        });
    }
}

impl Receipt {
    /// The entry's id as text.
    pub(crate) fn entry_text(&self) -> IdText {
        self.entry.into()
    }
}
