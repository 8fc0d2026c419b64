//! Hybrid: each instance looks at its own services; the leader keeps their reports together with what it saw of
//! the flow, and the answer reads that. What nobody renews lapses with the leader's pulse, and whoever is asked
//! then looks.

use super::{Health, PATIENCE, distributed, flowing};
use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use std::time::Duration;

/// The answer; `None` where no leader keeps one.
pub(super) async fn answer(services: &Services) -> Result<Option<Health>, CoordinationError> {
    let (now, kept) = services.instances.merged_health().await?;
    let health: Option<Health> = kept.and_then(|kept| rmp_serde::from_slice(&kept).ok());
    Ok(health.map(|health| Health {
        age_ms: health.age_ms + now.saturating_sub(health.at),
        ..health
    }))
}

/// Puts together what all reported, and keeps it for that long if it leads then: who was stopped meanwhile would put
/// an older one in the place of a newer. The answer says how old it is.
pub(crate) async fn put_together(
    services: &Services,
    kept: Duration,
    leads: impl Fn() -> bool,
) -> Result<(), CoordinationError> {
    let Some(mut health) = distributed::answer(services).await? else {
        return Ok(());
    };
    // A third of this is there for its own services, which may hang, and for this together.
    let reach = services.view.reach(PATIENCE.min(kept / 24)).await?;
    let flow = flowing::look(services, &reach, true);
    let flow = tokio::time::timeout(kept / 12, flow).await;
    health.flow = flow.ok().and_then(Result::ok);
    // What is made of strings and numbers is always encoded.
    let bytes = rmp_serde::to_vec_named(&health).unwrap_or_default();
    match leads() {
        true => services.instances.keep_merged_health(&bytes, kept).await,
        false => Ok(()),
    }
}
