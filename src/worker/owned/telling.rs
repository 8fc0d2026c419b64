//! Tells everyone which partitions this worker took, and which it let go: the facts `partition.owned` and `partition.left`.
//!
//! Whoever waits for a partition looks again when it hears that it was let go, rather than again and again.

use crate::connect::clock::local_now;
use crate::connect::error::BusError;
use crate::protocol::event::Entry;
use crate::protocol::json;
use crate::streams::commit::Publication;
use crate::worker::lane_plans::Place;
use crate::worker::making::Maker;
use crate::worker::shared::Shared;
use std::collections::VecDeque;
use std::time::Duration;

/// How long all of it may take: whoever looks after partitions waits for it.
const LIMIT: Duration = Duration::from_secs(1);
/// Facts that wait for a control plane that is away.
const MOST: usize = 1024;
const LEFT: &str = "partition.left";

/// Stores a fact for each, with its fence, the oldest first. What cannot be stored stays, to be told later; it may have been
/// stored all the same.
pub(super) async fn tell(maker: &Maker, taken: &mut VecDeque<(Place, u64)>) {
    while taken.len() > MOST {
        taken.pop_front();
    }
    if taken.is_empty() {
        return;
    }
    let stored = tokio::time::timeout(LIMIT, store(maker, taken)).await;
    let stored =
        stored.unwrap_or_else(|_| Err(BusError::Pool(format!("no answer within {LIMIT:?}"))));
    if let Err(error) = stored {
        tracing::debug!(%error, "which partitions this worker took is told later");
    }
}

async fn store(maker: &Maker, taken: &mut VecDeque<(Place, u64)>) -> Result<(), BusError> {
    let broadcast = maker.process.keys.broadcast();
    let connector = maker.process.connector.toward(&broadcast);
    let mut connection = connector.pooled().await?;
    while let Some((place, fence)) = taken.front() {
        let id = &*maker.process.instance;
        let fact = fact(&broadcast, "partition.owned", id, place, *fence);
        fact.store(&mut connection).await?;
        taken.pop_front();
    }
    Ok(())
}

/// Stores the fact that the partition of a lane was let go. Where it cannot be stored others see it when they look.
pub(in crate::worker) async fn left(lane: &Shared) {
    let (Some(owned), Some(place)) = (&lane.owned, lane.places.first()) else {
        return;
    };
    let process = &lane.process;
    let broadcast = process.keys.broadcast();
    let fact = fact(&broadcast, LEFT, &process.instance, place, owned.fence);
    let stored = async {
        let connector = process.connector.toward(&broadcast);
        fact.store(&mut connector.pooled().await?).await
    };
    match tokio::time::timeout(LIMIT, stored).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "others are not told that a partition is free"),
        Err(_) => tracing::debug!("others are not told that a partition is free: no answer"),
    }
}

/// Whether a fact says that somebody let a partition go.
pub(in crate::worker) fn is_of_a_free_one(fact: &Entry) -> bool {
    fact.get("type") == Some(LEFT.as_bytes())
}

fn fact(
    stream: &str,
    kind: &str,
    id: &str,
    (domain, partition): &Place,
    fence: u64,
) -> Publication {
    let data =
        serde_json::json!({"domain": domain, "partition": partition, "id": id, "fence": fence});
    let data = json::from_json(&data);
    Publication::fact(stream, kind, id, local_now(), data)
}
