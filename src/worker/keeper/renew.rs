//! Renews the lease of what has been in hand for a third of the claim time.

use super::{Chores, within};
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::mutex::locked;
use crate::protocol::event::EntryId;
use crate::streams::claim::{self, RENEWED};
use crate::worker::shared::Shared;
use crate::worker::sparing::Sparing;
use futures_util::future::join_all;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Entries of a busy lane that are looked at; more than it reads at a time.
const PAGE: usize = 4000;
/// The longest pause while a lane waits for its leases to be renewed.
const IN_DOUBT: Duration = Duration::from_millis(250);

/// Renews twice as often as it must, and all that a lane holds as soon as it is in doubt.
pub(super) async fn run(chores: &Chores) {
    let age = chores.settings.claim_idle / 3;
    let mut pause = age / 2;
    let said = Mutex::new(Sparing::new(Instant::now()));
    loop {
        let lanes = chores.lanes.now();
        let doubts = lanes.iter().map(|lane| Box::pin(lane.doubt.begun()));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = futures_util::future::select_all(doubts) => {}
        }
        // Those whose node hangs keep none of the others waiting.
        let lanes = chores.lanes.now();
        let renewed = join_all(lanes.iter().map(|lane| run_lane(chores, lane, age, &said))).await;
        pause = match renewed.into_iter().all(|done| done) {
            true => age / 2,
            false => age / 8,
        };
        // It starts nothing meanwhile.
        if lanes.iter().any(|lane| lane.doubt.lasts()) {
            pause = pause.min(IN_DOUBT);
        }
    }
}

/// Whether all that was due of a lane was renewed.
async fn run_lane(chores: &Chores, lane: &Shared, age: Duration, said: &Mutex<Sparing>) -> bool {
    let may_say = || locked(said).allows(Instant::now());
    let mut done = true;
    // A lane that does not go round may have been answered what it has not taken in yet.
    let blocked = lane.turned.ago() >= age;
    for (stream, route) in lane.routes.iter().enumerate() {
        let connector = chores.connector.toward(&route.events);
        let mut due = match lane.doubt.lasts() {
            true => lane.inflight.due(stream, Duration::ZERO),
            false => lane.inflight.due(stream, age),
        };
        if blocked {
            let pending = pending(&connector, lane, &route.events);
            match within(&connector, age / 2, pending).await {
                Ok(pending) => {
                    due.extend(pending);
                    due.sort_unstable();
                    due.dedup();
                }
                Err(error) => {
                    tracing::debug!(%error, "leases of a busy lane were not renewed; trying again");
                }
            }
        }
        for held in due.chunks(RENEWED) {
            let renewed = renew(&connector, lane, stream, &route.events, held);
            match within(&connector, age / 2, renewed).await {
                Ok(0) => {}
                // Where wires are bad for long it is the same again and again.
                Ok(lost) if may_say() => tracing::warn!(
                    stream = route.events,
                    entries = lost,
                    "leases were lost: someone else owns the entries now"
                ),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "leases were not renewed; trying again");
                    done = false;
                }
            }
        }
    }
    done
}

/// The entries of this consumer that were not renewed of late, in hand or not.
async fn pending(
    connector: &Connector,
    lane: &Shared,
    events: &str,
) -> Result<Vec<(EntryId, u32)>, BusError> {
    let mut connection = connector.pooled().await?;
    let (first, me) = (EntryId::default(), Some(lane.instance()));
    let page = claim::pending(&mut connection, events, &lane.group, first, PAGE, me).await?;
    // What was handed to this worker and not delivered yet is not on its way to it: others may take it.
    let delivered = page.into_iter().filter(|entry| entry.deliveries > 0);
    Ok(delivered
        .map(|entry| (entry.id, entry.deliveries))
        .collect())
}

/// Whether the stream or its group is no more.
fn is_gone(error: &BusError) -> bool {
    matches!(error.code(), Some("NOGROUP" | "WRONGTYPE"))
}

/// Renews these, and says how many are somebody else's.
async fn renew(
    connector: &Connector,
    lane: &Shared,
    stream: usize,
    events: &str,
    held: &[(EntryId, u32)],
) -> Result<usize, BusError> {
    let generation = connector.generation();
    let mut connection = connector.pooled().await?;
    let (me, asked) = (lane.instance(), Instant::now());
    let renewed = claim::renew(&mut connection, events, &lane.group, me, held).await;
    let lost = match renewed {
        // Nobody holds anything there any more; the lane's other streams must not wait for it.
        Err(error) if lane.doubt.lasts() && is_gone(&error) => held.to_vec(),
        renewed => renewed?,
    };
    // One that is no primary any more knows nothing of what others took since.
    connector.check(generation)?;
    if !lost.is_empty() {
        // The lane may hold what another primary gave it, and this one never heard of.
        connector.check_same(&lane.connector)?;
    }
    lane.inflight.renewed(stream, held, &lost, asked);
    Ok(lost.len())
}
