//! Publishing again what was published before: dead letters, pending entries, a part of a stream.
//!
//! A replay **moves** a dead letter or a pending entry: the event enters its stream and leaves where
//! it was in one atomic step (`replay_dead.lua`, `replay_pending.lua`), so it can be interrupted at
//! any moment and run again; nothing is lost and nothing doubled. Whoever held a pending entry is
//! fenced like by a takeover: what it commits of it later is discarded. A replay of a range **copies**:
//! the original is history and stays. A marker per entry with a time to live makes it safe to run
//! again (`replay_range.lua`).
//!
//! The event keeps its `id` (one that had none gets its entry's) and its fields. It begins with its
//! first attempt again, and `replays` counts how often that was done to it. Where it was answered
//! already (a dead letter, a finished event) it gets no second reply, and a deadline that has passed
//! is taken off: it would only be dropped again.
//!
//! Each step tells on the broadcast what it did: `operator.replayed`, `operator.dropped`.

mod again;
mod calls;
#[doc(hidden)]
pub mod mending;
mod pace;
#[doc(hidden)]
pub mod planning;
#[doc(hidden)]
pub mod repair;
#[cfg(test)]
mod tests;
#[doc(hidden)]
pub mod walk;
#[doc(hidden)]
pub mod wanted;

pub use crate::protocol::event::REPLAYS;
#[doc(hidden)]
pub use again::drop_deadline;
pub use again::{Again, NoWayBack, Source, again, edit, set_field, way_back};
#[doc(hidden)]
pub use pace::Pace;

use crate::connect::error::BusError;
use crate::connect::script::{script, script_with};
use crate::protocol::event::EntryId;
use crate::protocol::keys::{Keys, StreamName};
use crate::streams::claim::Pending;
use crate::streams::commit::Publication;
use crate::streams::made;
use calls::{Copies, Held};
use redis::aio::ConnectionLike;
use redis::{Script, ScriptInvocation};
use serde::Serialize;
use std::sync::LazyLock;
use std::time::Duration;

const TOLD: &str = include_str!("told.lua");
const LETTERS: &str = include_str!("letters.lua");
const HELD: &str = include_str!("held.lua");
const COPIES: &str = include_str!("copies.lua");
static DEAD: LazyLock<Script> =
    LazyLock::new(|| script_with(&[TOLD, LETTERS], include_str!("replay_dead.lua")));
static PENDING: LazyLock<Script> =
    LazyLock::new(|| script_with(&[TOLD, HELD], include_str!("replay_pending.lua")));
static RANGE: LazyLock<Script> =
    LazyLock::new(|| script_with(&[TOLD, COPIES], include_str!("replay_range.lua")));
static DROP: LazyLock<Script> = LazyLock::new(|| script(include_str!("drop.lua")));

/// Entries that one step moves at most.
pub const STEP: usize = 50;
/// About how many bytes one step moves at most; a single entry may be larger.
pub const STEP_BYTES: usize = 512 << 10;
/// The most words of an entry's fields: what a script may unpack, with room to spare.
pub const WORDS: usize = 4000;
/// How long a replay of a range remembers what it copied.
pub const WINDOW: Duration = Duration::from_secs(24 * 3600);
/// Who mended an event's payload before it was replayed.
pub const EDITED: &str = "edited";

/// One entry to be replayed.
#[derive(Clone, Debug)]
pub struct Move {
    /// Where it is now.
    pub entry: EntryId,
    /// As it is published again.
    pub fields: Vec<Vec<u8>>,
    /// For a pending one: how the caller saw it, and how long it must have been idle.
    pub pending: Option<(Pending, Duration)>,
}

/// The run that copied each entry within the window, if one did.
pub async fn copied(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    stream: &StreamName,
    entries: &[EntryId],
) -> Result<Vec<Option<String>>, BusError> {
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = redis::cmd("MGET");
    for entry in entries {
        command.arg(keys.replayed(&stream.part, stream.partition, &entry.to_string()));
    }
    Ok(command.query_async(connection).await?)
}

/// What a step did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Step {
    /// For each entry, in order, its new id; `None` for one that was not there any more.
    pub moved: Vec<Option<EntryId>>,
    /// Why the rest was left: the server's answer.
    pub stopped: Option<String>,
}

impl Step {
    /// What a step of a repair did.
    #[doc(hidden)]
    pub fn of(moved: Vec<Option<EntryId>>, stopped: Option<String>) -> Self {
        Self { moved, stopped }
    }

    /// Reads a script's answer: an error, then for each of those `asked` its new id.
    pub(super) fn read(answer: Vec<String>, asked: usize) -> Result<Self, BusError> {
        const SHAPE: BusError = BusError::Reply { what: "a replay" };
        let mut answer = answer.into_iter();
        let error = answer.next().ok_or(SHAPE)?;
        let mut moved = Vec::with_capacity(asked);
        for id in answer {
            moved.push(match id.as_str() {
                "" => None,
                id => Some(id.parse().map_err(|_| SHAPE)?),
            });
        }
        let stopped = (!error.is_empty()).then_some(error);
        if stopped.is_none() && moved.len() != asked {
            return Err(SHAPE);
        }
        Ok(Step { moved, stopped })
    }
}

/// Changes streams on an operator's behalf, and tells so.
#[derive(Debug)]
pub struct Operator {
    keys: Keys,
    run: String,
    by: String,
}

#[derive(Serialize)]
struct Fact<'a> {
    run: &'a str,
    by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    stream: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    count: usize,
    entries: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<u64>,
}

impl Operator {
    /// `run` names what belongs together, `by` who does it: at most 256 bytes each.
    pub fn new(keys: Keys, run: impl Into<String>, by: impl Into<String>) -> Self {
        Self {
            keys,
            run: run.into(),
            by: by.into(),
        }
    }

    /// The names of the keys.
    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The name of the run.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Who does it.
    pub fn by(&self) -> &str {
        &self.by
    }

    /// Moves dead letters to a stream.
    pub async fn replay_dead(
        &self,
        connection: &mut impl ConnectionLike,
        dead: &str,
        to: &str,
        moves: &[Move],
    ) -> Result<Step, BusError> {
        made::ensure_there(connection, &self.keys, to).await?;
        let mut call = DEAD.prepare_invoke();
        call.key(dead).key(to);
        let told = self.tell(&mut call, dead);
        call.arg(&self.run).arg(&self.by);
        for one in moves {
            calls::entry(&mut call, one);
        }
        let step = Step::read(call.invoke_async(connection).await?, moves.len())?;
        if !told {
            let fact = ("operator.replayed", Some("dead"), dead);
            self.tell_after(connection, fact, to, moves, &step).await?;
        }
        Ok(step)
    }

    /// Publishes pending entries again and acknowledges the old deliveries; their owners are fenced.
    pub async fn replay_pending(
        &self,
        connection: &mut impl ConnectionLike,
        stream: &StreamName,
        group: &str,
        moves: &[Move],
    ) -> Result<Step, BusError> {
        let key = &stream.key;
        let held = Held::of(moves.iter());
        let mut call = PENDING.prepare_invoke();
        call.key(key);
        held.keys(&mut call, &self.keys, stream);
        let told = self.tell(&mut call, key);
        call.arg(&self.run).arg(&self.by);
        held.words(&mut call, group);
        let step = Step::read(call.invoke_async(connection).await?, held.count())?;
        if !told {
            let fact = ("operator.replayed", Some("pending"), key.as_str());
            self.tell_after(connection, fact, key, moves, &step).await?;
        }
        Ok(step)
    }

    /// Publishes copies. An entry that was copied within [`WINDOW`] is left alone; with `force` only
    /// if this run copied it.
    pub async fn replay_range(
        &self,
        connection: &mut impl ConnectionLike,
        stream: &StreamName,
        moves: &[Move],
        force: bool,
    ) -> Result<Step, BusError> {
        let key = &stream.key;
        let copies = Copies::of(moves.iter());
        let mut call = RANGE.prepare_invoke();
        call.key(key);
        copies.keys(&mut call, &self.keys, stream);
        let told = self.tell(&mut call, key);
        call.arg(&self.run).arg(&self.by);
        copies.words(&mut call, force);
        let step = Step::read(call.invoke_async(connection).await?, moves.len())?;
        if !told {
            let fact = ("operator.replayed", Some("range"), key.as_str());
            self.tell_after(connection, fact, key, moves, &step).await?;
        }
        Ok(step)
    }

    /// Deletes dead letters for good; says for each whether it was there.
    pub async fn drop_dead(
        &self,
        connection: &mut impl ConnectionLike,
        dead: &str,
        entries: &[EntryId],
    ) -> Result<Vec<bool>, BusError> {
        let mut call = DROP.prepare_invoke();
        call.key(dead);
        let told = self.tell(&mut call, dead);
        call.arg(&self.run).arg(&self.by);
        for entry in entries {
            call.arg(entry.to_string());
        }
        let dropped: Vec<bool> = call.invoke_async(connection).await?;
        if !told {
            let gone = entries.iter().zip(&dropped).filter(|(_, there)| **there);
            let entries = gone.map(|(id, _)| id.to_string()).collect();
            let fact = ("operator.dropped", None, dead);
            self.store(connection, fact, None, entries).await?;
        }
        Ok(dropped)
    }

    /// Has the script tell what it did, if the broadcast is within its reach.
    pub(super) fn tell(&self, call: &mut ScriptInvocation<'_>, beside: &str) -> bool {
        let broadcast = self.keys.broadcast();
        let reach = self.keys.share_slot(&broadcast, beside);
        if reach {
            call.key(broadcast);
        }
        reach
    }

    async fn tell_after(
        &self,
        connection: &mut impl ConnectionLike,
        fact: (&str, Option<&str>, &str),
        to: &str,
        moves: &[Move],
        step: &Step,
    ) -> Result<(), BusError> {
        let moved = moves.iter().zip(&step.moved).filter(|(_, to)| to.is_some());
        let entries = moved.map(|(one, _)| one.entry.to_string()).collect();
        self.store(connection, fact, Some(to), entries).await
    }

    /// In a cluster the broadcast lies in another slot than the data streams: the fact follows the
    /// step. A crash between the two loses the fact of that step.
    pub(super) async fn store(
        &self,
        connection: &mut impl ConnectionLike,
        fact: (&str, Option<&str>, &str),
        to: Option<&str>,
        entries: Vec<String>,
    ) -> Result<(), BusError> {
        self.store_due(connection, fact, to, entries, None).await
    }

    /// The same of events that were given that time (Unix ms).
    pub(super) async fn store_due(
        &self,
        connection: &mut impl ConnectionLike,
        (kind, from, stream): (&str, Option<&str>, &str),
        to: Option<&str>,
        entries: Vec<String>,
        due: Option<u64>,
    ) -> Result<(), BusError> {
        if entries.is_empty() {
            return Ok(());
        }
        let fact = Fact {
            run: &self.run,
            by: &self.by,
            from,
            stream,
            to,
            count: entries.len(),
            entries,
            due,
        };
        self.publish(connection, kind, &fact).await
    }

    /// Puts a fact on the broadcast.
    pub(super) async fn publish(
        &self,
        connection: &mut impl ConnectionLike,
        kind: &str,
        fact: &impl Serialize,
    ) -> Result<(), BusError> {
        let data = rmp_serde::to_vec_named(fact).map_err(|_| BusError::Reply { what: "a fact" })?;
        let now = crate::operator::inspect::now(connection).await?;
        let broadcast = self.keys.broadcast();
        let fact = Publication::fact(&broadcast, kind, &self.by, now, data);
        fact.store(connection).await
    }
}
