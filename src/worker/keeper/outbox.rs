//! Moves what runs published into other slots of a cluster to where it belongs.

use super::Chores;
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::mutex::locked;
use crate::protocol::keys::Keys;
use crate::streams::outbox::{self, Way};
use crate::worker::by_node;
use crate::worker::shared::Shared;
use crate::worker::sparing::Sparing;
use futures_util::StreamExt;
use redis::Value;
use std::collections::{BTreeMap, BTreeSet};
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
    let mut mover = Mover::new();
    let mut pause = PAUSES.0;
    loop {
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.5)).await;
        pause = match mover.go_on(&chores.connector, &chores.lanes.now()).await {
            0 => (pause * 2).min(PAUSES.1),
            _ => PAUSES.0,
        };
    }
}

/// Goes through outboxes: how far it is in each, and how much it said.
pub(in crate::worker) struct Mover {
    ways: BTreeMap<String, Way>,
    said: Mutex<Sparing>,
}

impl Mover {
    pub(in crate::worker) fn new() -> Self {
        Self {
            ways: BTreeMap::new(),
            said: Mutex::new(Sparing::new(Instant::now())),
        }
    }

    /// Whether it saw the end of each outbox, or nothing yet.
    pub(in crate::worker) fn is_through(&self) -> bool {
        self.ways.values().all(Way::is_at_start)
    }

    /// Goes on in each outbox of the lanes: how much was moved. Those whose node is away keep none of the others.
    pub(in crate::worker) async fn go_on(
        &mut self,
        connector: &Connector,
        lanes: &[Arc<Shared>],
    ) -> usize {
        let Some(first) = lanes.first() else {
            return 0;
        };
        let routes = lanes.iter().flat_map(|lane| lane.routes.iter());
        let outboxes: BTreeSet<String> = routes.map(|route| route.outbox.clone()).collect();
        let names: Vec<&str> = outboxes.iter().map(String::as_str).collect();
        let lengths = by_node::ask(connector, &names, outbox::length).await;
        let mut before = std::mem::take(&mut self.ways);
        let mut all: Vec<_> = outboxes.into_iter().zip(lengths).collect();
        // Those whose node did not answer come last.
        all.sort_by_key(|(_, length)| length.is_none());
        let mut each = Vec::new();
        for (outbox, length) in all {
            let way = before.remove(&outbox).unwrap_or_default();
            if length == Some(Value::Int(0)) {
                self.ways.insert(outbox, Way::default());
                continue;
            }
            each.push(empty(
                connector,
                &first.process.keys,
                outbox,
                way,
                &self.said,
            ));
        }
        let mut each = futures_util::stream::iter(each).buffer_unordered(AT_A_TIME);
        let mut total = 0;
        while let Some((outbox, way, moved)) = each.next().await {
            total += moved;
            self.ways.insert(outbox, way);
        }
        total
    }
}

/// Goes on in one, as long as something is moved: where it is then, and how much that was.
async fn empty(
    connector: &Connector,
    keys: &Keys,
    outbox: String,
    mut way: Way,
    said: &Mutex<Sparing>,
) -> (String, Way, usize) {
    let mut moved = 0;
    if let Err(error) = move_all(connector, keys, &outbox, &mut way, said, &mut moved).await {
        tracing::debug!(outbox, %error, "what is for other slots was not moved; trying again");
    }
    (outbox, way, moved)
}

/// Moves what is in an outbox, and counts it.
async fn move_all(
    connector: &Connector,
    keys: &Keys,
    outbox: &str,
    way: &mut Way,
    said: &Mutex<Sparing>,
    total: &mut usize,
) -> Result<(), BusError> {
    // Without a connection it begins at the start again.
    let before = std::mem::take(way);
    let mut connection = connector.toward(outbox).pooled().await?;
    *way = before;
    loop {
        let moved = outbox::empty(&mut connection, keys, outbox, way).await?;
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
        if moved.moved == 0 || way.is_at_start() {
            return Ok(());
        }
    }
}
