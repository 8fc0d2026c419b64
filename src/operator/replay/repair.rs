//! A repair: a replay that workers do, whoever asked for it may be gone.
//!
//! What is to be done is a [`Plan`]: which entries, and how they change, as data. How far it is in one
//! stream is noted beside that stream, in the step that moves them, so counts and position are what was done, whoever
//! dies. The same note holds the fence of whoever has the right to it: an older one moves nothing more.

use super::calls::{self, Copies, Held};
use super::mending::Mend;
use super::planning::{Candidate, Planner};
use super::walk::Choice;
use super::wanted::Wanted;
use super::{COPIES, HELD, LETTERS, Operator, Source, TOLD};
use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::connect::script::script_with;
use crate::protocol::event::{EntryId, Limits};
use crate::protocol::keys::{Keys, StreamKind, StreamName};
use crate::streams::made;
use redis::Script;
use redis::aio::ConnectionLike;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;
use std::time::Duration;

static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    script_with(
        &[TOLD, LETTERS, HELD, COPIES],
        include_str!("repair_step.lua"),
    )
});

/// How long it is known how far a repair was.
pub const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Streams of one repair, at the most.
pub const MAX_STRETCHES: usize = 1000;
/// Changes of a payload, at the most.
pub const MAX_MENDS: usize = 100;
/// Conditions on what an entry holds, at the most.
pub const MAX_WHERES: usize = 100;
/// Bytes of a plan, at the most.
pub const MAX_PLAN: usize = 512 << 10;
/// Bytes of the name of a consumer or of its group, at the most.
const MAX_NAME: usize = 256;
/// Bytes of a reason for which entries are left alone.
const MAX_WHY: usize = 120;
/// Reasons that one step tells apart.
const REASONS: usize = 20;

/// Entries of one stream, from one to another, both included: each its milliseconds and its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stretch {
    /// The stream's key.
    pub stream: String,
    /// The first one.
    pub from: (u64, u64),
    /// The last one: what comes later is not met.
    pub to: (u64, u64),
}

/// What is to be done. Nothing in it is a program: it came over the bus, where others write too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// What is replayed.
    #[serde(skip_serializing_if = "is_dead")]
    pub from: Source,
    /// Where.
    pub stretches: Vec<Stretch>,
    /// Which entries.
    pub wanted: Wanted,
    /// The consumer group that has them pending, or is done with them: by default the workers'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
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
    /// A program in a terminal changes them besides: the terminal does it, no worker.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub program: bool,
    /// A digest of that program, and of the streams and times as the terminal was given them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
}

fn is_dead(from: &Source) -> bool {
    *from == Source::Dead
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
        let wanted = &self.wanted;
        let of_letters = wanted.reason.is_some() || wanted.instance.is_some();
        if of_letters && self.from != Source::Dead {
            return Err("wanted: only dead letters have a reason and an instance".into());
        }
        let of_held = wanted.idle_ms.is_some() || wanted.consumer.is_some();
        if (of_held || wanted.min_deliveries.is_some()) && self.from != Source::Pending {
            let all = "idle_ms, consumer and min_deliveries";
            return Err(format!("wanted: only pending entries have {all}"));
        }
        if self.group.is_some() && self.from == Source::Dead {
            return Err("group: dead letters have none".into());
        }
        for (field, name) in [("group", &self.group), ("consumer", &wanted.consumer)] {
            let bytes = name.as_deref().map_or(0, str::len);
            if bytes > MAX_NAME {
                return Err(format!(
                    "{field}: {bytes} bytes are over the limit of {MAX_NAME}"
                ));
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

    /// A stream of this namespace, of the kind that it is about.
    ///
    /// # Errors
    /// Says that it is another key.
    pub fn stream(&self, keys: &Keys, key: &str) -> Result<StreamName, String> {
        let (kind, what) = match self.from {
            Source::Dead => (StreamKind::Dead, "dead letters"),
            Source::Pending | Source::Range => (StreamKind::Events, "events"),
        };
        let name = keys.stream_name(key);
        let name = name.filter(|name| name.kind == kind);
        name.ok_or_else(|| {
            let key: String = key.chars().take(128).collect();
            format!("stretches: {key:?} is no stream of {what}")
        })
    }

    /// Which entries it means and how they change, for the replay of that name that somebody asked for. `group` and `idle`
    /// hold where it says nothing.
    pub fn choice(&self, planner: Planner, run: &str, group: &str, idle: Duration) -> Choice {
        Choice {
            from: self.from,
            wanted: self.wanted.clone(),
            planner,
            group: self.group.clone().unwrap_or_else(|| group.to_owned()),
            idle: self.wanted.idle_ms.map_or(idle, Duration::from_millis),
            run: run.to_owned(),
        }
    }

    /// How it changes entries.
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
    /// Where the stream ended when a repair of events began: what it adds itself is not met.
    pub end: Option<EntryId>,
    /// Entries that were replayed.
    pub replayed: u64,
    /// Entries that were gone when they were to be replayed.
    pub gone: u64,
    /// Entries that were left alone.
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
        stream: &StreamName,
        noted: &str,
    ) -> Result<Self, BusError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(keys.repair_beside(stream, noted));
        let noted: HashMap<String, String> = command.query_async(connection).await?;
        let number = |name: &str| noted.get(name).and_then(|text| text.parse().ok());
        let why = noted.iter().filter_map(|(name, count)| {
            let why = name.strip_prefix("left:")?;
            Some((why.to_owned(), count.parse().ok()?))
        });
        Ok(Self {
            at: noted.get("at").and_then(|at| at.parse().ok()),
            end: noted.get("end").and_then(|end| end.parse().ok()),
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

/// How entries are replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way<'a> {
    /// Dead letters become events again.
    Dead,
    /// Pending entries stand at the end of their stream instead, and their owners are fenced.
    Pending {
        /// The consumer group.
        group: &'a str,
    },
    /// Finished ones are copied to the end of their stream.
    Range {
        /// Also what another run copied.
        force: bool,
    },
}

impl Way<'_> {
    fn source(self) -> Source {
        match self {
            Way::Dead => Source::Dead,
            Way::Pending { .. } => Source::Pending,
            Way::Range { .. } => Source::Range,
        }
    }
}

/// What one step is about.
#[derive(Debug)]
pub struct RepairStep<'a> {
    /// How its entries are replayed.
    pub way: Way<'a>,
    /// Their stream.
    pub stream: &'a StreamName,
    /// The name under which it is noted how far the repair is.
    pub noted: &'a str,
    /// The fence of the right to the repair.
    pub fence: u64,
    /// Where it stands.
    pub before: Option<EntryId>,
    /// The last entry that this step looks at.
    pub after: EntryId,
    /// Entries that are left alone.
    pub left: &'a [Candidate],
    /// Entries that are replayed, all to one stream.
    pub moves: &'a [Candidate],
}

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stepped {
    /// The step is done, now or before; so far the repair is in this stream.
    Done(Progress),
    /// The server refused an entry: it and those behind it are where they were.
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
        (from, stream): (Source, &StreamName),
        noted: &str,
        fence: u64,
    ) -> Result<Stepped, BusError> {
        let way = match from {
            Source::Dead => Way::Dead,
            Source::Pending => Way::Pending { group: "" },
            Source::Range => Way::Range { force: false },
        };
        let step = RepairStep {
            way,
            stream,
            noted,
            fence,
            before: None,
            after: EntryId::default(),
            left: &[],
            moves: &[],
        };
        let (stepped, _) = self.step(connection, step, true).await?;
        Ok(stepped)
    }

    /// Does one step of it. Says besides, for each entry that it moved now or found gone, its id as a new event.
    ///
    /// # Errors
    /// `Bus`; the call can be repeated.
    #[doc(hidden)]
    pub async fn step_repair(
        &self,
        connection: &mut impl ConnectionLike,
        step: RepairStep<'_>,
    ) -> Result<(Stepped, Vec<Option<EntryId>>), BusError> {
        self.step(connection, step, false).await
    }

    async fn step(
        &self,
        connection: &mut impl ConnectionLike,
        step: RepairStep<'_>,
        only_take: bool,
    ) -> Result<(Stepped, Vec<Option<EntryId>>), BusError> {
        let stream = step.stream;
        let to = match step.moves.first() {
            Some(first) => first.to.clone(),
            None => self.keys().events(&stream.part, stream.partition),
        };
        // Without moves the events stream is not touched; it is declared, so it must lie in this slot.
        let to = match self.keys().share_slot(&to, &stream.key) {
            true => to,
            false => stream.key.clone(),
        };
        made::ensure_there(connection, self.keys(), &to).await?;
        let mut call = SCRIPT.prepare_invoke();
        call.key(&stream.key)
            .key(self.keys().repair_beside(stream, step.noted))
            .key(&to);
        let moves = || step.moves.iter().map(|one| &one.act);
        let (held, copies) = (Held::of(moves()), Copies::of(moves()));
        match step.way {
            Way::Dead => {}
            Way::Pending { .. } => held.keys(&mut call, self.keys(), stream),
            Way::Range { .. } => copies.keys(&mut call, self.keys(), stream),
        }
        let told = self.tell(&mut call, &stream.key);
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
        let from = step.way.source().as_str();
        call.arg(from);
        match step.way {
            Way::Dead => moves().for_each(|one| calls::entry(&mut call, one)),
            Way::Pending { group } => held.words(&mut call, group),
            Way::Range { force } => copies.words(&mut call, force),
        }
        type Answer = (u8, String, String, u64, u64, u64, String, Vec<String>);
        let answer: Answer = call.invoke_async(connection).await?;
        let (state, error, at, replayed, gone, left, end, moved) = answer;
        let progress = Progress {
            at: at.parse().ok(),
            end: end.parse().ok(),
            replayed,
            gone,
            left,
            why: BTreeMap::new(),
        };
        let moved: Vec<Option<EntryId>> = moved.iter().map(|id| id.parse().ok()).collect();
        if !told {
            let fact = ("operator.replayed", Some(from), stream.key.as_str());
            let pairs = moves().zip(&moved).filter(|(_, id)| id.is_some());
            let entries = pairs.map(|(one, _)| one.entry.to_string()).collect();
            self.store(connection, fact, Some(&to), entries).await?;
        }
        let stepped = match (state, error.is_empty()) {
            (1, true) => Stepped::Done(progress),
            (1, false) => Stepped::Refused(error, progress),
            (0, _) => Stepped::Elsewhere(progress),
            _ => Stepped::Lost,
        };
        Ok((stepped, moved))
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
