//! What a lane has read and not yet settled.

use super::activity::Activity;
use super::shared::Delivery;
use crate::handler::context::Context;
use crate::mutex::locked;
use crate::protocol::event::EntryId;
use crate::protocol::progress::Progress;
use crate::streams::commit::Receipt;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// One delivery of one entry. An entry may be here twice: as the delivery whose lease was lost and
/// as the one that was taken over since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    stream: usize,
    entry: EntryId,
    deliveries: u32,
}

impl From<&Receipt> for Key {
    fn from(receipt: &Receipt) -> Self {
        Self {
            stream: receipt.stream,
            entry: receipt.entry,
            deliveries: receipt.deliveries,
        }
    }
}

#[derive(Debug)]
struct Held {
    renewed: Instant,
    /// Someone else owns the entry now.
    lost: bool,
    /// Why the event is cancelled.
    void: Option<Arc<str>>,
    doing: Doing,
}

/// What is done with a delivery, where it takes its time.
#[derive(Debug)]
enum Doing {
    /// The entry was read, and not looked at yet; or its run ended.
    Nothing,
    /// The event waits, unstarted.
    Waits { route: usize },
    /// The event runs. Few do at a time: what is read in masses is small.
    Runs(Box<Run>),
}

#[derive(Debug)]
struct Run {
    route: usize,
    since: Instant,
    context: Context,
    task: AbortHandle,
}

/// A run that takes its time.
#[derive(Debug)]
pub(super) struct Oldest {
    pub(super) route: usize,
    pub(super) since: Instant,
    pub(super) stream: usize,
    pub(super) entry: EntryId,
    /// How far it is, as it told last.
    pub(super) progress: Option<Progress>,
}

impl Held {
    fn cancel(&self) {
        if let Doing::Runs(run) = &self.doing {
            if let Some(why) = &self.void {
                run.context.void(why);
            }
            run.context.cancellation().cancel();
        }
    }
}

/// The deliveries that a lane holds, shared with whoever renews their leases.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    held: Mutex<HashMap<Key, Held, RandomState>>,
    /// Whether one was ever taken away by somebody who cancelled its event.
    voided: AtomicBool,
}

impl InFlight {
    fn held(&self) -> MutexGuard<'_, HashMap<Key, Held, RandomState>> {
        locked(&self.held)
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.held().len()
    }

    /// Whether that delivery is held.
    pub(super) fn holds(&self, stream: usize, entry: EntryId, deliveries: u32) -> bool {
        self.held().contains_key(&Key {
            stream,
            entry,
            deliveries,
        })
    }

    /// Adds what was delivered since that moment; what is held already (a server that fell back to an older
    /// state delivers again) is dropped, and is ours again.
    pub(super) fn add(&self, deliveries: &mut Vec<Delivery>, renewed: Instant) {
        let mut held = self.held();
        deliveries.retain(|delivery| {
            let new = Held {
                renewed,
                lost: false,
                void: None,
                doing: Doing::Nothing,
            };
            let key = Key::from(&delivery.receipt());
            if let Some(held) = held.get_mut(&key) {
                held.lost = false;
                held.void = None;
                held.renewed = renewed;
                return false;
            }
            held.insert(key, new);
            true
        });
    }

    /// Notes that a run of that route began that takes its time. Its context can then be told when the
    /// lease is lost, and its task be ended.
    pub(super) fn runs(
        &self,
        receipt: &Receipt,
        route: usize,
        context: Context,
        task: AbortHandle,
    ) {
        if let Some(held) = self.held().get_mut(&receipt.into()) {
            held.doing = Doing::Runs(Box::new(Run {
                route,
                since: Instant::now(),
                context,
                task,
            }));
            // Its event was cancelled in the moment in which it began.
            if held.void.is_some() {
                held.cancel();
            }
        }
    }

    /// Notes that an event for that route waits, unstarted.
    pub(super) fn waits(&self, receipt: &Receipt, route: usize) {
        if let Some(held) = self.held().get_mut(&receipt.into()) {
            held.doing = Doing::Waits { route };
        }
    }

    /// Whether someone else owns that entry now.
    pub(super) fn is_lost(&self, receipt: &Receipt) -> bool {
        self.held()
            .get(&receipt.into())
            .is_some_and(|held| held.lost)
    }

    /// Whether an event may have been cancelled since it was read.
    pub(super) fn has_voided(&self) -> bool {
        self.voided.load(Ordering::Acquire)
    }

    /// Notes that an event was taken away, for that reason, by somebody who cancelled it: it does not begin, and its run
    /// is cancelled. Whether it is here.
    pub(super) fn void(&self, stream: usize, entry: EntryId, why: &str) -> bool {
        let mut all = self.held();
        let mut found = false;
        let here = all.iter_mut();
        for (_, held) in here.filter(|(key, _)| key.stream == stream && key.entry == entry) {
            found = true;
            held.lost = true;
            held.void.get_or_insert_with(|| why.into());
            held.cancel();
        }
        if found {
            self.voided.store(true, Ordering::Release);
        }
        found
    }

    /// Whether the event of that delivery was cancelled.
    pub(super) fn is_void(&self, receipt: &Receipt) -> bool {
        let held = self.held();
        held.get(&receipt.into())
            .is_some_and(|held| held.void.is_some())
    }

    /// Whether a lease that is not known to be lost was renewed last before that moment.
    pub(super) fn any_renewed_before(&self, moment: Instant) -> bool {
        let held = self.held();
        let mut ours = held.values().filter(|held| !held.lost);
        ours.any(|held| held.renewed < moment)
    }

    /// Whether a run began within that time, or an entry was read that nobody looked at yet.
    pub(super) fn has_begun_within(&self, time: Duration) -> bool {
        let held = self.held();
        let mut all = held.values();
        all.any(|held| match &held.doing {
            Doing::Runs(run) => run.since.elapsed() < time,
            Doing::Nothing | Doing::Waits { .. } => false,
        })
    }

    /// What is done with the deliveries of each of that many routes.
    pub(super) fn activity(&self, routes: usize) -> Vec<Activity> {
        let mut all = vec![Activity::default(); routes];
        for held in self.held().values() {
            match &held.doing {
                Doing::Nothing => {}
                Doing::Waits { route } => all[*route].waiting += 1,
                Doing::Runs(run) => all[run.route].runs_since(run.since),
            }
        }
        all
    }

    /// The runs that began first.
    pub(super) fn oldest(&self, count: usize) -> Vec<Oldest> {
        let held = self.held();
        let runs = held.iter().filter_map(|(key, held)| match &held.doing {
            Doing::Nothing | Doing::Waits { .. } => None,
            Doing::Runs(run) => Some((key, run)),
        });
        let mut runs: Vec<_> = runs.collect();
        runs.sort_unstable_by_key(|(_, run)| run.since);
        runs.truncate(count);
        let runs = runs.into_iter().map(|(key, run)| Oldest {
            route: run.route,
            since: run.since,
            stream: key.stream,
            entry: key.entry,
            progress: run.context.newest_progress(),
        });
        runs.collect()
    }

    /// Drops deliveries that are settled.
    pub(super) fn remove<'a>(&self, receipts: impl Iterator<Item = &'a Receipt>) {
        let mut held = self.held();
        for receipt in receipts {
            held.remove(&receipt.into());
        }
    }

    /// The entries (id, delivery count) of one stream whose lease was last renewed that long ago, and is
    /// not known to be lost.
    pub(super) fn due(&self, stream: usize, age: Duration) -> Vec<(EntryId, u32)> {
        let held = self.held();
        let due = held.iter().filter(|(key, held)| {
            key.stream == stream && !held.lost && held.renewed.elapsed() >= age
        });
        due.map(|(key, _)| (key.entry, key.deliveries)).collect()
    }

    /// Notes a renewal that was asked for then; runs whose lease was lost are cancelled.
    pub(super) fn renewed(
        &self,
        stream: usize,
        entries: &[(EntryId, u32)],
        lost: &[(EntryId, u32)],
        asked: Instant,
    ) {
        let mut all = self.held();
        for &(entry, deliveries) in entries {
            let key = Key {
                stream,
                entry,
                deliveries,
            };
            if let Some(held) = all.get_mut(&key) {
                held.renewed = held.renewed.max(asked);
                held.lost |= lost.contains(&(entry, deliveries));
                if held.lost {
                    held.cancel();
                }
            }
        }
    }

    /// Cancels the run of the event with that id.
    pub(super) fn cancel(&self, event: &str) {
        for held in self.held().values() {
            if let Doing::Runs(run) = &held.doing
                && run.context.event().id() == event
            {
                held.cancel();
            }
        }
    }

    /// Tells everything that runs that it may not be committed.
    pub(super) fn cancel_runs(&self) {
        for held in self.held().values() {
            held.cancel();
        }
    }

    /// Ends everything that runs.
    pub(super) fn end_all(&self) {
        for held in self.held().values() {
            held.cancel();
            if let Doing::Runs(run) = &held.doing {
                run.task.abort();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::event::Entry;

    fn delivery(deliveries: u32) -> Delivery {
        let id = EntryId { ms: 1, seq: 0 };
        Delivery {
            stream: 0,
            entry: Entry::new(id, Vec::<Vec<u8>>::new()),
            deliveries,
            claims: 0,
            since: Instant::now(),
        }
    }

    #[tokio::test]
    async fn what_runs_is_counted_with_its_oldest_start() {
        let inflight = InFlight::default();
        let mut both = vec![delivery(1), delivery(2)];
        let asked = Instant::now();
        inflight.add(&mut both, asked);
        let before = Instant::now();
        for delivery in &both {
            let context = crate::testing::event(&()).context();
            let task = tokio::spawn(async {}).abort_handle();
            inflight.runs(&delivery.receipt(), 1, context, task);
        }
        let mut third = vec![delivery(3)];
        inflight.add(&mut third, asked);
        inflight.waits(&third[0].receipt(), 0);
        let after = Instant::now();
        let [idle, busy] = inflight.activity(2)[..] else {
            panic!("two routes");
        };
        assert_eq!((idle.running, idle.waiting), (0, 1));
        assert_eq!((busy.running, busy.waiting), (2, 0));
        assert!((before..=after).contains(&busy.oldest.unwrap()));
        // One that runs for long is not one that has just begun.
        assert!(inflight.has_begun_within(Duration::from_secs(3600)));
        assert!(!inflight.has_begun_within(Duration::ZERO));
        inflight.remove([both[0].receipt()].iter());
        assert_eq!(inflight.activity(2)[1].running, 1);
        assert!(!inflight.any_renewed_before(asked));
        assert!(inflight.any_renewed_before(Instant::now()));
    }

    #[test]
    fn a_lost_delivery_is_renewed_no_more_and_the_next_of_its_entry_is() {
        let inflight = InFlight::default();
        let mut both = vec![delivery(1), delivery(2)];
        let asked = Instant::now();
        inflight.add(&mut both, asked);
        let held: Vec<_> = both.iter().map(|d| (d.entry.id, d.deliveries)).collect();
        let due = || inflight.due(0, Duration::ZERO);
        assert_eq!(due().len(), 2);
        let again = Instant::now();
        inflight.renewed(0, &held, &held[..1], again);
        assert_eq!(due(), held[1..]);
        // An answer that was under way for long tells nothing of what happened meanwhile.
        assert!(!inflight.any_renewed_before(again));
        inflight.renewed(0, &held[1..], &[], asked);
        assert!(!inflight.any_renewed_before(again));
        assert!(inflight.any_renewed_before(Instant::now()));
        // The server fell back and delivers it again.
        let mut again = vec![delivery(1)];
        inflight.add(&mut again, Instant::now());
        assert!(again.is_empty(), "it is in hand");
        assert_eq!(due().len(), 2);
    }
}
