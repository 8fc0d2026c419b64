//! The InstanceManager: who is there, and who is not any more.
//!
//! An id is *active* from its registration until it unregisters or is swept, and *alive* while its
//! expiry, a score in `instances:active`, lies in the future of the server's clock.
//!
//! | from | to | by |
//! |---|---|---|
//! | unknown, gone | active, a higher incarnation, `instance.registered` | `register` |
//! | alive | alive, the same incarnation, what it registered replaced | `register` |
//! | expired, not swept | active, a higher incarnation, `instance.registered` | `register`, which has it declared lost first if it holds tasks |
//! | expired, not swept, sealed | alive, the same incarnation | its own process: `heartbeat`, `register` |
//! | alive | alive for another ttl, no suspicion | `heartbeat`; it does nothing for anyone else |
//! | alive | expired | `observe`, when a majority of observers says so ([`crate::coordination::instances::gossip`]) |
//! | active | gone, `instance.unregistered` | `unregister` |
//! | expired | gone, `instance.lost`, once | `sweep`, by whoever comes first, as far as its silence counts ([`crate::connect::silence`]) |
//!
//! *Who says so.* An instance that its own process registered is *sealed*: until it is declared lost nobody
//! but that process changes it. All others are *external*: anyone who may publish `system.*` events can
//! make one up, so they are counted apart, their reports enter no totals, and what they observe ends no
//! lease. Which of the two a call is depends on the handle: [`Instances::new`] is for what events ask for,
//! and is the only one that handlers get; [`Instances::of_process`] speaks for the process itself, and is
//! held by the worker and its keeper alone. A process has a name of its own. If another one begins under
//! the same id, that one has it from then on; the older one is told, is counted on, and changes nothing.
//!
//! *Incarnations only rise*: a new one is the greater of the last one plus 1 and the server's clock
//! in microseconds, so no memory of ids that are gone is needed, and a server that lost its data
//! does not fall back.
//!
//! *Crashes*: each transition is one script with its fact, so there is nothing between two states.
//! A caller that does not know whether its call took effect repeats it.
//!
//! *Tasks*: whoever goes leaves them to the others in the step in which it goes, whoever comes gets
//! what waits for it. One step moves at most 50 tasks from an instance; where one holds more, the
//! steps before the last leave it active without getting any, and the count of the last is of all.
//!
//! *Keys*: role sets must be declared to a script, and only the hash says which ones an instance is
//! in. A script that meets a role whose set was not declared changes nothing and names the roles;
//! the call is repeated with them as well.

pub mod gossip;
pub mod instance;
mod ping;
pub mod roster;

use super::error::CoordinationError;
use super::metrics::{Packed, Report};
use super::scripts::VERSION;
use super::store::{Store, words};
use crate::connect::connector::Connector;
use crate::connect::script::{script, script_with};
use crate::connect::silence::{Answers, Span};
use crate::coordination::bounds::check_id;
use crate::coordination::instances::gossip::{PING, Peer, WATCHED};
use crate::coordination::instances::instance::{Beat, Registering};
use crate::coordination::tasks::assignment::{self, Inboxes};
use crate::protocol::keys::Keys;
use redis::{Script, ScriptInvocation};
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// How long the hash of an instance that is gone is kept for people to look at.
pub const KEPT: Duration = Duration::from_secs(3600);
/// How long an instance counts as recently lost.
pub const RECENTLY: Duration = Duration::from_secs(600);
/// Instances that one sweep declares lost at most, so that a sweep is short.
pub const SWEEP: usize = 16;
/// External instances at the most. Each may cost the server some 100 KiB.
pub const MAX_EXTERNAL: usize = 1000;
/// Expiries that one look brings back into reach after the clock went back.
const REACH: usize = 250;
/// Waiting tasks that one call gives an instance which registers.
const TAKES: usize = 32;
/// Tries of a call whose role sets changed meanwhile. Each try knows all roles that the ones before
/// it met, so only new roles can make another one needed.
const TRIES: u32 = 16;

static REGISTER: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("register.lua")));
static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| {
    script_with(
        &[VERSION, include_str!("aggregate_global_metrics.lua")],
        include_str!("heartbeat.lua"),
    )
});
static UNREGISTER: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("unregister.lua")));
static LOSE: LazyLock<Script> = LazyLock::new(|| assignment::script(include_str!("lose.lua")));
static SHORTEN: LazyLock<Script> = LazyLock::new(|| script(include_str!("shorten.lua")));

/// The instances of one namespace. Cheap to clone; every clone and every process sees the same.
#[derive(Clone, Debug)]
pub struct Instances {
    pub(super) store: Store,
    /// The process that speaks for its own instance; `None`: events ask.
    pub(super) process: Option<Arc<str>>,
    answers: Option<Answers>,
}

/// The outcome of registering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The incarnation that the instance is now.
    pub incarnation: u64,
    /// How long it counts as alive after this and after each pulse, in ms.
    pub ttl_ms: u64,
    /// The current leader.
    pub leader: Option<String>,
    /// Whether this began a new incarnation.
    pub new: bool,
    /// The tasks that it was given in the same step; where many wait and it has much room, also those
    /// of the steps right after.
    pub assigned: Vec<String>,
    /// A digest of what it registered, for its own pulses.
    pub seal: String,
}

/// What a process compares with each of its own pulses: what it registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// As registering answered it.
    pub digest: String,
    /// The roles.
    pub roles: BTreeSet<String>,
    /// The event types.
    pub capabilities: BTreeSet<String>,
}

/// The outcome of a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// Whether the instance is alive; if not, it must register again.
    pub alive: bool,
    /// Whether it is, but not as its seal says: it should register again.
    pub changed: bool,
    /// Whether another process has the id since: it has nothing to say any more.
    pub superseded: bool,
    /// How long it stays so without another pulse, in ms; 0 if it is not.
    pub ttl_ms: u64,
    /// The current leader.
    pub leader: Option<String>,
    /// The peers that it is to watch, at most [`WATCHED`] of them.
    pub watch: Vec<Peer>,
}

/// The outcome of unregistering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unregistered {
    /// Whether the instance is unregistered now, by this call or by an earlier one; false if it was
    /// never registered, was lost before, or is another incarnation.
    pub unregistered: bool,
    /// Its tasks that went to others or wait for them.
    pub tasks_reassigned: u64,
}

/// An instance that was declared lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its id.
    pub id: String,
    /// The incarnation that is lost; 0 if somebody deleted its hash.
    pub incarnation: u64,
    /// Its last pulse, in Unix ms.
    pub last_seen: u64,
    /// Its tasks that went to others or wait for them.
    pub tasks_reassigned: u64,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The current leader, before the sweep's own losses.
    pub leader: Option<String>,
    /// The instances that this call, and no other, declared lost.
    pub lost: Vec<Lost>,
    /// Instances that are alive.
    pub active: u64,
    /// Expired instances that were left for the next sweep because of the limit.
    pub left: u64,
    /// Whether a partition begins or ends, as it was before the sweep's own losses (which change
    /// nothing about it): time for [`Instances::watch_partition`].
    pub partition_turns: bool,
}

impl Instances {
    /// The instances of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        Self {
            store: Store::new(connector, keys),
            process: None,
            answers: None,
        }
    }

    /// The same for a process that registers itself; `process` is a name that no other process has.
    pub fn of_process(connector: Connector, keys: Keys, process: &str) -> Self {
        Self {
            process: Some(process.into()),
            ..Self::new(connector, keys)
        }
    }

    /// The same that counts silence by those answers of the server. Without, all silence counts.
    #[must_use]
    pub fn judging_by(self, answers: Answers) -> Self {
        Self {
            answers: Some(answers),
            ..self
        }
    }

    /// The same in one history of the server only ([`Connector::history`]): in another one calls fail
    /// with [`BusError::OtherHistory`](crate::connect::error::BusError::OtherHistory).
    #[must_use]
    pub fn within(&self, history: u64) -> Self {
        Self {
            store: self.store.within(history),
            ..self.clone()
        }
    }

    /// Which process speaks; '' if events ask.
    pub(super) fn process(&self) -> &str {
        self.process.as_deref().unwrap_or_default()
    }

    /// In which time of the server a call belongs that is made now; `None` where nobody can say.
    pub(super) fn span(&self) -> Option<Span> {
        let answers = self.answers.as_ref();
        answers.map_or(Some(Span::ANY), Answers::span)
    }

    /// Makes an instance active. A live one keeps its incarnation; what it registered before is
    /// replaced. A process takes the place of another one that has the id.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds; `PermissionDenied` where an event asks and the instance is sealed;
    /// `FailedPrecondition` for another incarnation than the one that the event names; `ResourceExhausted`
    /// for one external instance too many; `Contended` if others registered the same id with ever other
    /// roles; `Bus` else.
    pub async fn register(
        &self,
        registering: &Registering,
    ) -> Result<Registered, CoordinationError> {
        let registered = self.try_to_register(registering, true).await?;
        registered.ok_or_else(|| contended(&registering.id))
    }

    /// The same for a process that registered before; `None` if another one has the id since.
    ///
    /// # Errors
    /// As [`register`](Self::register).
    pub async fn register_again(
        &self,
        registering: &Registering,
    ) -> Result<Option<Registered>, CoordinationError> {
        self.try_to_register(registering, false).await
    }

    async fn try_to_register(
        &self,
        registering: &Registering,
        begins: bool,
    ) -> Result<Option<Registered>, CoordinationError> {
        let checked = registering.check()?;
        let id = &registering.id;
        let keys = &self.store.keys;
        let roles = words(&checked.roles);
        let capabilities = words(&checked.capabilities);
        let mut declared = checked.roles;
        let mut assigned = Vec::new();
        // The first registration's answer, where tasks were left for further ones.
        let mut first = None;
        let mut tries = 0;
        while tries < TRIES {
            let mut call = REGISTER.prepare_invoke();
            call.key(keys.instance(id))
                .key(keys.active())
                .key(keys.capabilities())
                .key(keys.lost())
                .key(keys.broadcast())
                .key(keys.leader())
                .key(keys.suspects())
                .key(keys.reports(id))
                .key(keys.external())
                .key(keys.lost_external())
                .key(keys.inbox_route(id).delayed)
                .arg(id)
                .arg(registering.ttl_ms)
                .arg(registering.capacity)
                .arg(&checked.metadata)
                .arg(&roles)
                .arg(&capabilities);
            self.declare(&mut call, &declared);
            assignment::declare(&mut call, keys);
            call.key(keys.inbox(id))
                .arg(TAKES)
                .arg(self.process())
                .arg(u8::from(begins))
                .arg(or_empty(registering.incarnation))
                .arg(MAX_EXTERNAL);
            let (again, held, incarnation, new, leader, given, seal): (
                u8,
                String,
                u64,
                bool,
                Option<String>,
                Vec<String>,
                String,
            ) = self.store.invoke(&call).await?;
            match again {
                0 => {
                    // Its room, or the bounds of one step, ended there.
                    let more = !given.is_empty();
                    assigned.extend(given);
                    let new = *first.get_or_insert(new);
                    if more {
                        tries = 0;
                        continue;
                    }
                    return Ok(Some(Registered {
                        incarnation,
                        ttl_ms: registering.ttl_ms,
                        leader,
                        new,
                        assigned,
                        seal,
                    }));
                }
                1 => learn(&mut declared, &held),
                // By its own word: no silence is judged.
                2 => _ = self.lose(id, Some(Span::ANY), false).await?,
                3 => return Err(sealed(id, "register")),
                4 => return Ok(None),
                5 => return Err(other_incarnation(id, registering.incarnation, incarnation)),
                _ => {
                    return Err(CoordinationError::ResourceExhausted(format!(
                        "id: {id} would be one more than the {MAX_EXTERNAL} instances that events may have registered at a time; unregister some, or let them expire"
                    )));
                }
            }
            tries += 1;
        }
        Err(contended(id))
    }

    /// Renews a live instance and counts what it did, in one step; then counts what it says of its
    /// peers. Works when the server's memory is full.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds; `PermissionDenied` where an event says so and the instance is
    /// sealed; `Bus` else. It may be renewed then; repeated, the call counts nothing twice.
    pub async fn heartbeat(&self, beat: &Beat) -> Result<Pulse, CoordinationError> {
        beat.check()?;
        let reports = beat.metrics.as_ref().map(Report::bounded);
        // The first tells how it is; the others only add to what it did.
        let mut parts: Vec<Option<Packed>> = match reports {
            Some(report) => report.parts().into_iter().map(Some).collect(),
            None => vec![None],
        };
        let rest = parts.split_off(1);
        let first = parts.pop().flatten();
        let (state, ttl_ms, leader, watch) = self.pulse(beat, first, beat.seal.as_ref()).await?;
        if matches!(state, 1..=3) {
            for part in rest {
                self.pulse(beat, part, None).await?;
            }
        }
        if state == 4 {
            return Err(sealed(&beat.id, "pulse for"));
        }
        let alive = matches!(state, 1 | 2);
        if let Some(observed) = beat.observed.as_ref().filter(|_| alive) {
            self.observe(&beat.id, beat.incarnation, observed).await?;
        }
        Ok(Pulse {
            alive,
            changed: state == 2,
            superseded: state == 3,
            ttl_ms,
            leader,
            watch: gossip::peers(watch)?,
        })
    }

    /// One call of a pulse, with a part of its report.
    async fn pulse(
        &self,
        beat: &Beat,
        report: Option<Packed>,
        seal: Option<&Seal>,
    ) -> Result<Beaten, CoordinationError> {
        let keys = &self.store.keys;
        // Adding 0 makes -0 a plain 0.
        let load = beat.load.map(|load| (load + 0.0).to_string());
        let counts = beat.metrics.as_ref().map_or("", |report| &report.process);
        let mut call = HEARTBEAT.prepare_invoke();
        call.key(keys.instance(&beat.id))
            .key(keys.active())
            .key(keys.leader())
            .key(keys.suspects())
            .key(keys.reports(&beat.id))
            .key(keys.capabilities())
            .key(keys.reported(&beat.id, counts))
            .key(keys.metrics())
            .key(keys.external())
            .key(keys.state())
            .arg(&beat.id)
            .arg(or_empty(beat.incarnation))
            .arg(PING)
            .arg(WATCHED)
            .arg(load.unwrap_or_default());
        call.arg(report.as_ref().map_or(&[][..], |report| &report.gauges))
            .arg(self.process());
        let seal = seal.cloned().unwrap_or_default();
        call.arg(&seal.digest);
        self.declare(&mut call, &seal.roles);
        call.arg(words(&seal.capabilities));
        if let Some(report) = report {
            report.declare(&mut call);
        }
        Ok(self.store.invoke(&call).await?)
    }

    /// Takes an instance out of the active ones; with an incarnation, only that one.
    ///
    /// # Errors
    /// `Invalid` for a malformed id; where an event asks, `PermissionDenied` if the instance is sealed and
    /// `FailedPrecondition` for another incarnation; `Contended` if others registered the id with ever other
    /// roles meanwhile; `Bus` else.
    pub async fn unregister(
        &self,
        id: &str,
        incarnation: Option<u64>,
    ) -> Result<Unregistered, CoordinationError> {
        check_id("instance_id", id)?;
        let mut declared = BTreeSet::new();
        let mut inboxes = Inboxes::of(id);
        let mut tries = 0;
        while tries < TRIES {
            let mut call = UNREGISTER.prepare_invoke();
            call.key(self.store.keys.instance(id))
                .key(self.store.keys.active())
                .key(self.store.keys.capabilities())
                .key(self.store.keys.broadcast())
                .key(self.store.keys.external())
                .key(self.store.keys.inbox_route(id).delayed)
                .arg(id)
                .arg(or_empty(incarnation))
                .arg(self.process());
            self.declare(&mut call, &declared);
            call.arg(millis(KEPT));
            assignment::declare(&mut call, &self.store.keys);
            inboxes.declare(&mut call, &self.store.keys);
            let (again, held, unregistered, tasks_reassigned, named): (
                u8,
                String,
                bool,
                u64,
                String,
            ) = self.store.invoke(&call).await?;
            match again {
                0 => {
                    return Ok(Unregistered {
                        unregistered,
                        tasks_reassigned,
                    });
                }
                1 => {
                    tries += 1;
                    learn(&mut declared, &held);
                    inboxes.learn(&named);
                }
                2 => tries = 0,
                3 => return Err(sealed(id, "unregister")),
                _ => {
                    return Err(other_incarnation(
                        id,
                        incarnation,
                        held.parse().unwrap_or(0),
                    ));
                }
            }
        }
        Err(contended(id))
    }

    /// Declares expired instances lost, the oldest first, at most `limit` of them ([`SWEEP`] is a
    /// good one). Any instance may call it at any time; each loss is declared once. Which silence counts:
    /// see [`crate::connect::silence`].
    ///
    /// # Errors
    /// `Bus`. What was declared lost before the error is known by the facts only.
    pub async fn sweep(&self, limit: usize) -> Result<Swept, CoordinationError> {
        let asked = Instant::now();
        let census = self.census_naming(limit).await?;
        if let Some(answers) = &self.answers {
            answers.heard(asked, census.counts.at, self.store.connector.history());
        }
        let mut lost = Vec::new();
        for id in &census.named {
            lost.extend(self.lose(id, self.span(), true).await?);
        }
        Ok(Swept {
            leader: census.leader,
            partition_turns: census.counts.partition != census.counts.is_partitioned(),
            left: census.expired.saturating_sub(lost.len() as u64),
            lost,
            active: census.counts.active,
        })
    }

    /// Declares an expired instance lost; with `silent`, only if its silence counts. Not without a span.
    pub(super) async fn lose(
        &self,
        id: &str,
        span: Option<Span>,
        silent: bool,
    ) -> Result<Option<Lost>, CoordinationError> {
        let Some(span) = span else {
            return Ok(None);
        };
        let keys = &self.store.keys;
        let mut declared = BTreeSet::new();
        let mut inboxes = Inboxes::of(id);
        let mut tries = 0;
        while tries < TRIES {
            let mut call = LOSE.prepare_invoke();
            call.key(keys.instance(id))
                .key(keys.active())
                .key(keys.capabilities())
                .key(keys.lost())
                .key(keys.broadcast())
                .key(keys.external())
                .key(keys.lost_external())
                .key(keys.inbox_route(id).delayed)
                .arg(id);
            self.declare(&mut call, &declared);
            call.arg(millis(KEPT)).arg(millis(RECENTLY));
            assignment::declare(&mut call, keys);
            inboxes.declare(&mut call, keys);
            let since = silent.then(|| span.since.to_string());
            call.arg(since.unwrap_or_default())
                .arg(span.from)
                .arg(span.until);
            let (again, held, lost, incarnation, last_seen, tasks_reassigned, named): (
                u8,
                String,
                bool,
                u64,
                u64,
                u64,
                String,
            ) = self.store.invoke(&call).await?;
            match again {
                0 => {
                    return Ok(lost.then(|| Lost {
                        id: id.to_owned(),
                        incarnation,
                        last_seen,
                        tasks_reassigned,
                    }));
                }
                1 => {
                    tries += 1;
                    learn(&mut declared, &held);
                    inboxes.learn(&named);
                }
                _ => tries = 0,
            }
        }
        Err(contended(id))
    }

    /// Brings expiries that lie further ahead than a ttl back to one ttl from now, so that the dead expire
    /// after the server's clock went back; how many.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn shorten(&self, own_ttl: Duration) -> Result<u64, CoordinationError> {
        let keys = &self.store.keys;
        let (mut shortened, mut from) = (0, self.store.now().await? + millis(own_ttl));
        loop {
            let mut far = redis::pipe();
            far.cmd("ZRANGEBYSCORE")
                .arg(keys.active())
                .arg(format!("({from}"))
                .arg(&["+inf", "WITHSCORES", "LIMIT", "0"])
                .arg(REACH);
            let (far,): (Vec<(String, f64)>,) = self.store.ask(&far).await?;
            let Some((_, last)) = far.last() else {
                return Ok(shortened);
            };
            from = *last as u64;
            let mut call = SHORTEN.prepare_invoke();
            call.key(keys.active()).key(keys.external());
            for (id, _) in &far {
                call.key(keys.instance(id)).arg(id);
            }
            shortened += self.store.invoke::<u64>(&call).await?;
        }
    }

    /// Declares role sets: their keys, and their names as one argument.
    fn declare(&self, call: &mut ScriptInvocation<'_>, roles: &BTreeSet<String>) {
        for role in roles {
            call.key(self.store.keys.role(role));
        }
        call.arg(words(roles));
    }
}

/// State, ttl in ms, leader, peers to watch.
type Beaten = (u8, u64, Option<String>, Vec<String>);

fn learn(declared: &mut BTreeSet<String>, held: &str) {
    declared.extend(held.split_whitespace().map(str::to_owned));
}

pub(super) fn or_empty(incarnation: Option<u64>) -> String {
    incarnation.map_or_else(String::new, |incarnation| incarnation.to_string())
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn sealed(id: &str, what: &str) -> CoordinationError {
    CoordinationError::PermissionDenied(format!(
        "instance {id} is a worker that registered itself: nobody else may {what} it until it is gone or was declared lost"
    ))
}

fn other_incarnation(id: &str, named: Option<u64>, is: u64) -> CoordinationError {
    let named = named.unwrap_or(0);
    let is = match is {
        0 => "nobody has this id".to_owned(),
        is => format!("the last one is {is}"),
    };
    CoordinationError::FailedPrecondition(format!(
        "incarnation: {named} of instance {id} is not alive ({is}); leave it out to register anew"
    ))
}

fn contended(id: &str) -> CoordinationError {
    CoordinationError::Contended {
        what: format!("instance {id}"),
        tries: TRIES,
    }
}
