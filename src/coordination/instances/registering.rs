//! Instances come and go: registering, and unregistering.

use super::{Instances, KEPT, TRIES, contended, learn, or_empty, sealed};
use crate::connect::clock::whole_ms;
use crate::connect::silence::CallTime;
use crate::coordination::answer::answer;
use crate::coordination::bounds::check_id;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::instance::Registering;
use crate::coordination::store::words;
use crate::coordination::tasks::assignment::{self, Inboxes};
use redis::Script;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// External instances at the most. Each may cost the server some 100 KiB.
pub const MAX_EXTERNAL: usize = 1000;
/// Waiting tasks that one call gives an instance which registers.
const TAKES: usize = 32;
static REGISTER: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("register.lua")));

static UNREGISTER: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("unregister.lua")));

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

/// The outcome of unregistering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unregistered {
    /// Whether the instance is unregistered now, by this call or by an earlier one; false if it was
    /// never registered, was lost before, or is another incarnation.
    pub unregistered: bool,
    /// Its tasks that went to others or wait for them.
    pub tasks_reassigned: u64,
}

answer! {
    /// What `register.lua` answers.
    struct Admitted {
        again: u8,
        held: String,
        incarnation: u64,
        new: bool,
        leader: Option<String>,
        given: Vec<String>,
        seal: String,
    }
}

answer! {
    /// What `unregister.lua` answers.
    struct Released {
        again: u8,
        held: String,
        unregistered: bool,
        tasks_reassigned: u64,
        named: String,
    }
}

impl Instances {
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

    /// The same for a process that registered before; `None` if another one has the id since, or it unregistered.
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
        let takes = if registering.announces { 0 } else { TAKES };
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
                .arg(takes)
                .arg(self.process())
                .arg(u8::from(begins))
                .arg(or_empty(registering.incarnation))
                .arg(MAX_EXTERNAL)
                .arg(self.seen.incarnation.highest());
            let told: Admitted = self.store.invoke(&call).await?;
            if told.again == 0 && self.process.is_some() {
                self.seen.incarnation.note(told.incarnation);
            }
            match told.again {
                0 => {
                    // Its room, or the bounds of one step, ended there.
                    let more = !told.given.is_empty();
                    assigned.extend(told.given);
                    let new = *first.get_or_insert(told.new);
                    if more {
                        tries = 0;
                        continue;
                    }
                    return Ok(Some(Registered {
                        incarnation: told.incarnation,
                        ttl_ms: registering.ttl_ms,
                        leader: told.leader,
                        new,
                        assigned,
                        seal: told.seal,
                    }));
                }
                1 => learn(&mut declared, &told.held),
                // By its own word: no silence is judged.
                2 => _ = self.lose(id, Some(CallTime::ANY), false).await?,
                3 => return Err(sealed(id, "register")),
                4 => return Ok(None),
                5 => {
                    return Err(other_incarnation(
                        id,
                        registering.incarnation,
                        told.incarnation,
                    ));
                }
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
            call.arg(whole_ms(KEPT));
            assignment::declare(&mut call, &self.store.keys);
            inboxes.declare(&mut call, &self.store.keys);
            let told: Released = self.store.invoke(&call).await?;
            match told.again {
                0 => {
                    return Ok(Unregistered {
                        unregistered: told.unregistered,
                        tasks_reassigned: told.tasks_reassigned,
                    });
                }
                1 => {
                    tries += 1;
                    learn(&mut declared, &told.held);
                    inboxes.learn(&told.named);
                }
                2 => tries = 0,
                3 => return Err(sealed(id, "unregister")),
                _ => {
                    return Err(other_incarnation(
                        id,
                        incarnation,
                        told.held.parse().unwrap_or(0),
                    ));
                }
            }
        }
        Err(contended(id))
    }
}

fn other_incarnation(id: &str, named: Option<u64>, is: u64) -> CoordinationError {
    let named = named.unwrap_or(0);
    let is = match is {
        0 => "nobody has this id".to_owned(),
        is => format!("the last one is {is}"),
    };
    CoordinationError::FailedPrecondition(format!(
        "incarnation: {named} of instance {id} is not alive ({is}); leave it out to register again"
    ))
}
