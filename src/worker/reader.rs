//! Reads a lane's streams on a connection of its own, and repairs what keeps it from reading.

use super::lane::{Delivery, Shared};
use crate::bus::connect::{BLOCK, reconnect_delay};
use crate::bus::error::{BusError, Reaction};
use crate::bus::read;
use crate::bus::wire::Wire;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long a stream is left alone whose key is of another type.
const LEFT_ALONE: Duration = Duration::from_secs(10);

/// One reader of a lane.
pub struct Reader {
    shared: Arc<Shared>,
    connection: Option<Connected>,
    failures: u32,
    /// Streams whose key is of another type: the others are read all the same.
    unreadable: Vec<usize>,
    drain: CancellationToken,
}

struct Connected {
    wire: Wire,
    /// Which of the lane's streams are read.
    streams: Vec<usize>,
    since: Instant,
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
            unreadable: Vec::new(),
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
        let shared = self.shared.clone();
        if let Some(connected) = &self.connection
            && !self.unreadable.is_empty()
            && connected.since.elapsed() > LEFT_ALONE
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            self.connection = Some(self.connect().await?);
        }
        let Some(connected) = &mut self.connection else {
            return Ok(Vec::new());
        };
        if connected.streams.is_empty() {
            tokio::time::sleep(BLOCK).await;
            return Ok(Vec::new());
        }
        let name = |stream: &usize| shared.routes[*stream].events.as_str();
        let streams: Vec<&str> = connected.streams.iter().map(name).collect();
        let claims = connected.streams.iter().map(|s| shared.claims.known(*s));
        let claims: Vec<u64> = claims.collect();
        let wire = &mut connected.wire;
        let me = shared.instance();
        let read = read::read_group(wire, &shared.group, me, &streams, count, BLOCK).await;
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
                stream: connected.streams[batch.stream],
                entry,
                deliveries: 1,
                claims: claims[batch.stream],
            }));
        }
        Ok(deliveries)
    }

    async fn connect(&mut self) -> Result<Connected, BusError> {
        let shared = &self.shared;
        let wire = shared.process.connector.blocking_wire(BLOCK).await?;
        let mut connection = shared.process.connector.pooled().await?;
        let mut streams = Vec::new();
        let mut unreadable = Vec::new();
        for (index, route) in shared.routes.iter().enumerate() {
            match read::ensure_group(&mut connection, &route.events, &shared.group).await {
                Ok(()) => streams.push(index),
                Err(error) if error.code() == Some("WRONGTYPE") => {
                    if !self.unreadable.contains(&index) {
                        tracing::error!(
                            stream = route.events,
                            "the key is no stream; looking again every 10 s, and reading the others"
                        );
                    }
                    unreadable.push(index);
                }
                Err(error) => return Err(error),
            }
        }
        self.unreadable = unreadable;
        if self.failures > 0 {
            tracing::info!(lane = shared.name, "reading again");
        }
        Ok(Connected {
            wire,
            streams,
            since: Instant::now(),
        })
    }
}
