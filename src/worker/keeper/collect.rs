//! Writes the pulses of all workers, where `system.heartbeat` is answered so and this one leads.

use super::Chores;
use crate::protocol::pattern::{Pattern, Patterned};
use std::time::Duration;

/// The shortest and the longest pause between two looks.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(250)];

/// Looks again and again. Nothing depends on it: who does not see its pulse written pulses by itself.
pub(super) async fn run(chores: &Chores) {
    let ttl = chores.settings.heartbeat_ttl;
    let mut after = None;
    loop {
        let pattern = chores.patterns.of(Patterned::Heartbeat);
        if pattern != Pattern::Hybrid || !chores.leads() {
            after = None;
            tokio::time::sleep(ttl / 12).await;
            continue;
        }
        let collected = chores.instances.collect_pulses(after.clone(), ttl / 3);
        match chores.within(ttl / 6, collected).await {
            Ok((next, _)) => after = next,
            Err(error) => tracing::debug!(%error, "pulses were not collected; trying again"),
        }
        tokio::time::sleep((ttl / 60).clamp(PAUSES[0], PAUSES[1])).await;
    }
}
