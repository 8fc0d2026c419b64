use crate::builtin::Services;
use crate::connect::clock::whole_ms;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::gossip::Opinion;
use crate::coordination::instances::instance::Beat;
use crate::coordination::metrics::Report;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Heartbeat {
    instance_id: String,
    incarnation: Option<u64>,
    /// How busy the instance is, in the unit of its capacity.
    load: Option<f64>,
    /// What it thinks of its peers.
    observed: Option<BTreeMap<String, Opinion>>,
    /// What it measured: any map; the known keys are added up over all instances.
    #[serde(default)]
    #[schemars(with = "Option<std::collections::HashMap<String, serde_json::Value>>")]
    metrics: Option<Value>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Pulse {
    /// If false, the instance must register again.
    alive: bool,
    ttl_ms: u64,
    leader: Option<String>,
    /// The peers that it is to watch, if it does.
    watch: Vec<Peer>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Peer {
    id: String,
    /// How long its last pulse still keeps it alive.
    left_ms: u64,
}

pub(super) async fn heartbeat(
    _: Context,
    event: Heartbeat,
    services: State<Services>,
) -> Result<Pulse, HandlerError> {
    let metrics = match &event.metrics {
        None | Some(Value::Nil) => None,
        Some(map) if map.is_map() => Some(Report::from_map(map)),
        Some(_) => return Err(HandlerError::invalid_argument("metrics: not a map")),
    };
    let beat = Beat {
        id: event.instance_id,
        incarnation: event.incarnation,
        load: event.load,
        observed: event.observed,
        metrics,
        seal: None,
        lasting: false,
    };
    let pulse = services
        .instances
        .heartbeat(&beat)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Pulse {
        alive: pulse.alive,
        ttl_ms: pulse.ttl_ms,
        leader: pulse.leader,
        watch: pulse
            .watch
            .into_iter()
            .map(|peer| Peer {
                id: peer.id,
                left_ms: whole_ms(peer.left),
            })
            .collect(),
    })
}
