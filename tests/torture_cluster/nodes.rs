//! The nodes, and what happens to them. One fault comes after the other: what has no second copy is not to be lost on
//! purpose, so each waits until every primary has a replica again that has all that it has.

use crate::faults::Way;
use crate::support::cluster::Cluster;
use crate::support::links::Manner;
use crate::support::{Redis, eventually, signal, torture};
use convoke::protocol::event::{Entry, EntryId};
use convoke::streams::read::entries_of;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a node is silent before another one takes its place.
const NODE_TIMEOUT_MS: u32 = 2_000;
/// How long a change of the cluster may take. An election that failed begins again four node time-outs later.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Nodes {
    cluster: Cluster,
    /// Of those the slots move.
    keys: Vec<String>,
    /// Streams that grow as long as what has them is served.
    growing: Vec<String>,
    dice: fastrand::Rng,
}

/// Ranges of slots, and the ports of their primaries.
type Map = Vec<(i64, i64, i64)>;

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
    /// A cluster whose slots move by those keys, and where those streams grow.
    pub(crate) fn start(keys: Vec<String>, growing: Vec<String>) -> Self {
        let nodes = Self {
            cluster: Cluster::with_links(NODE_TIMEOUT_MS),
            keys,
            growing,
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

    /// What happens in a cluster that is whole. It may not be whole when this ends.
    pub(crate) fn suffer(&mut self, way: Way) {
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
                let key = self.any_key();
                let from = self.owner(&key);
                let mut others = self.primaries(from);
                others.retain(|other| *other != from);
                let to = others[self.dice.usize(..others.len())];
                self.move_slot(&key, to);
            }
            Way::AddAndRemove => self.add_and_remove(),
            Way::CutPrimary => {
                let primary = self.any(true);
                let growing = self.growing_at(primary);
                self.cut_off(&[primary]);
                self.until_replaced(primary);
                self.until_growing(&growing, primary);
                self.pause();
                self.cluster.mend();
            }
            Way::CutReplica => {
                let replica = self.any(false);
                self.cut_off(&[replica]);
                let most = u64::from(2 * NODE_TIMEOUT_MS);
                std::thread::sleep(Duration::from_millis(self.dice.u64(..most)));
                self.cluster.mend();
            }
            Way::CutShard => {
                let primary = self.any(true);
                let replica = self.replica_of(primary);
                self.cut_off(&[primary, replica]);
                wait("either side serves nothing", &self.cluster, || {
                    (0..self.cluster.nodes.len()).all(|node| !self.serves(node))
                });
                self.pause();
                self.cluster.mend();
            }
            Way::KillAhead => {
                let primary = self.any(true);
                let replica = self.replica_of(primary);
                let manner = self.manner();
                self.cluster.cut([(primary, replica)], manner);
                self.pause();
                self.cluster.nodes[primary].kill();
                self.until_replaced(primary);
                self.cluster.mend();
                self.pause();
                self.cluster.nodes[primary].restart();
            }
            Way::KillWorker | Way::StopWorker => {}
        }
    }

    fn pause(&mut self) {
        std::thread::sleep(Duration::from_millis(self.dice.u64(..1000)));
    }

    fn manner(&mut self) -> Manner {
        match self.dice.bool() {
            true => Manner::Silent,
            false => Manner::Closed,
        }
    }

    /// Cuts these off from all others.
    fn cut_off(&mut self, some: &[usize]) {
        let manner = self.manner();
        let others = (0..self.cluster.nodes.len()).filter(|node| !some.contains(node));
        let pairs = others.flat_map(|other| some.iter().map(move |one| (*one, other)));
        self.cluster.cut(pairs, manner);
    }

    fn any_key(&mut self) -> String {
        self.keys[self.dice.usize(..self.keys.len())].clone()
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

    /// Who follows that one.
    fn replica_of(&self, primary: usize) -> usize {
        let (id, seen) = (self.id(primary), self.seen_by(primary));
        let replica = seen.iter().find(|it| it.of == id);
        replica
            .and_then(|it| self.position(it.port))
            .expect("a replica")
    }

    /// The growing streams that a node has.
    fn growing_at(&self, node: usize) -> Vec<String> {
        let there = self
            .growing
            .iter()
            .filter(|stream| self.owner(stream) == node && self.last(node, stream).is_some());
        there.cloned().collect()
    }

    /// The last entry of a stream, where a node says it is.
    fn last(&self, by: usize, stream: &str) -> Option<Vec<u8>> {
        let slot = i64::from(self.cluster.slot_of(stream));
        let map = self.map(by)?;
        let (_, _, port) = map
            .iter()
            .find(|(from, to, _)| (*from..=*to).contains(&slot))?;
        let node = self.position(u16::try_from(*port).ok()?)?;
        let words = ["XINFO", "STREAM", stream];
        let mut info: HashMap<String, redis::Value> =
            ask(&self.cluster.nodes[node], &words).ok()?;
        match info.remove("last-generated-id")? {
            redis::Value::BulkString(id) => Some(id),
            _ => None,
        }
    }

    /// Waits until these grow while their old owner is cut off, where the others say that they are.
    fn until_growing(&self, streams: &[String], gone: usize) {
        let other = usize::from(gone == 0);
        let before: Vec<_> = streams.iter().map(|it| self.last(other, it)).collect();
        for (stream, before) in streams.iter().zip(before) {
            let what = format!("{stream} grows while the primary that had it is cut off");
            wait(&what, &self.cluster, || {
                let now = self.last(other, stream);
                now.is_some() && now != before
            });
        }
    }

    /// Whether a node says that all slots are served.
    fn serves(&self, node: usize) -> bool {
        let info: String = ask(&self.cluster.nodes[node], &["CLUSTER", "INFO"]).unwrap_or_default();
        info.contains("cluster_state:ok")
    }

    /// Waits until the others say that another one has what that one had.
    fn until_replaced(&self, gone: usize) {
        let port = self.cluster.nodes[gone].port();
        let others: Vec<usize> = (0..self.cluster.nodes.len())
            .filter(|at| *at != gone)
            .collect();
        wait("a replica takes its place", &self.cluster, || {
            others.iter().all(|other| {
                let seen = self.seen_by(*other);
                let mut has = seen.iter().filter(|it| it.has_slots);
                self.serves(*other) && has.all(|it| it.port != port) && !seen.is_empty()
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
        let nodes = 0..self.cluster.nodes.len();
        let maps: Vec<_> = nodes.map(|node| self.map(node)).collect();
        let count = |map: &Map| -> i64 { map.iter().map(|(from, to, _)| to - from + 1).sum() };
        maps.iter()
            .all(|map| map.as_ref().is_some_and(|map| count(map) == 16384) && *map == maps[0])
    }

    /// Where the slots are, as a node says.
    fn map(&self, by: usize) -> Option<Map> {
        let rows: Vec<Vec<redis::Value>> =
            ask(&self.cluster.nodes[by], &["CLUSTER", "SLOTS"]).ok()?;
        let mut map = Map::new();
        for row in rows {
            let [
                redis::Value::Int(from),
                redis::Value::Int(to),
                redis::Value::Array(primary),
                ..,
            ] = &row[..]
            else {
                return None;
            };
            let redis::Value::Int(port) = primary.get(1)? else {
                return None;
            };
            map.push((*from, *to, *port));
        }
        map.sort_unstable();
        // Two rows that touch are one.
        map.dedup_by(|next, row| {
            let touches = row.1 + 1 == next.0 && row.2 == next.2;
            if touches {
                row.1 = next.1;
            }
            touches
        });
        Some(map)
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
        // The load goes on: what was to be had a moment ago is enough.
        let ahead = info(primary);
        let behind = info(replica);
        let told = number(&ahead, "master_repl_offset:");
        let has = number(&behind, "slave_repl_offset:");
        behind.contains("master_link_status:up") && told.is_some() && told <= has
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
        // Without slots it would be a replica, and get all that a primary has.
        let stays = ["CONFIG", "SET", "cluster-allow-replica-migration", "no"];
        self.cluster.run(added, &stays);
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
            self.cluster.run(other, &["CLUSTER", "FORGET", &id]);
        }
        drop(node);
        eventually("nobody knows the node that left", || {
            (0..added).all(|other| self.seen_by(other).iter().all(|seen| seen.id != id))
        });
    }

    /// Takes the entries of a stream behind that one out of it, all but the last, if its replica has them as well. `None`
    /// where it cannot be told now.
    pub(crate) fn take(&self, key: &str, after: EntryId) -> Option<Vec<Entry>> {
        let node = &self.cluster.nodes[self.owner(key)];
        let client = redis::Client::open(node.admin_url()).ok()?;
        let limit = Duration::from_secs(10);
        let mut connection = client.get_connection_with_timeout(limit).ok()?;
        connection.set_read_timeout(Some(limit)).ok()?;
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let after = all.last().map_or(after, |last| last.id);
            let mut range = redis::cmd("XRANGE");
            range.arg(&[key, &format!("({after}"), "+", "COUNT", "5000"]);
            let page = entries_of(range.query(&mut connection).ok()?).ok()?;
            if page.is_empty() {
                break;
            }
            all.extend(page);
        }
        // It waits for all that was written when this connection read.
        let replicas: u32 = redis::cmd("WAIT")
            .arg(&[1, 5000])
            .query(&mut connection)
            .ok()?;
        if replicas == 0 {
            return None;
        }
        if let Some(last) = all.last() {
            let mut trim = redis::cmd("XTRIM");
            trim.arg(&[key, "MINID", &last.id.to_string()]);
            trim.query::<u64>(&mut connection).ok();
        }
        Some(all)
    }
}
