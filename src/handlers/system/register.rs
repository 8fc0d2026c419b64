use super::encoded;
use crate::coordination::error::CoordinationError;
use crate::coordination::instance::Registering;
use crate::coordination::instances::Instances;
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Register {
    id: String,
    roles: Vec<String>,
    #[serde(default = "ten")]
    capacity: u32,
    #[serde(default)]
    capabilities: Vec<String>,
    /// Any map.
    #[serde(default)]
    #[schemars(with = "Option<std::collections::HashMap<String, serde_json::Value>>")]
    metadata: Option<Value>,
    #[serde(default = "half_a_minute")]
    ttl_ms: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Registered {
    registered: bool,
    incarnation: u64,
    ttl_ms: u64,
    leader: Option<String>,
    /// The tasks that were assigned in the same step.
    assigned: Vec<String>,
}

fn ten() -> u32 {
    10
}

fn half_a_minute() -> u64 {
    30_000
}

pub async fn register(context: Context, event: Register) -> Result<Registered, HandlerError> {
    let registering = Registering {
        id: event.id,
        roles: event.roles,
        capacity: event.capacity,
        capabilities: event.capabilities,
        metadata: event.metadata.as_ref().map(encoded).unwrap_or_default(),
        ttl_ms: event.ttl_ms,
    };
    let registered = context
        .state::<Instances>()?
        .register(&registering)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Registered {
        registered: true,
        incarnation: registered.incarnation,
        ttl_ms: registered.ttl_ms,
        leader: registered.leader,
        assigned: Vec::new(),
    })
}
