//! The nodes, and what happens to them. One fault comes after the other: what has no second copy is not to be lost on
//! purpose, so each waits until every primary has a replica again that has all that it has.

use crate::PARTITIONS;
use crate::faults::Way;
use crate::support::cluster::Cluster;
use crate::support::{Redis, eventually, signal, torture};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a node is silent before another one takes its place.
const NODE_TIMEOUT_MS: u32 = 2_000;
/// How long a change of the cluster may take. An election that failed begins again four node time-outs later.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Nodes {
    cluster: Cluster,
    dice: fastrand::Rng,
}

/// What a node says of another one, or of itself.
#[derive(Clone, Debug)]
struct Seen {
    id: String,
    port: u16,
    flags: String,
    /// Whose replica it is.
    of: String,
    has_slots: bool,
}

fn ask<T: redis::FromRedisValue>(node: &Redis, words: &[&str]) -> redis::RedisResult<T> {
    let client = redis::Client::open(node.admin_url())?;
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(2))?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
}

/// The keys whose slots move: those of the load, and of the control plane.
fn keys() -> Vec<String> {
    let of = |domain: &str| -> Vec<String> {
        let partitions = 0..PARTITIONS;
        partitions
            .map(|n| format!("{{cb:{domain}:{n}}}:events"))
            .collect()
    };
    [
        of("load"),
        of("line"),
        of("effect"),
        vec!["{cb}:broadcast".into()],
    ]
    .concat()
}

#[track_caller]
fn wait(what: &str, nodes: &Cluster, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}{}",
            nodes.logs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Nodes {
    pub(crate) fn start() -> Self {
        let nodes = Self {
            cluster: Cluster::with_replicas_in(NODE_TIMEOUT_MS),
            dice: torture::dice("cluster nodes"),
        };
        nodes.until_whole();
        nodes
    }

    pub(crate) fn url_for(&self, user: &str) -> String {
        self.cluster.url_for(user)
    }

    /// What a command answers at the node that has the slot of its key now.
    pub(crate) fn at<T: redis::FromRedisValue>(
        &self,
        key: &str,
        words: &[&str],
    ) -> redis::RedisResult<T> {
        ask(&self.cluster.nodes[self.owner(key)], words)
    }

    pub(crate) fn suffer(&mut self, way: Way) {
        self.until_whole();
        match way {
            Way::KillPrimary => {
                let primary = self.any(true);
                self.cluster.nodes[primary].kill();
                self.until_replaced(primary);
                self.pause();
                self.cluster.nodes[primary].restart();
            }
            Way::FreezePrimary => {
                let primary = self.any(true);
                let pid = self.cluster.nodes[primary].pid();
                signal(pid, "STOP");
                self.until_replaced(primary);
                self.pause();
                signal(pid, "CONT");
            }
            Way::KillReplica => {
                let replica = self.any(false);
                self.cluster.nodes[replica].kill();
                self.pause();
                self.cluster.nodes[replica].restart();
            }
            Way::FailOver => {
                let replica = self.any(false);
                let promoted = || self.primaries(replica).contains(&replica);
                wait("a replica is promoted", &self.cluster, || {
                    // An election may fail.
                    let node = &self.cluster.nodes[replica];
                    ask::<()>(node, &["CLUSTER", "FAILOVER"]).ok();
                    let began = Instant::now();
                    while !promoted() && began.elapsed() < Duration::from_secs(6) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    promoted()
                });
            }
            Way::MoveSlot => {
                let keys = keys();
                let key = &keys[self.dice.usize(..keys.len())];
                let from = self.owner(key);
                let mut others = self.primaries(from);
                others.retain(|other| *other != from);
                let to = others[self.dice.usize(..others.len())];
                self.move_slot(key, to);
            }
            Way::AddAndRemove => self.add_and_remove(),
            Way::KillWorker | Way::StopWorker => {}
        }
    }

    fn pause(&mut self) {
        std::thread::sleep(Duration::from_millis(self.dice.u64(..1000)));
    }

    fn seen_by(&self, node: usize) -> Vec<Seen> {
        let told: String =
            ask(&self.cluster.nodes[node], &["CLUSTER", "NODES"]).unwrap_or_default();
        let lines = told.lines().filter(|line| !line.contains("handshake"));
        let seen = lines.filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let (_, port) = words.get(1)?.split('@').next()?.rsplit_once(':')?;
            Some(Seen {
                id: words[0].to_owned(),
                port: port.parse().ok()?,
                flags: words.get(2)?.to_string(),
                of: words.get(3)?.to_string(),
                has_slots: words.len() > 8,
            })
        });
        seen.collect()
    }

    fn position(&self, port: u16) -> Option<usize> {
        let mut nodes = self.cluster.nodes.iter();
        nodes.position(|node| node.port() == port)
    }

    /// The nodes that have slots, as that node sees it.
    fn primaries(&self, by: usize) -> Vec<usize> {
        let seen = self.seen_by(by).into_iter();
        let primaries = seen.filter(|it| it.flags.contains("master") && it.has_slots);
        let alive = primaries.filter(|it| !it.flags.contains("fail"));
        alive.filter_map(|it| self.position(it.port)).collect()
    }

    fn any(&mut self, primary: bool) -> usize {
        let primaries = self.primaries(0);
        let all = 0..self.cluster.nodes.len();
        let some: Vec<usize> = all.filter(|at| primaries.contains(at) == primary).collect();
        some[self.dice.usize(..some.len())]
    }

    fn owner(&self, key: &str) -> usize {
        self.cluster.owner(key)
    }

    /// Waits until the others say that another one has what that one had.
    fn until_replaced(&self, gone: usize) {
        let port = self.cluster.nodes[gone].port();
        let others: Vec<usize> = (0..self.cluster.nodes.len())
            .filter(|at| *at != gone)
            .collect();
        wait("a replica takes its place", &self.cluster, || {
            others.iter().all(|other| {
                let info: String =
                    ask(&self.cluster.nodes[*other], &["CLUSTER", "INFO"]).unwrap_or_default();
                let seen = self.seen_by(*other);
                let mut has = seen.iter().filter(|it| it.has_slots);
                info.contains("cluster_state:ok")
                    && has.all(|it| it.port != port)
                    && !seen.is_empty()
            })
        });
    }

    /// Waits until all nodes agree, each primary has a replica, and the replica has all that it has.
    pub(crate) fn until_whole(&self) {
        let count = self.cluster.nodes.len();
        wait("the cluster is whole", &self.cluster, || {
            let views: Vec<Vec<Seen>> = (0..count).map(|node| self.seen_by(node)).collect();
            let owners = |view: &Vec<Seen>| {
                let mut ports: Vec<u16> = view
                    .iter()
                    .filter(|it| it.has_slots)
                    .map(|it| it.port)
                    .collect();
                ports.sort_unstable();
                ports
            };
            let same = views.iter().all(|view| {
                view.len() == count
                    && owners(view) == owners(&views[0])
                    && view.iter().all(|it| !it.flags.contains("fail"))
            });
            same && self.maps_agree()
                && views[0].iter().filter(|it| it.has_slots).all(|primary| {
                    let mut replicas = views[0].iter().filter(|it| it.of == primary.id);
                    replicas
                        .next()
                        .is_some_and(|replica| self.follows(replica, primary))
                })
        });
    }

    /// Whether all nodes tell the same owner of each slot.
    fn maps_agree(&self) -> bool {
        let map = |node: &Redis| -> Option<HashMap<i64, i64>> {
            let rows: Vec<Vec<redis::Value>> = ask(node, &["CLUSTER", "SLOTS"]).ok()?;
            let mut owners = HashMap::new();
            for row in rows {
                let (redis::Value::Int(from), redis::Value::Int(to)) = (&row[0], &row[1]) else {
                    return None;
                };
                let redis::Value::Array(primary) = &row[2] else {
                    return None;
                };
                let redis::Value::Int(port) = &primary[1] else {
                    return None;
                };
                owners.extend((*from..=*to).map(|slot| (slot, *port)));
            }
            Some(owners)
        };
        let maps: Vec<_> = self.cluster.nodes.iter().map(map).collect();
        maps.iter()
            .all(|map| map.as_ref().is_some_and(|map| map.len() == 16384) && *map == maps[0])
    }

    fn follows(&self, replica: &Seen, primary: &Seen) -> bool {
        let info = |seen: &Seen| -> String {
            let node = self.position(seen.port).map(|at| &self.cluster.nodes[at]);
            let told = node.map(|node| ask(node, &["INFO", "replication"]));
            told.and_then(Result::ok).unwrap_or_default()
        };
        let number = |info: &str, field: &str| -> Option<i64> {
            let mut lines = info.lines();
            lines.find_map(|line| line.strip_prefix(field)?.trim().parse().ok())
        };
        let (behind, ahead) = (info(replica), info(primary));
        // The load goes on: what was to be had a moment ago is enough.
        let now = info(replica);
        behind.contains("master_link_status:up")
            && number(&now, "slave_repl_offset:").is_some_and(|has| {
                number(&behind, "slave_repl_offset:").is_some_and(|had| had <= has)
                    && number(&ahead, "master_repl_offset:").is_some_and(|told| told - has < 65_536)
            })
    }

    fn id(&self, node: usize) -> String {
        ask(&self.cluster.nodes[node], &["CLUSTER", "MYID"]).expect("an id")
    }

    /// As `redis-cli --cluster reshard` does it, some keys at a time.
    fn move_slot(&mut self, key: &str, to: usize) {
        let (from, slot) = (self.owner(key), self.cluster.slot_of(key).to_string());
        if from == to {
            return;
        }
        let (source, target) = (self.id(from), self.id(to));
        let port = self.cluster.nodes[to].port().to_string();
        let open = Duration::from_millis(self.dice.u64(..300));
        self.cluster
            .run(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]);
        self.cluster
            .run(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]);
        std::thread::sleep(open / 2);
        loop {
            let words = ["CLUSTER", "GETKEYSINSLOT", &slot, "50"];
            let keys: Vec<String> = ask(&self.cluster.nodes[from], &words).expect("its keys");
            if keys.is_empty() {
                break;
            }
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "10000", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            self.cluster.run(from, &words);
        }
        std::thread::sleep(open / 2);
        self.cluster
            .run(to, &["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
        // One that has no slots any more may have become a replica meanwhile.
        let words = ["CLUSTER", "SETSLOT", &slot, "NODE", &target];
        ask::<()>(&self.cluster.nodes[from], &words).ok();
        for other in self.primaries(to) {
            if other != from && other != to {
                ask::<()>(&self.cluster.nodes[other], &words).ok();
            }
        }
        wait("all know where the slot is", &self.cluster, || {
            self.maps_agree()
        });
    }

    fn add_and_remove(&mut self) {
        let added = self.cluster.nodes.len();
        self.cluster.add_node(NODE_TIMEOUT_MS);
        let all = keys();
        let some: Vec<String> = (0..2)
            .map(|_| all[self.dice.usize(..all.len())].clone())
            .collect();
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
            self.cluster.run(other, &["CLUSTER", "FORGET", &id]);
        }
        drop(node);
        eventually("nobody knows the node that left", || {
            (0..added).all(|other| self.seen_by(other).iter().all(|seen| seen.id != id))
        });
    }

    /// The entries of a stream, wherever it is.
    pub(crate) fn entries(&self, key: &str) -> Vec<convoke::protocol::event::Entry> {
        let mut all = Vec::new();
        let mut from = "-".to_owned();
        loop {
            let words = ["XRANGE", key, &from, "+", "COUNT", "5000"];
            let reply: redis::Value = self.at(key, &words).expect("entries");
            let page = convoke::streams::read::entries_of(reply).expect("entries");
            let Some(last) = page.last() else {
                return all;
            };
            from = format!("({}", last.id);
            all.extend(page);
        }
    }
}
