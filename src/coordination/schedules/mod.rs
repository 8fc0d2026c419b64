//! Schedules: events that are stored at times, once for each, however many replicas there are and whoever dies.
//!
//! Four keys hold them, by name: what each is (`schedules`), its event (`schedules:events`), how far it is
//! (`schedules:states`) and when it is to be looked at next (`schedules:due`, a sorted set).
//!
//! Every replica looks when something is due. It works out what that is (which ticks were missed, which event is to be
//! stored, which tick comes then) and calls a script, which stores the event and moves the schedule on in one step, if
//! the tick is still the one that comes next and is due by the server's clock. So two replicas that come at the same
//! time store one event, and one that dies leaves the tick to the others. Nothing hangs on a leader.
//!
//! | what goes wrong | what becomes of the ticks |
//! |---|---|
//! | a replica dies before, in or after the call | another one stores the event, or finds that it is stored |
//! | nobody runs, or the server is away or full | the next replica that looks does what `missed` says |
//! | the server's clock steps ahead | the ticks between are missed ones |
//! | it steps back | what was stored is not stored again; the next tick waits for its time |
//! | the events stream cannot be written | the tick waits; it is tried again with each look |
//! | the server loses its last second | the schedule stands where it stood: with the lost events |
//!
//! On a cluster an event for another slot is added to the outbox of the control plane in that step, and moved from there
//! once. Times are ms on the server. A schedule of one time (`at`) is kept for a day after it.

mod cron;
mod firing;
mod plan;
mod schedule;
#[cfg(test)]
mod tests;
mod timing;

pub use plan::Missed;
pub use schedule::{
    Definition, MAX_PAYLOAD, MAX_SCHEDULES, SHOWN, ScheduleDraft, Standing, Stored,
};
pub use timing::When;

use super::answer::answer;
use super::bounds::invalid;
use super::error::CoordinationError;
use super::store::Store;
use crate::connect::connector::Connector;
use crate::connect::script::script_with;
use crate::protocol::event::Entry;
use crate::protocol::keys::Keys;
use crate::streams::commit::Publication;
use crate::streams::delay;
use plan::Clockwork;
use redis::{Script, ScriptInvocation};
use schedule::{MAX_BY, event_id};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use timing::rfc3339;
use tokio::sync::Notify;

const DECODED: &str = include_str!("decoded.lua");
static PUT: LazyLock<Script> =
    LazyLock::new(|| script_with(&[DECODED], include_str!("schedule_put.lua")));
static DELETE: LazyLock<Script> =
    LazyLock::new(|| script_with(&[DECODED], include_str!("schedule_delete.lua")));

/// Bytes of an event as it is kept, at the most.
const MAX_EVENT: usize = MAX_PAYLOAD + 1024;

/// The schedules of one namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Schedules {
    store: Store,
    told: Arc<Notify>,
}

/// What was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Rises with each change.
    pub version: u64,
    /// The next ticks.
    pub next: Vec<u64>,
}

/// A schedule as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What it is.
    pub definition: Definition,
    /// How far it is.
    pub standing: Standing,
    /// The next ticks.
    pub next: Vec<u64>,
}

/// What is told where somebody has a schedule run.
#[derive(Serialize)]
struct RunFact<'a> {
    name: &'a str,
    change: &'static str,
    version: u64,
    by: &'a str,
    id: &'a str,
}

answer! {
    /// What `schedule_put.lua` answers.
    struct Answered {
        state: u8,
        number: u64,
    }
}

impl Schedules {
    /// The schedules of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        Self {
            store: Store::new(connector, keys),
            told: Arc::default(),
        }
    }

    /// Puts a schedule, or replaces the one of that name. The same again changes nothing.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds or a schedule that never ticks; `Aborted` where `version` is not the present
    /// one; `Exhausted` if there are as many as there may be; `Bus` else, and the call can be repeated.
    pub async fn put(
        &self,
        wanted: &ScheduleDraft,
        version: Option<u64>,
        by: &str,
    ) -> Result<Put, CoordinationError> {
        let timing = wanted.check(&self.store.keys)?;
        let clockwork = wanted.clockwork(&timing);
        let definition = encode(&wanted.definition())?;
        let words = delay::encode_member("", &wanted.words());
        let now = self.store.now().await?;
        let by = bounded(by);
        let mut after = now;
        loop {
            let next = clockwork.after(after);
            let next = next.filter(|_| !wanted.paused);
            let mut call = PUT.prepare_invoke();
            self.declare(&mut call);
            call.arg(&wanted.name)
                .arg(definition.as_slice())
                .arg(words.as_slice())
                .arg(by)
                .arg(next.map_or_else(String::new, |next| next.at.to_string()))
                .arg(next.map_or_else(String::new, |next| next.due.to_string()))
                .arg(MAX_SCHEDULES)
                .arg(version.map_or_else(String::new, |version| version.to_string()));
            if clockwork.timing.next_after(after).is_none()
                && !self.is_there(&wanted.name, &definition).await?
            {
                return Err(invalid(never(&wanted.when)));
            }
            let answer: Answered = self.store.invoke(&call).await?;
            match answer.state {
                1 => {
                    self.told();
                    return Ok(Put {
                        version: answer.number,
                        next: self.next_of(&clockwork, after, wanted.paused),
                    });
                }
                // The clock went back behind what was stored already.
                0 if answer.number >= after => after = answer.number,
                2 => return Err(other_version(&wanted.name, answer.number)),
                _ => {
                    return Err(CoordinationError::Exhausted(format!(
                        "there are {MAX_SCHEDULES} schedules, which is the most there may be: delete one"
                    )));
                }
            }
        }
    }

    /// Pauses a schedule, or has it go on with the first tick after now. What it has of `wanted` stays.
    ///
    /// # Errors
    /// `NotFound`; those of [`put`](Self::put).
    pub async fn pause(
        &self,
        name: &str,
        paused: bool,
        version: Option<u64>,
        by: &str,
    ) -> Result<Put, CoordinationError> {
        let (definition, words, standing) = self.read(name).await?;
        let field = |name: &[u8]| {
            let mut pairs = words.chunks_exact(2);
            pairs
                .find(|pair| pair[0] == name)
                .map(|pair| pair[1].clone())
        };
        let wanted = ScheduleDraft {
            name: name.to_owned(),
            when: definition.when,
            kind: definition.kind,
            payload: field(b"data"),
            subject: definition.subject,
            missed: definition.missed,
            jitter_ms: definition.jitter_ms,
            paused,
        };
        self.put(&wanted, version.or(Some(standing.version)), by)
            .await
    }

    /// Deletes a schedule; tells whether it was there.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn delete(&self, name: &str, by: &str) -> Result<bool, CoordinationError> {
        self.remove(name, by, "").await
    }

    async fn remove(&self, name: &str, by: &str, only: &str) -> Result<bool, CoordinationError> {
        let mut call = DELETE.prepare_invoke();
        self.declare(&mut call);
        call.arg(name).arg(bounded(by)).arg(only);
        let done = self.store.invoke(&call).await?;
        self.told();
        Ok(done)
    }

    /// All schedules by name.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn list(&self) -> Result<Vec<Listed>, CoordinationError> {
        let keys = self.store.keys.schedules();
        let mut reads = redis::pipe();
        reads.cmd("HGETALL").arg(keys.schedules);
        reads.cmd("HGETALL").arg(keys.states);
        type Hash = BTreeMap<String, Vec<u8>>;
        let (all, states): (Hash, Hash) = self.store.ask(&reads).await?;
        let listed = all.into_iter().filter_map(|(name, definition)| {
            let definition: Definition = rmp_serde::from_slice(&definition).ok()?;
            let standing = standing_of(states.get(&name).map(Vec::as_slice));
            let next = match (definition.when.timing(), standing.tick) {
                (Ok(timing), Some(tick)) => {
                    let clockwork = definition.clockwork(&name, &timing);
                    self.next_of(&clockwork, tick.saturating_sub(1), definition.paused)
                }
                _ => Vec::new(),
            };
            Some(Listed {
                name,
                definition,
                standing,
                next,
            })
        });
        Ok(listed.collect())
    }

    /// What has a schedule's event stored now, besides its ticks: the event's id, the event, and the fact that tells so.
    ///
    /// # Errors
    /// `NotFound`, `Bus`.
    pub async fn run(
        &self,
        name: &str,
        by: &str,
        source: &str,
    ) -> Result<(String, [Publication; 2]), CoordinationError> {
        let (definition, mut words, standing) = self.read(name).await?;
        let now = self.store.now().await?;
        let (by, id) = (bounded(by), format!("{}/run", event_id(name, now)));
        let time = now.to_string();
        let own = [("id", id.as_str()), ("source", source), ("time", &time)];
        words.extend(
            own.into_iter()
                .flat_map(|(name, value)| [name.into(), value.into()]),
        );
        let event = Publication {
            stream: definition.stream(&self.store.keys, &id),
            fields: words,
        };
        let told = RunFact {
            name,
            change: "run",
            version: standing.version,
            by,
            id: &id,
        };
        let fields = [
            b"type".to_vec(),
            b"schedule.changed".to_vec(),
            b"source".to_vec(),
            by.into(),
            b"time".to_vec(),
            time.into_bytes(),
            b"data".to_vec(),
            encode(&told)?,
        ];
        let fact = Publication {
            stream: self.store.keys.broadcast(),
            fields: fields.into(),
        };
        Ok((id, [event, fact]))
    }

    /// Somebody changed a schedule: who waits for the next tick looks again.
    pub fn told(&self) {
        self.told.notify_one();
    }

    /// Is ready when somebody changed one since the last time. For one who waits at a time.
    pub async fn changed(&self) {
        self.told.notified().await;
    }

    fn declare(&self, call: &mut ScriptInvocation<'_>) {
        let keys = self.store.keys.schedules();
        call.key(keys.schedules)
            .key(keys.events)
            .key(keys.states)
            .key(keys.due)
            .key(self.store.keys.broadcast());
    }

    async fn is_there(&self, name: &str, definition: &[u8]) -> Result<bool, CoordinationError> {
        let mut reads = redis::pipe();
        reads
            .cmd("HGET")
            .arg(self.store.keys.schedules().schedules)
            .arg(name);
        let (kept,): (Option<Vec<u8>>,) = self.store.ask(&reads).await?;
        Ok(kept.is_some_and(|kept| kept == definition))
    }

    async fn read(
        &self,
        name: &str,
    ) -> Result<(Definition, Vec<Vec<u8>>, Standing), CoordinationError> {
        let keys = self.store.keys.schedules();
        let mut reads = redis::pipe();
        for key in [keys.schedules, keys.events, keys.states] {
            reads.cmd("HGET").arg(key).arg(name);
        }
        type Bytes = Option<Vec<u8>>;
        let (definition, words, state): (Bytes, Bytes, Bytes) = self.store.ask(&reads).await?;
        let definition = definition.and_then(|bytes| rmp_serde::from_slice(&bytes).ok());
        let words = words.and_then(|bytes| delay::decode_member(&bytes, MAX_EVENT));
        match (definition, words) {
            (Some(definition), Some((_, words))) => {
                Ok((definition, words, standing_of(state.as_deref())))
            }
            _ => {
                let name = name.chars().take(128).collect::<String>();
                Err(CoordinationError::NotFound(format!("no schedule {name:?}")))
            }
        }
    }

    fn next_of(&self, clockwork: &Clockwork<'_>, after: u64, paused: bool) -> Vec<u64> {
        let first = clockwork.timing.next_after(after).filter(|_| !paused);
        let ticks = std::iter::successors(first, |tick| clockwork.timing.next_after(*tick));
        ticks.take(SHOWN).collect()
    }
}

/// Whether a fact is one of a changed schedule.
pub fn is_change(fact: &Entry) -> bool {
    fact.get("type") == Some(b"schedule.changed")
}

fn bounded(by: &str) -> &str {
    &by[..by.floor_char_boundary(MAX_BY)]
}

fn never(when: &When) -> String {
    match (&when.cron, when.at) {
        (Some(cron), _) => format!("cron: {cron:?} never ticks any more"),
        (_, Some(at)) => format!("at: {} lies in the past", rfc3339(at)),
        _ => "every_ms: never ticks any more".into(),
    }
}

fn other_version(name: &str, version: u64) -> CoordinationError {
    CoordinationError::Aborted(format!(
        "version: {name} is at version {version}: somebody else changed it meanwhile"
    ))
}

fn standing_of(state: Option<&[u8]>) -> Standing {
    state
        .and_then(|state| rmp_serde::from_slice(state).ok())
        .unwrap_or_default()
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, CoordinationError> {
    rmp_serde::to_vec_named(value).map_err(|error| invalid(error.to_string()))
}
