use crate::builtin::Services;
use crate::builtin::task::Moved;
use crate::coordination::error::CoordinationError;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Assign {
    task_id: String,
    /// Who gets it.
    instance_id: String,
}

pub(super) async fn assign(
    context: Context,
    event: Assign,
    services: State<Services>,
) -> Result<Moved, HandlerError> {
    let placed = services
        .tasks
        .assign(&event.task_id, &event.instance_id, &context.event().id())
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Moved::of(event.task_id, placed))
}
