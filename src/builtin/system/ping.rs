use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Ping {}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Pong {}

pub(super) async fn ping(_: Context, _: Ping) -> Result<Pong, HandlerError> {
    Ok(Pong {})
}
