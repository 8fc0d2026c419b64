use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Ping {}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Pong {}

pub async fn ping(_: Context, _: Ping) -> Result<Pong, HandlerError> {
    Ok(Pong {})
}
