use crate::builtin::Services;
use crate::builtin::system::encoded;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::instance::Registering;
use crate::handler::state::State;
use crate::protocol::pattern::{Pattern, Patterned};
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Instant;

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Register {
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
    /// The incarnation that this replaces; another one is refused.
    incarnation: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Registered {
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

pub(super) async fn register(
    _: Context,
    event: Register,
    services: State<Services>,
) -> Result<Registered, HandlerError> {
    let began = Instant::now();
    let pattern = services.patterns.of(Patterned::Register);
    let registering = Registering {
        id: event.id,
        roles: event.roles,
        capacity: event.capacity,
        capabilities: event.capabilities,
        metadata: event.metadata.as_ref().map(encoded).unwrap_or_default(),
        ttl_ms: event.ttl_ms,
        incarnation: event.incarnation,
        announces: pattern != Pattern::Centralized,
    };
    let registered = services
        .instances
        .register(&registering)
        .await
        .map_err(CoordinationError::into_handler_error);
    let of = (Patterned::Register, pattern);
    services.patterns.answered(of, began, &registered, |_| None);
    let registered = registered?;
    Ok(Registered {
        registered: true,
        incarnation: registered.incarnation,
        ttl_ms: registered.ttl_ms,
        leader: registered.leader,
        assigned: registered.assigned,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Code;
    use crate::testing;
    use serde_json::{Value as Json, json};
    use std::sync::{Arc, Mutex};

    /// What the handler would get.
    async fn decoded(payload: Json) -> Result<Register, HandlerError> {
        let got = Arc::new(Mutex::new(None));
        let keep = got.clone();
        let handler = move |_: Context, event: Register| {
            let keep = keep.clone();
            async move {
                *keep.lock().unwrap() = Some(event);
                Ok::<_, HandlerError>(())
            }
        };
        testing::run(handler, &payload).await.result::<()>()?;
        Ok(got.lock().unwrap().take().unwrap())
    }

    #[tokio::test]
    async fn what_is_left_out_has_the_protocols_defaults_and_what_is_unknown_is_ignored() {
        let event = decoded(json!({"id": "w-1", "roles": ["worker"], "colour": "red"}))
            .await
            .unwrap();
        assert_eq!(
            (event.id.as_str(), event.capacity, event.ttl_ms),
            ("w-1", 10, 30_000)
        );
        assert!(event.capabilities.is_empty() && event.metadata.is_none());
    }

    #[tokio::test]
    async fn the_error_names_the_field_that_is_missing_or_wrong() {
        for (payload, field) in [
            (json!({"roles": []}), "id"),
            (json!({"id": "w-1"}), "roles"),
            (
                json!({"id": "w-1", "roles": [], "capacity": "many"}),
                "capacity",
            ),
        ] {
            let error = decoded(payload).await.unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument);
            assert!(error.message.contains(field), "{}", error.message);
        }
    }
}
