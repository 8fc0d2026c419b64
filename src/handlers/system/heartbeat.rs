use super::encoded;
use crate::coordination::error::CoordinationError;
use crate::coordination::instance::Beat;
use crate::coordination::instances::Instances;
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Heartbeat {
    instance_id: String,
    incarnation: Option<u64>,
    /// How busy the instance is, in the unit of its capacity.
    load: Option<f64>,
    /// What it thinks of its peers.
    observed: Option<BTreeMap<String, Opinion>>,
    /// What it measured: any map.
    #[serde(default)]
    #[schemars(with = "Option<std::collections::HashMap<String, serde_json::Value>>")]
    metrics: Option<Value>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Opinion {
    Healthy,
    Suspect,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Pulse {
    /// If false, the instance must register again.
    alive: bool,
    ttl_ms: u64,
    leader: Option<String>,
}

pub async fn heartbeat(context: Context, event: Heartbeat) -> Result<Pulse, HandlerError> {
    let observed = match &event.observed {
        Some(observed) => Some(rmp_serde::to_vec_named(observed)?),
        None => None,
    };
    let beat = Beat {
        id: event.instance_id,
        incarnation: event.incarnation,
        load: event.load,
        observed,
        metrics: event.metrics.as_ref().map(encoded),
    };
    let pulse = context
        .state::<Instances>()?
        .heartbeat(&beat)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Pulse {
        alive: pulse.alive,
        ttl_ms: pulse.ttl_ms,
        leader: pulse.leader,
    })
}
