//! A repair: a replay of dead letters that workers do, whoever asked for it may be gone.
//!
//! What is to be done is a [`Plan`]: which letters, and how they change, as data. How far it is among the letters of one
//! stream is noted beside that stream, in the step that moves them, so counts and position are what was done, whoever
//! dies. The same note holds the fence of whoever has the right to it: an older one moves nothing more.

use super::mending::Mend;
use super::planning::{Candidate, Planner};
use super::wanted::Wanted;
use super::{LETTERS, Operator, words};
use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::connect::script::script_with;
use crate::protocol::event::{EntryId, Limits};
use crate::protocol::keys::{Keys, StreamKind, StreamName};
use redis::Script;
use redis::aio::ConnectionLike;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;
use std::time::Duration;

static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| script_with(&[LETTERS], include_str!("repair_step.lua")));

/// How long it is known how far a repair was.
pub const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Streams of dead letters of one repair, at the most.
pub const MAX_STRETCHES: usize = 1000;
/// Changes of a payload, at the most.
pub const MAX_MENDS: usize = 100;
/// Conditions on what a letter holds, at the most.
pub const MAX_WHERES: usize = 100;
/// Bytes of a plan, at the most.
pub const MAX_PLAN: usize = 512 << 10;
/// Bytes of a reason for which letters are left alone.
const MAX_WHY: usize = 120;
/// Reasons that one step tells apart.
const REASONS: usize = 20;

/// Dead letters of one stream, from one entry to another, both included: each its milliseconds and its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stretch {
    /// The stream's key.
    pub stream: String,
    /// The first one.
    pub from: (u64, u64),
    /// The last one: what dies later is not met.
    pub to: (u64, u64),
}

/// What is to be done. Nothing in it is a program: it came over the bus, where others write too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Where.
    pub stretches: Vec<Stretch>,
    /// Which letters.
    pub wanted: Wanted,
    /// How their payloads change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mends: Vec<Mend>,
    /// The type that they get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_type: Option<String>,
    /// Also what is left alone for its own good.
    pub force: bool,
    /// How many a second, at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// How many, at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl Plan {
    /// Checks what it names.
    ///
    /// # Errors
    /// Says which field is wrong.
    pub fn check(&self, keys: &Keys) -> Result<(), String> {
        let counts = [
            ("stretches", self.stretches.len(), MAX_STRETCHES),
            ("mends", self.mends.len(), MAX_MENDS),
            ("where", self.wanted.fields.len(), MAX_WHERES),
        ];
        for (field, count, most) in counts {
            if count > most {
                return Err(format!("{field}: {count} are over the limit of {most}"));
            }
        }
        let mut named = BTreeSet::new();
        for stretch in &self.stretches {
            self.stream(keys, &stretch.stream)?;
            if !named.insert(&stretch.stream) {
                return Err(format!("stretches: {} is there twice", stretch.stream));
            }
        }
        if self.rate == Some(0) {
            return Err("rate: 0 would never end".into());
        }
        if let Some(kind) = &self.to_type {
            crate::protocol::keys::check_event_type(kind)
                .map_err(|error| format!("to_type: {error}"))?;
        }
        self.mends
            .iter()
            .try_for_each(|mend| mend.check().map_err(|error| format!("mends: {error}")))
    }

    /// A stream of dead letters of this namespace.
    ///
    /// # Errors
    /// Says that it is another key.
    pub fn stream(&self, keys: &Keys, key: &str) -> Result<StreamName, String> {
        let name = keys.stream_name(key);
        let name = name.filter(|name| name.kind == StreamKind::Dead);
        name.ok_or_else(|| {
            let key: String = key.chars().take(128).collect();
            format!("stretches: {key:?} is no stream of dead letters")
        })
    }

    /// How it changes letters.
    pub fn planner(&self, keys: &Keys, limits: Limits, by: &str) -> Planner {
        Planner {
            keys: keys.clone(),
            limits,
            force: self.force,
            to_type: self.to_type.clone(),
            mends: self.mends.clone(),
            by: by.to_owned(),
        }
    }
}

/// How far a repair is in one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last entry that was looked at.
    pub at: Option<EntryId>,
    /// Letters that are events again.
    pub replayed: u64,
    /// Letters that were gone when they were to be replayed.
    pub gone: u64,
    /// Letters that were left alone.
    pub left: u64,
    /// How many for which reason.
    pub why: BTreeMap<String, u64>,
}

impl Progress {
    /// Reads what is noted beside a stream.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn read(
        connection: &mut impl ConnectionLike,
        keys: &Keys,
        dead: &StreamName,
        noted: &str,
    ) -> Result<Self, BusError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(keys.repair_beside(dead, noted));
        let noted: HashMap<String, String> = command.query_async(connection).await?;
        let number = |name: &str| noted.get(name).and_then(|text| text.parse().ok());
        let why = noted.iter().filter_map(|(name, count)| {
            let why = name.strip_prefix("left:")?;
            Some((why.to_owned(), count.parse().ok()?))
        });
        Ok(Self {
            at: noted.get("at").and_then(|at| at.parse().ok()),
            replayed: number("replayed").unwrap_or(0),
            gone: number("gone").unwrap_or(0),
            left: number("left").unwrap_or(0),
            why: why.collect(),
        })
    }

    /// Adds what was done in another stream.
    pub fn add(&mut self, other: &Self) {
        self.replayed += other.replayed;
        self.gone += other.gone;
        self.left += other.left;
        for (why, count) in &other.why {
            *self.why.entry(why.clone()).or_default() += count;
        }
    }
}

/// What one step is about.
#[derive(Debug)]
pub struct RepairStep<'a> {
    /// The dead letters' stream.
    pub dead: &'a StreamName,
    /// The name under which it is noted how far the repair is.
    pub noted: &'a str,
    /// The fence of the right to the repair.
    pub fence: u64,
    /// Where it stands.
    pub before: Option<EntryId>,
    /// The last entry that this step looks at.
    pub after: EntryId,
    /// Letters that are left alone.
    pub left: &'a [Candidate],
    /// Letters that are replayed, all to one stream.
    pub moves: &'a [Candidate],
}

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stepped {
    /// The step is done, now or before; so far the repair is in this stream.
    Done(Progress),
    /// The server refused a letter: it and those behind it are where they were.
    Refused(String, Progress),
    /// The repair stands elsewhere than was thought.
    Elsewhere(Progress),
    /// Somebody else has the right by now, or it is cancelled.
    Lost,
}

impl Operator {
    /// Takes the right to the repair that is named like the run, in one stream: an older fence moves nothing more there.
    ///
    /// # Errors
    /// `Bus`; the call can be repeated.
    #[doc(hidden)]
    pub async fn take_repair(
        &self,
        connection: &mut impl ConnectionLike,
        dead: &StreamName,
        noted: &str,
        fence: u64,
    ) -> Result<Stepped, BusError> {
        let step = RepairStep {
            dead,
            noted,
            fence,
            before: None,
            after: EntryId::default(),
            left: &[],
            moves: &[],
        };
        self.step(connection, step, true).await
    }

    /// Does one step of it.
    ///
    /// # Errors
    /// `Bus`; the call can be repeated.
    #[doc(hidden)]
    pub async fn step_repair(
        &self,
        connection: &mut impl ConnectionLike,
        step: RepairStep<'_>,
    ) -> Result<Stepped, BusError> {
        self.step(connection, step, false).await
    }

    async fn step(
        &self,
        connection: &mut impl ConnectionLike,
        step: RepairStep<'_>,
        only_take: bool,
    ) -> Result<Stepped, BusError> {
        let dead = step.dead;
        let to = match step.moves.first() {
            Some(first) => first.to.clone(),
            None => self.keys().events(&dead.part, dead.partition),
        };
        // Without moves the events stream is not touched; it is declared, so it must lie in this slot.
        let to = match self.keys().share_slot(&to, &dead.key) {
            true => to,
            false => dead.key.clone(),
        };
        let mut call = SCRIPT.prepare_invoke();
        call.key(&dead.key)
            .key(self.keys().repair_beside(dead, step.noted))
            .key(&to);
        let told = self.tell(&mut call, &dead.key);
        let text = |at: Option<EntryId>| at.map_or_else(String::new, |at| at.to_string());
        call.arg(self.run())
            .arg(self.by())
            .arg(step.fence)
            .arg(text(step.before))
            .arg(text((!only_take).then_some(step.after)))
            .arg(whole_ms(KEPT));
        let reasons = reasons(step.left);
        call.arg(reasons.len());
        for (why, count) in &reasons {
            call.arg(why).arg(count);
        }
        for one in step.moves {
            call.arg(one.act.entry.to_string());
            words(&mut call, &one.act);
        }
        type Answer = (u8, String, String, u64, u64, u64, Vec<String>);
        let answer: Answer = call.invoke_async(connection).await?;
        let (state, error, at, replayed, gone, left, moved) = answer;
        let progress = Progress {
            at: at.parse().ok(),
            replayed,
            gone,
            left,
            why: BTreeMap::new(),
        };
        if !told {
            let fact = ("operator.replayed", Some("dead"), dead.key.as_str());
            self.store(connection, fact, Some(&to), moved).await?;
        }
        Ok(match (state, error.is_empty()) {
            (1, true) => Stepped::Done(progress),
            (1, false) => Stepped::Refused(error, progress),
            (0, _) => Stepped::Elsewhere(progress),
            _ => Stepped::Lost,
        })
    }
}

/// How many are left alone for which reason; what is one reason too many is counted with others.
fn reasons(left: &[Candidate]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for why in left.iter().filter_map(|one| one.left.as_deref()) {
        let why = &why[..why.floor_char_boundary(MAX_WHY)];
        let known = counts.len() < REASONS || counts.contains_key(why);
        *counts
            .entry(if known { why } else { "..." }.to_owned())
            .or_default() += 1;
    }
    counts
}
