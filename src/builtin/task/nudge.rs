use crate::builtin::Services;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Nudge {}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Nudged {}

pub(super) async fn nudge(
    _: Context,
    _: Nudge,
    services: State<Services>,
) -> Result<Nudged, HandlerError> {
    services.nudged.notify_one();
    Ok(Nudged {})
}
