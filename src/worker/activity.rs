//! What a worker is at, by event type: for who looks at it.

use super::shared::Shared;
use crate::connect::clock::whole_ms;
use crate::coordination::metrics::{MAX_RUNS, OldestRun, Running};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What is done with the events of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Activity {
    /// Runs that take their time; a handler that is ready at once is never seen here.
    pub running: usize,
    /// Events that were read and may not run yet.
    pub waiting: usize,
    /// When the oldest of the runs began.
    pub oldest: Option<Instant>,
}

impl Activity {
    /// Counts one more run.
    pub(super) fn runs_since(&mut self, since: Instant) {
        self.running += 1;
        self.oldest = Some(self.oldest.map_or(since, |oldest| oldest.min(since)));
    }

    fn add(&mut self, other: &Activity) {
        self.running += other.running;
        self.waiting += other.waiting;
        self.oldest = [self.oldest, other.oldest].into_iter().flatten().min();
    }
}

/// What runs in these lanes now, as a report tells it: by event type, and the runs that began first.
pub(super) fn running(lanes: &[Arc<Shared>]) -> (BTreeMap<String, Running>, Vec<OldestRun>) {
    let now = Instant::now();
    let age = |since: Instant| whole_ms(now.saturating_duration_since(since));
    let (mut running, mut runs) = (BTreeMap::<String, Running>::new(), Vec::new());
    for lane in lanes {
        for (kind, activity) in of(std::slice::from_ref(lane)) {
            let Some(oldest) = activity.oldest else {
                continue;
            };
            let route = lane.router.find(&kind);
            // A batch has one slot for all its events.
            let has_batches = route.is_some_and(|route| route.lots.is_some());
            let sum = running.entry(kind).or_default();
            sum.runs += activity.running as u64;
            sum.oldest_ms = sum.oldest_ms.max(age(oldest));
            // Lanes of owned partitions share theirs.
            let (holds, most) = match (&lane.pool, route) {
                (Some(pool), Some(route)) => (pool.held(route.index), pool.slots()),
                _ => (activity.running, lane.concurrency()),
            };
            if !has_batches && holds >= most {
                sum.full = 1;
            }
        }
        let kinds: Vec<_> = lane.router.routes().collect();
        for run in lane.inflight.oldest(MAX_RUNS) {
            let kind = kinds.iter().find(|kind| kind.index == run.route);
            runs.push(OldestRun {
                instance: String::new(),
                kind: kind.map_or_else(String::new, |kind| kind.kind.clone()),
                stream: lane.routes[run.stream].events.clone(),
                entry: run.entry,
                age_ms: age(run.since),
                progress: run.progress,
            });
        }
    }
    runs.sort_by_key(|run| std::cmp::Reverse(run.age_ms));
    runs.truncate(MAX_RUNS);
    (running, runs)
}

/// What these lanes are at: the event types with runs or waiting events. Costs a look at everything in
/// hand, so it is for once a pulse, not for once an event.
pub(super) fn of(lanes: &[Arc<Shared>]) -> Vec<(String, Activity)> {
    let Some(first) = lanes.first() else {
        return Vec::new();
    };
    let routes: Vec<_> = first.router.routes().collect();
    let mut all = vec![Activity::default(); routes.len()];
    for lane in lanes {
        let of_lane = lane.inflight.activity(routes.len());
        for (sum, part) in all.iter_mut().zip(&of_lane) {
            sum.add(part);
        }
    }
    let named = routes
        .into_iter()
        .map(|route| (route.kind.clone(), all[route.index]));
    named
        .filter(|(_, activity)| *activity != Activity::default())
        .collect()
}
