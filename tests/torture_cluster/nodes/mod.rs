//! The nodes, and what happens to them. What has no second copy is not to be lost on purpose: each fault begins when every
//! primary has a replica again that has all that it has, and one that comes while another one lasts meets another shard.

mod slots;
mod told;
mod view;

use crate::faults::Way;
use crate::support::cluster::Cluster;
use crate::support::links::Manner;
use crate::support::{signal, torture};
use convoke::protocol::event::{Entry, EntryId};
use convoke::streams::read::entries_of;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use view::{Shard, ask};

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
    /// Where the logs of the workers are.
    workers: Option<PathBuf>,
    dice: fastrand::Rng,
}

impl Nodes {
    /// A cluster whose slots move by those keys, and where those streams grow.
    pub(crate) fn start(keys: Vec<String>, growing: Vec<String>) -> Self {
        let nodes = Self {
            cluster: Cluster::with_links(NODE_TIMEOUT_MS),
            keys,
            growing,
            workers: None,
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
                let Shard { primary, .. } = self.any();
                self.cluster.nodes[primary].kill();
                self.until_replaced(&[primary]);
                self.pause();
                self.cluster.nodes[primary].restart();
            }
            Way::FreezePrimary => {
                let Shard { primary, .. } = self.any();
                let pid = self.freeze(primary);
                self.until_replaced(&[primary]);
                self.pause();
                signal(pid, "CONT");
            }
            Way::KillReplica => {
                let Shard { replica, .. } = self.any();
                self.cluster.nodes[replica].kill();
                self.pause();
                self.cluster.nodes[replica].restart();
            }
            Way::FailOver => {
                let Shard { replica, .. } = self.any();
                self.promote(replica);
            }
            Way::MoveSlot => {
                let (key, [_, to, _]) = self.any_move();
                self.move_slot(&key, to.primary);
            }
            Way::AddAndRemove => self.add_and_remove(),
            Way::CutPrimary => {
                let Shard { primary, .. } = self.any();
                let growing = self.growing_at(primary);
                self.cut_off(&[primary]);
                self.until_replaced(&[primary]);
                self.until_growing(&growing, primary);
                self.pause();
                self.cluster.mend();
            }
            Way::CutReplica => {
                let Shard { replica, .. } = self.any();
                self.cut_off(&[replica]);
                let most = u64::from(2 * NODE_TIMEOUT_MS);
                std::thread::sleep(Duration::from_millis(self.dice.u64(..most)));
                self.cluster.mend();
            }
            Way::CutShard => {
                let Shard { primary, replica } = self.any();
                self.cut_off(&[primary, replica]);
                self.until_nobody_serves(&[]);
                self.pause();
                self.cluster.mend();
            }
            Way::KillAhead => {
                let Shard { primary, replica } = self.any();
                let manner = self.manner();
                self.cluster.cut([(primary, replica)], manner);
                self.pause();
                self.cluster.nodes[primary].kill();
                self.until_replaced(&[primary]);
                self.cluster.mend();
                self.pause();
                self.cluster.nodes[primary].restart();
            }
            Way::KillReplicaBeside => {
                let [one, other, _] = self.all();
                self.cluster.nodes[one.primary].kill();
                // While the others notice, or while they elect.
                let most = u64::from(NODE_TIMEOUT_MS);
                std::thread::sleep(Duration::from_millis(self.dice.u64(..most)));
                self.cluster.nodes[other.replica].kill();
                self.until_replaced(&[one.primary, other.replica]);
                self.restart_both(one.primary, other.replica);
            }
            Way::KillPrimaryBeside => {
                let [one, other, _] = self.all();
                self.cluster.nodes[one.primary].kill();
                // Of three primaries two are to elect: the second one dies when the first has been replaced, and is away.
                self.until_replaced(&[one.primary]);
                self.pause();
                self.cluster.nodes[other.primary].kill();
                self.until_replaced(&[other.primary, one.primary]);
                self.restart_both(one.primary, other.primary);
            }
            Way::OpenSlotBeside => self.fail_over_beside_an_open_slot(),
            Way::CutShardBeside => {
                let [frozen, cut, _] = self.all();
                let pid = self.freeze(frozen.primary);
                self.pause();
                self.cut_off(&[cut.primary, cut.replica]);
                self.until_nobody_serves(&[frozen.primary]);
                self.cluster.mend();
                self.until_replaced(&[frozen.primary]);
                self.pause();
                signal(pid, "CONT");
            }
            Way::KillWorker | Way::StopWorker => {}
        }
    }

    /// A slot is open between two shards, and some of its keys have moved, while the primary of the third one fails over;
    /// then it is closed.
    fn fail_over_beside_an_open_slot(&mut self) {
        let (key, [from, to, third]) = self.any_move();
        let open = self.open_slot(&key, from.primary, to.primary);
        self.move_some(&open, 1);
        let Shard { primary, replica } = third;
        match self.dice.u8(..3) {
            0 => {
                self.promote(replica);
                self.pause();
                self.close_slot(&open);
            }
            1 => {
                let pid = self.freeze(primary);
                self.until_replaced(&[primary]);
                self.close_slot(&open);
                signal(pid, "CONT");
            }
            _ => {
                self.cluster.nodes[primary].kill();
                self.until_replaced(&[primary]);
                self.close_slot(&open);
                self.cluster.nodes[primary].restart();
            }
        }
        self.until_maps_agree();
    }

    fn freeze(&self, node: usize) -> u32 {
        let pid = self.cluster.nodes[node].pid();
        signal(pid, "STOP");
        pid
    }

    /// As an operator asks for it.
    fn promote(&self, replica: usize) {
        let promoted = || self.primaries(replica).contains(&replica);
        self.wait("a replica is promoted", || {
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

    fn restart_both(&mut self, one: usize, other: usize) {
        self.pause();
        let mut both = [one, other];
        self.dice.shuffle(&mut both);
        for node in both {
            self.cluster.nodes[node].restart();
            self.pause();
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

    /// Waits until no node serves anything. Those do not answer.
    fn until_nobody_serves(&self, frozen: &[usize]) {
        let mut others: Vec<usize> = (0..self.cluster.nodes.len()).collect();
        others.retain(|node| !frozen.contains(node));
        self.wait("neither side serves anything", || {
            others.iter().all(|node| !self.serves(*node))
        });
    }

    /// All shards, once each has two copies, in an order that is drawn.
    fn all(&mut self) -> [Shard; 3] {
        let mut shards = self.until_whole();
        self.dice.shuffle(&mut shards);
        shards.try_into().expect("three primaries have slots")
    }

    fn any(&mut self) -> Shard {
        self.all()[0]
    }

    /// A key whose slot is to move; who has it, who is to get it, and who is left.
    fn any_move(&mut self) -> (String, [Shard; 3]) {
        let key = self.any_key();
        loop {
            let mut shards = self.all();
            let from = self.owner(&key);
            let at = shards.iter().position(|shard| shard.primary == from);
            // On a busy machine another one may have its place by now.
            if let Some(at) = at {
                shards.swap(0, at);
                return (key, shards);
            }
        }
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
