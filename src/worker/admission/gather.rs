//! The events of batch handlers, which wait until a batch of them is due: as many as a batch has at the most, or what
//! came within its time.

use super::{Admission, Until, Waiting};
use crate::connect::clock::NEVER;
use crate::handler::batch::{Batches, Lots};
use crate::protocol::event::EntryId;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Batches of a type that run at a time, where its policy does not say.
const BATCHES: usize = 4;
/// How long a batch that is due waits at the most for what was read and is not begun.
const OVERDUE: Duration = Duration::from_millis(10);

/// What is known of the batches of a lane.
#[derive(Default)]
pub(super) struct Gathers {
    /// The types of which events have waited, the next one first.
    kinds: VecDeque<usize>,
    /// The subjects of the batches that run, by type.
    subjects: HashMap<usize, HashSet<String>>,
    /// Events that a batch may have, of the type that takes the most.
    pub(super) most: usize,
    /// The next event of a subject comes when the one before has ended: a batch of a subject waits for no second one.
    pub(super) one_of_each: bool,
}

/// What a batch that runs holds.
pub(in crate::worker) struct Held {
    route: usize,
    subject: Option<String>,
    /// Its events.
    pub(in crate::worker) events: usize,
}

impl Gathers {
    /// Notes that an event of a batch handler waits.
    pub(super) fn comes(&mut self, route: usize, lots: &Lots) {
        if !self.kinds.contains(&route) {
            self.kinds.push_back(route);
            self.most = self.most.max(lots.batches.most);
        }
    }

    fn runs(&self, route: usize, subject: Option<&str>) -> bool {
        let running = self.subjects.get(&route);
        let is_it = |subject| running.is_some_and(|running| running.contains(subject));
        subject.is_some_and(is_it)
    }
}

/// A batch that could be next: some events of a queue, by their places in it.
#[derive(Default)]
struct Found {
    places: Vec<usize>,
    /// When they are due at the latest.
    due: Option<Instant>,
    /// Whether it waits for no more.
    full: bool,
}

impl Found {
    fn add(&mut self, at: usize, waiting: &Waiting, batches: &Batches) {
        let due = waiting.receipt.since + batches.within.min(NEVER);
        let due = waiting.hurry.map_or(due, |hurry| hurry.min(due));
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
        self.places.push(at);
        self.full = self.places.len() >= batches.most;
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }
}

impl Admission {
    /// The next batch that is due, where this many slots are taken and one is free. `all` of what was read is here: a
    /// batch that waits for no more is due. Before that it is once it is overdue, so that no backlog holds it up.
    pub(in crate::worker) fn next_lot(
        &mut self,
        taken: usize,
        all: bool,
        now: Instant,
    ) -> Option<Vec<Waiting>> {
        for _ in 0..self.gathers.kinds.len() {
            let route = self.gathers.kinds.pop_front()?;
            self.gathers.kinds.push_back(route);
            if let Some(found) = self.found(route, taken, now)
                && (found.full
                    || found.is_due(now) && all
                    || found.due.is_some_and(|due| due + OVERDUE <= now))
            {
                return Some(self.take_out(route, &found.places));
            }
        }
        None
    }

    /// When the next batch is due that may run.
    pub(in crate::worker) fn next_due(&self, taken: usize) -> Option<Instant> {
        let now = Instant::now();
        let kinds = self.gathers.kinds.iter();
        let found = kinds.filter_map(|route| self.found(*route, taken, now));
        found.filter_map(|found| found.due).min()
    }

    /// The next batch of a type, due or not.
    fn found(&self, route: usize, taken: usize, now: Instant) -> Option<Found> {
        let queue = &self.queues[route];
        let next = &queue.front()?.route;
        let batches = &next.lots.as_ref()?.batches;
        let most = next.limits.now().concurrency.unwrap_or(BATCHES);
        if self.held[route] >= most || !self.allows(route, taken) {
            return None;
        }
        let mut found = match next.policy.ordered {
            false => of_any(queue, batches, now)?,
            true => self.of_a_subject(route, queue, batches, now)?,
        };
        let of_a_full_stream = |waiting: &Waiting| self.loads[waiting.receipt.stream].full;
        found.full |= self.loads.iter().any(|load| load.full) && queue.iter().any(of_a_full_stream);
        Some(found)
    }

    /// The events of one subject: of the one that is due first, or of one of which a batch is full before that.
    fn of_a_subject(
        &self,
        route: usize,
        queue: &VecDeque<Waiting>,
        batches: &Batches,
        now: Instant,
    ) -> Option<Found> {
        let judged = self.first_judged(route);
        let mut of_each: HashMap<Option<&str>, Found> = HashMap::new();
        let mut first_full = None;
        for (at, waiting) in queue.iter().enumerate() {
            let subject = waiting.context.event().subject();
            let before = subject.and_then(|subject| judged.get(subject));
            let passes = before.is_some_and(|before| *before < waiting.receipt.entry);
            if passes || self.gathers.runs(route, subject) {
                continue;
            }
            let found = of_each.entry(subject).or_default();
            if found.full {
                continue;
            }
            match (runs_alone(waiting), found.places.is_empty()) {
                // What is before it runs first.
                (true, false) => found.full = true,
                (alone, _) => {
                    found.add(at, waiting, batches);
                    found.full |= alone || self.gathers.one_of_each && subject.is_some();
                }
            }
            if found.full {
                first_full = first_full.or(Some(subject));
            }
        }
        let due = of_each
            .iter()
            .min_by_key(|(_, found)| (found.due, found.places.first()));
        let due = due.map(|(subject, found)| (*subject, found.is_due(now)));
        match (due?, first_full) {
            ((_, false), Some(full)) => of_each.remove(&full),
            ((due, _), _) => of_each.remove(&due),
        }
    }

    /// The oldest event of each subject that has its place in line and is judged.
    fn first_judged(&self, route: usize) -> HashMap<&str, EntryId> {
        let mut first = HashMap::new();
        for (receipt, enters) in &self.entering {
            if let Until::Judged(Some(line)) = &enters.until
                && line.route == route
            {
                let entry = first.entry(line.subject.as_str()).or_insert(receipt.entry);
                *entry = receipt.entry.min(*entry);
            }
        }
        first
    }

    fn take_out(&mut self, route: usize, places: &[usize]) -> Vec<Waiting> {
        let is_whole = places.iter().copied().eq(0..places.len());
        let lot: Vec<Waiting> = match is_whole {
            true => self.queues[route].drain(..places.len()).collect(),
            false => {
                let (mut lot, mut next) = (Vec::new(), places.iter().peekable());
                let mut left = VecDeque::new();
                for (at, waiting) in std::mem::take(&mut self.queues[route])
                    .into_iter()
                    .enumerate()
                {
                    match next.next_if_eq(&&at) {
                        Some(_) => lot.push(waiting),
                        None => left.push_back(waiting),
                    }
                }
                self.queues[route] = left;
                lot
            }
        };
        for waiting in &lot {
            self.unqueued(waiting);
        }
        lot
    }

    /// Notes that a batch took a slot.
    pub(in crate::worker) fn began_lot(&mut self, lot: &[Waiting]) -> Option<Held> {
        let route = &lot.first()?.route;
        let subject = lot.first()?.context.event().subject();
        let subject = subject.filter(|_| route.policy.ordered).map(str::to_owned);
        if let Some(subject) = &subject {
            let subjects = self.gathers.subjects.entry(route.index).or_default();
            subjects.insert(subject.clone());
        }
        self.began(route.index);
        Some(Held {
            route: route.index,
            subject,
            events: lot.len(),
        })
    }

    /// Notes that it gave the slot back.
    pub(in crate::worker) fn ended_lot(&mut self, held: &Held) {
        self.ended(held.route);
        if let (Some(subjects), Some(subject)) =
            (self.gathers.subjects.get_mut(&held.route), &held.subject)
        {
            subjects.remove(subject);
        }
    }
}

/// Whether an event runs in a batch of its own: it has failed before, and may be why others of its batch did.
fn runs_alone(waiting: &Waiting) -> bool {
    waiting.context.event().attempt() > 1
}

/// The first events of a queue; or one that runs alone, if it is older, or they are not due.
fn of_any(queue: &VecDeque<Waiting>, batches: &Batches, now: Instant) -> Option<Found> {
    let (mut found, mut alone) = (Found::default(), None);
    for (at, waiting) in queue.iter().enumerate() {
        match runs_alone(waiting) {
            true => alone = alone.or(Some(at)),
            false if found.full => break,
            false => found.add(at, waiting, batches),
        }
        if alone == Some(0) {
            break;
        }
    }
    let Some(at) = alone.filter(|at| *at == 0 || !found.full && !found.is_due(now)) else {
        return (!found.places.is_empty()).then_some(found);
    };
    let mut lone = Found::default();
    lone.add(at, queue.get(at)?, batches);
    lone.full = true;
    Some(lone)
}
