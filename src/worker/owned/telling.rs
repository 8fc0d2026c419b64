//! Tells everyone which partitions this worker took: the fact `partition.owned`.

use crate::connect::clock::local_now;
use crate::connect::error::BusError;
use crate::protocol::json;
use crate::streams::commit::Publication;
use crate::worker::lane_plans::Place;
use crate::worker::making::Maker;
use std::collections::VecDeque;
use std::time::Duration;

/// How long all of it may take: whoever looks after partitions waits for it.
const LIMIT: Duration = Duration::from_secs(1);
/// Facts that wait for a control plane that is away.
const MOST: usize = 1024;

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
    while let Some(((domain, partition), fence)) = taken.front() {
        let id = &*maker.process.instance;
        let data =
            serde_json::json!({"domain": domain, "partition": partition, "id": id, "fence": fence});
        let fields = [
            ("type", b"partition.owned".to_vec()),
            ("data", json::from_json(&data)),
            ("source", id.into()),
            ("time", local_now().to_string().into_bytes()),
        ];
        let pairs = fields
            .into_iter()
            .flat_map(|(name, value)| [name.into(), value]);
        let fact = Publication {
            stream: broadcast.clone(),
            fields: pairs.collect(),
        };
        fact.store(&mut connection).await?;
        taken.pop_front();
    }
    Ok(())
}
