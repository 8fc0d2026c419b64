use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Unregister {
    instance_id: String,
    incarnation: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Unregistered {
    unregistered: bool,
    tasks_reassigned: u64,
}

pub(super) async fn unregister(
    _: Context,
    event: Unregister,
    services: State<Services>,
) -> Result<Unregistered, HandlerError> {
    let gone = services
        .instances
        .unregister(&event.instance_id, event.incarnation)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Unregistered {
        unregistered: gone.unregistered,
        tasks_reassigned: gone.tasks_reassigned,
    })
}
