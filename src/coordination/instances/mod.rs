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
//! | alive | alive for another ttl after it was sent | `send_pulse`, and `collect_pulses` of the leader ([`collecting`]) |
//! | alive | alive for three ttls, where peers ask it meanwhile | `heartbeat` of its own process ([`neighbours`]) |
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
//! *Incarnations only rise*: a new one is the greatest of the last one plus 1, the last one that the
//! process itself had plus 1, and the server's clock in microseconds. So no memory of ids that are gone
//! is needed, and a process does not fall back where the server lost its data and its clock stepped back.
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

pub mod asking;
pub mod collecting;
pub mod gossip;
pub mod instance;
pub mod neighbours;
pub mod orders;
mod parts;
mod ping;
pub mod pull;
mod pulse;
mod registering;
pub mod roster;
mod seen;
mod sweep;

pub use pulse::{Pulse, Seal};
pub use registering::{MAX_EXTERNAL, Registered, Unregistered};
pub use sweep::{Lost, SWEEP, Swept};

use super::error::CoordinationError;
use super::store::{Store, words};
use crate::connect::connector::Connector;
use crate::connect::epoch::Epoch;
use crate::connect::silence::{Answers, CallTime};
use crate::protocol::keys::Keys;
use redis::ScriptInvocation;
use seen::Seen;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long the hash of an instance that is gone is kept for people to look at.
pub const KEPT: Duration = Duration::from_secs(3600);
/// How long an instance counts as recently lost.
pub const RECENTLY: Duration = Duration::from_secs(600);
/// Tries of a call whose role sets changed meanwhile. Each try knows all roles that the ones before
/// it met, so only new roles can make another one needed.
const TRIES: u32 = 16;

/// The instances of one namespace. Cheap to clone; every clone and every process sees the same.
#[derive(Clone, Debug)]
pub struct Instances {
    pub(super) store: Store,
    /// The process that speaks for its own instance; `None`: events ask.
    pub(super) process: Option<Arc<str>>,
    answers: Option<Answers>,
    pub(super) seen: Arc<Seen>,
}

impl Instances {
    /// The instances of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        Self {
            store: Store::new(connector, keys),
            process: None,
            answers: None,
            seen: Arc::default(),
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

    /// The same in one history of the server only ([`Connector::epoch`]): in another one calls fail
    /// with [`BusError::OtherEpoch`](crate::connect::error::BusError::OtherEpoch).
    #[must_use]
    pub fn within(&self, epoch: Epoch) -> Self {
        Self {
            store: self.store.within(epoch),
            ..self.clone()
        }
    }

    /// The same by another way to the same server.
    #[must_use]
    pub fn by(&self, connector: Connector) -> Self {
        Self {
            store: self.store.by(connector),
            ..self.clone()
        }
    }

    /// Which process speaks; '' if events ask.
    pub(crate) fn process(&self) -> &str {
        self.process.as_deref().unwrap_or_default()
    }

    /// In which time of the server a call belongs that is made now; `None` where nobody can say.
    pub(super) fn span(&self) -> Option<CallTime> {
        let answers = self.answers.as_ref();
        answers.map_or(Some(CallTime::ANY), Answers::span)
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

fn sealed(id: &str, what: &str) -> CoordinationError {
    CoordinationError::PermissionDenied(format!(
        "instance {id} is a worker that registered itself: nobody else may {what} it until it is gone or was declared lost"
    ))
}

fn contended(id: &str) -> CoordinationError {
    CoordinationError::Contended {
        what: format!("instance {id}"),
        tries: TRIES,
    }
}
