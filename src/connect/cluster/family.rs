//! The connectors of one cluster, one for each slot that was asked for: each has a history and a pool of its own.

use crate::connect::connector::{Connector, Destination};
use crate::connect::error::BusError;
use crate::connect::greeting::Known;
use crate::connect::lending::PrimaryPool;
use crate::connect::loaded::Loads;
use crate::connect::locator::Locator;
use crate::connect::pool::Lent;
use crate::mutex::locked;
use crate::protocol::keys::slot_of;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The connectors of one cluster, by slot.
#[derive(Default)]
pub(in crate::connect) struct Family {
    slots: Mutex<HashMap<u16, Member>>,
    /// Of those who look at many slots: the pools of the nodes, by their numbers.
    nodes: Mutex<HashMap<u64, PrimaryPool>>,
}

#[derive(Clone, Default)]
struct Member {
    known: Arc<Known>,
    pool: Arc<Mutex<Option<PrimaryPool>>>,
    loads: Option<Arc<Loads>>,
}

/// The way to the node that has some of several keys.
#[doc(hidden)]
#[derive(Debug)]
pub struct Way {
    /// To there.
    pub connector: Connector,
    /// The keys' slot; `None` where there are no slots.
    pub slot: Option<u16>,
    /// Which of the keys.
    pub places: Vec<usize>,
}

impl Family {
    /// The slots that were asked for.
    pub(in crate::connect) fn slots(&self) -> Vec<u16> {
        locked(&self.slots).keys().copied().collect()
    }

    /// The pool of a node.
    pub(in crate::connect) fn of_node(&self, number: u64) -> Option<PrimaryPool> {
        locked(&self.nodes).get(&number).cloned()
    }

    /// Takes a node's pool in; the one that it replaces.
    pub(in crate::connect) fn keep(&self, pool: &PrimaryPool) -> Option<PrimaryPool> {
        locked(&self.nodes).insert(pool.generation, pool.clone())
    }

    /// Forgets a node's pool.
    pub(in crate::connect) fn give_up(&self, number: u64) -> Option<PrimaryPool> {
        locked(&self.nodes).remove(&number)
    }
}

impl Connector {
    /// The way to the node that has the key: on a cluster that of its slot, elsewhere this one.
    #[doc(hidden)]
    #[must_use]
    pub fn toward(&self, key: &str) -> Self {
        self.toward_slot(slot_of(key.as_bytes()))
    }

    /// The same for who looks at many slots of a cluster, one after the other: all of a node share its connections. A
    /// restart of the node is not noticed for each of them.
    #[doc(hidden)]
    #[must_use]
    pub fn by_node(mut self) -> Self {
        if let Destination::Moving { lending, .. } = &mut self.place {
            lending.by_node = true;
        }
        self
    }

    /// Whether all slots of a node share its connections.
    pub(in crate::connect) fn is_by_node(&self) -> bool {
        match &self.place {
            Destination::Moving {
                locator: Locator::Slot(..),
                lending,
                ..
            } => lending.by_node,
            _ => false,
        }
    }

    /// What tells the connections of one borrower apart: the slot, or the number of its node.
    pub(super) fn place_of(&self, slot: u16) -> u64 {
        match &self.place {
            Destination::Moving {
                locator: Locator::Slot(cluster, _),
                lending,
                ..
            } if lending.by_node => cluster.generation(slot),
            _ => slot.into(),
        }
    }

    /// Whether it leads to a cluster, which refuses commands whose keys are in several slots.
    pub(crate) fn is_cluster(&self) -> bool {
        self.slot().is_some()
    }

    /// Where keys are on a cluster: its slot; `None` elsewhere.
    pub(in crate::connect) fn slot(&self) -> Option<u16> {
        match &self.place {
            Destination::Moving {
                locator: Locator::Slot(_, slot),
                ..
            } => Some(*slot),
            _ => None,
        }
    }

    pub(in crate::connect) fn toward_slot(&self, slot: u16) -> Self {
        let Destination::Moving {
            locator: Locator::Slot(cluster, here),
            pool,
            lending,
            family,
        } = &self.place
        else {
            return self.clone();
        };
        let mut members = locked(&family.slots);
        members.entry(*here).or_insert_with(|| Member {
            known: self.known.clone(),
            pool: pool.clone(),
            loads: self.loads.clone(),
        });
        let member = members.entry(slot).or_insert_with(|| Member {
            loads: self
                .loads
                .as_deref()
                .map(|loads| Arc::new(loads.elsewhere())),
            ..Member::default()
        });
        Self {
            url: self.url.clone(),
            place: Destination::Moving {
                locator: Locator::Slot(cluster.clone(), slot),
                pool: member.pool.clone(),
                lending: *lending,
                family: family.clone(),
            },
            tls: self.tls.clone(),
            known: member.known.clone(),
            loads: member.loads.clone(),
        }
    }

    /// The ways to the nodes that have these keys: one for all, or on a cluster one for each of their slots.
    #[doc(hidden)]
    #[must_use]
    pub fn ways_to(&self, keys: &[&str]) -> Vec<Way> {
        let mut ways: BTreeMap<Option<u16>, Vec<usize>> = BTreeMap::new();
        for (at, key) in keys.iter().enumerate() {
            let slot = self.is_cluster().then(|| slot_of(key.as_bytes()));
            ways.entry(slot).or_default().push(at);
        }
        let toward = |slot| match slot {
            Some(slot) => self.toward_slot(slot),
            None => self.clone(),
        };
        let ways = ways.into_iter().map(|(slot, places)| Way {
            connector: toward(slot),
            slot,
            places,
        });
        ways.collect()
    }

    /// The ways to the nodes that have these keys, as far as is known now: one for all, or on a cluster one for each node,
    /// by the connector of one of its slots. A key that nobody has, as far as is known, has a way of its own.
    #[doc(hidden)]
    #[must_use]
    pub fn ways_to_nodes(&self, keys: &[&str]) -> Vec<Way> {
        let Destination::Moving {
            locator: Locator::Slot(cluster, here),
            ..
        } = &self.place
        else {
            return self.ways_to(keys);
        };
        let mut nodes: BTreeMap<(u64, u16), Vec<usize>> = BTreeMap::new();
        for (at, key) in keys.iter().enumerate() {
            let slot = slot_of(key.as_bytes());
            let way = match cluster.generation(slot) {
                0 => (0, slot),
                node => (node, 0),
            };
            nodes.entry(way).or_default().push(at);
        }
        let home = cluster.generation(*here);
        let ways = nodes.into_iter().map(|((node, _), places)| {
            let slots = places.iter().map(|at| slot_of(keys[*at].as_bytes()));
            let slot = match node == home {
                // What this one has connected it uses.
                true if node != 0 => *here,
                _ => slots.min().unwrap_or(*here),
            };
            Way {
                connector: self.toward_slot(slot),
                slot: Some(slot),
                places,
            }
        });
        ways.collect()
    }

    /// Lets pooled connections go that nobody used for so long: on a cluster each slot has a pool.
    #[doc(hidden)]
    pub fn let_idle_go(&self, idle: Duration) {
        let Destination::Moving { family, .. } = &self.place else {
            return;
        };
        for member in locked(&family.slots).values() {
            if let Some(pool) = &*locked(&member.pool) {
                pool.pool.retain(|_, lent| lent.last_used() < idle);
            }
        }
    }

    /// One connector for each node that has data: the only one there is, or one for each node of a cluster.
    ///
    /// # Errors
    /// No node of the cluster tells which there are.
    #[doc(hidden)]
    pub async fn nodes(&self) -> Result<Vec<Self>, BusError> {
        let Destination::Moving {
            locator: Locator::Slot(cluster, _),
            ..
        } = &self.place
        else {
            return Ok(vec![self.clone()]);
        };
        let slots = cluster.slot_of_each().await?;
        Ok(slots
            .into_iter()
            .map(|slot| self.toward_slot(slot))
            .collect())
    }

    /// The number of the node that has the key, as far as is known; `None` where there are no slots. It is 0 where nobody
    /// has its slot.
    pub(crate) fn node_of(&self, key: &str) -> Option<u64> {
        match &self.place {
            Destination::Moving {
                locator: Locator::Slot(cluster, _),
                ..
            } => Some(cluster.generation(slot_of(key.as_bytes()))),
            _ => None,
        }
    }

    /// How many slots nobody has, as far as is known; `None` where keys have no slots.
    pub(in crate::connect) fn nobodys(&self) -> Option<usize> {
        match &self.place {
            Destination::Moving {
                locator: Locator::Slot(cluster, _),
                ..
            } => Some(cluster.nobodys()),
            _ => None,
        }
    }

    /// A connection to that slot's node.
    pub(super) async fn lent_for(&self, slot: u16) -> Result<Lent, BusError> {
        self.toward_slot(slot).lent().await
    }

    /// Has the next connection to that slot's node be a new one.
    pub(super) fn forget_slot(&self, slot: u16) {
        self.toward_slot(slot).forget_pooled();
    }
}
