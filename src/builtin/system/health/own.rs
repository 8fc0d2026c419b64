//! What an instance found of its own services, and keeps for whoever is asked.

use super::{Probed, Service, Told, flowing};
use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::protocol::pattern::Pattern;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How many instances look at the flow in each round, about: that is the same for all of them.
const LOOK: f64 = 4.0;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Findings {
    /// When it began to look, in Unix ms on the server.
    pub at: u64,
    pub services: Probed,
    /// What does not flow, if this one looked.
    pub flow: Option<Vec<Told>>,
}

impl Findings {
    pub(super) fn decoded(bytes: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok()
    }
}

/// Looks at this instance's services, and keeps what it found for that long.
pub(crate) async fn report(
    services: &Services,
    id: &str,
    pattern: Pattern,
    kept: Duration,
) -> Result<(), CoordinationError> {
    let configured = &services.configured;
    let limit = kept / 6;
    let asked = Instant::now();
    let (at, active) = services.instances.moment().await?;
    let redis = asked.elapsed();
    let looks = pattern == Pattern::Distributed && fastrand::f64() < LOOK / active.max(1) as f64;
    let reach = services
        .view
        .reach(super::PATIENCE.min(limit / 2))
        .await
        .ok();
    let flow = async {
        let look = flowing::look(services, reach.as_ref().filter(|_| looks)?, true);
        tokio::time::timeout(limit, look).await.ok()?.ok()
    };
    let (flow, postgres, mcp) =
        tokio::join!(flow, configured.postgres(limit), configured.mcp(limit));
    let report = Findings {
        at,
        services: Probed {
            redis: Service::probed(Ok(redis)).without(reach.as_ref()),
            postgres: postgres.map_or(Service::DISABLED, Service::probed),
            mcp: mcp.map_or(Service::DISABLED, Service::probed),
        },
        flow,
    };
    // What is made of strings and numbers is always encoded.
    let bytes = rmp_serde::to_vec_named(&report).unwrap_or_default();
    services.instances.keep_health(id, &bytes, kept).await
}
