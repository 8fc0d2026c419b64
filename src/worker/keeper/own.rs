//! Renews the leases of the partitions that this worker owns.
//!
//! On the keeper's thread, as its pulse is: a handler that blocks the lanes' threads lets no partition go.

use super::{Chores, within};
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::streams::own::{self, OwnKeys, RENEWED};
use crate::worker::owned::Ownership;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Calls at a time: fewer than a pool has connections.
const AT_A_TIME: usize = 3;

/// Each third of the ttl; sooner where a node did not answer.
pub(super) async fn run(chores: &Chores) {
    let ttl = chores.settings.heartbeat_ttl;
    loop {
        let pause = match run_once(chores, ttl).await {
            true => ttl / 3,
            false => (ttl / 24).max(Duration::from_millis(10)),
        };
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 4.0 + 0.75)).await;
    }
}

/// Renews all; whether each node answered.
async fn run_once(chores: &Chores, ttl: Duration) -> bool {
    let lanes = chores.lanes.now();
    let owned = lanes.iter().filter_map(|lane| lane.owned.clone());
    let owned: Vec<Arc<Ownership>> = owned.filter(|owned| !owned.lost.is_cancelled()).collect();
    let part = match chores.connector.is_cluster() {
        // Each of them lies in a slot of its own.
        true => 1,
        false => RENEWED,
    };
    let mut calls = Vec::new();
    for owned in owned.chunks(part) {
        calls.push(renew(chores, ttl, owned));
    }
    let mut calls = futures_util::stream::iter(calls).buffer_unordered(AT_A_TIME);
    let mut done = true;
    while let Some(renewed) = calls.next().await {
        if let Err(error) = renewed {
            tracing::debug!(%error, "leases of partitions were not renewed; trying again");
            done = false;
        }
    }
    done
}

async fn renew(chores: &Chores, ttl: Duration, owned: &[Arc<Ownership>]) -> Result<(), BusError> {
    let leases = owned.iter().map(|owned| (owned.keys(), owned.fence));
    let leases: Vec<(OwnKeys, u64)> = leases.collect();
    let Some((first, _)) = leases.first() else {
        return Ok(());
    };
    let connector = chores.connector.toward(&first.owner);
    let asked = Instant::now();
    let process = chores.instances.process();
    let call = ask(&connector, process, ttl, &leases);
    let renewed = within(&connector, ttl / 6, call).await?;
    for (owned, is_own) in owned.iter().zip(renewed) {
        match is_own {
            true => owned.renewed(asked, ttl),
            // It was let go meanwhile.
            false if owned.lost.is_cancelled() => {}
            false => {
                tracing::warn!(
                    owner = owned.owner_key,
                    "another worker owns the partition: its lane ends here"
                );
                owned.lose();
            }
        }
    }
    Ok(())
}

async fn ask(
    connector: &Connector,
    process: &str,
    ttl: Duration,
    leases: &[(OwnKeys, u64)],
) -> Result<Vec<bool>, BusError> {
    let generation = connector.generation();
    let mut connection = connector.pooled().await?;
    let renewed = own::renew(&mut connection, process, ttl, leases).await?;
    // One that is no primary any more knows nothing of what others took since.
    connector.check(generation)?;
    Ok(renewed)
}
