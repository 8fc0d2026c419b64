//! Watches the peers that the pulse's answer named, and says what it thinks of them.

use super::Chores;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::gossip::{Observed, Opinion, Peer};
use std::time::Duration;

/// The longest wait for the answers to pings.
const LONGEST: Duration = Duration::from_secs(3);
/// The shortest one, unless the ttl is so short that the next pulse would be late.
const SHORTEST: Duration = Duration::from_millis(250);

/// Pings the peers that are late and reports what comes of it. Of the others there is nothing to say:
/// their own pulses do.
pub(super) async fn run_once(chores: &Chores, watch: Vec<Peer>) -> Result<(), CoordinationError> {
    let ttl = chores.settings.heartbeat_ttl;
    let late = late(chores, watch).await?;
    if late.is_empty() {
        return Ok(());
    }
    let answered = chores
        .instances
        .ping_peers(chores.id(), &late, patience(ttl))
        .await?;
    let observed: Observed = late
        .into_iter()
        .map(|peer| {
            let opinion = match answered.contains(&peer.id) {
                true => Opinion::Healthy,
                false => Opinion::Suspect,
            };
            tracing::debug!(peer = peer.id, ?opinion, "a peer is late");
            (peer.id, opinion)
        })
        .collect();
    observe(chores, &observed).await
}

/// How long an answer to a ping is waited for.
pub(super) fn patience(ttl: Duration) -> Duration {
    (ttl / 10).clamp(SHORTEST, LONGEST).min(ttl / 4)
}

/// Says what this instance thinks of its peers.
pub(super) async fn observe(chores: &Chores, observed: &Observed) -> Result<(), CoordinationError> {
    let incarnation = Some(chores.incarnation());
    let lost = chores
        .instances
        .observe(chores.id(), incarnation, observed)
        .await?;
    for peer in lost {
        tracing::warn!(
            instance = peer,
            "an instance was lost, a majority of its observers says"
        );
    }
    Ok(())
}

/// The peers that have not pulsed for half their ttl.
async fn late(chores: &Chores, watch: Vec<Peer>) -> Result<Vec<Peer>, CoordinationError> {
    let is_late = |peer: &Peer, ttl: Duration| peer.left < ttl / 2;
    // Most have the same ttl as this one, and are in time.
    let own = chores.settings.heartbeat_ttl;
    let perhaps: Vec<Peer> = watch
        .into_iter()
        .filter(|peer| is_late(peer, own))
        .collect();
    let ttls = chores.instances.ttls(&perhaps).await?;
    let pairs = perhaps.into_iter().zip(ttls);
    // After a gap in the server's answers it may just not have come to pulse again.
    let could_pulse = |ttl| chores.answers.steady_for(ttl).is_some();
    let late =
        pairs.filter(|(peer, ttl)| ttl.is_some_and(|ttl| is_late(peer, ttl) && could_pulse(ttl)));
    Ok(late.map(|(peer, _)| peer).collect())
}
