//! Which of the events that a lane has read starts next, and which wait for now.
//!
//! What waits was not started: it holds no slot, its lease is renewed like any other's, and it is given
//! back when the worker drains. What waits goes before what was read later, in order within its type,
//! and types take turns. A stream of which too much waits is not read for a while, so memory is bounded.

mod gather;

pub(super) use gather::Held;

use crate::connect::epoch::Epoch;
use crate::handler::context::Context;
use crate::handler::gate::Entered;
use crate::handler::router::Route;
use crate::streams::commit::Receipt;
use crate::worker::pool::{Drawn, Pool};
use gather::Gathers;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Events of one stream that wait at the most, for each slot of the lane.
const EACH: usize = 8;
/// And that wait at the least before the stream is not read.
const FEW: usize = 64;
/// Bytes of one stream that wait at the most.
const BYTES: usize = 16 << 20;

/// An event that was read and has a handler here.
pub(super) struct Waiting {
    /// The delivery.
    pub receipt: Receipt,
    /// What its handler will get.
    pub context: Context,
    /// Its handler.
    pub route: Arc<Route>,
    /// Its way through the gate before the handler, where there is one.
    pub entered: Option<Entered>,
    /// Whether time went by since it was read.
    pub waited: bool,
    /// Whether it is known to be the first of its id, or need not be.
    pub first: bool,
    /// The history of the server in which it is known to be that.
    pub judged_in: Option<Epoch>,
    /// As of when it is known that nothing of its subject waits before it, where something was paused.
    pub weighed: Option<u32>,
    /// When a batch with it is due at the latest, since its deadline comes.
    pub hurry: Option<Instant>,
}

impl Waiting {
    /// Bytes that it holds.
    pub(super) fn size(&self) -> usize {
        self.context.event().entry().size()
    }
}

/// What one stream's waiting events come to.
#[derive(Clone, Debug, Default)]
struct Load {
    events: usize,
    bytes: usize,
    /// Too much waited; not read until half of it is gone.
    full: bool,
}

/// How many of a lane's slots one type may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// The lane's slots.
    pub slots: usize,
    /// How many of them are for types that bound their runs by themselves.
    pub beside: usize,
    /// The part of what the others leave that one type may hold.
    pub percent: usize,
}

impl Share {
    /// Whether a type that holds this many slots, of this many taken in all, may take one more.
    ///
    /// The share is of what the *other* types leave: so several types that hang leave something to the
    /// rest, too. With one slot left, whoever holds none gets it.
    fn allows(self, held: usize, taken: usize) -> bool {
        let left = self.slots.saturating_sub(self.beside + taken - held);
        held < (left * self.percent / 100).max(1) + self.beside
    }
}

/// The place of an event in the line of its subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    route: usize,
    subject: String,
}

impl Line {
    /// The line of an event whose batch handler takes those of a subject in order.
    pub(super) fn of(waiting: &Waiting) -> Option<Self> {
        let route = &waiting.route;
        let is_in_line = route.lots.is_some() && route.policy.ordered;
        let subject = waiting.context.event().subject()?;
        is_in_line.then(|| Self {
            route: route.index,
            subject: subject.to_owned(),
        })
    }
}

/// Why an event is not in a queue yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// The event enters the gate before its handler, and may wait for others to end.
    Gate,
    /// Somebody is asked whether the event is the first of its id; no later one of its line goes before it.
    Judged(Option<Line>),
    /// Somebody is asked whether the event may begin, where something is paused.
    Weighed,
}

struct Enters {
    until: Until,
    size: usize,
    /// Ends with it.
    _task: Option<AbortOnDropHandle<()>>,
}

/// See the module.
pub(super) struct Admission {
    share: Share,
    /// The slots that it shares with other lanes.
    drawn: Option<Drawn>,
    /// Slots that each type's runs hold, by the route's index.
    held: Vec<usize>,
    queues: Vec<VecDeque<Waiting>>,
    /// The types of which something waits, the next one first.
    turns: VecDeque<usize>,
    /// What enters the gate before its handler, or is judged.
    entering: HashMap<Receipt, Enters>,
    loads: Vec<Load>,
    waiting: usize,
    /// How many events in the queues have a deadline.
    mortal: usize,
    /// How many runs may be in a long first poll at a time; `None` where runs go to no other thread.
    cores: Option<usize>,
    computing: usize,
    gathers: Gathers,
}

impl Admission {
    /// For a lane with that many handlers and streams.
    pub(super) fn new(share: Share, routes: usize, streams: usize, cores: Option<usize>) -> Self {
        Self {
            share,
            drawn: None,
            held: vec![0; routes],
            queues: (0..routes).map(|_| VecDeque::new()).collect(),
            turns: VecDeque::new(),
            entering: HashMap::new(),
            loads: vec![Load::default(); streams],
            waiting: 0,
            mortal: 0,
            cores,
            computing: 0,
            gathers: Gathers::default(),
        }
    }

    /// The same, where the next event of a subject comes when the one before has ended.
    pub(super) fn with_one_of_each_subject(mut self, is_so: bool) -> Self {
        self.gathers.one_of_each = is_so;
        self
    }

    /// Has the lane share its slots with others.
    pub(super) fn draws_from(&mut self, pool: Arc<Pool>) {
        self.drawn = Some(Drawn::from(pool));
    }

    /// What it draws from the slots that it shares.
    pub(super) fn drawn(&mut self) -> Option<&mut Drawn> {
        self.drawn.as_mut()
    }

    /// Whether it shares its slots with other lanes.
    pub(super) fn is_pooled(&self) -> bool {
        self.drawn.is_some()
    }

    /// Whether it found none of them free.
    pub(super) fn waits_for_a_slot(&self) -> bool {
        self.drawn.as_ref().is_some_and(Drawn::waits)
    }

    /// Is ready when a slot may be free that others had.
    pub(super) async fn has_a_slot(&self) {
        match &self.drawn {
            Some(drawn) => drawn.woken().await,
            None => std::future::pending().await,
        }
    }

    /// Whether something waits that may begin as far as it is known.
    pub(super) fn has_next(&self) -> bool {
        !self.turns.is_empty() || self.queues.iter().any(|queue| !queue.is_empty())
    }

    /// Whether a type that holds this many slots here, of this many taken, may take one more.
    fn allows(&self, route: usize, taken: usize) -> bool {
        match &self.drawn {
            None => self.share.allows(self.held[route], taken),
            Some(drawn) => drawn.allows(route, self.share.percent),
        }
    }

    /// Has the lane another number of slots from now on.
    pub(super) fn resize(&mut self, share: Share) {
        self.share = share;
    }

    /// How many events wait.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Whether an event of that type may start now, before those of its type that wait.
    pub(super) fn admits(&self, route: &Route, taken: usize) -> bool {
        let computes = !self.spreads(route) || self.cores > Some(self.computing);
        computes && self.allows(route.index, taken)
    }

    /// Whether runs of that handler go to other threads before they begin.
    pub(super) fn spreads(&self, route: &Route) -> bool {
        self.cores.is_some() && route.pace.first.are_long()
    }

    /// Notes that such a run begins.
    pub(super) fn computes(&mut self) {
        self.computing += 1;
    }

    /// Notes that such a run is over its first poll.
    pub(super) fn computed(&mut self) {
        self.computing -= 1;
    }

    /// Has an event wait behind those of its type that are older.
    pub(super) fn wait(&mut self, mut waiting: Waiting) {
        self.came(waiting.receipt.stream, waiting.size());
        waiting.waited = true;
        self.mortal += usize::from(waiting.context.event().deadline().is_some());
        let queue = &mut self.queues[waiting.route.index];
        match &waiting.route.lots {
            Some(lots) => self.gathers.comes(waiting.route.index, lots),
            None if queue.is_empty() => self.turns.push_back(waiting.route.index),
            None => {}
        }
        let entry = waiting.receipt.entry;
        let at = queue.partition_point(|before| before.receipt.entry <= entry);
        queue.insert(at, waiting);
    }

    /// Notes that an event enters the gate before its handler, or is judged.
    pub(super) fn enters(
        &mut self,
        receipt: Receipt,
        size: usize,
        until: Until,
        task: AbortOnDropHandle<()>,
    ) {
        self.is_under_way(receipt, size, until, Some(task));
    }

    /// Notes that somebody is asked whether an event may begin.
    pub(super) fn weighs(&mut self, receipt: Receipt, size: usize) {
        self.is_under_way(receipt, size, Until::Weighed, None);
    }

    fn is_under_way(
        &mut self,
        receipt: Receipt,
        size: usize,
        until: Until,
        task: Option<AbortOnDropHandle<()>>,
    ) {
        self.came(receipt.stream, size);
        let enters = Enters {
            until,
            size,
            _task: task,
        };
        self.entering.insert(receipt, enters);
    }

    /// Notes that it has done so; false if it was given up before.
    pub(super) fn entered(&mut self, receipt: &Receipt) -> bool {
        let Some(enters) = self.entering.remove(receipt) else {
            return false;
        };
        self.left(receipt.stream, enters.size);
        true
    }

    /// Whether it does so, and may wait for others to end.
    pub(super) fn may_wait_for_others(&self, receipt: &Receipt) -> bool {
        let enters = self.entering.get(receipt);
        enters.is_some_and(|enters| enters.until == Until::Gate)
    }

    /// Takes out one that waits in a queue.
    pub(super) fn take(&mut self, receipt: &Receipt) -> Option<Waiting> {
        let is_it = |waiting: &Waiting| waiting.receipt == *receipt;
        let mut queues = self.queues.iter_mut().enumerate();
        let (route, taken) = queues.find_map(|(route, queue)| {
            let at = queue.iter().position(is_it)?;
            Some((route, queue.remove(at)?))
        })?;
        if self.queues[route].is_empty() {
            self.turns.retain(|turn| *turn != route);
        }
        self.unqueued(&taken);
        Some(taken)
    }

    /// The next of those that waited, where this many slots are taken and one is free.
    pub(super) fn next(&mut self, taken: usize) -> Option<Waiting> {
        for _ in 0..self.turns.len() {
            let route = self.turns.pop_front()?;
            let may = |next: &Waiting| self.admits(&next.route, taken);
            if !self.queues[route].front().is_some_and(may) {
                self.turns.push_back(route);
                continue;
            }
            let next = self.queues[route].pop_front()?;
            if !self.queues[route].is_empty() {
                self.turns.push_back(route);
            }
            self.unqueued(&next);
            return Some(next);
        }
        None
    }

    fn unqueued(&mut self, waiting: &Waiting) {
        self.left(waiting.receipt.stream, waiting.size());
        self.mortal -= usize::from(waiting.context.event().deadline().is_some());
    }

    /// Whether an event in the queues has a deadline.
    pub(super) fn has_deadlines(&self) -> bool {
        self.mortal > 0
    }

    /// Takes out what is in the queues and has a deadline at that time or before.
    pub(super) fn late(&mut self, now: u64) -> Vec<Waiting> {
        self.take_those(|waiting| {
            let deadline = waiting.context.event().deadline();
            deadline.is_some_and(|deadline| deadline <= now)
        })
    }

    /// Takes out those of the queues, in their order.
    pub(super) fn take_those(&mut self, those: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let mut all = Vec::new();
        for queue in &mut self.queues {
            for waiting in std::mem::take(queue) {
                match those(&waiting) {
                    true => all.push(waiting),
                    false => queue.push_back(waiting),
                }
            }
        }
        let queues = &self.queues;
        self.turns.retain(|route| !queues[*route].is_empty());
        for waiting in &all {
            self.unqueued(waiting);
        }
        all
    }

    /// Events of one stream that wait at the most: two batches find room.
    fn most(&self) -> usize {
        (EACH * self.share.slots)
            .max(FEW)
            .max(self.gathers.most.saturating_mul(2))
    }

    fn came(&mut self, stream: usize, size: usize) {
        let most = self.most();
        let load = &mut self.loads[stream];
        load.events += 1;
        load.bytes += size;
        load.full |= load.events >= most || load.bytes >= BYTES;
        self.waiting += 1;
    }

    fn left(&mut self, stream: usize, size: usize) {
        let most = self.most();
        let load = &mut self.loads[stream];
        load.events -= 1;
        load.bytes -= size;
        load.full &= load.events > most / 2 || load.bytes > BYTES / 2;
        self.waiting -= 1;
    }

    /// Notes that a run took a slot.
    pub(super) fn began(&mut self, route: usize) {
        self.held[route] += 1;
        if let Some(drawn) = &mut self.drawn {
            drawn.began(route);
        }
    }

    /// Notes that it gave the slot back.
    pub(super) fn ended(&mut self, route: usize) {
        self.held[route] -= 1;
        if let Some(drawn) = &mut self.drawn {
            drawn.ended(route);
        }
    }

    /// Whether that stream is not read for now, since too much of it waits.
    pub(super) fn is_full(&self, stream: usize) -> bool {
        self.loads[stream].full
    }

    /// Takes out all that waits, and what was on its way through a gate.
    pub(super) fn give_up(&mut self) -> (Vec<Waiting>, Vec<Receipt>) {
        self.turns.clear();
        self.loads.fill(Load::default());
        self.waiting = 0;
        self.mortal = 0;
        let queues = self.queues.iter_mut().flat_map(|queue| queue.drain(..));
        let waiting = queues.collect();
        let entering = self.entering.drain().map(|(receipt, _)| receipt);
        (waiting, entering.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_type_has_it_all_and_who_has_none_gets_what_is_left() {
        let share = |slots, beside, percent| Share {
            slots,
            beside,
            percent,
        };
        let most = |share: Share, others: usize| {
            let held = (0..).find(|held| !share.allows(*held, others + held));
            held.unwrap_or_default().min(share.slots - others)
        };
        assert_eq!(most(share(64, 0, 75), 0), 48);
        assert_eq!(most(share(64, 0, 75), 48), 12);
        assert_eq!(most(share(64, 0, 75), 60), 3);
        assert_eq!(most(share(64, 0, 75), 63), 1);
        assert_eq!(most(share(64, 0, 100), 0), 64);
        assert_eq!(
            [1, 2, 3, 4].map(|slots| most(share(slots, 0, 75), 0)),
            [1, 1, 2, 3]
        );
        // Types that bound themselves fit in beside the smallest concurrency.
        assert_eq!(most(share(17, 16, 75), 0), 17);
        assert_eq!(most(share(17, 16, 75), 16), 1);
    }
}
