//! The command that stores an event, checked as its reader will check it.

use super::outcome::PublishError;
use super::{Outgoing, PUBLISH, When};
use crate::connect::clock::{local_now, whole_ms};
use crate::connect::resp::wire::Commands;
use crate::protocol::digits::Digits;
use crate::protocol::event::{self, Limits};
use crate::protocol::keys::{self, Keys};
use crate::streams::delay;
use redis::Cmd;
use std::time::Duration;
use uuid::Uuid;

impl Outgoing {
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
        let (stream, made) = streams.place(domain, partition);
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
            to.begin(3 + usize::from(made) + 2 * fields.count());
            to.word(b"XADD");
            to.word(stream.as_bytes());
            if made {
                to.word(b"NOMKSTREAM");
            }
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
                to.word(if made { b"made" } else { b"now" });
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
    pub(super) extra: &'a [(String, Vec<u8>)],
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
    pub(super) keys: &'a Keys,
    last: Option<Place>,
}

/// The stream of a partition, and whether it was made.
struct Place {
    domain: String,
    partition: u16,
    stream: String,
    made: bool,
}

impl<'a> Streams<'a> {
    pub(crate) fn of(keys: &'a Keys) -> Self {
        Self { keys, last: None }
    }

    pub(crate) fn keys(&self) -> &'a Keys {
        self.keys
    }

    /// The stream of a partition, and whether it was made once.
    fn place(&mut self, domain: &str, partition: u16) -> (&str, bool) {
        let last = self.last.take();
        let same = last.filter(|last| last.domain == domain && last.partition == partition);
        let make = || Place {
            domain: domain.to_owned(),
            partition,
            stream: self.keys.events(domain, partition),
            made: self.keys.is_made(domain, partition),
        };
        let last = self.last.insert(same.unwrap_or_else(make));
        (&last.stream, last.made)
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
