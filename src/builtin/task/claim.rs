use crate::builtin::Services;
use crate::builtin::task::look::unpacked;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::{Assignment, claim};
use crate::handler::function::encode;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Claim {
    /// An external instance that is active.
    instance_id: String,
    /// The incarnation that claims; another one is refused.
    incarnation: Option<u64>,
    /// 1 to 50.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 50))]
    limit: usize,
    /// The only kinds that it takes now, at least one; without it all that it can.
    kinds: Option<Vec<String>>,
    /// The claim takes nothing, and is answered what the instance holds, also what a claim was answered with.
    #[serde(default)]
    again: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Claimed {
    /// May be fewer than asked for, and none.
    tasks: Vec<Given>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Given {
    task_id: String,
    kind: String,
    #[schemars(with = "serde_json::Value")]
    payload: Value,
    /// Whoever completes or fails it names this.
    fence: u64,
    attempt: u32,
}

fn one() -> usize {
    1
}

pub(super) async fn claim(
    context: Context,
    event: Claim,
    services: State<Services>,
) -> Result<Claimed, HandlerError> {
    if event.kinds.as_ref().is_some_and(Vec::is_empty) {
        return Err(HandlerError::invalid_argument(
            "kinds: it names no kind; leave it out to claim all that the instance can take",
        ));
    }
    let kinds = event.kinds.unwrap_or_default();
    let tasks = &services.tasks;
    let asked = context.event().id();
    let claimed = tasks.claim(claim::Claim {
        instance: &event.instance_id,
        incarnation: event.incarnation,
        limit: event.limit,
        kinds: &kinds,
        asked: &asked,
        held: event.again,
    });
    let claimed = claimed
        .await
        .map_err(CoordinationError::into_handler_error)?;
    let mut given = Vec::with_capacity(claimed.len());
    for task in claimed {
        let assignment = Assignment {
            task: task.task.clone(),
            instance: event.instance_id.clone(),
            fence: task.fence,
        };
        match answerable(&context, task) {
            Ok(task) => given.push(task),
            // It may well work at it.
            Err(why) if event.again => return Err(why),
            // It would be held by one that never hears of it.
            Err(why) => {
                let why = format!("no answer to task.claim can hold it: {}", why.message);
                match tasks.fail(&assignment, &why, false).await {
                    // Whoever took it from the instance meanwhile decides.
                    Ok(_) | Err(CoordinationError::Aborted(_) | CoordinationError::NotFound(_)) => {
                    }
                    Err(error) => return Err(error.into_handler_error()),
                }
            }
        }
    }
    Ok(Claimed { tasks: given })
}

/// A task as it is answered, if an answer can hold it alone, in the encoding of who asks. Those that come
/// together are small.
fn answerable(context: &Context, task: claim::Claimed) -> Result<Given, HandlerError> {
    let given = Given {
        payload: unpacked(&task.payload)?,
        task_id: task.task,
        kind: task.kind,
        fence: task.fence,
        attempt: task.attempt,
    };
    let alone = encode(&BTreeMap::from([("tasks", [&given])]))?;
    context.answerable(context.within_limits("the answer", alone)?)?;
    Ok(given)
}
