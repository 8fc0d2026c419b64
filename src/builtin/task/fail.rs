use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::Assignment;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Fail {
    task_id: String,
    instance_id: String,
    /// The number that the task came with.
    fence: u64,
    /// What went wrong; 1 KiB of it is kept.
    error: String,
    /// Whether trying again may help.
    #[serde(default = "yes")]
    retryable: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Failed {
    /// `pending`, `assigned` or `failed`.
    status: &'static str,
}

fn yes() -> bool {
    true
}

pub(super) async fn fail(
    _: Context,
    event: Fail,
    services: State<Services>,
) -> Result<Failed, HandlerError> {
    let assignment = Assignment {
        task: event.task_id,
        instance: event.instance_id,
        fence: event.fence,
    };
    let status = services
        .tasks
        .fail(&assignment, &event.error, event.retryable)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Failed {
        status: status.as_str(),
    })
}
