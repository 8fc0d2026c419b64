//! The step that takes an event away.

use super::fact::Told;
use super::found::{Found, Place};
use super::{CancelError, Cancellation, Canceller, KNOWN, Order, Standing, message};
use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::connect::script::script_with;
use crate::protocol::dead::DeadLetter;
use crate::protocol::entry::{Entry, EntryId};
use crate::protocol::error::Code;
use crate::protocol::event::in_kind;
use crate::protocol::keys::StreamKeys;
use crate::streams::claim::CLAIMS_TTL;
use crate::streams::commit::settlement::{ANY, Place as Surroundings, Worth, is_inbox};
use crate::streams::commit::{Disposition, Note, Publication, Receipt, ReplyEntry, Settlement};
use crate::streams::first::{Firsts, Said};
use crate::streams::park::PLACES;
use crate::streams::trim::IDS;
use redis::{Script, Value};
use serde::Serialize;
use std::sync::LazyLock;
use std::time::Instant;

static CANCEL: LazyLock<Script> =
    LazyLock::new(|| script_with(&[IDS, PLACES], include_str!("cancel.lua")));

/// Words of one effect at the most, with room to spare: what a script may unpack.
const WORDS: usize = 4000;
/// How often the step is tried of an event that goes from hand to hand.
const TRIES: u32 = 16;

/// What an error reply holds.
#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    message: &'a str,
    retryable: bool,
}

/// What was taken away.
pub(super) struct Taken {
    /// How it stood.
    pub(super) state: Standing,
    /// Who had it in hand, or ``.
    pub(super) owner: String,
    /// Whether whoever asked was told; `None` if nobody asked.
    pub(super) told: Option<bool>,
}

/// The effects of a step, as its script takes them.
#[derive(Default)]
struct Effects {
    keys: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
    too_long: bool,
}

impl Effects {
    fn add(&mut self, key_type: &str, worth: &str, words: &[&[u8]]) {
        self.too_long |= words.len() > WORDS;
        self.keys.push(words[1].to_vec());
        self.words.extend([key_type.into(), worth.into()]);
        self.words.push((words.len() - 1).to_string().into_bytes());
        let rest = words.iter().enumerate().filter(|(at, _)| *at != 1);
        self.words.extend(rest.map(|(_, word)| word.to_vec()));
    }
}

/// What a step answered.
enum Stepped {
    /// Taken away; the numbers of the effects that were left out.
    Done(Vec<usize>),
    /// In the hands of that consumer, or of nobody.
    Again(String),
    /// Not there any more.
    Away,
}

impl Canceller {
    /// Takes an event away, if it still is where it was found. `None`: it has left.
    pub(super) async fn take(
        &self,
        domain: &str,
        found: &Found,
        order: &Order,
    ) -> Result<Option<Taken>, CancelError> {
        let route = self.keys.route(domain, found.partition);
        let mut owner = match &found.place {
            Place::Entry { owner, .. } => owner.clone(),
            _ => String::new(),
        };
        for _ in 0..TRIES {
            let mut effects = Effects::default();
            let reply = self.effects(domain, found, order, &route, &owner, &mut effects);
            if effects.too_long {
                return Err(CancelError::Refused(format!(
                    "{}: has more fields than a dead letter can keep; cancel it without keeping it",
                    found.id()
                )));
            }
            match self.step(domain, found, &route, &owner, &effects).await? {
                Stepped::Done(left_out) => {
                    let broadcast = self.keys.broadcast();
                    let beside = self.keys.share_slot(&broadcast, &route.events);
                    // It is cancelled, whether all can be told or not.
                    if !beside && self.reaches(&broadcast) {
                        let fact = self.fact(found, order, &route, &owner);
                        let node = self.connector.toward(&fact.stream);
                        fact.store(&mut node.pooled().await?).await?;
                    }
                    return Ok(Some(Taken {
                        state: stood(found, &owner),
                        told: reply.map(|number| !left_out.contains(&number)),
                        owner,
                    }));
                }
                Stepped::Again(by) => owner = by,
                Stepped::Away => return Ok(None),
            }
        }
        Ok(None)
    }

    async fn step(
        &self,
        domain: &str,
        found: &Found,
        route: &StreamKeys,
        owner: &str,
        effects: &Effects,
    ) -> Result<Stepped, CancelError> {
        let parked = match &found.place {
            Place::Parked { kind, .. } => route.parked_of(kind),
            _ => route.parked.clone(),
        };
        let guard = match owner {
            "" => route.events.clone(),
            owner => self.keys.claims(domain, found.partition, owner),
        };
        let (place, what) = match &found.place {
            Place::Entry { entry, .. } => ("entry", entry.to_string().into_bytes()),
            Place::Delayed { member, .. } => ("delayed", member.clone()),
            Place::Parked { member, .. } => ("parked", member.clone()),
        };
        let kind = match &found.place {
            Place::Parked { kind, .. } => kind.as_str(),
            _ => "",
        };
        let mut call = CANCEL.prepare_invoke();
        for key in [
            &route.events,
            &route.delayed,
            &parked,
            &route.parked,
            &guard,
        ] {
            call.key(key);
        }
        effects.keys.iter().for_each(|key| {
            call.key(key.as_slice());
        });
        call.arg(place)
            .arg(&self.options.group)
            .arg(what)
            .arg(owner);
        call.arg(whole_ms(CLAIMS_TTL)).arg(kind);
        effects.words.iter().for_each(|word| {
            call.arg(word.as_slice());
        });
        let connector = self.connector.toward(&route.events);
        let mut connection = connector.pooled().await?;
        let answer = call.invoke_async(&mut connection).await;
        let answer: Vec<Value> = answer.map_err(BusError::from)?;
        let text = |at: usize| match answer.get(at) {
            Some(Value::BulkString(text)) => String::from_utf8_lossy(text).into_owned(),
            _ => String::new(),
        };
        match text(0).as_str() {
            "done" => {
                let numbers = answer[1..].iter().filter_map(|value| match value {
                    Value::Int(number) => usize::try_from(*number).ok(),
                    _ => None,
                });
                Ok(Stepped::Done(numbers.collect()))
            }
            "again" => Ok(Stepped::Again(text(1))),
            "settled" | "gone" => Ok(Stepped::Away),
            "refused" => Err(CancelError::Refused(format!("{}: {}", found.id(), text(1)))),
            _ => Err(BusError::Reply { what: "cancel.lua" }.into()),
        }
    }

    /// All that is written in the step; gives the number of the reply, from 1, if somebody asked.
    fn effects(
        &self,
        domain: &str,
        found: &Found,
        order: &Order,
        route: &StreamKeys,
        owner: &str,
        effects: &mut Effects,
    ) -> Option<usize> {
        let settlement = self.settlement(domain, found, order, route);
        let surroundings = Surroundings {
            route,
            consumer: &order.by,
            now: found.now,
            outbox: false,
            reply_history: Some(self.options.reply_history),
        };
        let to = settlement.reply.as_ref().and_then(|reply| reply.to.clone());
        let mut number = None;
        settlement.effects(surroundings, |effect| {
            effects.add(effect.key_type, effect.worth.as_str(), effect.words);
            if to
                .as_deref()
                .is_some_and(|to| effect.key() == to.as_bytes())
            {
                number = Some(effects.keys.len());
            }
        });
        if let Some(to) = to.filter(|to| !is_inbox(to)) {
            let ttl = whole_ms(self.options.reply_ttl).to_string();
            let words: [&[u8]; 4] = [b"PEXPIRE", to.as_bytes(), ttl.as_bytes(), b"NX"];
            effects.add("stream", Worth::Optional.as_str(), &words);
        }
        // It stays the first of its id: what is added with that id meanwhile does not run in its place.
        if let Ok(event) = &found.event
            && let (true, Some(name), Some(id)) =
                (event.asks_once(), event.once(), event.given_id())
            && name != EntryId::default()
        {
            let mark = self.keys.dedup(domain, found.partition, id);
            let (name, window) = (
                name.to_string(),
                whole_ms(self.options.dedup_window).max(1).to_string(),
            );
            let words: [&[u8]; 6] = [
                b"SET",
                mark.as_bytes(),
                name.as_bytes(),
                b"PX",
                window.as_bytes(),
                b"NX",
            ];
            effects.add(ANY, Worth::Optional.as_str(), &words);
        }
        let fact = self.fact(found, order, route, owner);
        if self.keys.share_slot(&fact.stream, &route.events) {
            let mut words: Vec<&[u8]> = vec![b"XADD", fact.stream.as_bytes(), b"*"];
            words.extend(fact.fields.iter().map(Vec::as_slice));
            effects.add("stream", Worth::Optional.as_str(), &words);
        }
        number
    }

    /// The end of the event, as that of a delivery is written.
    fn settlement(
        &self,
        domain: &str,
        found: &Found,
        order: &Order,
        route: &StreamKeys,
    ) -> Settlement {
        let said = message(order);
        let body = Body {
            code: Code::Cancelled.as_str(),
            message: &said,
            retryable: false,
        };
        // Text can always be encoded.
        let body = rmp_serde::to_vec_named(&body).unwrap_or_default();
        let (reply_to, is_json, entry, attempts) = match &found.event {
            Ok(event) => (
                event.reply_to().map(str::to_owned),
                event.is_json(),
                event.entry(),
                event.attempt(),
            ),
            Err(bad) => (bad.reply_to.clone(), false, &bad.entry, 0),
        };
        let deliveries = match &found.place {
            Place::Entry { deliveries, .. } => *deliveries,
            _ => 0,
        };
        let firsts = Firsts {
            keys: &self.keys,
            domain,
            partition: found.partition,
            window: self.options.dedup_window,
        };
        let note = Cancellation {
            by: order.by.clone(),
            reason: order.reason.clone(),
            at: found.now,
        };
        let note = rmp_serde::to_vec_named(&note).unwrap_or_default();
        let mut known = vec![found.id(), found.place.token()];
        known.dedup();
        let mut notes: Vec<Note> = known
            .iter()
            .map(|name| Note {
                key: self.keys.cancelled(domain, found.partition, name),
                value: note.clone(),
                kept: KNOWN,
            })
            .collect();
        if let (Ok(event), Some(to)) = (&found.event, &reply_to)
            && let (Some(name), Some(id)) = (event.once(), event.given_id())
        {
            let said = Said::ended(to, Code::Cancelled.as_str(), &body);
            notes.push(firsts.ended(id, name, &said));
        }
        let reply = reply_to.map(|to| {
            let (data, content) = in_kind(body, is_json);
            ReplyEntry {
                to: Some(to),
                correlation_id: found.id(),
                kind: format!("{}.result", found.kind().unwrap_or("unknown")),
                status: Code::Cancelled.as_str(),
                data,
                content,
            }
        });
        let disposition = match order.keep {
            false => Disposition::Done,
            true => Disposition::Dead(Box::new(letter(
                found,
                order,
                route,
                entry,
                (attempts, deliveries),
            ))),
        };
        Settlement {
            receipt: Receipt {
                stream: 0,
                entry: entry.id,
                deliveries,
                claims: 0,
                since: Instant::now(),
            },
            reply,
            publications: Vec::new(),
            disposition,
            epoch: None,
            notes,
        }
    }

    fn fact(&self, found: &Found, order: &Order, route: &StreamKeys, owner: &str) -> Publication {
        let (id, entry) = (found.id(), found.place.token());
        let told = Told {
            id: &id,
            r#type: found.kind(),
            stream: &route.events,
            entry: &entry,
            state: stood(found, owner).as_str(),
            by: &order.by,
            reason: &order.reason,
            instance: Some(owner).filter(|owner| !owner.is_empty()),
            kept: order.keep,
        };
        told.publication(self.keys.broadcast(), found.now)
    }
}

/// How it stood when it was taken away.
fn stood(found: &Found, owner: &str) -> Standing {
    match found.place {
        _ if !owner.is_empty() => Standing::Running,
        Place::Delayed { .. } => Standing::Delayed,
        _ => Standing::Waiting,
    }
}

fn letter(
    found: &Found,
    order: &Order,
    route: &StreamKeys,
    entry: &Entry,
    (attempts, deliveries): (u32, u32),
) -> DeadLetter {
    DeadLetter {
        entry: entry.clone(),
        reason: Code::Cancelled.as_str().to_owned(),
        message: message(order),
        attempts,
        deliveries,
        stream: route.events.clone(),
        instance: order.by.clone(),
        time: found.now,
    }
}
