//! Reads a lane's streams on a connection of its own, and repairs what keeps it from reading.

use super::lane::{Delivery, Shared};
use crate::bus::connect::{BLOCK, reconnect_delay};
use crate::bus::error::{BusError, Reaction};
use crate::bus::read;
use redis::aio::MultiplexedConnection;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// One reader of a lane.
pub struct Reader {
    shared: Arc<Shared>,
    connection: Option<MultiplexedConnection>,
    failures: u32,
    drain: CancellationToken,
}

/// What a read brought.
#[derive(Debug)]
pub enum Read {
    /// New entries, perhaps none.
    Entries(Vec<Delivery>),
    /// It failed; entries may have been delivered to nobody.
    Lost,
}

impl Reader {
    /// A reader that is not connected yet.
    pub fn new(shared: Arc<Shared>, drain: CancellationToken) -> Self {
        Self {
            shared,
            connection: None,
            failures: 0,
            drain,
        }
    }

    /// Reads up to `count` new entries of each stream. Never to be cancelled; it returns within the
    /// block and answer times of `bus::connect`.
    pub async fn next(&mut self, count: usize) -> Read {
        match self.read(count).await {
            Ok(entries) => {
                self.failures = 0;
                Read::Entries(entries)
            }
            Err(error) => {
                self.connection = None;
                if self.failures == 0 {
                    tracing::warn!(lane = self.shared.name, %error, "reading failed; trying again");
                }
                let wait = reconnect_delay(self.failures);
                self.failures = self.failures.saturating_add(1);
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.drain.cancelled() => {}
                }
                Read::Lost
            }
        }
    }

    async fn read(&mut self, count: usize) -> Result<Vec<Delivery>, BusError> {
        let shared = &self.shared;
        let streams: Vec<&str> = shared.routes.iter().map(|r| r.events.as_str()).collect();
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let mut connection = shared.process.connector.blocking(BLOCK).await?;
                for stream in &streams {
                    read::ensure_group(&mut connection, stream, &shared.group).await?;
                }
                if self.failures > 0 {
                    tracing::info!(lane = shared.name, "reading again");
                }
                self.connection.insert(connection)
            }
        };
        let claims: Vec<u64> = (0..streams.len()).map(|s| shared.claims.known(s)).collect();
        let me = shared.instance();
        let read = read::read_group(connection, &shared.group, me, &streams, count, BLOCK).await;
        let batches = match read {
            Ok(batches) => batches,
            Err(error) => {
                if error.reaction() == Reaction::RepairGroup {
                    tracing::warn!(lane = shared.name, %error, "the group is gone; creating it again");
                }
                return Err(error);
            }
        };
        let total = batches.iter().map(|batch| batch.entries.len()).sum();
        let mut deliveries = Vec::with_capacity(total);
        for batch in batches {
            deliveries.extend(batch.entries.into_iter().map(|entry| Delivery {
                stream: batch.stream,
                entry,
                deliveries: 1,
                claims: claims[batch.stream],
            }));
        }
        Ok(deliveries)
    }
}
