//! Slots that move, and nodes that come for them and leave.

use super::view::ask;
use super::{NODE_TIMEOUT_MS, Nodes};
use std::time::Duration;

/// A slot on its way from one primary to another one.
pub(super) struct Open {
    slot: String,
    from: usize,
    to: usize,
    /// The id of who gets it.
    target: String,
}

impl Nodes {
    pub(super) fn any_key(&mut self) -> String {
        self.keys[self.dice.usize(..self.keys.len())].clone()
    }

    /// The slot of a key is open from now on.
    pub(super) fn open_slot(&self, key: &str, from: usize, to: usize) -> Open {
        let slot = self.cluster.slot_of(key).to_string();
        let (source, target) = (self.id(from), self.id(to));
        self.done::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]);
        self.done::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]);
        Open {
            slot,
            from,
            to,
            target,
        }
    }

    /// Moves some of the keys of a slot; whether one is left.
    pub(super) fn move_some(&self, open: &Open, most: usize) -> bool {
        let most = most.to_string();
        let words = ["CLUSTER", "GETKEYSINSLOT", &open.slot, &most];
        let keys: Vec<String> = self.done(open.from, &words);
        if keys.is_empty() {
            return false;
        }
        let port = self.cluster.nodes[open.to].port().to_string();
        let words = ["MIGRATE", "127.0.0.1", &port, "", "0", "10000"];
        let mut words = words.to_vec();
        // The target may have it by an answer that came too late; as long as it is here, nobody used it there.
        words.extend(["REPLACE", "KEYS"]);
        words.extend(keys.iter().map(String::as_str));
        // `OK`, or `NOKEY` where they went by themselves.
        self.done::<redis::Value>(open.from, &words);
        true
    }

    /// Moves what is left, and tells all where the slot is: as `redis-cli --cluster fix` does with an open one.
    pub(super) fn close_slot(&self, open: &Open) {
        while self.move_some(open, 50) {}
        let words = ["CLUSTER", "SETSLOT", &open.slot, "NODE", &open.target];
        self.done::<()>(open.to, &words);
        // One that has no slots any more may have become a replica meanwhile.
        ask::<()>(&self.cluster.nodes[open.from], &words).ok();
        for other in self.primaries(open.to) {
            if other != open.from && other != open.to {
                ask::<()>(&self.cluster.nodes[other], &words).ok();
            }
        }
    }

    pub(super) fn until_maps_agree(&self) {
        self.wait("all know where the slots are", || self.maps_agree());
    }

    /// As `redis-cli --cluster reshard` does it, some keys at a time.
    pub(super) fn move_slot(&mut self, key: &str, to: usize) {
        let from = self.owner(key);
        if from == to {
            return;
        }
        let open = Duration::from_millis(self.dice.u64(..300));
        let slot = self.open_slot(key, from, to);
        std::thread::sleep(open / 2);
        while self.move_some(&slot, 50) {}
        std::thread::sleep(open / 2);
        self.close_slot(&slot);
        self.until_maps_agree();
    }

    pub(super) fn add_and_remove(&mut self) {
        let added = self.cluster.nodes.len();
        self.cluster.add_node(NODE_TIMEOUT_MS);
        // Without slots it would be a replica, and get all that a primary has.
        let stays = ["CONFIG", "SET", "cluster-allow-replica-migration", "no"];
        self.done::<()>(added, &stays);
        let some: Vec<String> = (0..2).map(|_| self.any_key()).collect();
        let mut back = Vec::new();
        for key in some {
            let owner = self.owner(&key);
            if owner != added {
                self.move_slot(&key, added);
                back.push((key, owner));
            }
        }
        self.pause();
        for (key, owner) in back {
            self.move_slot(&key, owner);
        }
        let id = self.id(added);
        let node = self.cluster.nodes.remove(added);
        for other in 0..added {
            self.until("a node forgets one that leaves", || {
                let forgotten = ask::<()>(&self.cluster.nodes[other], &["CLUSTER", "FORGET", &id]);
                match forgotten.map_err(|error| error.to_string()) {
                    Err(error) if !error.contains("Unknown node") => Err(error),
                    _ => Ok(()),
                }
            });
        }
        drop(node);
        self.wait("nobody knows the node that left", || {
            (0..added).all(|other| self.seen_by(other).iter().all(|seen| seen.id != id))
        });
    }
}
