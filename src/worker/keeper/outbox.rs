//! Moves what runs published into other slots of a cluster to where it belongs.

use super::Chores;
use crate::connect::error::BusError;
use crate::streams::outbox;
use std::collections::BTreeSet;
use std::time::Duration;

/// The pause after something was moved, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// Looks at the outboxes of this worker's streams again and again; the more often, the more there is.
pub(super) async fn run(chores: &Chores) {
    if !chores.connector.is_cluster() {
        return std::future::pending().await;
    }
    let mut pause = PAUSES.0;
    loop {
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.5)).await;
        pause = match run_once(chores).await {
            Ok(0) => (pause * 2).min(PAUSES.1),
            Ok(_) => PAUSES.0,
            Err(error) => {
                tracing::debug!(%error, "what is for other slots was not moved; trying again");
                PAUSES.1
            }
        };
    }
}

/// Looks at each outbox once: how much was moved.
async fn run_once(chores: &Chores) -> Result<usize, BusError> {
    let routes = chores.lanes.iter().flat_map(|lane| lane.routes.iter());
    let outboxes: BTreeSet<&str> = routes.map(|route| route.outbox.as_str()).collect();
    let keys = &chores.lanes[0].process.keys;
    let mut connection = chores.connector.pooled().await?;
    let mut lengths = redis::pipe();
    for outbox in &outboxes {
        lengths.cmd("XLEN").arg(*outbox);
    }
    let lengths: Vec<u64> = lengths.query_async(&mut connection).await?;
    let mut total = 0;
    for (outbox, length) in outboxes.into_iter().zip(lengths) {
        let mut more = length > 0;
        while more {
            let moved = outbox::empty(&mut connection, keys, outbox).await?;
            total += moved.moved;
            more = moved.more;
        }
    }
    Ok(total)
}
