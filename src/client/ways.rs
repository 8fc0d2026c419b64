//! The ways of a client: one to a server, and on a cluster one to each slot that it publishes to.

use super::MAX_CONFIRM;
use super::pipelines::Pipelines;
use super::scripted::ScriptState;
use crate::connect::connector::Connector;
use crate::connect::link::Link;
use crate::mutex::locked;
use crate::protocol::keys::slot_of;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The connections to one place.
pub(super) struct Way {
    pub script: ScriptState,
    /// Publishes share it.
    pub link: Link,
    /// For many publishes at a time.
    pub pipelines: Pipelines,
    /// `WAIT` blocks its connection and counts what that one connection wrote.
    pub confirming: Link,
    pub turn: tokio::sync::Mutex<()>,
}

impl Way {
    fn new(connector: &Connector) -> Self {
        Self {
            script: ScriptState::default(),
            link: Link::new(connector.clone(), Duration::ZERO),
            pipelines: Pipelines::new(connector.clone()),
            confirming: Link::new(connector.clone(), MAX_CONFIRM),
            turn: tokio::sync::Mutex::default(),
        }
    }
}

/// All of them.
pub(super) struct Ways {
    connector: Connector,
    /// To the server, or to the control plane.
    pub home: Arc<Way>,
    slots: Mutex<HashMap<u16, Arc<Way>>>,
}

impl Ways {
    pub(super) fn new(connector: Connector) -> Self {
        Self {
            home: Arc::new(Way::new(&connector)),
            connector,
            slots: Mutex::default(),
        }
    }

    /// Whether there is more than one.
    pub(super) fn are_many(&self) -> bool {
        self.connector.is_cluster()
    }

    /// The one to that key.
    pub(super) fn to(&self, key: &str) -> Arc<Way> {
        if !self.are_many() {
            return self.home.clone();
        }
        let slot = slot_of(key.as_bytes());
        let mut slots = locked(&self.slots);
        let way = slots
            .entry(slot)
            .or_insert_with(|| Arc::new(Way::new(&self.connector.toward(key))));
        way.clone()
    }
}
