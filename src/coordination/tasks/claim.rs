//! Work that an instance takes by itself.
//!
//! What is claimed is assigned to who claims it, as if the scheduler had done so: it counts against the
//! capacity, has a fence, and goes to others when its holder is lost. A claim answers first what the
//! instance holds and no claim was answered with: what was sent to its inbox before its first claim, and
//! what somebody assigned to it since. So a program that never reads an inbox misses nothing.
//!
//! *A lost answer*: the claim's id is that of the event. The same id again, by the publisher or by the bus,
//! takes nothing more and is answered the same: as long as the instance holds anything that the claim took, and
//! for the last 8 claims that took something. A claim that took nothing may take something when it comes again.
//!
//! *Who lost track* of what it holds, because it started again or somebody claimed in its name, asks for all of it.
//!
//! *Who may*: anyone for an external instance. A sealed one is a worker that gets its tasks by its inbox: a
//! claim in its name would be answered to somebody else.

use crate::coordination::bounds::{check_id, invalid};
use crate::coordination::error::CoordinationError;
use crate::coordination::store::words;
use crate::coordination::tasks::Tasks;
use crate::coordination::tasks::assignment;
use crate::protocol::keys;
use redis::Script;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// Tasks that one claim takes at the most.
pub const MAX_CLAIMED: usize = 50;
/// Kinds that one claim may name.
pub const MAX_KINDS: usize = 16;
/// Claims before the last 8, of all of which an instance holds something: it claims more when it has ended
/// some of those tasks.
pub const MAX_CLAIMS: usize = 64;
/// Bytes of the payloads that one answer holds, if there are several, so that the values in them are not
/// more than an event may hold either. A larger payload comes alone. Where events have to be small it is
/// less: a twelfth of those, since a value may be eleven times as long in JSON.
pub const MAX_CLAIMED_BYTES: usize = 60_000;

static CLAIM: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("task_claim.lua")));

/// A task that was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Its id.
    pub task: String,
    /// The event type whose handler runs it.
    pub kind: String,
    /// One MessagePack value.
    pub payload: Vec<u8>,
    /// The number under which it is the instance's.
    pub fence: u64,
    /// How often it was assigned.
    pub attempt: u32,
}

/// What an instance asks for.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Whose tasks they are, or will be.
    pub instance: &'a str,
    /// Only this incarnation of it, if one is given.
    pub incarnation: Option<u64>,
    /// Tasks at the most.
    pub limit: usize,
    /// Of these kinds only, if any are named.
    pub kinds: &'a [String],
    /// The claim's id: of the same one again nothing more is taken.
    pub asked: &'a str,
    /// Whether it takes none, and is answered with what the instance holds of any kind, also where a claim was
    /// answered with that before.
    pub held: bool,
}

impl<'a> Claim<'a> {
    /// A claim of what waits, for whatever incarnation is active.
    pub fn new(instance: &'a str, limit: usize, kinds: &'a [String], asked: &'a str) -> Self {
        Self {
            instance,
            incarnation: None,
            limit,
            kinds,
            asked,
            held: false,
        }
    }
}

impl Tasks {
    /// Gives an external instance tasks that it can take, the most urgent first.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds; `FailedPrecondition` if the instance, or that incarnation of it, is not
    /// active; `PermissionDenied` if it is sealed; `Exhausted` if it holds tasks of [`MAX_CLAIMS`] older claims;
    /// `Bus` else.
    pub async fn claim(&self, claim: Claim<'_>) -> Result<Vec<Claimed>, CoordinationError> {
        let Claim {
            instance,
            incarnation,
            limit,
            kinds,
            asked,
            held,
        } = claim;
        check_id("instance_id", instance)?;
        if !(1..=MAX_CLAIMED).contains(&limit) {
            return Err(invalid(format!("limit: {limit} is not 1 to {MAX_CLAIMED}")));
        }
        if kinds.len() > MAX_KINDS {
            let count = kinds.len();
            return Err(invalid(format!(
                "kinds: {count} are over the limit of {MAX_KINDS}"
            )));
        }
        for (at, kind) in kinds.iter().enumerate() {
            keys::check_event_type(kind)
                .map_err(|error| invalid(format!("kinds[{at}]: {error}")))?;
        }
        let kinds: BTreeSet<String> = kinds.iter().cloned().collect();
        let mut call = CLAIM.prepare_invoke();
        call.key(self.store.keys.instance(instance));
        assignment::declare(&mut call, &self.store.keys);
        call.arg(instance)
            .arg(asked)
            .arg(limit)
            .arg(words(&kinds))
            .arg(MAX_CLAIMED_BYTES.min(self.max_payload / 12))
            .arg(incarnation.map_or_else(String::new, |incarnation| incarnation.to_string()))
            .arg(u8::from(held));
        let (outcome, tasks): (String, Vec<Told>) = self.store.invoke(&call).await?;
        match outcome.as_str() {
            "claimed" => Ok(tasks.into_iter().map(Claimed::from).collect()),
            "sealed" => Err(CoordinationError::PermissionDenied(format!(
                "instance_id: {instance} is a worker that registered itself: it gets its tasks by its inbox, \
                 and nobody claims for it"
            ))),
            "other" => Err(CoordinationError::FailedPrecondition(format!(
                "incarnation: {} of instance {instance} is not the one that is active: another program \
                 registered under its id, or it was lost; register again",
                incarnation.unwrap_or(0)
            ))),
            "many" => Err(CoordinationError::Exhausted(format!(
                "instance_id: {instance} holds tasks of {MAX_CLAIMS} older claims, each of which may be \
                 repeated: complete some of them, or fail them, and claim more at a time"
            ))),
            _ => Err(CoordinationError::FailedPrecondition(format!(
                "instance_id: {instance} is not active: register it, and pulse for it"
            ))),
        }
    }
}

type Told = (String, String, Vec<u8>, u64, u32);

impl From<Told> for Claimed {
    fn from((task, kind, payload, fence, attempt): Told) -> Self {
        Self {
            task,
            kind,
            payload,
            fence,
            attempt,
        }
    }
}
