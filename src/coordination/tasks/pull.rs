//! Work that a worker takes by itself into its own inbox: patterns of `system.register` other than the
//! centralized one.
//!
//! A worker that does so is given nothing by the scheduler. What it takes is an assignment like any other, told by
//! an entry of its inbox in the same step: fences, takeover, limits and what becomes of it when it dies are the same.
//! Whether something waits is asked first, which costs the server next to nothing.
//!
//! A *nudge* says that something waits. It is a hint: a worker looks from time to time without one, so a nudge that
//! is lost, or goes to one that cannot take the task, makes nothing worse than late.

use crate::coordination::bounds::check_id;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::{Tasks, assignment};
use redis::{Script, Value};
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// The event that says to a worker that something waits.
pub const NUDGE: &str = "task.nudge";
/// Tasks that one call takes at the most: few, so that many who look share what waits.
pub const MAX_PULLED: usize = 8;
/// Workers that are nudged for one kind.
const NUDGED: usize = 2;
/// What a nudge says: an empty MessagePack map.
const NOTHING: &[u8] = &[0x80];
/// Heads of lanes that are looked at for their kinds.
const HEADS: usize = 64;
/// Kinds that one call names.
const KINDS: usize = 8;

static PULL: LazyLock<Script> = LazyLock::new(|| assignment::script(include_str!("task_pull.lua")));

/// What came of taking work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pulled {
    /// The tasks that are the worker's now.
    pub tasks: Vec<String>,
    /// How many more it has room for.
    pub room: u64,
}

impl Tasks {
    /// Whether any task waits.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn any_wait(&self) -> Result<bool, CoordinationError> {
        let mut look = redis::pipe();
        look.cmd("EXISTS").arg(self.store.keys.tasks().queue);
        let (any,): (bool,) = self.store.ask(&look).await?;
        Ok(any)
    }

    /// Takes what waits for a worker, which that process is, into its inbox; `by_itself` says whether it is given
    /// nothing from now on. `None` where it is not alive, or another process.
    ///
    /// # Errors
    /// `Invalid` for a malformed id; `Bus`. Then it may have taken something, which its inbox tells.
    pub async fn pull(
        &self,
        worker: &str,
        process: &str,
        by_itself: bool,
    ) -> Result<Option<Pulled>, CoordinationError> {
        check_id("instance_id", worker)?;
        let keys = &self.store.keys;
        let mut call = PULL.prepare_invoke();
        call.key(keys.instance(worker));
        assignment::declare(&mut call, keys);
        call.key(keys.inbox(worker))
            .arg(worker)
            .arg(process)
            .arg(MAX_PULLED)
            .arg(u8::from(by_itself));
        let (outcome, tasks, room): (String, Vec<String>, u64) = self.store.invoke(&call).await?;
        Ok((outcome == "pulled").then_some(Pulled { tasks, room }))
    }

    /// Says to a few of these workers, those that have room, that something waits.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn nudge(&self, mut able: Vec<String>) -> Result<(), CoordinationError> {
        if able.is_empty() {
            return Ok(());
        }
        fastrand::shuffle(&mut able);
        let keys = &self.store.keys;
        let mut read = redis::pipe();
        read.cmd("HMGET").arg(keys.tasks().slots).arg(&able);
        let (slots,): (Vec<Option<String>>,) = self.store.ask(&read).await?;
        let roomy = able.iter().zip(slots).filter(|(_, slot)| has_room(slot));
        let mut nudges = redis::pipe();
        let mut any = false;
        for (id, _) in roomy.take(NUDGED) {
            any = true;
            let nudge = nudges.cmd("XADD").arg(keys.inbox(id));
            nudge.arg(&["NOMKSTREAM", "*", "type", NUDGE, "data"]);
            nudge.arg(NOTHING);
        }
        if any {
            self.store.ask::<Value>(&nudges).await?;
        }
        Ok(())
    }

    /// A few kinds of what waits at the heads of the lanes: what came back from somebody, and what no nudge reached.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn kinds_that_wait(&self) -> Result<Vec<String>, CoordinationError> {
        let mut read = redis::pipe();
        // Those that are parked come before '-', with which no name begins.
        read.cmd("ZRANGEBYLEX").arg(self.store.keys.tasks().heads);
        read.arg(&["[-", "+", "LIMIT", "0"]).arg(HEADS);
        let (heads,): (Vec<String>,) = self.store.ask(&read).await?;
        let kinds = heads.iter().filter_map(|head| head.split(' ').nth(1));
        let kinds: BTreeSet<&str> = kinds.collect();
        Ok(kinds.into_iter().take(KINDS).map(str::to_owned).collect())
    }
}

/// Whether a slot, `assigned capacity …`, has room.
fn has_room(slot: &Option<String>) -> bool {
    let slot = slot.as_deref().unwrap_or_default();
    let mut numbers = slot.split(' ').map_while(|word| word.parse::<u64>().ok());
    matches!((numbers.next(), numbers.next()), (Some(assigned), Some(capacity)) if assigned < capacity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_full_or_unknown_is_not_nudged() {
        let room = |slot: &str| has_room(&Some(slot.to_owned()));
        assert!(room("0 10 2 0 17 worker"));
        assert!(!room("10 10 2 0 17 worker"));
        assert!(!room("nonsense") && !room("") && !has_room(&None));
    }
}
