//! Which faults come, and in which order.

use crate::support::torture::{self, Report};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `kill -9` of a primary; it comes back when another one has its place.
    KillPrimary,
    /// It stands still until another one has its place, and goes on.
    FreezePrimary,
    KillReplica,
    /// As an operator asks for it.
    FailOver,
    /// The slot of a partition, or of the control plane, goes to another primary.
    MoveSlot,
    /// A node joins, gets slots, gives them back and leaves: two faults.
    AddAndRemove,
    /// A primary reaches no other node, while clients reach it: it goes on taking what they write for about a node
    /// time-out, and another one has its place.
    CutPrimary,
    /// A replica reaches no other node for some time.
    CutReplica,
    /// A primary and its replica reach no other node, until either side serves nothing.
    CutShard,
    /// A primary is cut off from its replica, then killed: all that it wrote between the two is lost.
    KillAhead,
    /// A primary is killed, and a replica of another shard before anybody has its place: two faults.
    KillReplicaBeside,
    /// A primary is killed while that of another shard, that was killed before, has been replaced and is away: two faults.
    KillPrimaryBeside,
    /// A slot is open between two shards while the primary of the third one fails over, then it is closed as
    /// `redis-cli --cluster fix` does: two faults.
    OpenSlotBeside,
    /// A primary and its replica reach nobody else while the primary of another shard stands still: two faults.
    CutShardBeside,
    KillWorker,
    StopWorker,
}

impl Way {
    pub(crate) const ALL: [Way; 16] = [
        Way::KillPrimary,
        Way::FreezePrimary,
        Way::KillReplica,
        Way::FailOver,
        Way::MoveSlot,
        Way::AddAndRemove,
        Way::CutPrimary,
        Way::CutReplica,
        Way::CutShard,
        Way::KillAhead,
        Way::KillReplicaBeside,
        Way::KillPrimaryBeside,
        Way::OpenSlotBeside,
        Way::CutShardBeside,
        Way::KillWorker,
        Way::StopWorker,
    ];

    /// How many of a hundred faults are such.
    fn share(self) -> u64 {
        match self {
            Way::KillPrimary => 8,
            Way::FreezePrimary => 4,
            Way::KillReplica => 6,
            Way::FailOver => 8,
            Way::MoveSlot => 11,
            Way::AddAndRemove => 2,
            Way::CutPrimary => 7,
            Way::CutReplica => 4,
            Way::CutShard => 2,
            Way::KillAhead => 4,
            Way::KillReplicaBeside => 2,
            Way::KillPrimaryBeside => 2,
            Way::OpenSlotBeside => 2,
            Way::CutShardBeside => 2,
            Way::KillWorker => 24,
            Way::StopWorker => 12,
        }
    }

    fn is_of_workers(self) -> bool {
        matches!(self, Way::KillWorker | Way::StopWorker)
    }

    pub(crate) fn told(self, report: Report, count: u64) -> Report {
        match self {
            Way::KillPrimary => report.fault(count, "kills of primaries"),
            Way::FreezePrimary => report.fault(count, "primaries frozen"),
            Way::KillReplica => report.fault(count, "kills of replicas"),
            Way::FailOver => report.fault(count, "manual failovers"),
            Way::MoveSlot => report.fault(count, "slots moved"),
            Way::AddAndRemove => report
                .fault(count, "nodes added")
                .fault(count, "nodes removed"),
            Way::CutPrimary => report.fault(count, "primaries cut off from all nodes"),
            Way::CutReplica => report.fault(count, "replicas cut off"),
            Way::CutShard => report.fault(count, "primaries cut off with their replica"),
            Way::KillAhead => {
                report.fault(count, "primaries cut off from their replica, then killed")
            }
            Way::KillReplicaBeside => report
                .fault(count, "kills of primaries, each beside")
                .fault(count, "kills of replicas of another shard"),
            Way::KillPrimaryBeside => {
                let two = "kills of primaries of two shards, one while the other's was away";
                report.fault(2 * count, two)
            }
            Way::OpenSlotBeside => report
                .fault(count, "failovers, each beside")
                .fault(count, "slots held open between the other shards"),
            Way::CutShardBeside => report
                .fault(count, "primaries frozen, each beside")
                .fault(count, "cuts of another shard"),
            Way::KillWorker => report.fault(count, "kills of workers on a cluster"),
            Way::StopWorker => report.fault(count, "workers stopped past their lease on a cluster"),
        }
    }
}

/// All faults, in order.
pub(crate) struct Mix(Vec<Way>);

impl Mix {
    /// This many of all kinds.
    pub(crate) fn drawn(count: u64) -> Self {
        let mut ways = Vec::new();
        for way in Way::ALL {
            let faults = (count * way.share()).div_ceil(100);
            ways.extend((0..faults).map(|_| way));
        }
        torture::dice("cluster faults").shuffle(&mut ways);
        Self(ways)
    }

    pub(crate) fn of_nodes(&self) -> impl Iterator<Item = Way> {
        self.0.iter().copied().filter(|way| !way.is_of_workers())
    }

    pub(crate) fn of_workers(&self) -> impl Iterator<Item = Way> {
        self.0.iter().copied().filter(|way| way.is_of_workers())
    }

    pub(crate) fn count(&self, way: Way) -> u64 {
        self.0.iter().filter(|one| **one == way).count() as u64
    }
}
