//! Which lanes a worker has: more are added while it runs, when a domain gets more partitions.

use super::pool::Pool;
use super::shared::{Counts, Shared};
use crate::mutex::locked;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// The lanes of a worker, for all who look after them. All clones are the same list.
#[derive(Clone, Debug)]
pub(super) struct LaneList(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lanes: Mutex<Now>,
    /// Handlers of the events of others that may run at a time, in all lanes.
    concurrency: AtomicU64,
    /// Slots that the lanes of owned partitions share.
    pool: Arc<Pool>,
    /// Is told when a domain has more partitions.
    more: Notify,
    /// Is told when an instance came or left.
    members: Notify,
}

#[derive(Debug)]
struct Now {
    lanes: Arc<[Arc<Shared>]>,
    /// What happened in those that are gone.
    gone: Counts,
}

impl LaneList {
    /// No lane yet, of a worker that runs as many handlers at a time.
    pub(super) fn new(concurrency: usize) -> Self {
        Self(Arc::new(Inner {
            lanes: Mutex::new(Now {
                lanes: Arc::new([]),
                gone: Counts::default(),
            }),
            concurrency: AtomicU64::new(concurrency as u64),
            pool: Arc::default(),
            more: Notify::new(),
            members: Notify::new(),
        }))
    }

    /// Gives the lanes as they are now; the control plane's come first.
    pub(super) fn now(&self) -> Arc<[Arc<Shared>]> {
        locked(&self.0.lanes).lanes.clone()
    }

    /// The first one.
    pub(super) fn first(&self) -> Option<Arc<Shared>> {
        self.now().first().cloned()
    }

    /// The lanes of the events of others: one, or on a cluster one for each partition.
    pub(super) fn data(&self) -> Vec<Arc<Shared>> {
        let data = |lane: &&Arc<Shared>| lane.name == "data";
        self.now().iter().filter(data).cloned().collect()
    }

    /// One more. It is as quiet as the others, and those of the events of others share the concurrency again.
    pub(super) fn add(&self, lane: Arc<Shared>) {
        lane.be_quiet(self.is_quiet());
        {
            let mut now = locked(&self.0.lanes);
            now.lanes = now.lanes.iter().cloned().chain([lane]).collect();
        }
        self.share_out();
    }

    /// One less: its partition is another worker's from now on. What happened in it counts on.
    pub(super) fn remove(&self, lane: &Arc<Shared>) {
        {
            let mut now = locked(&self.0.lanes);
            let others = now.lanes.iter().filter(|other| !Arc::ptr_eq(other, lane));
            let others: Arc<[Arc<Shared>]> = others.cloned().collect();
            if others.len() == now.lanes.len() {
                return;
            }
            now.lanes = others;
            now.gone.add(&lane.counts);
        }
        self.share_out();
    }

    /// How often something happened in all lanes, those that are gone included.
    pub(super) fn count(&self, of: fn(&Counts) -> &AtomicU64) -> u64 {
        let now = locked(&self.0.lanes);
        let counts = now.lanes.iter().map(|lane| &lane.counts);
        let all = counts.chain([&now.gone]);
        all.map(|counts| of(counts).load(Ordering::Relaxed)).sum()
    }

    /// Whether they were told to read nothing more.
    pub(super) fn is_quiet(&self) -> bool {
        self.now().iter().any(|lane| lane.is_quiet())
    }

    /// Somebody may have changed a domain: who waits for that looks.
    pub(super) fn has_more_partitions(&self) {
        self.0.more.notify_one();
    }

    /// Is ready when somebody may have changed one since the last time. For one who waits at a time.
    pub(super) async fn more_partitions(&self) {
        self.0.more.notified().await;
    }

    /// An instance came or left: who shares partitions with others looks.
    pub(super) fn has_other_members(&self) {
        self.0.members.notify_one();
    }

    /// Is ready when one may have since the last time. For one who waits at a time.
    pub(super) async fn members_changed(&self) {
        self.0.members.notified().await;
    }

    /// How many handlers of the events of others may run at a time.
    pub(super) fn concurrency(&self) -> u64 {
        self.0.concurrency.load(Ordering::Relaxed)
    }

    /// Has that many run at a time.
    pub(super) fn scale(&self, concurrency: u64) {
        self.0.concurrency.store(concurrency, Ordering::Relaxed);
        self.share_out();
    }

    /// The slots that the lanes of owned partitions share.
    pub(super) fn pool(&self) -> Arc<Pool> {
        self.0.pool.clone()
    }

    fn share_out(&self) {
        let data = self.data();
        let all = usize::try_from(self.concurrency()).unwrap_or(usize::MAX);
        let (owned, shared): (Vec<_>, Vec<_>) = data.iter().partition(|lane| lane.pool.is_some());
        // By domains: a partition that is owned has a lane, and on one server all others have one.
        let pooled = part(all, domains(&owned), domains(&owned) + domains(&shared));
        self.0.pool.scale(pooled);
        for lane in &owned {
            lane.scale(part(pooled, 1, owned.len()));
        }
        let all = match owned.is_empty() {
            true => all,
            false => all.saturating_sub(pooled),
        };
        // By what each reads: one lane may read many partitions, and others one.
        let streams: usize = shared.iter().map(|lane| lane.routes.len()).sum();
        for lane in &shared {
            lane.scale(part(all, lane.routes.len(), streams));
        }
    }
}

/// Divides all into that many parts, and gives some of these; at least one where there are any.
fn part(all: usize, of: usize, parts: usize) -> usize {
    all.saturating_mul(of).div_ceil(parts.max(1))
}

fn domains(lanes: &[&Arc<Shared>]) -> usize {
    let places = lanes.iter().flat_map(|lane| &lane.places);
    let domains: BTreeSet<&str> = places.map(|(domain, _)| domain.as_str()).collect();
    domains.len()
}
