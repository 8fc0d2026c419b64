//! Somebody's word in the place of the scheduler's: a task goes to an instance, or away from one.

use crate::coordination::bounds::check_id;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::assignment::{self, TRIES};
use crate::coordination::tasks::task::{TaskStatus, check_task_id};
use crate::coordination::tasks::{Tasks, contended, not_found};
use redis::Script;
use std::sync::LazyLock;

static ASSIGN: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("task_assign.lua")));
static UNASSIGN: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("task_unassign.lua")));

/// What a script answers: outcome, status, holder, fence, and what else.
pub(super) type Answered = (String, String, String, u64, String);

/// Where a task is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// How the task is now.
    pub status: TaskStatus,
    /// Who holds it.
    pub assigned_to: Option<String>,
    /// The number under which it was last assigned.
    pub fence: Option<u64>,
}

impl Placed {
    pub(super) fn of(status: &str, holder: String, fence: u64) -> Result<Self, CoordinationError> {
        Ok(Self {
            status: status.parse()?,
            assigned_to: Some(holder).filter(|holder| !holder.is_empty()),
            fence: Some(fence).filter(|&fence| fence > 0),
        })
    }
}

impl Tasks {
    /// Gives a task that waits, or that another one holds, to an instance. Its old holder is told
    /// `Aborted` if it completes it. `asked` is the id of the event that asks, or empty: of the same one
    /// a second call changes nothing.
    ///
    /// # Errors
    /// `Invalid` for a malformed id; `NotFound`; `FailedPrecondition` if the task has ended, or where the
    /// instance is not active, or lacks the role, a capability or room, as the message says;
    /// `Contended` if it went to ever other instances meanwhile; `Bus` else.
    pub async fn assign(
        &self,
        id: &str,
        instance: &str,
        asked: &str,
    ) -> Result<Placed, CoordinationError> {
        check_task_id(id)?;
        check_id("instance_id", instance)?;
        let mut holder = String::new();
        for _ in 0..TRIES {
            let mut call = ASSIGN.prepare_invoke();
            assignment::declare(&mut call, &self.store.keys);
            call.key(self.store.keys.inbox(instance));
            if !holder.is_empty() {
                call.key(self.store.keys.inbox(&holder));
            }
            call.arg(id).arg(instance).arg(asked).arg(&holder);
            let (outcome, status, held_by, fence, why): Answered = self.store.invoke(&call).await?;
            match outcome.as_str() {
                "placed" => return Placed::of(&status, held_by, fence),
                "again" => holder = held_by,
                "ended" => return Err(ended(id, &status, "assigned")),
                "unfit" => return Err(unfit(id, instance, &why, fence)),
                _ => return Err(not_found(id)),
            }
        }
        Err(contended(id))
    }

    /// Takes a task from its holder: it goes to another instance that has room, else it waits. Whoever
    /// held it is told `Aborted` if it completes it. `asked` as for [`assign`](Self::assign).
    ///
    /// # Errors
    /// `Invalid` for a malformed id; `NotFound`; `FailedPrecondition` if the task has ended;
    /// `Contended` if others assigned to ever other instances meanwhile; `Bus` else.
    pub async fn unassign(&self, id: &str, asked: &str) -> Result<Placed, CoordinationError> {
        check_task_id(id)?;
        let mut inboxes = self.named.inboxes();
        for _ in 0..TRIES {
            let mut call = UNASSIGN.prepare_invoke();
            assignment::declare(&mut call, &self.store.keys);
            call.arg(id).arg(asked);
            inboxes.declare(&mut call, &self.store.keys);
            let (outcome, status, holder, fence, named): Answered =
                self.store.invoke(&call).await?;
            match outcome.as_str() {
                "placed" => return Placed::of(&status, holder, fence),
                "again" => self.learn(&mut inboxes, &named),
                "ended" => return Err(ended(id, &status, "taken from anybody")),
                _ => return Err(not_found(id)),
            }
        }
        Err(contended(id))
    }
}

pub(super) fn ended(id: &str, status: &str, cannot: &str) -> CoordinationError {
    CoordinationError::FailedPrecondition(format!(
        "task_id: {id} is {status}, and what has ended cannot be {cannot}"
    ))
}

fn unfit(id: &str, instance: &str, why: &str, capacity: u64) -> CoordinationError {
    let why = match why {
        "inactive" => "is not active: see `convoke instances`".to_owned(),
        "role" => format!("does not hold the role of task {id}: see `convoke task get {id}`"),
        "leaves" => "takes no more tasks: its capacity is 0, or it leaves".to_owned(),
        "full" => format!(
            "has no room: it holds as many tasks as its capacity, {capacity}; take one from it first, \
             or name another instance"
        ),
        "inbox" => "has an inbox that is no stream".to_owned(),
        kind => format!("lacks the capability {kind}, which task {id} needs"),
    };
    CoordinationError::FailedPrecondition(format!("instance_id: {instance} {why}"))
}
