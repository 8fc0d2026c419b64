//! Which event of one id is the first within a window, and what the others get to know.
//!
//! An event is named by the entry as which it was added. The name stands in the event's field `dedup` once the
//! bus has moved it to another entry, so it is the same whoever holds the event and however often it was tried.
//! Two keys, both of them for the window only:
//!
//! - The **mark** of the id holds the first one's name (`first.lua`). Publishing with deduplication leaves the same
//!   key, with the place of what it stored: that one came first, and does not ask.
//! - What is **said** of an event that somebody asked for, by its name and its id: where its reply goes and, once it
//!   has an end, the reply. Of one that ended unrun that is said, whoever asked. The name alone is no secret, and a
//!   forged event may carry it: it says things only to those of its own id.
//!
//! Asking changes nothing for whom asked before: the first is the first again. So whoever got no answer asks again.
//!
//! A first one that ended unrun (its deadline passed, or a layer refused it and its requester was told) is no dead
//! letter either, so it does not hold its id: the next one that asks takes the mark, if that still names it.

use crate::connect::clock::whole_ms;
use crate::connect::connector::Connector;
use crate::connect::epoch::Epoch;
use crate::connect::error::{BusError, Reaction};
use crate::connect::script::script;
use crate::protocol::entry::EntryId;
use crate::protocol::error::Code;
use crate::protocol::keys::Keys;
use crate::protocol::msgpack::{self, PayloadLimits};
use crate::streams::commit::settlement::Note;
use redis::Script;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::sync::Mutex;

static FIRST: LazyLock<Script> = LazyLock::new(|| script(include_str!("first.lua")));

/// Bytes of a reply that is kept for whoever asks again, at the most.
pub const KEPT: usize = 16 * 1024;

/// What is said of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Where its reply goes.
    to: String,
    /// How it ended, if it has.
    status: Option<String>,
    /// What its reply held, if that is not too much to be kept: MessagePack.
    data: Option<ByteBuf>,
    /// Whether it ended unrun: another one of its id may run.
    #[serde(default)]
    unrun: bool,
}

impl Said {
    /// Of an event that waits or runs.
    pub fn begun(to: &str) -> Self {
        Self {
            to: to.to_owned(),
            status: None,
            data: None,
            unrun: false,
        }
    }

    /// Of an event that ended with that reply.
    pub fn ended(to: &str, status: &str, data: &[u8]) -> Self {
        let kept = data.len() <= KEPT;
        Self {
            status: Some(status.to_owned()),
            data: kept.then(|| ByteBuf::from(data)),
            ..Self::begun(to)
        }
    }

    /// Of an event that ended without a run, and is kept nowhere.
    pub fn unrun(status: &str) -> Self {
        Self {
            status: Some(status.to_owned()),
            unrun: true,
            ..Self::begun("")
        }
    }

    /// Whether its reply has yet to come there.
    pub fn will_come(&self, to: &str) -> bool {
        self.status.is_none() && self.to == to
    }

    /// Status and payload of its reply, if they are known.
    pub fn reply(&self) -> Option<(&'static str, &[u8])> {
        let status = match self.status.as_deref()? {
            "ok" => "ok",
            code => Code::from_name(code)?.as_str(),
        };
        Some((status, self.data.as_ref()?))
    }

    fn encoded(&self) -> Vec<u8> {
        // Text and bytes can always be encoded.
        rmp_serde::to_vec(self).unwrap_or_default()
    }

    /// Reads one; `None` if it is something else, or its reply is no payload.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let limits = PayloadLimits::default();
        let is_payload = |bytes: &[u8]| msgpack::scan(bytes, &limits).is_ok();
        let said: Self = is_payload(bytes)
            .then(|| rmp_serde::from_slice(bytes).ok())
            .flatten()?;
        let data = said.data.as_ref();
        data.is_none_or(|data| data.len() <= KEPT && is_payload(data))
            .then_some(said)
    }
}

/// Whether an event is the first of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstCheck {
    /// The event is the first.
    First {
        /// The history of the server in which that was so: in a later one the mark may not be there any more, and
        /// another one be the first.
        epoch: Epoch,
    },
    /// Another one came before it.
    Repeat {
        /// Where that one is: its name, or when it is due.
        first: String,
        /// What is known of that one, where somebody wants to know.
        said: Option<Said>,
        /// The history of the server in which that was so: in a later one the first may not be there any more.
        epoch: Epoch,
    },
}

/// Where the events of one partition of a domain that take effect once are remembered.
#[derive(Clone, Copy)]
pub struct Firsts<'a> {
    /// The key names.
    pub keys: &'a Keys,
    /// The domain.
    pub domain: &'a str,
    /// Its partition.
    pub partition: u16,
    /// For how long.
    pub window: Duration,
}

impl fmt::Debug for Firsts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Firsts({}:{})", self.domain, self.partition)
    }
}

impl Firsts<'_> {
    fn mark(&self, id: &str) -> String {
        self.keys.dedup(self.domain, self.partition, id)
    }

    fn said(&self, name: &str, id: &str) -> String {
        self.keys.said(self.domain, self.partition, name, id)
    }

    /// A note that an event of that id took effect: written with its effect, so a failover that keeps the one keeps the
    /// other.
    pub fn took_effect(&self, id: &str, name: EntryId) -> Note {
        Note {
            key: self.mark(id),
            value: name.to_string().into_bytes(),
            kept: self.window,
        }
    }

    /// How the event of that id and name ended.
    pub fn ended(&self, id: &str, name: EntryId, said: &Said) -> Note {
        Note {
            key: self.said(&name.to_string(), id),
            value: said.encoded(),
            kept: self.window,
        }
    }
}

/// An event that asks whether it is the first.
#[derive(Clone, Copy, Debug)]
pub struct Asks<'a> {
    /// The publisher's id.
    pub id: &'a str,
    /// The entry as which it was added.
    pub name: EntryId,
    /// Where its reply goes.
    pub to: Option<&'a str>,
}

/// Asks, on a connection of its own: handlers may hold all that are pooled.
pub struct Judge {
    connector: Connector,
    connection: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    asked: Option<Asked>,
    /// How many were made before it.
    number: u64,
}

struct Asked {
    generation: u64,
    epoch: Epoch,
    connection: MultiplexedConnection,
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Judge")
    }
}

impl Judge {
    /// A judge that is not connected yet.
    pub fn new(connector: Connector) -> Self {
        Self {
            connector,
            connection: Mutex::default(),
        }
    }

    /// Whether an event is the first of its id.
    ///
    /// # Errors
    /// Without an answer nobody knows: it is to be asked again, under the same name.
    pub async fn ask(&self, firsts: Firsts<'_>, event: Asks<'_>) -> Result<FirstCheck, BusError> {
        let (mut connection, epoch, number) = self.connected().await?;
        let asked = ask(&mut connection, firsts, event, epoch).await;
        if let Err(error) = &asked
            && error.reaction() == Reaction::Reconnect
        {
            let mut slot = self.connection.lock().await;
            // Others that it failed may have another one already.
            if slot.number == number {
                slot.asked = None;
            }
        }
        asked
    }

    /// The connection, the history of the server that it leads into, and its number.
    async fn connected(&self) -> Result<(MultiplexedConnection, Epoch, u64), BusError> {
        let mut slot = self.connection.lock().await;
        if let Some(asked) = &slot.asked
            && self.connector.check(asked.generation).is_ok()
            && self.connector.check_epoch(asked.epoch).is_ok()
        {
            return Ok((asked.connection.clone(), asked.epoch, slot.number));
        }
        slot.asked = None;
        let (generation, epoch) = (self.connector.generation(), self.connector.epoch());
        let connection = self.connector.dedicated().await?;
        // Another connection may have seen a later one meanwhile.
        self.connector.check(generation)?;
        self.connector.check_epoch(epoch)?;
        slot.number += 1;
        slot.asked = Some(Asked {
            generation,
            epoch,
            connection: connection.clone(),
        });
        Ok((connection, epoch, slot.number))
    }
}

async fn ask(
    connection: &mut MultiplexedConnection,
    firsts: Firsts<'_>,
    event: Asks<'_>,
    epoch: Epoch,
) -> Result<FirstCheck, BusError> {
    let name = event.name.to_string();
    let mut unrun = None;
    loop {
        let first = first(connection, firsts, event, &name, unrun.as_deref()).await?;
        if first.is_empty() {
            return Ok(FirstCheck::First { epoch });
        }
        let said = said(connection, firsts, event.id, &first).await?;
        // The mark may name another one by now, which is looked at as well.
        if said.as_ref().is_some_and(|said| said.unrun) {
            unrun = Some(first);
            continue;
        }
        return Ok(FirstCheck::Repeat { first, said, epoch });
    }
}

/// Where the first one is, unless it is this one or the one that is known to have ended unrun.
async fn first(
    connection: &mut MultiplexedConnection,
    firsts: Firsts<'_>,
    event: Asks<'_>,
    name: &str,
    unrun: Option<&str>,
) -> Result<String, BusError> {
    let mut call = FIRST.prepare_invoke();
    call.key(firsts.mark(event.id));
    call.arg(name).arg(whole_ms(firsts.window).max(1));
    match event.to {
        Some(to) => {
            call.key(firsts.said(name, event.id));
            call.arg(Said::begun(to).encoded());
        }
        None => {
            call.arg("");
        }
    }
    if let Some(unrun) = unrun {
        call.arg(unrun);
    }
    Ok(call.invoke_async(connection).await?)
}

/// What is known of the event of that name: renewed as the mark was, so that it is known as long as the mark is
/// there. What is no text is nothing: asking again would not change it.
async fn said(
    connection: &mut MultiplexedConnection,
    firsts: Firsts<'_>,
    id: &str,
    name: &str,
) -> Result<Option<Said>, BusError> {
    let key = firsts.said(name, id);
    let mut renew = redis::cmd("PEXPIRE");
    renew
        .arg(&key)
        .arg(whole_ms(firsts.window).max(1))
        .arg("GT");
    renew.exec_async(connection).await?;
    let kept = redis::cmd("GET").arg(&key).query_async(connection).await;
    let kept: Option<Vec<u8>> = match kept {
        Err(error) if error.code() == Some("WRONGTYPE") => None,
        kept => kept?,
    };
    Ok(kept.and_then(|kept| Said::parse(&kept)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_a_payload_or_nothing() {
        let begun = Said::begun("cb:reply:me");
        assert_eq!(Said::parse(&begun.encoded()), Some(begun.clone()));
        let unrun = Said::unrun("deadline_exceeded");
        assert_eq!(Said::parse(&unrun.encoded()), Some(unrun.clone()));
        assert!(unrun.unrun && !begun.unrun && unrun.reply().is_none());
        assert!(begun.will_come("cb:reply:me") && !begun.will_come("cb:reply:you"));
        assert_eq!(begun.reply(), None);
        let ended = Said::ended("cb:reply:me", "not_found", &[0x01]);
        let ended = Said::parse(&ended.encoded()).unwrap();
        assert_eq!(ended.reply(), Some(("not_found", &[0x01][..])));
        assert!(!ended.will_come("cb:reply:me"));
        // Too much to be kept: that it ended is known all the same.
        let long = [&[0xc6, 0, 0, 0x40, 0][..], &[0; KEPT]].concat();
        let long = Said::ended("cb:reply:me", "ok", &long);
        assert_eq!(Said::parse(&long.encoded()), Some(long.clone()));
        assert_eq!(long.reply(), None);
        for bad in [
            Said::ended("cb:reply:me", "ok", b"text\xc1").encoded(),
            Said::ended("cb:reply:me", "ok", &[]).encoded(),
            vec![],
            vec![0xc1],
            vec![0x93, 1, 2, 3],
        ] {
            assert_eq!(Said::parse(&bad), None, "{bad:?}");
        }
        assert_eq!(Said::ended("cb:reply:me", "made_up", &[1]).reply(), None);
    }
}
