//! `system.drain` and `system.scale`: orders to workers.

use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::orders::{What, Whom};
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Drain {
    /// One worker.
    instance_id: Option<String>,
    /// All that hold this role.
    role: Option<String>,
    /// All of this version.
    version: Option<String>,
    /// Whether to stay, and read nothing more.
    #[serde(default)]
    quiet: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Drained {
    /// The ids of those who are ordered to.
    instances: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub(super) struct Scale {
    instance_id: String,
    /// Handlers that it runs at a time.
    concurrency: u64,
}

pub(super) async fn drain(
    context: Context,
    asked: Drain,
    services: State<Services>,
) -> Result<Drained, HandlerError> {
    let whom = match (asked.instance_id, asked.role, asked.version) {
        (Some(id), None, None) => Whom::Id(id),
        (None, Some(role), None) => Whom::Role(role),
        (None, None, Some(version)) => Whom::Version(version),
        _ => {
            let message = "instance_id, role, version: give one of them, which says whom it is for";
            return Err(HandlerError::invalid_argument(message));
        }
    };
    let what = match asked.quiet {
        true => What::Quiet,
        false => What::Drain,
    };
    let by = context.event().source().unwrap_or_default();
    let instances = services.instances.order(&whom, what, by).await;
    Ok(Drained {
        instances: instances.map_err(CoordinationError::into_handler_error)?,
    })
}

pub(super) async fn scale(
    context: Context,
    asked: Scale,
    services: State<Services>,
) -> Result<Scale, HandlerError> {
    let by = context.event().source().unwrap_or_default();
    let (whom, what) = (
        Whom::Id(asked.instance_id.clone()),
        What::Scale(asked.concurrency),
    );
    let ordered = services.instances.order(&whom, what, by).await;
    ordered.map_err(CoordinationError::into_handler_error)?;
    Ok(asked)
}
