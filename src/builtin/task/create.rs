use crate::builtin::Services;
use crate::builtin::encoded;
use crate::coordination::error::CoordinationError;
use crate::coordination::nudge::nudge;
use crate::coordination::tasks::task::{NewTask, TaskStatus};
use crate::handler::state::State;
use crate::protocol::keys;
use crate::protocol::pattern::{Pattern, Patterned};
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Create {
    /// Without it the event's id.
    task_id: Option<String>,
    /// The event type whose handler runs it.
    kind: String,
    /// Any value.
    #[serde(default = "nil")]
    #[schemars(with = "Option<serde_json::Value>")]
    payload: Value,
    #[serde(default = "fifty")]
    #[schemars(range(max = 100))]
    priority: u8,
    #[serde(default = "worker")]
    role: String,
    /// Event types that the instance must have handlers for besides the kind.
    #[serde(default)]
    requires: Vec<String>,
    #[serde(default = "three")]
    max_attempts: u32,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Created {
    task_id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    assigned_to: Option<String>,
}

fn nil() -> Value {
    Value::Nil
}

fn fifty() -> u8 {
    50
}

fn worker() -> String {
    "worker".into()
}

fn three() -> u32 {
    3
}

pub(super) async fn create(
    context: Context,
    event: Create,
    services: State<Services>,
) -> Result<Created, HandlerError> {
    let id = event.task_id.unwrap_or_else(|| invented(&context));
    let task = NewTask {
        kind: event.kind,
        payload: encoded(&event.payload),
        priority: event.priority,
        role: event.role,
        requires: event.requires,
        max_attempts: event.max_attempts,
        id,
    };
    let created = services
        .tasks
        .create(&task)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    let waits = created.status == TaskStatus::Pending;
    if waits && services.patterns.of(Patterned::Register) == Pattern::Hybrid {
        let nudged = nudge(&services.instances, &services.tasks, &task.kind).await;
        if let Err(error) = nudged {
            tracing::debug!(%error, task = task.id, "nobody was nudged; who sweeps does so");
        }
    }
    Ok(Created {
        task_id: task.id,
        status: created.status.as_str(),
        assigned_to: created.assigned_to,
    })
}

/// The event's id, so that an event that runs twice creates one task; where that may not name a
/// task, its entry's.
fn invented(context: &Context) -> String {
    let id = context.event().id();
    match keys::is_name(&id) {
        true => id,
        false => context.event().entry_id().to_string(),
    }
}
