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
//! | alive | alive for another ttl, no suspicion | `heartbeat`; it does nothing for anyone else |
//! | alive | expired | `observe`, when a majority of observers says so ([`super::gossip`]) |
//! | active | gone, `instance.unregistered` | `unregister` |
//! | expired | gone, `instance.lost`, once | `sweep`, by whoever comes first |
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

use super::assignment::{self, Inboxes};
use super::error::CoordinationError;
use super::gossip::{self, PING, Peer, WATCHED};
use super::instance::{Beat, Registering, check_id};
use super::store::{Store, words};
use crate::bus::connect::Connector;
use crate::bus::keys::Keys;
use crate::bus::script::script_with;
use redis::{Script, ScriptInvocation};
use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

/// How long the hash of an instance that is gone is kept for people to look at.
pub const KEPT: Duration = Duration::from_secs(3600);
/// How long an instance counts as recently lost.
pub const RECENTLY: Duration = Duration::from_secs(600);
/// Instances that one sweep declares lost at most, so that a sweep is short.
pub const SWEEP: usize = 16;
/// Waiting tasks that one call gives an instance which registers.
const TAKES: usize = 32;
/// Tries of a call whose role sets changed meanwhile. Each try knows all roles that the ones before
/// it met, so only new roles can make another one needed.
const TRIES: u32 = 16;

static REGISTER: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("register.lua")));
static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| {
    script_with(
        include_str!("aggregate_global_metrics.lua"),
        include_str!("heartbeat.lua"),
    )
});
static UNREGISTER: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("unregister.lua")));
static LOSE: LazyLock<Script> = LazyLock::new(|| assignment::script(include_str!("lose.lua")));

/// The instances of one namespace. Cheap to clone; every clone and every process sees the same.
#[derive(Clone, Debug)]
pub struct Instances {
    pub(super) store: Store,
}

/// What registering came to.
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
}

/// What a heartbeat came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// Whether the instance is alive; if not, it must register again.
    pub alive: bool,
    /// How long it stays so without another pulse, in ms; 0 if it is not.
    pub ttl_ms: u64,
    /// The current leader.
    pub leader: Option<String>,
    /// The peers that it is to watch, at most [`WATCHED`] of them.
    pub watch: Vec<Peer>,
}

/// What unregistering came to.
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
        let store = Store::new(connector, keys);
        Self { store }
    }

    /// The same in one history of the server only ([`Connector::history`]): in another one calls fail
    /// with [`BusError::OtherHistory`](crate::bus::error::BusError::OtherHistory).
    #[must_use]
    pub fn within(&self, history: u64) -> Self {
        let store = self.store.within(history);
        Self { store }
    }

    /// Makes an instance active. A live one keeps its incarnation; what it registered before is
    /// replaced.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds; `Contended` if others registered the same id with ever
    /// other roles; `Bus` else.
    pub async fn register(
        &self,
        registering: &Registering,
    ) -> Result<Registered, CoordinationError> {
        let checked = registering.check()?;
        let id = &registering.id;
        let roles = words(&checked.roles);
        let capabilities = words(&checked.capabilities);
        let mut declared = checked.roles;
        let mut assigned = Vec::new();
        // The first registration's answer, where tasks were left for further ones.
        let mut first = None;
        let mut tries = 0;
        while tries < TRIES {
            let mut call = REGISTER.prepare_invoke();
            call.key(self.store.keys.instance(id))
                .key(self.store.keys.active())
                .key(self.store.keys.capabilities())
                .key(self.store.keys.lost())
                .key(self.store.keys.broadcast())
                .key(self.store.keys.leader())
                .key(self.store.keys.suspects())
                .key(self.store.keys.reports(id))
                .arg(id)
                .arg(registering.ttl_ms)
                .arg(registering.capacity)
                .arg(&checked.metadata)
                .arg(&roles)
                .arg(&capabilities);
            self.declare(&mut call, &declared);
            assignment::declare(&mut call, &self.store.keys);
            call.key(self.store.keys.inbox(id)).arg(TAKES);
            let (again, held, incarnation, new, leader, given): (
                u8,
                String,
                u64,
                bool,
                Option<String>,
                Vec<String>,
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
                    return Ok(Registered {
                        incarnation,
                        ttl_ms: registering.ttl_ms,
                        leader,
                        new,
                        assigned,
                    });
                }
                1 => learn(&mut declared, &held),
                _ => {
                    self.lose(id).await?;
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
    /// `Invalid` for a value out of bounds, `Bus` else. It may be renewed then; repeated, the call
    /// counts nothing twice.
    pub async fn heartbeat(&self, beat: &Beat) -> Result<Pulse, CoordinationError> {
        beat.check()?;
        let keys = &self.store.keys;
        // Adding 0 makes -0 a plain 0.
        let load = beat.load.map(|load| (load + 0.0).to_string());
        let mut call = HEARTBEAT.prepare_invoke();
        call.key(keys.instance(&beat.id))
            .key(keys.active())
            .key(keys.leader())
            .key(keys.suspects())
            .key(keys.reports(&beat.id))
            .key(keys.capabilities())
            .key(keys.reported(&beat.id))
            .key(keys.metrics())
            .arg(&beat.id)
            .arg(or_empty(beat.incarnation))
            .arg(PING)
            .arg(WATCHED)
            .arg(load.unwrap_or_default());
        match &beat.metrics {
            Some(report) => report.bounded().declare(&mut call),
            None => _ = call.arg(""),
        }
        let (alive, ttl_ms, leader, watch): (bool, u64, Option<String>, Vec<String>) =
            self.store.invoke(&call).await?;
        if let Some(observed) = beat.observed.as_ref().filter(|_| alive) {
            self.observe(&beat.id, beat.incarnation, observed).await?;
        }
        Ok(Pulse {
            alive,
            ttl_ms,
            leader,
            watch: gossip::peers(watch)?,
        })
    }

    /// Takes an instance out of the active ones; with an incarnation, only that one.
    ///
    /// # Errors
    /// `Invalid` for a malformed id; `Contended` if others registered the id with ever other roles
    /// meanwhile; `Bus` else.
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
                .arg(id)
                .arg(or_empty(incarnation));
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
                _ => tries = 0,
            }
        }
        Err(contended(id))
    }

    /// Declares expired instances lost, the oldest first, at most `limit` of them ([`SWEEP`] is a
    /// good one). Any instance may call it at any time; each loss is declared once.
    ///
    /// Whoever could not reach the server, or meets another history of it, should wait one ttl before it
    /// sweeps again: the others could not pulse either.
    ///
    /// # Errors
    /// `Bus`. What was declared lost before the error is known by the facts only.
    pub async fn sweep(&self, limit: usize) -> Result<Swept, CoordinationError> {
        let census = self.census_naming(limit).await?;
        let mut lost = Vec::new();
        for id in &census.named {
            lost.extend(self.lose(id).await?);
        }
        Ok(Swept {
            leader: census.leader,
            partition_turns: census.counts.partition != census.counts.is_partitioned(),
            lost,
            active: census.counts.active,
            left: census
                .counts
                .expired
                .saturating_sub(census.named.len() as u64),
        })
    }

    pub(super) async fn lose(&self, id: &str) -> Result<Option<Lost>, CoordinationError> {
        let mut declared = BTreeSet::new();
        let mut inboxes = Inboxes::of(id);
        let mut tries = 0;
        while tries < TRIES {
            let mut call = LOSE.prepare_invoke();
            call.key(self.store.keys.instance(id))
                .key(self.store.keys.active())
                .key(self.store.keys.capabilities())
                .key(self.store.keys.lost())
                .key(self.store.keys.broadcast())
                .arg(id);
            self.declare(&mut call, &declared);
            call.arg(millis(KEPT)).arg(millis(RECENTLY));
            assignment::declare(&mut call, &self.store.keys);
            inboxes.declare(&mut call, &self.store.keys);
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

    /// Declares role sets: their keys, and their names as one argument.
    fn declare(&self, call: &mut ScriptInvocation<'_>, roles: &BTreeSet<String>) {
        for role in roles {
            call.key(self.store.keys.role(role));
        }
        call.arg(words(roles));
    }
}

fn learn(declared: &mut BTreeSet<String>, held: &str) {
    declared.extend(held.split_whitespace().map(str::to_owned));
}

pub(super) fn or_empty(incarnation: Option<u64>) -> String {
    incarnation.map_or_else(String::new, |incarnation| incarnation.to_string())
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn contended(id: &str) -> CoordinationError {
    CoordinationError::Contended {
        what: format!("instance {id}"),
        tries: TRIES,
    }
}
