//! Leaves this instance's pulses to a collector, where `system.heartbeat` is answered so.

use super::Chores;
use crate::coordination::instances::Pulse;
use crate::coordination::instances::collecting::Sent;
use crate::coordination::instances::gossip::Peer;
use crate::protocol::pattern::{Pattern, Patterned};
use std::time::Instant;

/// One pulse in this many is the instance's own: it says what it did, and compares what it registered.
const ONE_IN: u32 = 6;

/// The last pulse that this instance wrote by itself.
pub(super) struct Own {
    at: Instant,
    watch: Vec<String>,
}

impl Own {
    pub(super) fn of(at: Instant, pulse: &Pulse) -> Self {
        let watch = pulse.watch.iter().map(|peer| peer.id.clone()).collect();
        Self { at, watch }
    }
}

/// Sends a pulse to the collector, and names the peers to look after. `None`: this one has to pulse by itself. It may
/// not leave it to others now, its last pulse was not written, or nobody knows.
pub(super) async fn send(chores: &Chores, last: Option<&Own>) -> Option<Vec<Peer>> {
    let ttl = chores.settings.heartbeat_ttl;
    let last = last?;
    let due = last.at.elapsed() >= ttl * ONE_IN / 3 - ttl / 6;
    let collected = chores.patterns.of(Patterned::Heartbeat) == Pattern::Hybrid;
    if due || !collected || chores.leads() {
        return None;
    }
    let load = chores.reporter.tasks() as f64;
    let (instances, incarnation) = (&chores.instances, chores.incarnation());
    let pulse = instances.send_pulse(chores.id(), incarnation, load, &last.watch);
    let began = Instant::now();
    let sent = chores.within(ttl / 6, pulse).await;
    // How long ago the last pulse was sent that somebody wrote.
    let age = |sent: &Sent| Some(ttl.saturating_sub(sent.left?));
    let of = (Patterned::Heartbeat, Pattern::Hybrid);
    chores.patterns.answered(of, began, &sent, age);
    let sent = match sent {
        Ok(sent) => sent,
        Err(error) => {
            tracing::debug!(%error, "a pulse was not sent to the collector");
            return None;
        }
    };
    if sent.left.is_none_or(|left| left < ttl / 2) {
        tracing::debug!(left = ?sent.left, "no collector wrote the last pulse");
        return None;
    }
    Some(sent.watch)
}
