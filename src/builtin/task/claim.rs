use crate::builtin::task::look::unpacked;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::Tasks;
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Claim {
    /// An external instance that is active.
    instance_id: String,
    /// 1 to 50.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 50))]
    limit: usize,
    /// The only kinds that it takes now; without them all that it can.
    #[serde(default)]
    kinds: Option<Vec<String>>,
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

pub(super) async fn claim(context: Context, event: Claim) -> Result<Claimed, HandlerError> {
    let kinds = event.kinds.unwrap_or_default();
    let claimed = context
        .state::<Tasks>()?
        .claim(
            &event.instance_id,
            event.limit,
            &kinds,
            &context.event().id(),
        )
        .await
        .map_err(CoordinationError::into_handler_error)?;
    let given = claimed.into_iter().map(|task| {
        Ok(Given {
            payload: unpacked(&task.payload)?,
            task_id: task.task,
            kind: task.kind,
            fence: task.fence,
            attempt: task.attempt,
        })
    });
    Ok(Claimed {
        tasks: given.collect::<Result<_, HandlerError>>()?,
    })
}
