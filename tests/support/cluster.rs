//! A Redis Cluster on loopback: primaries that share the slots, and replicas of them.

#![allow(dead_code)] // Each test binary uses a part.

use super::links::{Links, Manner};
use super::{Redis, eventually, free_port, users};
use std::ops::Range;

/// How many slots there are.
const SLOTS: u16 = 16384;
/// How long a replica may need to take its primary's place. One whose election fails begins the next one four node
/// time-outs later.
const PROMOTION: std::time::Duration = std::time::Duration::from_secs(60);

/// The nodes: primaries first, then a replica of each, if there are any.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Redis>,
    primaries: usize,
    /// The wires between them, where they can be cut.
    links: Option<Links>,
}

fn run<T: redis::FromRedisValue>(node: &Redis, words: &[&str]) -> redis::RedisResult<T> {
    let mut connection = node.connect();
    redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
}

fn node(timeout_ms: u32) -> Redis {
    node_with(timeout_ms, &["--save", "", "--appendonly", "no"])
}

/// A node that the others reach by wires that can be cut.
fn linked(links: &Links, number: usize, timeout_ms: u32) -> Redis {
    let options = Links::options(number);
    let options = options.iter().map(String::as_str);
    let mut all = vec!["--save", "", "--appendonly", "no"];
    all.extend(options);
    let node = node_with(timeout_ms, &all);
    let bus = bus_port(&node).parse().expect("a port");
    links.serve(number, [node.port(), bus]);
    node
}

/// A node with further options of the command line, that has no slots yet.
pub(crate) fn node_with(timeout_ms: u32, options: &[&str]) -> Redis {
    // The port of its bus would be 10000 higher by itself, where outgoing connections are.
    let (bus, timeout) = (free_port().to_string(), timeout_ms.to_string());
    let of_a_node = [
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--cluster-node-timeout",
        &timeout,
        "--repl-diskless-sync-delay",
        "0",
    ];
    Redis::with(&[options, &of_a_node].concat())
}

/// Whether a node knows an owner of each slot that serves it.
pub(crate) fn serves(node: &Redis) -> bool {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", node.port()));
    let connection = client.and_then(|client| client.get_connection());
    let info = connection.and_then(|mut connection| {
        redis::cmd("CLUSTER")
            .arg("INFO")
            .query::<String>(&mut connection)
    });
    let info = info.unwrap_or_default();
    info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
}

impl Cluster {
    /// One node that has all slots.
    pub(crate) fn alone() -> Self {
        Self::start(1, false, 15_000)
    }

    /// Three primaries.
    pub(crate) fn of_three() -> Self {
        Self::start(3, false, 15_000)
    }

    /// Three primaries, each with a replica that takes its place soon after it died.
    pub(crate) fn with_replicas() -> Self {
        Self::start(3, true, 5_000)
    }

    /// The same, where a node is taken for dead after that many ms of silence.
    pub(crate) fn with_replicas_in(timeout_ms: u32) -> Self {
        Self::start(3, true, timeout_ms)
    }

    /// The same, where nodes can be cut off from each other.
    pub(crate) fn with_links(timeout_ms: u32) -> Self {
        let (primaries, links) = (3, Links::new());
        let nodes = (0..2 * primaries).map(|number| linked(&links, number, timeout_ms));
        Self::made(nodes.collect(), primaries, Some(links))
    }

    /// Cuts a node off from those others, until [`mend`](Self::mend).
    pub(crate) fn cut(&self, pairs: impl IntoIterator<Item = (usize, usize)>, manner: Manner) {
        self.links.as_ref().expect("links").cut(pairs, manner);
    }

    /// All nodes reach each other again.
    pub(crate) fn mend(&self) {
        self.links.as_ref().expect("links").mend();
    }

    /// Where other nodes reach that one.
    fn address(&self, number: usize) -> String {
        match self.links {
            Some(_) => Links::address(number),
            None => "127.0.0.1".to_owned(),
        }
    }

    /// Starts one more node, that has no slots, and has all others meet it.
    pub(crate) fn add_node(&mut self, timeout_ms: u32) {
        let number = self.nodes.len();
        let added = match &self.links {
            Some(links) => linked(links, number, timeout_ms),
            None => node(timeout_ms),
        };
        let (port, bus) = (added.port().to_string(), bus_port(&added));
        for other in 0..number {
            let address = self.address(number);
            self.run(other, &["CLUSTER", "MEET", &address, &port, &bus]);
        }
        self.nodes.push(added);
        let count = self.nodes.len();
        eventually("all nodes know the new one", || {
            self.nodes.iter().all(|node| {
                let known: String = run(node, &["CLUSTER", "NODES"]).unwrap_or_default();
                let lines = known.lines().filter(|line| !line.contains("handshake"));
                lines.count() == count && serves(node)
            })
        });
    }

    /// Primaries with further options of the command line.
    pub(crate) fn of(primaries: usize, options: &[&str]) -> Self {
        let nodes = (0..primaries).map(|_| node_with(15_000, options));
        Self::joined(nodes.collect(), primaries)
    }

    fn start(primaries: usize, replicas: bool, timeout_ms: u32) -> Self {
        let count = if replicas { 2 * primaries } else { primaries };
        Self::joined((0..count).map(|_| node(timeout_ms)).collect(), primaries)
    }

    /// Makes one cluster of nodes; the first ones share the slots.
    pub(crate) fn joined(nodes: Vec<Redis>, primaries: usize) -> Self {
        Self::made(nodes, primaries, None)
    }

    fn made(nodes: Vec<Redis>, primaries: usize, links: Option<Links>) -> Self {
        let count = nodes.len();
        let replicas = count > primaries;
        let cluster = Self {
            nodes,
            primaries,
            links,
        };
        for number in 0..primaries {
            let slots = cluster.slots(number);
            let (from, to) = (slots.start.to_string(), (slots.end - 1).to_string());
            cluster.run(number, &["CLUSTER", "ADDSLOTSRANGE", &from, &to]);
        }
        // Each has its own epoch before they meet, or they fight about one: a replica that saw its primary with the
        // lower one is never elected.
        for number in 0..count {
            let epoch = (number + 1).to_string();
            cluster.run(number, &["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
        }
        for (number, other) in cluster.nodes.iter().enumerate().skip(1) {
            let (port, bus) = (other.port().to_string(), bus_port(other));
            let address = cluster.address(number);
            cluster.run(0, &["CLUSTER", "MEET", &address, &port, &bus]);
        }
        eventually("all nodes know all", || {
            cluster.nodes.iter().all(|node| {
                let known: String = run(node, &["CLUSTER", "NODES"]).unwrap_or_default();
                let lines = known.lines().filter(|line| !line.contains("handshake"));
                lines.count() == count
            })
        });
        if replicas {
            for number in 0..primaries {
                let id: String = run(&cluster.nodes[number], &["CLUSTER", "MYID"]).expect("an id");
                let replica = &cluster.nodes[primaries + number];
                eventually("a replica knows its primary", || {
                    run::<()>(replica, &["CLUSTER", "REPLICATE", &id]).is_ok()
                });
            }
        }
        eventually("the cluster serves all slots", || {
            cluster.nodes.iter().all(serves)
        });
        if replicas {
            eventually("the replicas follow", || {
                cluster.nodes[primaries..].iter().all(|node| {
                    let info: String = run(node, &["INFO", "replication"]).unwrap_or_default();
                    info.contains("master_link_status:up")
                })
            });
        }
        cluster
    }

    /// Whether a primary has a replica.
    pub(crate) fn has_replicas(&self) -> bool {
        self.nodes.len() > self.primaries
    }

    /// The slots that a primary has at the start.
    fn slots(&self, number: usize) -> Range<u16> {
        let share = |number: usize| (usize::from(SLOTS) * number / self.primaries) as u16;
        share(number)..share(number + 1)
    }

    /// Runs a command at a node.
    pub(crate) fn run(&self, number: usize, words: &[&str]) {
        let done: redis::RedisResult<redis::Value> = run(&self.nodes[number], words);
        done.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    }

    /// The name of a node among the others.
    pub(crate) fn id(&self, number: usize) -> String {
        run(&self.nodes[number], &["CLUSTER", "MYID"]).expect("an id")
    }

    /// `redis+cluster://…` for a worker.
    pub(crate) fn url(&self) -> String {
        self.url_for(users::WORKER)
    }

    /// `redis+cluster://…` for a user of `deploy/users.acl`.
    pub(crate) fn url_for(&self, user: &str) -> String {
        let nodes = self.nodes.iter();
        let nodes: Vec<String> = nodes
            .map(|node| format!("127.0.0.1:{}", node.port()))
            .collect();
        let password = users::PASSWORD;
        format!("redis+cluster://{user}:{password}@{}", nodes.join(","))
    }

    /// The slot of a key.
    pub(crate) fn slot_of(&self, key: &str) -> u16 {
        let alive = self.alive();
        run(alive, &["CLUSTER", "KEYSLOT", key]).expect("a slot")
    }

    fn alive(&self) -> &Redis {
        let mut nodes = self.nodes.iter();
        let answers =
            |node: &&Redis| std::net::TcpStream::connect(("127.0.0.1", node.port())).is_ok();
        nodes.find(answers).expect("a node that answers")
    }

    /// Which node has a key's slot now.
    pub(crate) fn owner(&self, key: &str) -> usize {
        let slot = self.slot_of(key);
        type Row = Vec<redis::Value>;
        let rows: Vec<Row> = run(self.alive(), &["CLUSTER", "SLOTS"]).expect("the slots");
        let number = |value: &redis::Value| match value {
            redis::Value::Int(number) => *number,
            other => panic!("{other:?}"),
        };
        let row = rows
            .iter()
            .find(|row| (number(&row[0])..=number(&row[1])).contains(&i64::from(slot)));
        let Some(redis::Value::Array(primary)) = row.and_then(|row| row.get(2)) else {
            panic!("nobody has slot {slot}");
        };
        let port = number(&primary[1]);
        let mut nodes = self.nodes.iter();
        let found = nodes.position(|node| i64::from(node.port()) == port);
        found.expect("a node of this cluster")
    }

    /// The replica of the primary that has a key's slot from the start.
    pub(crate) fn replica_of(&self, key: &str) -> &Redis {
        let slot = self.slot_of(key);
        let primary = (0..self.primaries).find(|number| self.slots(*number).contains(&slot));
        &self.nodes[self.primaries + primary.expect("a primary of each slot")]
    }

    /// `kill -9` for the primary of a key, and waits until another node has its place.
    pub(crate) fn kill_primary_of(&self, key: &str) {
        let killed = self.owner(key);
        super::signal(self.nodes[killed].pid(), "KILL");
        let began = std::time::Instant::now();
        let promoted = || {
            let port = self.nodes[killed].port();
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return false;
            }
            let info: String = run(self.alive(), &["CLUSTER", "INFO"]).unwrap_or_default();
            info.contains("cluster_state:ok") && self.owner(key) != killed
        };
        while !promoted() {
            let waited = began.elapsed();
            assert!(waited < PROMOTION, "no replica is promoted:{}", self.logs());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// What the nodes said last.
    pub(crate) fn logs(&self) -> String {
        let logs = self.nodes.iter().map(|node| {
            let log = std::fs::read_to_string(node.dir().join("log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(12).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            format!("\n--- port {}\n{}", node.port(), last.join("\n"))
        });
        logs.collect()
    }

    /// What a command answers that is sent to the node of its key.
    pub(crate) fn at<T: redis::FromRedisValue>(&self, key: &str, words: &[&str]) -> T {
        let answer = self.try_at(key, words);
        answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The same, where it may be refused.
    pub(crate) fn try_at<T: redis::FromRedisValue>(
        &self,
        key: &str,
        words: &[&str],
    ) -> redis::RedisResult<T> {
        run(&self.nodes[self.owner(key)], words)
    }

    /// Moves the slot of a key to a node as `redis-cli --cluster reshard` does, one key after the other; the slot is
    /// open for `open` at the least.
    pub(crate) fn move_slot(&self, key: &str, to: usize, open: std::time::Duration) {
        let (from, slot) = (self.owner(key), self.slot_of(key).to_string());
        if from == to {
            return;
        }
        let id = |number: usize| -> String {
            run(&self.nodes[number], &["CLUSTER", "MYID"]).expect("an id")
        };
        let (source, target) = (id(from), id(to));
        let port = self.nodes[to].port().to_string();
        self.run(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]);
        self.run(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]);
        std::thread::sleep(open / 2);
        loop {
            let keys: Vec<String> =
                run(&self.nodes[from], &["CLUSTER", "GETKEYSINSLOT", &slot, "1"])
                    .expect("the keys of the slot");
            let Some(key) = keys.first() else {
                break;
            };
            let words = ["MIGRATE", "127.0.0.1", &port, key, "0", "5000"];
            let moved: redis::RedisResult<redis::Value> = run(&self.nodes[from], &words);
            // It may have gone by itself meanwhile.
            moved.unwrap_or_else(|error| panic!("{words:?}: {error}"));
        }
        std::thread::sleep(open / 2);
        self.run(to, &["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
        self.run(from, &["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
        for number in 0..self.primaries {
            if number != from && number != to {
                self.run(number, &["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
            }
        }
    }
}

fn bus_port(node: &Redis) -> String {
    // Not every server says it by CONFIG.
    let told = node.option("--cluster-port");
    told.expect("the port of its bus").to_owned()
}
