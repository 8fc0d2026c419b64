//! What the nodes say of each other and of the slots, and waiting until they say what they should.

use super::{Nodes, PATIENCE};
use crate::support::Redis;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Ranges of slots, and the ports of their primaries.
type Map = Vec<(i64, i64, i64)>;

/// What a node says of another one, or of itself.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) id: String,
    port: u16,
    flags: String,
    /// Whose replica it is.
    of: String,
    has_slots: bool,
}

/// A primary, and its replica that has all that it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shard {
    pub(super) primary: usize,
    pub(super) replica: usize,
}

pub(super) fn ask<T: redis::FromRedisValue>(node: &Redis, words: &[&str]) -> redis::RedisResult<T> {
    let client = redis::Client::open(node.admin_url())?;
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(2))?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
}

impl Nodes {
    /// Waits until that condition holds.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        self.until(what, || match condition() {
            true => Ok(()),
            false => Err("it does not hold".to_owned()),
        });
    }

    /// Waits until that succeeds; what came out.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, mut tried: impl FnMut() -> Result<T, String>) -> T {
        let began = Instant::now();
        loop {
            let problem = match tried() {
                Ok(found) => return found,
                Err(problem) => problem,
            };
            assert!(
                began.elapsed() < PATIENCE,
                "not within {PATIENCE:?}: {what}: {problem}{}",
                self.told()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a node answers: it may be down for a moment, or the cluster.
    #[track_caller]
    pub(super) fn done<T: redis::FromRedisValue>(&self, node: usize, words: &[&str]) -> T {
        let what = format!("node {node} does {}", words.join(" "));
        self.until(&what, || {
            let answer = ask(&self.cluster.nodes[node], words);
            answer.map_err(|error| error.to_string())
        })
    }

    pub(super) fn seen_by(&self, node: usize) -> Vec<Seen> {
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
    pub(super) fn primaries(&self, by: usize) -> Vec<usize> {
        let seen = self.seen_by(by).into_iter();
        let primaries = seen.filter(|it| it.flags.contains("master") && it.has_slots);
        let alive = primaries.filter(|it| !it.flags.contains("fail"));
        alive.filter_map(|it| self.position(it.port)).collect()
    }

    /// Who has the slot of a key, as the first node says that knows.
    pub(super) fn owner(&self, key: &str) -> usize {
        let slot = i64::from(self.cluster.slot_of(key));
        self.until("a node knows who has a slot", || {
            let mut nodes = 0..self.cluster.nodes.len();
            let owner = nodes.find_map(|by| self.owner_by(by, slot));
            owner.ok_or_else(|| format!("nobody says who has slot {slot}"))
        })
    }

    fn owner_by(&self, by: usize, slot: i64) -> Option<usize> {
        let map = self.map(by)?;
        let (_, _, port) = map
            .iter()
            .find(|(from, to, _)| (*from..=*to).contains(&slot))?;
        self.position(u16::try_from(*port).ok()?)
    }

    /// The growing streams that a node has.
    pub(super) fn growing_at(&self, node: usize) -> Vec<String> {
        let there = self
            .growing
            .iter()
            .filter(|stream| self.owner(stream) == node && self.last(node, stream).is_some());
        there.cloned().collect()
    }

    /// The last entry of a stream, where a node says it is.
    fn last(&self, by: usize, stream: &str) -> Option<Vec<u8>> {
        let slot = i64::from(self.cluster.slot_of(stream));
        let node = self.owner_by(by, slot)?;
        let words = ["XINFO", "STREAM", stream];
        let mut info: HashMap<String, redis::Value> =
            ask(&self.cluster.nodes[node], &words).ok()?;
        match info.remove("last-generated-id")? {
            redis::Value::BulkString(id) => Some(id),
            _ => None,
        }
    }

    /// Waits until these grow while their old owner is cut off, where the others say that they are.
    pub(super) fn until_growing(&self, streams: &[String], gone: usize) {
        let other = usize::from(gone == 0);
        let before: Vec<_> = streams.iter().map(|it| self.last(other, it)).collect();
        for (stream, before) in streams.iter().zip(before) {
            let what = format!("{stream} grows while the primary that had it is cut off");
            self.wait(&what, || {
                let now = self.last(other, stream);
                now.is_some() && now != before
            });
        }
    }

    /// Whether a node says that all slots are served.
    pub(super) fn serves(&self, node: usize) -> bool {
        let info: String = ask(&self.cluster.nodes[node], &["CLUSTER", "INFO"]).unwrap_or_default();
        info.contains("cluster_state:ok")
    }

    /// Waits until the others say that another one has what the first of these had. The rest of them do not answer.
    pub(super) fn until_replaced(&self, gone: &[usize]) {
        let port = self.cluster.nodes[gone[0]].port();
        let others: Vec<usize> = (0..self.cluster.nodes.len())
            .filter(|at| !gone.contains(at))
            .collect();
        let what = format!("a replica takes the place of node {} ({port})", gone[0]);
        self.wait(&what, || {
            others.iter().all(|other| {
                let seen = self.seen_by(*other);
                let mut has = seen.iter().filter(|it| it.has_slots);
                self.serves(*other) && has.all(|it| it.port != port) && !seen.is_empty()
            })
        });
    }

    /// Waits until all nodes agree, each primary has a replica, and the replica has all that it has: these are they.
    pub(crate) fn until_whole(&self) -> Vec<Shard> {
        self.until("the cluster is whole", || self.whole())
    }

    fn whole(&self) -> Result<Vec<Shard>, String> {
        let count = self.cluster.nodes.len();
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
        for (node, view) in views.iter().enumerate() {
            if view.len() != count {
                return Err(format!("node {node} knows {} nodes", view.len()));
            }
            if let Some(failed) = view.iter().find(|it| it.flags.contains("fail")) {
                return Err(format!("node {node} takes {} for dead", failed.port));
            }
            if owners(view) != owners(&views[0]) {
                return Err(format!("nodes 0 and {node} name other primaries"));
            }
        }
        if !self.maps_agree() {
            return Err("nodes tell other owners of slots".to_owned());
        }
        let primaries = views[0].iter().filter(|it| it.has_slots);
        let shards = primaries.map(|primary| {
            let mut replicas = views[0].iter().filter(|it| it.of == primary.id);
            let replica = replicas.find(|replica| self.follows(replica, primary));
            let replica = replica.and_then(|it| self.position(it.port));
            let primary_at = self.position(primary.port).zip(replica);
            let shard = primary_at.map(|(primary, replica)| Shard { primary, replica });
            shard.ok_or_else(|| format!("{} has no replica that is in step", primary.port))
        });
        let mut shards = shards.collect::<Result<Vec<Shard>, String>>()?;
        shards.sort_unstable_by_key(|shard| shard.primary);
        Ok(shards)
    }

    /// Whether all nodes tell the same owner of each slot.
    pub(super) fn maps_agree(&self) -> bool {
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

    pub(super) fn id(&self, node: usize) -> String {
        self.done(node, &["CLUSTER", "MYID"])
    }
}
