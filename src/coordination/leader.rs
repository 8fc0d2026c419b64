//! The leader: one instance, for duties that one is enough for.
//!
//! The state is the hash `leader`: `id`, `incarnation`, `term`, `until`. All times are the server's.
//!
//! - An instance *leads* while `until` lies in the future and it is active. `until` is the expiry of
//!   its last pulse, so the lead is part of being alive: it can't be had longer.
//! - The *seat is vacant* otherwise. Any instance that does the duties contends with each pulse and
//!   after each sweep that finds it vacant; who comes first has it. Instances that only registered
//!   (programs of others, which have no such duties) never contend.
//! - The *term* rises with each election and does not fall if the server lost its data: it is the
//!   greatest of the last one plus 1, the last one of the process that contends plus 1, and the server's
//!   clock in µs. No two elections have the same one, and the same id in a new incarnation is elected
//!   again.
//!
//! Nothing is safe only because there is one leader: every duty may be done by two at once, or by
//! nobody for a while. The duties are: trimming the streams of the control plane, which all workers
//! share. Sweeping and watching for partitions are done by whoever comes first; the metrics are added
//! up where they are reported.
//!
//! | what goes wrong | what becomes of the lead |
//! |---|---|
//! | it crashes, or is cut off | it ends with the last pulse; the next contender has a higher term |
//! | it unregisters | it ends in the same step |
//! | it is declared lost by a majority of observers | likewise |
//! | it crashes between the election and the duty | the duty waits for the next leader |
//! | it is stopped and goes on | its own clock says that the lead is over before it asks anybody; the next call says who leads |
//! | the answer to its call is lost | it does not know that it leads and asks again: the same term |
//! | it registers again under the same id | the new incarnation contends like anyone else |
//! | the server loses its data | everyone registers again; the first contender has a higher term |
//! | the leader cannot reach the server | nor can it do the duties; the others elect another one |

use super::error::CoordinationError;
use super::instances::Instances;
use super::scripts::VERSION;
use crate::connect::error::BusError;
use crate::connect::script::script_with;
use redis::Script;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

static LEAD: LazyLock<Script> = LazyLock::new(|| script_with(&[VERSION], include_str!("lead.lua")));

/// The outcome of contending for the lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contest {
    /// The lead, if the one who called has it now.
    pub lead: Option<Lead>,
    /// Who leads.
    pub leader: Option<String>,
}

/// The lead, as the one who has it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead {
    /// Rises with each election.
    pub term: u64,
    ends: Instant,
}

impl Lead {
    /// Whether it cannot have ended yet, by the local clock.
    pub fn is_current(&self) -> bool {
        Instant::now() < self.ends
    }
}

impl Instances {
    /// Takes the lead if nobody has it, or renews it. Any instance may call it at any time.
    ///
    /// # Errors
    /// `Bus`. Then it may lead without knowing, which does no harm.
    pub async fn contend(&self, id: &str, incarnation: u64) -> Result<Contest, CoordinationError> {
        let mut call = LEAD.prepare_invoke();
        call.key(self.store.keys.leader())
            .key(self.store.keys.active())
            .key(self.store.keys.instance(id))
            .key(self.store.keys.broadcast())
            .key(self.store.keys.state())
            .arg(id)
            .arg(incarnation)
            .arg(self.seen.term.highest());
        // The time that the answer takes counts as led.
        let called = Instant::now();
        let (term, ms, leader): (u64, u64, Option<String>) = self.store.invoke(&call).await?;
        self.seen.term.note(term);
        let lead = (term > 0).then(|| Lead {
            term,
            ends: called + Duration::from_millis(ms),
        });
        Ok(Contest { lead, leader })
    }

    /// The term of the last election; 0 if there was none.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn term(&self) -> Result<u64, BusError> {
        let mut reads = redis::pipe();
        reads.cmd("HGET").arg(self.store.keys.leader()).arg("term");
        let (term,): (Option<u64>,) = self.store.ask(&reads).await?;
        Ok(term.unwrap_or(0))
    }
}
