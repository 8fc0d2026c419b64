use crate::builtin::Services;
use crate::builtin::encoded;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::Assignment;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Complete {
    task_id: String,
    instance_id: String,
    /// The number that the task came with.
    fence: u64,
    /// Any value.
    #[serde(default = "nil")]
    #[schemars(with = "Option<serde_json::Value>")]
    result: Value,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Completed {
    status: &'static str,
}

fn nil() -> Value {
    Value::Nil
}

pub(super) async fn complete(
    _: Context,
    event: Complete,
    services: State<Services>,
) -> Result<Completed, HandlerError> {
    let assignment = Assignment {
        task: event.task_id,
        instance: event.instance_id,
        fence: event.fence,
    };
    services
        .tasks
        .complete(&assignment, &encoded(&event.result), &[])
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Completed {
        status: "completed",
    })
}
