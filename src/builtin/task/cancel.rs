use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Cancel {
    task_id: String,
    /// Why; 1 KiB of it is kept.
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Cancelled {
    status: &'static str,
}

pub(super) async fn cancel(
    _: Context,
    event: Cancel,
    services: State<Services>,
) -> Result<Cancelled, HandlerError> {
    let reason = event.reason.unwrap_or_default();
    services
        .tasks
        .cancel(&event.task_id, &reason)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Cancelled {
        status: "cancelled",
    })
}
