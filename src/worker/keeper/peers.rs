//! Watches the peers that the pulse's answer named, and says what it thinks of them.

use super::Chores;
use crate::coordination::error::CoordinationError;
use crate::coordination::gossip::{Observed, Opinion, Peer};
use std::time::Duration;

/// The longest wait for the answers to pings.
const LONGEST: Duration = Duration::from_secs(3);
/// The shortest one, unless the ttl is so short that the next pulse would be late.
const SHORTEST: Duration = Duration::from_millis(250);

/// Reports each peer once: one that has pulsed within half its ttl is healthy; one that is late is
/// pinged, and is what comes of it.
pub async fn run_once(chores: &Chores, watch: Vec<Peer>) -> Result<(), CoordinationError> {
    let ttl = chores.settings.heartbeat_ttl;
    let (perhaps, fresh): (Vec<Peer>, Vec<Peer>) =
        watch.into_iter().partition(|peer| is_late(peer, ttl));
    let mut observed: Observed = fresh
        .into_iter()
        .map(|peer| (peer.id, Opinion::Healthy))
        .collect();
    // By its own ttl it may be in time.
    let ttls = chores.instances.ttls(&perhaps).await?;
    let mut late = Vec::new();
    for (peer, ttl) in perhaps.into_iter().zip(ttls) {
        match ttl {
            Some(ttl) if is_late(&peer, ttl) => late.push(peer),
            Some(_) => _ = observed.insert(peer.id, Opinion::Healthy),
            None => {}
        }
    }
    if !late.is_empty() {
        let wait = (ttl / 10).clamp(SHORTEST, LONGEST).min(ttl / 4);
        let answered = chores
            .instances
            .ping_peers(chores.id(), &late, wait)
            .await?;
        for peer in late {
            let opinion = match answered.contains(&peer.id) {
                true => Opinion::Healthy,
                false => Opinion::Suspect,
            };
            tracing::debug!(peer = peer.id, ?opinion, "a peer is late");
            observed.insert(peer.id, opinion);
        }
    }
    let incarnation = Some(chores.incarnation());
    let lost = chores
        .instances
        .observe(chores.id(), incarnation, &observed)
        .await?;
    for peer in lost {
        tracing::warn!(
            instance = peer,
            "an instance was lost, a majority of its observers says"
        );
        chores.expire_inbox(&peer).await.ok();
    }
    Ok(())
}

fn is_late(peer: &Peer, ttl: Duration) -> bool {
    peer.left < ttl / 2
}
