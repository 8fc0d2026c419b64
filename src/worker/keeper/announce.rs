//! Tells everyone which circuits opened and closed.

use super::Chores;
use crate::connect::backoff::Backoff;
use crate::connect::clock::local_now;
use crate::connect::error::{BusError, Reaction};
use crate::handler::layers::circuit::CircuitChange;
use crate::protocol::json;
use crate::streams::commit::Publication;

/// Reports each change as it happens, and those of an outage when it is over.
pub(super) async fn run(chores: &Chores) {
    let mut changes = chores.changes.lock().await;
    if let Some(changes) = &mut *changes {
        while let Some(change) = changes.recv().await {
            let fact = fact(chores, &change);
            let mut backoff = Backoff::default();
            while let Err(error) = tell(chores, &fact).await {
                tracing::debug!(%error, handler = &*change.kind, "a circuit's change was not announced");
                if error.reaction() == Reaction::GiveUp {
                    break;
                }
                tokio::time::sleep(backoff.failed()).await;
            }
        }
    }
    // There are no circuits.
    std::future::pending().await
}

async fn tell(chores: &Chores, fact: &Publication) -> Result<(), BusError> {
    let mut connection = chores.connector.pooled().await?;
    fact.store(&mut connection).await
}

fn fact(chores: &Chores, change: &CircuitChange) -> Publication {
    let kind = match change.opened {
        true => "circuit.opened",
        false => "circuit.closed",
    };
    let data = serde_json::json!({"type": &*change.kind, "instance": chores.id(), "at": change.at});
    let (data, now) = (json::from_json(&data), local_now());
    Publication::fact(&chores.broadcast, kind, chores.id(), now, data)
}
