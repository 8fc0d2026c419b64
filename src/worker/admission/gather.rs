//! The events of batch handlers, which wait until a batch of them is due: as many as a batch has at the most, or what
//! came within its time.

use super::{Admission, Waiting};
use crate::handler::batch::Lots;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

/// Batches of a type that run at a time, where its policy does not say.
const BATCHES: usize = 4;

/// What is known of the batches of a lane.
#[derive(Default)]
pub(super) struct Gathers {
    /// The types of which events have waited, the next one first.
    kinds: VecDeque<usize>,
    /// The subjects of the batches that run, by type.
    subjects: HashMap<usize, HashSet<String>>,
    /// Events that a batch may have, of the type that takes the most.
    pub(super) most: usize,
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

/// Some events of a queue, by their places in it.
struct Found {
    places: Vec<usize>,
    /// When they are due at the latest.
    due: Instant,
    full: bool,
}

impl Admission {
    /// The next batch that is due, where this many slots are taken and one is free. `all` of what was read is here: a
    /// batch that waits for no more is due.
    pub(in crate::worker) fn next_lot(
        &mut self,
        taken: usize,
        all: bool,
        now: Instant,
    ) -> Option<Vec<Waiting>> {
        for _ in 0..self.gathers.kinds.len() {
            let route = self.gathers.kinds.pop_front()?;
            self.gathers.kinds.push_back(route);
            if let Some(found) = self.found(route, taken)
                && (found.full || (all && found.due <= now))
            {
                return Some(self.take_out(route, &found.places));
            }
        }
        None
    }

    /// When the next batch is due that may run.
    pub(in crate::worker) fn next_due(&self, taken: usize) -> Option<Instant> {
        let kinds = self.gathers.kinds.iter();
        let found = kinds.filter_map(|route| self.found(*route, taken));
        found.map(|found| found.due).min()
    }

    /// The next batch of a type, due or not.
    fn found(&self, route: usize, taken: usize) -> Option<Found> {
        let queue = &self.queues[route];
        let next = &queue.front()?.route;
        let batches = next.lots.as_ref()?.batches;
        let most = next.policy.concurrency.unwrap_or(BATCHES);
        if self.held[route] >= most || !self.share.allows(self.held[route], taken) {
            return None;
        }
        let places = match next.policy.ordered {
            false => (0..queue.len().min(batches.most)).collect(),
            true => self.of_a_subject(route, queue, batches.most)?,
        };
        let first = &queue[*places.first()?].receipt;
        Some(Found {
            due: first.since + batches.within,
            full: places.len() >= batches.most || self.loads[first.stream].full,
            places,
        })
    }

    /// The places of the events of one subject: of one of which a batch is full, else of the oldest event's.
    fn of_a_subject(
        &self,
        route: usize,
        queue: &VecDeque<Waiting>,
        most: usize,
    ) -> Option<Vec<usize>> {
        let mut places: HashMap<Option<&str>, Vec<usize>> = HashMap::new();
        let mut oldest = None;
        for (at, waiting) in queue.iter().enumerate() {
            let subject = waiting.context.event().subject();
            if self.gathers.runs(route, subject) {
                continue;
            }
            oldest = oldest.or(Some(subject));
            let places_of = places.entry(subject).or_default();
            places_of.push(at);
            if places_of.len() >= most {
                return places.remove(&subject);
            }
        }
        places.remove(&oldest?)
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
