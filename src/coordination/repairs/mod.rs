//! Repairs: bulk replays that workers do, in steps, though whoever asked for them may be gone.
//!
//! Two keys hold them, by name: what each does (`repairs`), and who does it and whether it is done (`repairs:states`). How
//! far it is stands beside each stream, and moves on in the step that moves the entries
//! ([`crate::operator::replay::repair`]).
//!
//! One worker at a time has the right to a repair: a lease, with a fence that rises each time it is taken.
//!
//! | what goes wrong | what becomes of the repair |
//! |---|---|
//! | whoever does it dies | its lease ends; another worker goes on where the last step ended |
//! | it was stopped, and goes on after that | its fence is older: its next step moves nothing |
//! | the answer to a step is lost | the same step again changes nothing more, and says how far it is |
//! | nobody runs, or the server is away | it waits |
//! | a stream takes no events | it waits before the first entry that was refused, and says why |
//! | it is cancelled in the middle | what was replayed stays so; the fence stops whoever does it |
//! | a worker of an earlier version finds a plan that it cannot read | it leaves it to others |

use super::answer::answer;
use super::bounds::{invalid, named};
use super::error::CoordinationError;
use super::store::Store;
use crate::connect::clock::whole_ms;
use crate::connect::connector::Connector;
use crate::connect::script::script_with;
use crate::operator::replay::Operator;
use crate::operator::replay::repair::{MAX_PLAN, Plan, Progress};
use crate::protocol::event::Entry;
use crate::protocol::keys::{self, Keys};
use redis::Script;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::Notify;

const DECODED: &str = include_str!("../schedules/decoded.lua");
static PUT: LazyLock<Script> =
    LazyLock::new(|| script_with(&[DECODED], include_str!("repair_put.lua")));
static HOLD: LazyLock<Script> =
    LazyLock::new(|| script_with(&[DECODED], include_str!("repair_hold.lua")));
static END: LazyLock<Script> =
    LazyLock::new(|| script_with(&[DECODED], include_str!("repair_end.lua")));

/// For how long the right to a repair is taken. It is renewed three times as often.
pub const LEASE: Duration = Duration::from_secs(10);
/// Repairs that are kept; those that run are among them.
pub const MAX_REPAIRS: usize = 100;
/// Bytes of the text that says why.
pub const MAX_REASON: usize = 256;
/// Entries that a repair may be said to be about: what scripts count exactly.
const MAX_TOTAL: u64 = 1 << 53;
/// Bytes of a note.
const MAX_NOTE: usize = 256;

/// Who does a repair, and whether it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RepairState {
    /// `running`, `finished` or `cancelled`.
    pub state: String,
    /// Rises each time that the right to it is taken.
    pub fence: u64,
    /// Who has the right.
    pub holder: Option<String>,
    /// Until when, in Unix ms on the server.
    pub until: Option<u64>,
    /// Who asked for it.
    pub by: String,
    /// Why.
    pub why: String,
    /// When, in Unix ms on the server.
    pub at: u64,
    /// Entries that it is about, as far as that was counted.
    pub total: Option<u64>,
    /// When it ended.
    pub ended: Option<u64>,
    /// Who ended it.
    pub ended_by: Option<String>,
    /// What holds it up.
    pub note: Option<String>,
    /// A terminal does it, no worker.
    pub terminal: bool,
}

impl RepairState {
    /// Whether somebody does it at that time on the server.
    pub fn is_held(&self, now_ms: u64) -> bool {
        let last = now_ms.saturating_add(whole_ms(LEASE));
        // What ends later than any lease from now on was given before the clock stepped back.
        self.until
            .is_some_and(|until| until > now_ms && until <= last)
    }

    /// Whether it goes on.
    pub fn runs(&self) -> bool {
        self.state == "running"
    }

    /// The name under which it is noted how far it is: a later repair that is named alike begins at the beginning.
    pub fn noted(&self, name: &str) -> String {
        format!("{name}:{}", self.at)
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RepairDraft {
    /// Its name.
    pub name: String,
    /// What is to be done.
    pub plan: Plan,
    /// Why.
    pub why: String,
    /// Entries that it is about, if they were counted.
    pub total: Option<u64>,
}

/// What became of an attempt to have the right to a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// The caller has it, with this fence.
    Held(u64),
    /// Somebody else has.
    Others,
    /// The repair does not run.
    Over,
}

answer! {
    /// What the scripts answer.
    struct Answered {
        state: u8,
        fence: u64,
    }
}

/// The repairs of one namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repairs {
    store: Store,
    told: Arc<Notify>,
}

impl Repairs {
    /// The repairs of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        Self {
            store: Store::new(connector, keys),
            told: Arc::default(),
        }
    }

    /// Has workers begin a repair. The same again changes nothing while it runs.
    ///
    /// # Errors
    /// `Invalid` for a plan that cannot be; `AlreadyExists` where another one has the name; `FailedPrecondition` where the
    /// same one has ended; `Exhausted` if as many run as may; `Bus` else, and the call can be repeated.
    pub async fn start(&self, wanted: &RepairDraft, by: &str) -> Result<(), CoordinationError> {
        named("name", keys::check_name("run", &wanted.name))?;
        wanted.plan.check(&self.store.keys).map_err(invalid)?;
        if wanted.why.len() > MAX_REASON {
            let bytes = wanted.why.len();
            return Err(invalid(format!(
                "why: {bytes} bytes are over the limit of {MAX_REASON}"
            )));
        }
        if let Some(total) = wanted.total.filter(|total| *total > MAX_TOTAL) {
            return Err(invalid(format!(
                "total: {total} is over the limit of {MAX_TOTAL}"
            )));
        }
        let plan = rmp_serde::to_vec_named(&wanted.plan)
            .map_err(|error| invalid(format!("plan: {error}")))?;
        if plan.len() > MAX_PLAN {
            let bytes = plan.len();
            return Err(invalid(format!(
                "plan: {bytes} bytes are over the limit of {MAX_PLAN}"
            )));
        }
        let keys = self.store.keys.repairs();
        let mut call = PUT.prepare_invoke();
        call.key(keys.plans)
            .key(keys.states)
            .key(self.store.keys.broadcast())
            .arg(&wanted.name)
            .arg(plan)
            .arg(cut(by, MAX_REASON))
            .arg(&wanted.why)
            .arg(wanted.total.map_or_else(String::new, |n| n.to_string()))
            .arg(MAX_REPAIRS)
            .arg(u8::from(wanted.plan.program));
        match self.store.invoke(&call).await? {
            1_u8 => {
                self.told();
                Ok(())
            }
            2 => Err(CoordinationError::AlreadyExists(format!(
                "another repair is named {}",
                wanted.name
            ))),
            4 => Err(self.ended(&wanted.name).await),
            _ => Err(CoordinationError::Exhausted(format!(
                "{MAX_REPAIRS} repairs run, which is the most that may: cancel one"
            ))),
        }
    }

    async fn ended(&self, name: &str) -> CoordinationError {
        let state = match self.read(name).await {
            Ok((_, state)) => state,
            Err(error) => return error,
        };
        let by = state.ended_by.unwrap_or_default();
        CoordinationError::FailedPrecondition(format!(
            "{name} has ended ({} by {by}): take another name",
            state.state
        ))
    }

    /// The server's time in Unix ms.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn now(&self) -> Result<u64, CoordinationError> {
        Ok(self.store.now().await?)
    }

    /// All that are kept, by name.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn list(&self) -> Result<BTreeMap<String, RepairState>, CoordinationError> {
        let mut read = redis::pipe();
        read.cmd("HGETALL").arg(self.store.keys.repairs().states);
        let (all,): (BTreeMap<String, Vec<u8>>,) = self.store.ask(&read).await?;
        let all = all.into_iter();
        let read =
            all.filter_map(|(name, state)| Some((name, rmp_serde::from_slice(&state).ok()?)));
        Ok(read.collect())
    }

    /// What one is to do, and how it stands.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a plan that this version cannot read; `Bus`.
    pub async fn read(&self, name: &str) -> Result<(Plan, RepairState), CoordinationError> {
        let keys = self.store.keys.repairs();
        let mut read = redis::pipe();
        read.cmd("HGET").arg(keys.plans).arg(name);
        read.cmd("HGET").arg(keys.states).arg(name);
        let (plan, state): (Option<Vec<u8>>, Option<Vec<u8>>) = self.store.ask(&read).await?;
        let (Some(plan), Some(state)) = (plan, state) else {
            return Err(not_found(name));
        };
        let odd = |error: rmp_serde::decode::Error| {
            invalid(format!("plan: this version cannot read it: {error}"))
        };
        let plan: Plan = rmp_serde::from_slice(&plan).map_err(odd)?;
        plan.check(&self.store.keys).map_err(invalid)?;
        Ok((plan, rmp_serde::from_slice(&state).map_err(odd)?))
    }

    /// How far one is that is [noted](RepairState::noted) like that: what was done, in all streams together.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn progress(&self, noted: &str, plan: &Plan) -> Result<Progress, CoordinationError> {
        let keys = &self.store.keys;
        let mut all = Progress::default();
        for stretch in &plan.stretches {
            let stream = plan.stream(keys, &stretch.stream).map_err(invalid)?;
            let mut connection = self.store.connector.toward(&stream.key).pooled().await?;
            all.add(&Progress::read(&mut connection, keys, &stream, noted).await?);
        }
        Ok(all)
    }

    /// Takes the right to a repair, for so long.
    ///
    /// # Errors
    /// `Bus`; the call can be repeated.
    pub async fn take(
        &self,
        name: &str,
        who: &str,
        lease: Duration,
    ) -> Result<Right, CoordinationError> {
        self.hold(name, who, None, lease, "").await
    }

    /// Keeps a right; says what holds the repair up, if anything does.
    ///
    /// # Errors
    /// `Bus`; the call can be repeated.
    pub async fn keep(
        &self,
        name: &str,
        who: &str,
        fence: u64,
        lease: Duration,
        note: &str,
    ) -> Result<Right, CoordinationError> {
        self.hold(name, who, Some(fence), lease, note).await
    }

    async fn hold(
        &self,
        name: &str,
        who: &str,
        fence: Option<u64>,
        lease: Duration,
        note: &str,
    ) -> Result<Right, CoordinationError> {
        let mut call = HOLD.prepare_invoke();
        call.key(self.store.keys.repairs().states)
            .arg(name)
            .arg(who)
            .arg(fence.map_or_else(String::new, |fence| fence.to_string()))
            .arg(whole_ms(lease))
            .arg(cut(note, MAX_NOTE));
        let answer: Answered = self.store.invoke(&call).await?;
        Ok(match answer.state {
            1 => Right::Held(answer.fence),
            2 => Right::Others,
            _ => Right::Over,
        })
    }

    /// Says that all of it is done.
    ///
    /// # Errors
    /// `Aborted` if the right is lost; `Bus`, and the call can be repeated.
    pub async fn finish(&self, name: &str, who: &str, fence: u64) -> Result<(), CoordinationError> {
        let answer = self.end(name, "finished", Some(fence), who).await?;
        match answer.state {
            1 => Ok(()),
            _ => Err(CoordinationError::Aborted(format!(
                "{name}: somebody else has the right to it"
            ))),
        }
    }

    /// Cancels a repair: what is not replayed by then stays where it is. Returns what was done.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for one that is finished; `Bus`, and the call can be repeated.
    pub async fn cancel(&self, name: &str, by: &str) -> Result<Progress, CoordinationError> {
        let by = cut(by, MAX_REASON);
        let answer = self.end(name, "cancelled", None, by).await?;
        match answer.state {
            1 => {}
            0 => return Err(not_found(name)),
            _ => {
                return Err(CoordinationError::FailedPrecondition(format!(
                    "{name} is finished"
                )));
            }
        }
        self.told();
        let (plan, state) = self.read(name).await?;
        let noted = state.noted(name);
        let operator = Operator::new(self.store.keys.clone(), name, by);
        for stretch in &plan.stretches {
            let stream = plan.stream(&self.store.keys, &stretch.stream);
            let stream = stream.map_err(invalid)?;
            let mut connection = self.store.connector.toward(&stream.key).pooled().await?;
            // From here on whoever does it moves nothing more in that stream.
            operator
                .take_repair(&mut connection, (plan.from, &stream), &noted, answer.fence)
                .await?;
        }
        self.progress(&noted, &plan).await
    }

    async fn end(
        &self,
        name: &str,
        state: &str,
        fence: Option<u64>,
        by: &str,
    ) -> Result<Answered, CoordinationError> {
        let mut call = END.prepare_invoke();
        call.key(self.store.keys.repairs().states)
            .key(self.store.keys.broadcast())
            .arg(name)
            .arg(state)
            .arg(fence.map_or_else(String::new, |fence| fence.to_string()))
            .arg(by);
        Ok(self.store.invoke(&call).await?)
    }

    /// Somebody began or ended one: who waits for that looks.
    pub fn told(&self) {
        self.told.notify_one();
    }

    /// Is ready when somebody did since the last time. For one who waits at a time.
    pub async fn changed(&self) {
        self.told.notified().await;
    }
}

/// Whether a fact is one of a repair.
pub fn is_change(fact: &Entry) -> bool {
    fact.get("type") == Some(b"repair.changed")
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

fn not_found(name: &str) -> CoordinationError {
    CoordinationError::NotFound(format!("no repair {:?}", cut(name, 128)))
}
