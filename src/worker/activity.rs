//! What a worker is at, by event type: for who looks at it.

use super::shared::Shared;
use std::sync::Arc;
use std::time::Instant;

/// What is done with the events of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
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

/// What these lanes are at: the event types with runs or waiting events. Costs a look at everything in
/// hand, so it is for once a pulse, not for once an event.
pub fn of(lanes: &[Arc<Shared>]) -> Vec<(String, Activity)> {
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
