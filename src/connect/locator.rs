//! Who knows where a primary is that may move.

use crate::connect::cluster::Cluster;
use crate::connect::error::BusError;
use crate::connect::sentinel::{Primary, Sentinels};
use std::sync::Arc;

/// Whom to ask for the primary.
#[derive(Clone)]
pub(crate) enum Locator {
    /// The Sentinels that watch it.
    Sentinels(Arc<Sentinels>),
    /// The cluster, for that slot's.
    Slot(Arc<Cluster>, u16),
}

/// The generation that a connection was made in.
pub(crate) struct Generation {
    locator: Locator,
    generation: u64,
}

impl Locator {
    /// Asks where the primary is.
    pub(crate) async fn primary(&self) -> Result<Primary, BusError> {
        match self {
            Locator::Sentinels(sentinels) => sentinels.primary().await,
            Locator::Slot(cluster, slot) => cluster.primary(*slot).await,
        }
    }

    /// Another number when the primary is another server, as far as is known.
    pub(crate) fn generation(&self) -> u64 {
        match self {
            Locator::Sentinels(sentinels) => sentinels.generation(),
            Locator::Slot(cluster, slot) => cluster.generation(*slot),
        }
    }

    /// For a connection of that generation.
    pub(crate) fn made_in(&self, generation: u64) -> Generation {
        Generation {
            locator: self.clone(),
            generation,
        }
    }
}

impl Generation {
    /// Fails if the primary has moved since.
    pub(crate) fn check(&self) -> Result<(), BusError> {
        match self.locator.generation() == self.generation {
            true => Ok(()),
            false => Err(BusError::Moved),
        }
    }
}
