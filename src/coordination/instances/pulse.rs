//! Heartbeats: an instance is alive for another ttl, and what it did is counted.

use super::{Instances, KEPT, or_empty, sealed};
use crate::connect::script::script_with;
use crate::connect::silence::Answers;
use crate::coordination::answer::answer;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::gossip::{PING, Peer, WATCHED, peers};
use crate::coordination::instances::instance::Beat;
use crate::coordination::instances::neighbours::LASTS;
use crate::coordination::metrics::{Packed, Report};
use crate::coordination::scripts::VERSION;
use crate::coordination::store::words;
use redis::Script;
use std::collections::BTreeSet;
use std::sync::LazyLock;

static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| {
    script_with(
        &[VERSION, include_str!("aggregate_global_metrics.lua")],
        include_str!("heartbeat.lua"),
    )
});

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

impl Instances {
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
        let beaten = self.pulse(beat, first, beat.seal.as_ref()).await?;
        let state = beaten.state;
        if matches!(state, 1..=3) {
            for part in rest {
                self.pulse(beat, part, None).await?;
            }
        }
        if state == 5 {
            let late = "the server ran a pulse that was waited for no longer: it does not count";
            return Err(CoordinationError::FailedPrecondition(late.into()));
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
            ttl_ms: beaten.ttl_ms,
            leader: beaten.leader,
            watch: peers(beaten.watch)?,
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
        let until = self.answers.as_ref().and_then(Answers::until);
        call.arg(or_empty(until))
            .arg(if beat.lasting { LASTS } else { 1 });
        if let Some(report) = report {
            report.declare(&mut call, KEPT);
        }
        Ok(self.store.invoke(&call).await?)
    }
}

answer! {
    /// What `heartbeat.lua` answers.
    struct Beaten {
        state: u8,
        ttl_ms: u64,
        leader: Option<String>,
        watch: Vec<String>,
    }
}
