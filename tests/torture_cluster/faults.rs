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
    KillWorker,
    StopWorker,
}

impl Way {
    pub(crate) const ALL: [Way; 8] = [
        Way::KillPrimary,
        Way::FreezePrimary,
        Way::KillReplica,
        Way::FailOver,
        Way::MoveSlot,
        Way::AddAndRemove,
        Way::KillWorker,
        Way::StopWorker,
    ];

    /// How many of a hundred faults are such.
    fn share(self) -> u64 {
        match self {
            Way::KillPrimary => 12,
            Way::FreezePrimary => 6,
            Way::KillReplica => 10,
            Way::FailOver => 12,
            Way::MoveSlot => 18,
            Way::AddAndRemove => 4,
            Way::KillWorker => 26,
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
