//! Centralized: the one who is asked looks at all of it, now.

use super::{Health, Probed, Service, assess, flowing};
use crate::Context;
use crate::builtin::Services;
use crate::coordination::instances::roster::Census;
use std::time::Duration;

/// With that much time there are two looks at what waits: whether anything goes out takes a moment to see.
const PATIENCE: Duration = Duration::from_secs(4);

pub(super) async fn answer(context: &Context, services: &Services) -> Health {
    let instances = &services.instances;
    let configured = &services.configured;
    let redis = async {
        match instances.ping().await {
            Ok(latency) => match instances.census().await {
                Ok(census) => (Ok(latency), census),
                Err(error) => (Err(error.to_string()), Census::default()),
            },
            Err(error) => (Err(error.to_string()), Census::default()),
        }
    };
    let limit = context.time_left().map_or(Duration::MAX, |left| left / 2);
    let reach = services.view.reach(super::PATIENCE.min(limit)).await.ok();
    let flows = async {
        let left = context.time_left().unwrap_or(PATIENCE);
        let twice = left >= PATIENCE;
        let look = flowing::look(services, reach.as_ref()?, twice);
        tokio::time::timeout(left / 2, look).await.ok()?.ok()
    };
    let ((redis, census), flow, postgres, mcp) = tokio::join!(
        redis,
        flows,
        configured.postgres(limit),
        configured.mcp(limit)
    );
    let probed = Probed {
        redis: Service::probed(redis).without(reach.as_ref()),
        postgres: postgres.map_or(Service::DISABLED, Service::probed),
        mcp: mcp.map_or(Service::DISABLED, Service::probed),
    };
    let mut health = assess(probed, census);
    // Who has no answer on the flow has one on the rest.
    health.flow = flow;
    health
}
