use crate::builtin::Services;
use crate::builtin::encoded;
use crate::builtin::task::Moved;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::update::TaskChange;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Update {
    task_id: String,
    #[schemars(range(max = 100))]
    priority: Option<u8>,
    /// Any value, nil too; what is left out stays.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<serde_json::Value>")]
    payload: Option<Value>,
    /// All event types that the instance must have handlers for besides the kind.
    requires: Option<Vec<String>>,
    /// Any map: what else people should know of the task.
    #[schemars(with = "Option<std::collections::HashMap<String, serde_json::Value>>")]
    metadata: Option<Value>,
}

/// A value that is there, even if it is nil.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

pub(super) async fn update(
    context: Context,
    event: Update,
    services: State<Services>,
) -> Result<Moved, HandlerError> {
    let change = TaskChange {
        priority: event.priority,
        payload: event.payload.as_ref().map(encoded),
        requires: event.requires,
        metadata: event.metadata.as_ref().map(encoded),
    };
    let placed = services
        .tasks
        .update(&event.task_id, &change, &context.event().id())
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Moved::of(event.task_id, placed))
}
