//! Runs the tasks that are assigned to this instance.
//!
//! The entry in the inbox stays pending until the task is completed or has failed, so a process
//! that comes back runs what it still holds. What it does not hold any more is skipped by the fence.

use crate::builtin::Services;
use crate::builtin::encoded;
use crate::connect::backoff::Backoff;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::{Assignment, Tasks};
use crate::handler::context::Context;
use crate::handler::dispatch::{Done, Part, Unbegun};
use crate::handler::state::State;
use crate::protocol::error::{Code, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Its event type.
pub(super) const KIND: &str = "task.assigned";
/// The longest wait for a handler whose run could not begin.
const HELD_BACK: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Assigned {
    task_id: String,
    kind: String,
    #[serde(default = "nil")]
    #[schemars(with = "Option<serde_json::Value>")]
    payload: Value,
    fence: u64,
    attempt: u32,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Ran {
    /// False if the task is someone else's by now, or is done.
    run: bool,
}

fn nil() -> Value {
    Value::Nil
}

pub(super) async fn assigned(
    context: Context,
    task: Assigned,
    services: State<Services>,
) -> Result<Ran, HandlerError> {
    if !context.is_from_inbox() {
        return Err(HandlerError::new(
            Code::PermissionDenied,
            "task.assigned comes from the inbox of an instance only: publish task.create",
        ));
    }
    let tasks = &services.tasks;
    let assignment = Assignment {
        task: task.task_id,
        instance: context.instance().to_owned(),
        fence: task.fence,
    };
    let held = persist(&context, || tasks.holds(&assignment)).await?;
    if !held {
        tracing::debug!(
            task = assignment.task,
            fence = assignment.fence,
            "not this instance's any more"
        );
        return Ok(Ran { run: false });
    }
    let payload = encoded(&task.payload);
    let done = match run(&context, &assignment, &task.kind, payload, task.attempt).await {
        // Before it was started: the task was cancelled, is someone else's, or goes to somebody else with
        // this worker's leaving.
        Err(Unbegun::Cancelled | Unbegun::Draining) => return Ok(Ran { run: false }),
        Err(why @ Unbegun::Late) => Done {
            result: Err(why.into()),
            publications: Vec::new(),
        },
        Ok(done) => done,
    };
    // What the handler wrote to the server must be there where its task is told to be completed.
    let tasks = match context.wrote() {
        true => &tasks.within(context.epoch()),
        false => tasks,
    };
    let settled = settle(&context, tasks, &assignment, done).await;
    services.nudged.notify_one();
    match settled {
        Ok(()) => Ok(Ran { run: true }),
        Err(error) if matches!(error.code, Code::Aborted | Code::NotFound) => {
            tracing::info!(task = assignment.task, %error, "an outcome was discarded");
            Ok(Ran { run: false })
        }
        Err(error) => Err(error),
    }
}

/// Runs the handler, in its turn; again where the run says that it could not begin, which is no attempt.
async fn run(
    context: &Context,
    assignment: &Assignment,
    kind: &str,
    payload: Vec<u8>,
    attempt: u32,
) -> Result<Done, Unbegun> {
    loop {
        let part = Part {
            kind,
            data: payload.clone(),
            id: assignment.task.clone(),
            attempt,
        };
        let done = context.dispatch(part).await?;
        let Err(error) = &done.result else {
            return Ok(done);
        };
        if error.refusal.is_none() {
            return Ok(done);
        }
        let wait = error.retry_after.unwrap_or(Duration::from_secs(1));
        let waited = wait_for(context, wait.min(HELD_BACK)).await;
        waited.map_err(|_| Unbegun::Cancelled)?;
    }
}

async fn settle(
    context: &Context,
    tasks: &Tasks,
    assignment: &Assignment,
    done: Done,
) -> Result<(), HandlerError> {
    let (error, retryable) = match done.result {
        Ok(result) => {
            let completed = persist(context, || {
                tasks.complete(assignment, &result, &done.publications)
            });
            match completed.await {
                // The result is too large, or it publishes where nobody can.
                Err(error)
                    if matches!(error.code, Code::InvalidArgument | Code::FailedPrecondition) =>
                {
                    (error.to_string(), false)
                }
                completed => return completed,
            }
        }
        // A handler that is missing here may be elsewhere.
        Err(error) => (
            error.to_string(),
            error.retryable || error.code == Code::Unimplemented,
        ),
    };
    persist(context, || tasks.fail(assignment, &error, retryable)).await?;
    Ok(())
}

/// Tries again while the server cannot be reached: the task was run, and nobody else may run it as
/// long as this instance holds it.
async fn persist<T, F>(context: &Context, mut call: impl FnMut() -> F) -> Result<T, HandlerError>
where
    F: Future<Output = Result<T, CoordinationError>>,
{
    let mut backoff = Backoff::default();
    loop {
        let error = match call().await {
            Ok(done) => return Ok(done),
            Err(error) => error.into_handler_error(),
        };
        if error.code != Code::Unavailable {
            return Err(error);
        }
        tracing::debug!(%error, "a task cannot be settled; trying again");
        wait_for(context, backoff.failed()).await?;
    }
}

/// Waits, unless the run was cancelled: then someone else has the task, or will get it.
async fn wait_for(context: &Context, time: Duration) -> Result<(), HandlerError> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        () = context.cancellation().cancelled() => Err(HandlerError::aborted("the run was cancelled")),
    }
}
