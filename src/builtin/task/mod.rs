//! The `task.*` events ([protocol](crate::docs::protocol#tasks)).

mod assign;
mod assigned;
mod cancel;
mod claim;
mod complete;
mod create;
mod fail;
mod look;
mod nudge;
mod unassign;
mod update;

use crate::coordination::tasks::moves::Placed;
use crate::coordination::tasks::pull::NUDGE;
use crate::coordination::tasks::task::Task;
use crate::handler::policy::Policy;
use crate::handler::router::Registration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The handlers of `task.*`.
pub fn registrations() -> Vec<Registration> {
    vec![
        Registration::new(
            "task.create",
            create::create,
            Policy::new().stateful().describe(
                "Creates a task; the least loaded instance that can do it gets it, now or when one has room.",
            ),
        ),
        Registration::new(
            "task.complete",
            complete::complete,
            Policy::new().stateful().describe("Completes a task that the instance holds under that fence."),
        ),
        Registration::new(
            "task.fail",
            fail::fail,
            Policy::new().stateful().describe(
                "Says that an attempt at a task failed; it is tried again while attempts are left.",
            ),
        ),
        Registration::new(
            "task.cancel",
            cancel::cancel,
            Policy::new().stateful().describe(
                "Cancels a task that waits or that somebody holds; what its holder completes later is discarded.",
            ),
        ),
        Registration::new(
            "task.update",
            update::update,
            Policy::new().stateful().describe(
                "Changes the priority, the payload, the requirements or the metadata of a task that waits.",
            ),
        ),
        Registration::new(
            "task.assign",
            assign::assign,
            Policy::new().stateful().describe(
                "Gives a task to an instance that is named, which must be able to take it and have room.",
            ),
        ),
        Registration::new(
            "task.unassign",
            unassign::unassign,
            Policy::new().stateful().describe(
                "Takes a task from its holder: it goes to another instance, or waits.",
            ),
        ),
        Registration::new(
            "task.claim",
            claim::claim,
            Policy::new().stateful().describe(
                "Gives an external instance tasks that it can take; the same event id again is answered the same.",
            ),
        ),
        Registration::new(
            "task.get",
            look::get,
            Policy::new().describe("Shows a task with its payload and its result, live."),
        ),
        Registration::new(
            "task.list",
            look::list,
            Policy::new().describe("Lists tasks, live."),
        ),
        Registration::new(
            NUDGE,
            nudge::nudge,
            Policy::new()
                .silent()
                .describe("Looks at what waits, where workers take their tasks by themselves."),
        ),
        Registration::new(
            assigned::KIND,
            assigned::assigned,
            // The handler of the task's kind has a timeout of its own.
            Policy::new()
                .no_timeout()
                .silent()
                .stateful()
                .describe("Runs a task that was assigned to this instance; from its inbox only."),
        ),
    ]
}

/// Where a task is after somebody's word.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Moved {
    task_id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    assigned_to: Option<String>,
    /// The number under which it was last assigned.
    #[serde(skip_serializing_if = "Option::is_none")]
    fence: Option<u64>,
}

impl Moved {
    fn of(task_id: String, placed: Placed) -> Self {
        Self {
            task_id,
            status: placed.status.as_str(),
            assigned_to: placed.assigned_to,
            fence: placed.fence,
        }
    }
}

/// A task as it is answered.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Shown {
    task_id: String,
    kind: String,
    status: Cow<'static, str>,
    #[schemars(range(max = 100))]
    priority: u8,
    role: String,
    requires: Vec<String>,
    /// How often it was assigned.
    attempt: u32,
    max_attempts: u32,
    /// Who holds it, or who finished it.
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<String>,
    /// The number under which it was last assigned.
    #[serde(skip_serializing_if = "Option::is_none")]
    fence: Option<u64>,
    /// What went wrong last.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Why it was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// When, in Unix milliseconds on the server.
    created_at: u64,
    /// When its status last changed, in Unix milliseconds on the server.
    changed_at: u64,
}

impl From<Task> for Shown {
    fn from(task: Task) -> Self {
        Self {
            task_id: task.id,
            kind: task.kind,
            status: task.status.as_str().into(),
            priority: task.priority,
            role: task.role,
            requires: task.requires,
            attempt: task.attempt,
            max_attempts: task.max_attempts,
            instance_id: task.instance,
            fence: task.fence,
            error: task.error,
            reason: task.reason,
            created_at: task.created_at,
            changed_at: task.changed_at,
        }
    }
}
