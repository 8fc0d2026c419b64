//! Whether events flow: what waits though nobody takes it, and who is missing.
//!
//! Read live and written nowhere, by commands that workers, operators and monitors may send. Each finding says
//! what is wrong, why that matters, and how it is mended.

mod fleet;
#[cfg(test)]
mod tests;
mod trouble;
mod waiting;

pub use fleet::of_instances;
pub use trouble::{CHECKS, Trouble};

use super::error::CoordinationError;
use super::store::Store;
use crate::connect::connector::Connector;
use crate::protocol::event::EntryId;
use crate::protocol::keys::{Keys, StreamKind, StreamName};
use crate::streams::read::entries_of;
use redis::{FromRedisValue, Value};
use std::collections::BTreeSet;
use std::time::Duration;
use trouble::{bounded, no_consumer, no_handler, nobody_reads, seconds, stalled};
use waiting::Waiting;

/// What waits for so long before it counts, in ms.
const WAITS_MS: u64 = 10_000;
/// What the ledger leaves for so long is not only behind, in ms.
const LEDGER_MS: u64 = 60_000;
/// What is due for so long was forgotten, in ms.
const OVERDUE_MS: u64 = 5_000;
/// A delay queue of this many is one that grows.
const MANY: u64 = 100_000;
/// How far the two looks are apart that tell whether anything goes out.
pub const APART: Duration = Duration::from_secs(1);
/// Streams asked about in one round trip.
const PAGE: usize = 100;
/// Groups that wait that are looked at closely.
const CLOSE: usize = 50;
/// Entries whose types are looked at, of each. They may be large.
const TYPES: usize = 4;
/// Instances with a handler that are looked at.
const HANDLERS: usize = 128;
/// Looks at the flow of one namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Flow {
    store: Store,
    /// The group of the workers, and that of the ledger.
    group: String,
    ledger: &'static str,
}

impl Flow {
    /// The flow of the namespace of `keys`, whose workers are that group.
    pub fn new(
        connector: Connector,
        keys: Keys,
        group: impl Into<String>,
        ledger: &'static str,
    ) -> Self {
        Self {
            store: Store::new(connector, keys),
            group: group.into(),
            ledger,
        }
    }

    /// What does not flow on these streams and in the delay queues of their domains. Looks twice, [`APART`]
    /// from each other, where something waits and `twice` is set.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn look(
        &self,
        streams: &[StreamName],
        twice: bool,
    ) -> Result<Vec<Trouble>, CoordinationError> {
        let now = self.store.now().await?;
        let (mut waiting, unread) = self.groups(streams).await?;
        let mut troubles = unread;
        waiting.sort_by_key(|one| std::cmp::Reverse(one.lag.unwrap_or(u64::MAX)));
        let mut candidates = Vec::new();
        let mut missing = BTreeSet::new();
        for one in waiting.iter().take(CLOSE) {
            let (oldest, kinds) = self.first(one).await?;
            let age = oldest.map_or(0, |id| now.saturating_sub(id.ms));
            if one.group == self.ledger {
                troubles.extend(self.behind(one, now).await?);
                continue;
            }
            if oldest.is_none() {
                continue;
            }
            let is_workers = one.group == self.group && one.stream.kind == StreamKind::Events;
            if one.consumers == 0 && age >= WAITS_MS {
                troubles.push(no_consumer(one, age));
                continue;
            }
            if !is_workers || age < WAITS_MS {
                continue;
            }
            for kind in kinds {
                if !self.is_handled(&kind, now).await? {
                    missing.insert((kind, one.stream.key.clone()));
                }
            }
            candidates.push((one.clone(), age));
        }
        troubles.extend(
            missing
                .into_iter()
                .map(|(kind, key)| no_handler(&kind, &key)),
        );
        if twice && !candidates.is_empty() {
            tokio::time::sleep(APART).await;
            let names: Vec<StreamName> = candidates
                .iter()
                .map(|(one, _)| one.stream.clone())
                .collect();
            let (again, _) = self.groups(&names).await?;
            for (one, age) in candidates {
                let stands = again.iter().any(|later| {
                    later.stream == one.stream
                        && later.group == one.group
                        && later.settled == one.settled
                        && later.pending == one.pending
                        && later.delivered == one.delivered
                });
                if stands {
                    troubles.push(stalled(&one, age));
                }
            }
        }
        troubles.extend(self.delayed(streams, now).await?);
        Ok(bounded(troubles))
    }

    /// The groups that did not settle everything, and the streams of events that no group reads.
    async fn groups(
        &self,
        streams: &[StreamName],
    ) -> Result<(Vec<Waiting>, Vec<Trouble>), CoordinationError> {
        let (mut waiting, mut unread) = (Vec::new(), Vec::new());
        let read = [StreamKind::Events, StreamKind::Broadcast, StreamKind::Dead];
        let streams: Vec<&StreamName> = streams
            .iter()
            .filter(|name| read.contains(&name.kind))
            .collect();
        for page in streams.chunks(PAGE) {
            let mut reads = redis::pipe();
            for name in page {
                reads.cmd("XLEN").arg(&name.key);
                reads.cmd("XINFO").arg("GROUPS").arg(&name.key);
            }
            // Any of them may be gone by now.
            reads.ignore_errors();
            let answers: Vec<Value> = self.store.ask(&reads).await?;
            for (name, answers) in page.iter().zip(answers.chunks_exact(2)) {
                let [Value::Int(length), Value::Array(groups)] = answers else {
                    continue;
                };
                let groups: Vec<Waiting> = groups
                    .iter()
                    .filter_map(|group| Waiting::read(name, group))
                    .collect();
                let is_read = groups.iter().any(|group| group.group == self.group);
                if name.kind == StreamKind::Events && *length > 0 && !is_read {
                    unread.push(nobody_reads(name, *length, &self.group));
                }
                waiting.extend(groups.into_iter().filter(Waiting::waits));
            }
        }
        Ok((waiting, unread))
    }

    /// The first entry that nobody was given, and the types of the first ones.
    async fn first(
        &self,
        one: &Waiting,
    ) -> Result<(Option<EntryId>, BTreeSet<String>), CoordinationError> {
        let mut reads = redis::pipe();
        reads
            .cmd("XREAD")
            .arg("COUNT")
            .arg(TYPES)
            .arg("STREAMS")
            .arg(&one.stream.key)
            .arg(&one.delivered);
        let (answer,): (Value,) = self.store.ask(&reads).await?;
        let mut streams = match answer {
            Value::Array(streams) => streams,
            Value::Map(streams) => streams.into_iter().map(|(_, entries)| entries).collect(),
            _ => return Ok((None, BTreeSet::new())),
        };
        let entries = match streams.pop() {
            Some(Value::Array(mut pair)) if pair.len() == 2 => pair.pop().unwrap_or(Value::Nil),
            Some(entries) => entries,
            None => Value::Nil,
        };
        let entries = entries_of(entries)?;
        let kind = |entry: &crate::protocol::event::Entry| {
            let kind = entry.get("type").unwrap_or_default();
            let known = crate::protocol::keys::is_event_type(kind);
            known.then(|| String::from_utf8_lossy(kind).into_owned())
        };
        let kinds = entries.iter().filter_map(kind).collect();
        Ok((entries.first().map(|entry| entry.id), kinds))
    }

    /// Whether an instance that is known to live, or was not declared lost yet, has a handler for the type.
    async fn is_handled(&self, kind: &str, now: u64) -> Result<bool, CoordinationError> {
        let keys = &self.store.keys;
        let prefix = format!("{kind} ");
        let mut reads = redis::pipe();
        // '!' follows the space.
        reads
            .cmd("ZRANGEBYLEX")
            .arg(keys.capabilities())
            .arg(format!("[{prefix}"))
            .arg(format!("({kind}!"))
            .arg("LIMIT")
            .arg(0)
            .arg(HANDLERS);
        let (members,): (Vec<String>,) = self.store.ask(&reads).await?;
        let ids = members
            .iter()
            .filter_map(|member| member.strip_prefix(&prefix));
        let ids: Vec<&str> = ids.collect();
        if ids.is_empty() {
            return Ok(false);
        }
        let mut reads = redis::pipe();
        reads.cmd("ZMSCORE").arg(keys.active()).arg(&ids);
        let (expiries,): (Vec<Option<f64>>,) = self.store.ask(&reads).await?;
        // After an outage those that live look expired for a moment.
        let lately = now.saturating_sub(OVERDUE_MS) as f64;
        Ok(expiries
            .into_iter()
            .flatten()
            .any(|expires| expires > lately))
    }

    /// What the ledger did not write for long.
    async fn behind(&self, one: &Waiting, now: u64) -> Result<Option<Trouble>, CoordinationError> {
        let (key, group) = (&one.stream.key, &one.group);
        let mut reads = redis::pipe();
        reads
            .cmd("XPENDING")
            .arg(key)
            .arg(group)
            .arg(&["-", "+", "1"]);
        let (rows,): (Value,) = self.store.ask(&reads).await?;
        let rows = Vec::<(String, Value, Value, Value)>::from_redis_value(rows).unwrap_or_default();
        let pending: Option<EntryId> = rows.first().and_then(|row| row.0.parse().ok());
        let (first, _) = self.first(one).await?;
        let oldest = [pending, first].into_iter().flatten().min();
        let age = oldest.map_or(0, |id| now.saturating_sub(id.ms));
        if age < LEDGER_MS {
            return Ok(None);
        }
        let what = format!(
            "{} entries of {key} are not in the ledger, the oldest for {}",
            one.pending + one.lag.unwrap_or(0),
            seconds(age)
        );
        let mend = match one.consumers {
            0 => format!(
                "start a worker with a database_url; or, if there is to be no ledger any more: \
                 redis-cli XGROUP DESTROY {key} {group}"
            ),
            _ => "see the workers' log for why the database cannot be written (full, down, not allowed), \
                  and convoke ledger status"
                .to_owned(),
        };
        Ok(Some(Trouble {
            check: "ledger",
            severe: false,
            what,
            why: "what happened is not kept for good meanwhile, and the stream cannot be trimmed: it grows",
            mend,
        }))
    }

    /// Delay queues with events that are overdue, or very many.
    async fn delayed(
        &self,
        streams: &[StreamName],
        now: u64,
    ) -> Result<Vec<Trouble>, CoordinationError> {
        let keys = &self.store.keys;
        let domains: BTreeSet<(&str, u16)> = streams
            .iter()
            .filter(|name| matches!(name.kind, StreamKind::Events | StreamKind::Dead))
            .filter(|name| name.part != "inbox")
            .map(|name| (name.part.as_str(), name.partition))
            .collect();
        let queues: Vec<String> = domains
            .into_iter()
            .map(|(domain, partition)| keys.route(domain, partition).delayed)
            .collect();
        let mut troubles = Vec::new();
        for page in queues.chunks(PAGE) {
            let mut reads = redis::pipe();
            for queue in page {
                let due = now.saturating_sub(OVERDUE_MS);
                reads.cmd("ZCARD").arg(queue);
                reads.cmd("ZCOUNT").arg(queue).arg("-inf").arg(due);
            }
            reads.ignore_errors();
            let answers: Vec<Value> = self.store.ask(&reads).await?;
            for (queue, answers) in page.iter().zip(answers.chunks_exact(2)) {
                let [Value::Int(all), Value::Int(overdue)] = answers else {
                    continue;
                };
                let (all, overdue) = (*all as u64, *overdue as u64);
                if overdue > 0 {
                    troubles.push(Trouble {
                        check: "delayed",
                        severe: true,
                        what: format!(
                            "{overdue} events in {queue} were due more than {} ago and are not moved",
                            seconds(OVERDUE_MS)
                        ),
                        why: "retries and events of later do not come back: a worker that reads the domain moves \
                              them, and no such worker lives, or it cannot",
                        mend: "start a worker with a handler of this domain; if there is one, see its log".into(),
                    });
                } else if all >= MANY {
                    troubles.push(Trouble {
                        check: "delayed",
                        severe: false,
                        what: format!("{all} events wait in {queue}"),
                        why: "it grows where more fails than succeeds, or more is published for later than is done; \
                              all of it is in the server's memory",
                        mend: "convoke top shows which handler fails; mend what it needs, or stop publishing".into(),
                    });
                }
            }
        }
        Ok(troubles)
    }
}
