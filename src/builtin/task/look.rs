use crate::builtin::Services;
use crate::builtin::task::Shown;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::task::TaskStatus;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Get {
    task_id: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Detail {
    #[serde(flatten)]
    task: Shown,
    #[schemars(with = "serde_json::Value")]
    payload: Value,
    /// If it is completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    result: Option<Value>,
    /// If it was given any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<std::collections::HashMap<String, serde_json::Value>>")]
    metadata: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct List {
    /// `pending`, `assigned`, `completed`, `failed` or `cancelled`; without it all.
    status: Option<String>,
    /// At most 1000.
    #[serde(default = "hundred")]
    limit: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Listed {
    tasks: Vec<Shown>,
}

fn hundred() -> usize {
    100
}

pub(super) async fn get(
    _: Context,
    event: Get,
    services: State<Services>,
) -> Result<Detail, HandlerError> {
    let found = services
        .tasks
        .get(&event.task_id)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    let found = found.ok_or_else(|| {
        let id = &event.task_id;
        HandlerError::not_found(format!(
            "task_id: there is no task {id}, or it ended long ago"
        ))
    })?;
    Ok(Detail {
        task: found.task.into(),
        payload: unpacked(&found.payload)?,
        result: found.result.as_deref().map(unpacked).transpose()?,
        metadata: found.metadata.as_deref().map(unpacked).transpose()?,
    })
}

pub(super) async fn list(
    _: Context,
    event: List,
    services: State<Services>,
) -> Result<Listed, HandlerError> {
    let status = event
        .status
        .as_deref()
        .map(str::parse::<TaskStatus>)
        .transpose();
    let status = status.map_err(CoordinationError::into_handler_error)?;
    let tasks = services
        .tasks
        .list(status, event.limit)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Listed {
        tasks: tasks.into_iter().map(Shown::from).collect(),
    })
}

/// What was checked before it was stored.
pub(super) fn unpacked(mut data: &[u8]) -> Result<Value, HandlerError> {
    Ok(rmpv::decode::read_value(&mut data)?)
}
