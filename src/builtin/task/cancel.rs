use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::Tasks;
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

pub(super) async fn cancel(context: Context, event: Cancel) -> Result<Cancelled, HandlerError> {
    let reason = event.reason.unwrap_or_default();
    context
        .state::<Tasks>()?
        .cancel(&event.task_id, &reason)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Cancelled {
        status: "cancelled",
    })
}
