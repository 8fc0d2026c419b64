//! Takes seats of the types whose runs all workers share, and gives them back.
//!
//! Here, since a handler that blocks its thread must not make its runs look ended. A seat that a run leaves is given to
//! the next one of this worker without a question, as long as others wait for none. Each type has calls of its own, one
//! at a time: so what a call says is never older than what the one before it said.

use super::{Chores, within};
use crate::connect::backoff::reconnect_delay;
use crate::connect::error::BusError;
use crate::coordination::seats::Needs;
use crate::handler::gate::permits::{Look, Permits, Seats};
use crate::handler::router::Route;
use crate::mutex::locked;
use crate::worker::sparing::Sparing;
use futures_util::future::join_all;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stuck::Stuck;
use tokio::time::Instant;

mod stuck;

/// The shortest lease: a loaded machine may stand still for a part of it.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST: Duration = Duration::from_secs(15);
/// How long a worker has its seats without saying so again: half of its time to live.
pub(super) fn lease(ttl: Duration) -> Duration {
    (ttl / 2).clamp(SHORTEST, LONGEST)
}

/// Takes and gives back, for all types.
pub(super) async fn run(chores: &Chores) {
    let said = Mutex::new(Sparing::new(Instant::now().into_std()));
    let routes = routes(chores);
    let types = routes.iter().filter_map(|route| {
        let permits = route.permits()?;
        Some(Box::pin(Keeping::new(chores, route, permits).run(&said)))
    });
    join_all(types).await;
    // No type can be shared.
    std::future::pending().await
}

/// Gives back what is free when the worker leaves.
pub(super) async fn leave(chores: &Chores) {
    let routes = routes(chores);
    let all = routes.iter().filter_map(|route| {
        let permits = route.permits()?;
        permits.look()?;
        Some(Box::pin(async move {
            let mut keeping = Keeping::new(chores, route, permits);
            keeping.gives_back = true;
            if let Err(error) = keeping.say(0).await {
                let kind = &*route.kind;
                tracing::debug!(%error, r#type = kind, "its seats come back when their lease ends");
            }
        }))
    });
    join_all(all).await;
}

fn routes(chores: &Chores) -> Vec<Arc<Route>> {
    let lane = chores.lanes.first();
    lane.map_or_else(Vec::new, |lane| lane.router.routes().cloned().collect())
}

/// The seats of one type.
struct Keeping<'a> {
    chores: &'a Chores,
    route: &'a Route,
    permits: &'a Permits,
    lease: Duration,
    /// As many as the others may take to be taken here.
    has: usize,
    /// As many as it may keep.
    keep: usize,
    /// As many as it waits for, as the others know.
    wants: usize,
    /// How many there were in all at the last call.
    total: usize,
    others_wait: bool,
    /// Calls that failed since the last that did not.
    failed: u32,
    /// When the next call is due; `None`: when something changes.
    due: Option<Instant>,
    /// Since when nobody uses some of what it has.
    idle: Option<Instant>,
    /// How long that is kept where nobody waits elsewhere.
    may_idle: Duration,
    /// Runs that have a permit and find no slot.
    stuck: Stuck,
    /// What is free is given back, and nothing taken.
    gives_back: bool,
}

impl<'a> Keeping<'a> {
    fn new(chores: &'a Chores, route: &'a Route, permits: &'a Permits) -> Self {
        Self {
            chores,
            route,
            permits,
            lease: lease(chores.settings.heartbeat_ttl),
            has: 0,
            keep: 0,
            wants: 0,
            total: 0,
            others_wait: false,
            failed: 0,
            // What was taken before this duty was taken up.
            due: permits.look().map(|_| Instant::now()),
            idle: None,
            may_idle: Duration::ZERO,
            stuck: Stuck::default(),
            gives_back: false,
        }
    }

    async fn run(mut self, said: &Mutex<Sparing>) {
        loop {
            let idle = self.idle.map(|since| since + self.may_idle);
            let stuck = self.stuck.due().filter(|_| self.failed == 0);
            match self.due.into_iter().chain(idle).chain(stuck).min() {
                None => self.permits.changed().await,
                Some(due) => tokio::select! {
                    () = self.permits.changed() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
            let total = self.route.limits.now().total;
            if !self.is_due(total, Instant::now()) {
                continue;
            }
            if let Err(error) = self.say(total.unwrap_or(0)).await {
                let (kind, now) = (&*self.route.kind, std::time::Instant::now());
                match locked(said).allows(now) {
                    true => tracing::warn!(
                        r#type = kind, %error,
                        "the runs of a type with a total cannot be counted: none begins until they are"
                    ),
                    false => tracing::debug!(r#type = kind, %error, "runs were not counted"),
                }
            }
        }
    }

    /// Whether there is something to say, or it is time to.
    fn is_due(&mut self, total: Option<usize>, now: Instant) -> bool {
        if self.due.is_some_and(|due| due <= now) {
            return true;
        }
        if self.failed > 0 {
            return false;
        }
        let (Some(total), Some(look)) = (total, self.permits.look()) else {
            (self.idle, self.stuck) = (None, Stuck::default());
            return self.has + self.wants > 0;
        };
        let needs = self.needs(look, now);
        if total != self.total && self.has + needs > 0 {
            return true;
        }
        let is_known = match needs {
            // Whoever waited is gone, and others need not wait for it.
            0 => self.wants == 0 || self.has > 0,
            needs => look.runs <= self.has && (needs <= self.has || self.wants > 0),
        };
        if !is_known {
            return true;
        }
        match look.runs.max(self.keep.min(needs)) < self.has {
            false => {
                self.idle = None;
                false
            }
            // What it gives back may be what it waits for, where more went on than may.
            true => {
                let is_needed = self.others_wait || self.wants > 0;
                is_needed || *self.idle.get_or_insert(now) + self.may_idle <= now
            }
        }
    }

    /// As many seats as the runs of the type need: of those that go on, and of those that may begin here.
    fn needs(&mut self, look: Look, now: Instant) -> usize {
        if self.gives_back {
            return look.runs;
        }
        let others_need = self.others_wait && self.has > look.runs;
        if !self.stuck.lasts(look, others_need, now) {
            return needs_of(look, self.slots());
        }
        look.runs
    }

    /// As many runs of a type as this worker has slots for.
    fn slots(&self) -> usize {
        let tasks = u64::from(self.chores.settings.capacity);
        let slots = self.chores.lanes.concurrency().max(tasks);
        usize::try_from(slots).unwrap_or(usize::MAX)
    }

    /// Says what it needs, and takes what it gets.
    async fn say(&mut self, total: usize) -> Result<(), BusError> {
        let (has, wants) = match self.permits.look() {
            None => (0, 0),
            Some(look) => {
                let needs = self.needs(look, Instant::now());
                let has = self.permits.keep(self.keep.min(needs)).unwrap_or(0);
                (has, needs.saturating_sub(has))
            }
        };
        let needs = Needs {
            kind: &self.route.kind,
            call: self.chores.calls.fetch_add(1, Ordering::Relaxed),
            total,
            has,
            wants,
        };
        // Its seats count from before it is known when the others count them.
        let sent = Instant::now();
        let often = self.lease / 4;
        let take = Box::pin(self.chores.seats.take(needs));
        let given = within(&self.chores.connector, often, take).await;
        let now = Instant::now();
        (self.total, self.idle) = (total, None);
        match given {
            Ok(given) => {
                self.has = has + given.gets;
                self.keep = given.keep.min(self.has);
                self.wants = wants - given.gets;
                (self.others_wait, self.failed) = (given.others_wait, 0);
                self.permits.seat(Seats {
                    count: self.keep,
                    total,
                    until: sent + self.lease * 9 / 10,
                });
                self.may_idle = given.again;
                self.due = match (self.has, self.wants) {
                    (0, 0) => None,
                    // The line may be long, and there is no lease to keep.
                    (0, _) => Some(now + given.again),
                    (_, 0) if !given.others_wait => Some(now + often),
                    _ => Some(now + given.again.min(often)),
                };
                Ok(())
            }
            // Nothing begins on what nobody confirms; it may have got what it wanted.
            Err(error) => {
                self.has = self.has.max(has + wants);
                self.keep = 0;
                self.failed = self.failed.saturating_add(1);
                self.permits.seat(Seats {
                    count: 0,
                    total,
                    until: sent,
                });
                self.due = Some(now + reconnect_delay(self.failed).min(often));
                Err(error)
            }
        }
    }
}

/// As many seats as the runs of a type need: of those that go on, and of those that wait and may begin here.
fn needs_of(look: Look, slots: usize) -> usize {
    let most = look.limit.min(slots).saturating_sub(look.runs);
    look.runs + (look.entered + look.waits).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_long_enough_for_some_calls_and_short_enough_to_wait_for() {
        for (ttl, expected) in [
            (100, 1000),
            (2000, 1000),
            (10_000, 5000),
            (3_600_000, 15_000),
        ] {
            let lease = lease(Duration::from_millis(ttl));
            assert_eq!(lease.as_millis(), expected, "{ttl}");
        }
    }

    fn look(runs: usize, entered: usize, waits: usize, limit: usize) -> Look {
        Look {
            runs,
            entered,
            waits,
            limit,
            tries: 0,
            begins: 0,
        }
    }

    #[test]
    fn what_a_process_may_not_begin_needs_no_seat() {
        assert_eq!(needs_of(look(2, 1, 4, 4), 64), 4);
        assert_eq!(needs_of(look(2, 0, 1, 4), 64), 3);
        assert_eq!(needs_of(look(2, 1, 0, 4), 64), 3);
        assert_eq!(needs_of(look(5, 0, 1, 4), 64), 5, "what goes on counts");
        assert_eq!(
            needs_of(look(1, 9, 9, 99), 8),
            8,
            "it has no slots for more"
        );
    }
}
