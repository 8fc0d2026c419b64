//! Moves what runs published into other slots of a cluster to where it belongs.

use super::Chores;
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::mutex::locked;
use crate::protocol::keys::Keys;
use crate::streams::outbox;
use crate::worker::shared::Shared;
use crate::worker::sparing::Sparing;
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The pause after something was moved, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// Outboxes that are looked at at a time: fewer than a pool has connections, since each holds one of several pools.
const AT_A_TIME: usize = 3;

/// Looks at the outboxes of this worker's streams again and again; the more often, the more there is.
pub(super) async fn run(chores: &Chores) {
    if !chores.connector.is_cluster() {
        return std::future::pending().await;
    }
    let said = Mutex::new(Sparing::new(Instant::now()));
    let mut pause = PAUSES.0;
    loop {
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.5)).await;
        pause = match run_once(&chores.connector, &chores.lanes.now(), &said).await {
            0 => (pause * 2).min(PAUSES.1),
            _ => PAUSES.0,
        };
    }
}

/// Looks at each outbox of the lanes once: how much was moved. Those whose node is away keep none of the others.
pub(in crate::worker) async fn run_once(
    connector: &Connector,
    lanes: &[Arc<Shared>],
    said: &Mutex<Sparing>,
) -> usize {
    let Some(first) = lanes.first() else {
        return 0;
    };
    let routes = lanes.iter().flat_map(|lane| lane.routes.iter());
    let outboxes: BTreeSet<String> = routes.map(|route| route.outbox.clone()).collect();
    let mut each = Vec::with_capacity(outboxes.len());
    for outbox in outboxes {
        each.push(empty(connector, &first.process.keys, outbox, said));
    }
    let mut each = futures_util::stream::iter(each).buffer_unordered(AT_A_TIME);
    let mut total = 0;
    while let Some(moved) = each.next().await {
        total += moved;
    }
    total
}

/// Looks at one: how much was moved.
async fn empty(connector: &Connector, keys: &Keys, outbox: String, said: &Mutex<Sparing>) -> usize {
    let mut moved = 0;
    if let Err(error) = move_all(connector, keys, &outbox, said, &mut moved).await {
        tracing::debug!(outbox, %error, "what is for other slots was not moved; trying again");
    }
    moved
}

/// Moves what is in an outbox, and counts it.
async fn move_all(
    connector: &Connector,
    keys: &Keys,
    outbox: &str,
    said: &Mutex<Sparing>,
    total: &mut usize,
) -> Result<(), BusError> {
    let mut connection = connector.toward(outbox).pooled().await?;
    loop {
        let moved = outbox::empty(&mut connection, keys, outbox).await?;
        *total += moved.moved;
        if let Some((stream, why)) = moved.refused
            && locked(said).allows(Instant::now())
        {
            tracing::error!(
                outbox,
                stream,
                why,
                "an event stays in the outbox: its stream takes none"
            );
        }
        if !moved.more {
            return Ok(());
        }
    }
}
