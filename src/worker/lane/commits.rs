//! What a lane has settled, on its way to the server: one commit at a time beside it, several where it is far.
//!
//! # What keeps its order
//!
//! Commits that are under way together have no order, and one of them may fail where another one does not. So what has
//! an order to keep (the events of one subject, where the policy says `ordered`) is never in two of them: its next
//! outcomes wait until the commit with the one before has an end. So what is written of a subject is written in the order
//! in which it ran, and nothing of it is committed before what ran earlier is, or is given up.

use super::told::ToTell;
use super::under_way::Boxed;
use crate::protocol::event::Event;
use crate::streams::commit::{Committer, Disposition, Distance, Receipt, Settlement, Tally};
use crate::worker::keeper::SOON;
use crate::worker::outcomes::ToNote;
use crate::worker::shared::Shared;
use foldhash::fast::RandomState;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Outcomes of one commit at the most where several are under way, so that each gets its part.
const PART: usize = 1000;
/// Entries at the most that a lane holds more of since the server is far.
const FAR: usize = 8192;
/// Over how long it is counted how many outcomes come.
const COUNTED: Duration = Duration::from_millis(20);

/// The outcomes of a lane that wait to be committed.
#[derive(Default)]
pub(super) struct Settled {
    waiting: Vec<Settlement>,
    /// Which order those of them keep that keep one.
    orders: HashMap<Receipt, Order, RandomState>,
    hasher: RandomState,
}

/// What keeps one order has the same number; others may share it, and wait as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Order(u64);

/// Commits that are under way, and who may begin others.
pub(super) struct Commits {
    free: Vec<Committer>,
    /// How many committers there are.
    all: usize,
    under_way: FuturesUnordered<Boxed<Ended>>,
    /// The orders of what is under way.
    orders: HashSet<Order, RandomState>,
    distance: Arc<Distance>,
    pace: Pace,
}

/// A commit that is to begin.
pub(super) struct Beginning {
    committer: Committer,
    pub(super) batch: Vec<Settlement>,
    orders: Vec<Order>,
}

/// A commit that ended.
struct Ended {
    committer: Committer,
    orders: Vec<Order>,
    receipts: Vec<Receipt>,
    tally: Tally,
}

/// How many outcomes come in a second.
struct Pace {
    since: Instant,
    outcomes: usize,
    rate: f64,
}

impl Settled {
    /// One more.
    pub(super) fn push(&mut self, settlement: Settlement) {
        self.waiting.push(settlement);
    }

    /// More of them.
    pub(super) fn extend(&mut self, settlements: Vec<Settlement>) {
        self.waiting.extend(settlements);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether any of them keeps an order.
    fn keep_orders(&self) -> bool {
        !self.orders.is_empty()
    }

    /// Notes that the outcome of an event of that handler keeps the order of its subject.
    pub(super) fn keeps_order(&mut self, receipt: Receipt, route: usize, event: &Event) {
        if let Some(subject) = event.subject() {
            let order = Order(self.hasher.hash_one((route, subject)));
            self.orders.insert(receipt, order);
        }
    }

    /// Takes up to `most` of them in their order, without those that keep an order in which others are under way.
    fn take(
        &mut self,
        most: usize,
        under_way: &HashSet<Order, RandomState>,
    ) -> (Vec<Settlement>, Vec<Order>) {
        if self.orders.is_empty() {
            let most = most.min(self.waiting.len());
            // As many come next, or so.
            let mut rest = Vec::with_capacity(most);
            rest.extend(self.waiting.drain(most..));
            return (std::mem::replace(&mut self.waiting, rest), Vec::new());
        }
        let (mut taken, mut left, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        // What is behind one that is left is left, too.
        let mut waits: HashSet<Order, RandomState> = HashSet::default();
        for settlement in std::mem::take(&mut self.waiting) {
            let order = self.orders.get(&settlement.receipt).copied();
            let must_wait = |order| under_way.contains(&order) || waits.contains(&order);
            if taken.len() < most && !order.is_some_and(must_wait) {
                self.orders.remove(&settlement.receipt);
                orders.extend(order);
                taken.push(settlement);
            } else {
                waits.extend(order);
                left.push(settlement);
            }
        }
        self.waiting = left;
        (taken, orders)
    }
}

impl Commits {
    pub(super) fn new(committer: Committer) -> Self {
        Self {
            distance: committer.distance(),
            free: vec![committer],
            all: 1,
            under_way: FuturesUnordered::new(),
            orders: HashSet::default(),
            pace: Pace {
                since: Instant::now(),
                outcomes: 0,
                rate: 0.0,
            },
        }
    }

    /// Lets go of connections on which nothing was committed of late.
    pub(super) fn rest(&mut self) {
        self.free.iter_mut().for_each(Committer::rest);
    }

    /// Whether any is under way.
    pub(super) fn are_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// What the next commit has, up to `part`, if one may begin.
    pub(super) fn next(&mut self, settled: &mut Settled, part: usize) -> Option<Beginning> {
        if settled.is_empty() || self.free.is_empty() {
            return None;
        }
        let most = self.distance.commits();
        if self.all - self.free.len() >= most {
            return None;
        }
        // What keeps an order would wait for its turn, and grow old: then it goes the slow way, one by one.
        let part = match most {
            1 => part,
            _ if settled.keep_orders() => usize::MAX,
            _ => part.min(PART),
        };
        let (batch, orders) = settled.take(part, &self.orders);
        if batch.is_empty() {
            return None;
        }
        // The one that committed last goes first. Another one connects when its turn comes.
        if let [last] = &self.free[..]
            && self.all < most
        {
            self.free.insert(0, last.another());
            self.all += 1;
        }
        let committer = self.free.pop()?;
        Some(Beginning {
            committer,
            batch,
            orders,
        })
    }

    /// Begins it.
    pub(super) fn begin(
        &mut self,
        beginning: Beginning,
        shared: Arc<Shared>,
        to_tell: ToTell,
        to_note: ToNote,
    ) {
        self.orders.extend(&beginning.orders);
        let commit = commit(beginning, shared, to_tell, to_note);
        self.under_way.push(Box::pin(commit));
    }

    /// The next one that ends; never ready while none is under way.
    pub(super) async fn ended(&mut self) -> (Vec<Receipt>, Tally) {
        let Some(ended) = self.under_way.next().await else {
            return std::future::pending().await;
        };
        self.free.push(ended.committer);
        for order in &ended.orders {
            self.orders.remove(order);
        }
        self.pace.came(ended.receipts.len(), Instant::now());
        (ended.receipts, ended.tally)
    }

    /// How many entries more than beside the server are to be in hand, so that the way to it and back is hidden, once
    /// for a read and once for a commit: as many as come in that time. So it is bounded by what the way carries, too.
    /// Where no outcomes come, nothing more is read.
    pub(super) fn further_ahead(&self) -> usize {
        let ways = 2 * self.distance.round_trip();
        match ways.is_zero() {
            true => 0,
            false => {
                let rate = self.pace.within(ways, Instant::now());
                ((rate * ways.as_secs_f64()).ceil() as usize).min(FAR)
            }
        }
    }

    /// A committer, unless one is in the middle of a commit.
    pub(super) fn into_committer(mut self) -> Option<Committer> {
        match self.are_under_way() {
            true => None,
            false => self.free.pop(),
        }
    }
}

async fn commit(
    beginning: Beginning,
    shared: Arc<Shared>,
    to_tell: ToTell,
    to_note: ToNote,
) -> Ended {
    let Beginning {
        mut committer,
        batch,
        orders,
    } = beginning;
    let receipts = batch.iter().map(|settlement| settlement.receipt).collect();
    let soon = batch.iter().any(|settlement| match settlement.disposition {
        Disposition::Later { wait, .. } => wait < SOON,
        _ => false,
    });
    let tally = committer.commit(batch).await;
    to_tell.tell(&tally);
    to_note.keep(&tally);
    if soon {
        shared.soon.notify_one();
    }
    Ended {
        committer,
        orders,
        receipts,
        tally,
    }
}

impl Pace {
    /// How many come in a second, where what comes is that long on its way.
    fn within(&self, way: Duration, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.since);
        match elapsed > COUNTED + way {
            true => self.rate.min(self.outcomes as f64 / elapsed.as_secs_f64()),
            false => self.rate,
        }
    }

    /// Notes that outcomes came.
    fn came(&mut self, outcomes: usize, now: Instant) {
        self.outcomes += outcomes;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= COUNTED {
            let rate = self.outcomes as f64 / elapsed.as_secs_f64();
            self.rate = f64::midpoint(self.rate, rate);
            (self.since, self.outcomes) = (now, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::event::EntryId;
    use crate::streams::commit::CommitterOptions;
    use tokio_util::sync::CancellationToken;

    fn settlement(number: u64) -> Settlement {
        Settlement {
            receipt: Receipt {
                stream: 0,
                entry: EntryId { ms: number, seq: 0 },
                deliveries: 1,
                claims: 0,
                since: Instant::now(),
            },
            reply: None,
            publications: Vec::new(),
            disposition: Disposition::Done,
            epoch: None,
            notes: Vec::new(),
        }
    }

    /// Outcomes of events, of which some keep an order.
    fn settled(of: &[Option<u64>]) -> Settled {
        let mut settled = Settled::default();
        for (number, order) in of.iter().enumerate() {
            let settlement = settlement(number as u64);
            if let Some(order) = order {
                settled.orders.insert(settlement.receipt, Order(*order));
            }
            settled.push(settlement);
        }
        settled
    }

    fn numbers(taken: &[Settlement]) -> Vec<u64> {
        taken.iter().map(|taken| taken.receipt.entry.ms).collect()
    }

    #[test]
    fn what_keeps_an_order_is_not_taken_beside_another_of_its_order() {
        let mut settled = settled(&[Some(1), None, Some(2), Some(1), None, Some(3)]);
        let under_way = HashSet::from_iter([Order(1)]);
        let (taken, orders) = settled.take(usize::MAX, &under_way);
        assert_eq!(numbers(&taken), [1, 2, 4, 5]);
        assert_eq!(orders, [Order(2), Order(3)]);
        let (taken, orders) = settled.take(usize::MAX, &HashSet::default());
        assert_eq!(numbers(&taken), [0, 3]);
        assert_eq!(orders, [Order(1), Order(1)]);
        assert!(settled.is_empty() && settled.orders.is_empty());
    }

    #[test]
    fn what_is_behind_one_that_is_left_is_left_and_no_part_is_larger_than_it_may_be() {
        let mut settled = settled(&[Some(2), Some(1), Some(1), None, Some(2)]);
        let none = HashSet::default();
        let (taken, _) = settled.take(2, &none);
        assert_eq!(numbers(&taken), [0, 1]);
        let (taken, _) = settled.take(9, &HashSet::from_iter([Order(2)]));
        assert_eq!(numbers(&taken), [2, 3]);
        let (taken, _) = settled.take(9, &none);
        assert_eq!(numbers(&taken), [4]);
    }

    #[test]
    fn what_is_behind_one_that_found_no_place_does_not_pass_it() {
        let mut settled = settled(&[None, Some(1), Some(1)]);
        let (taken, _) = settled.take(1, &HashSet::default());
        assert_eq!(numbers(&taken), [0]);
        let (taken, _) = settled.take(1, &HashSet::default());
        assert_eq!(numbers(&taken), [1]);
        let (taken, _) = settled.take(9, &HashSet::from_iter([Order(1)]));
        assert!(taken.is_empty());
    }

    #[tokio::test]
    async fn what_keeps_an_order_goes_whole_and_what_does_not_in_parts() {
        let keys = crate::protocol::keys::Keys::new("cb").unwrap();
        let url = crate::settings::RedisUrl::new("redis://127.0.0.1:1");
        let committer = Committer::new(CommitterOptions {
            connector: crate::connect::connector::Connector::new(&url, 1).unwrap(),
            routes: [keys.route("a", 0)].into(),
            claims: vec![keys.claims("a", 0, "w-1")],
            group: "workers".into(),
            consumer: "w-1".into(),
            reply_ttl: Duration::from_secs(60),
            reply_history: 1000,
            stop: CancellationToken::new(),
        });
        let distance = committer.distance();
        distance.saw(Duration::from_millis(25));
        let mut commits = Commits::new(committer);
        let taken = |commits: &mut Commits, settled: &mut Settled, part| {
            let beginning = commits.next(settled, part).unwrap();
            commits.free.push(beginning.committer);
            beginning.batch.len()
        };
        let mut free = settled(&[None; 2500]);
        assert_eq!(taken(&mut commits, &mut free, usize::MAX), PART);
        assert_eq!(taken(&mut commits, &mut free, 250), 250);
        let mut hot = settled(&[Some(1); 2500]);
        assert_eq!(taken(&mut commits, &mut hot, 250), 2500);
        // Beside the server nothing is parted.
        let mut commits = Commits::new(commits.free.pop().unwrap().another());
        commits.distance = Arc::default();
        let mut free = settled(&[None; 2500]);
        assert_eq!(taken(&mut commits, &mut free, usize::MAX), 2500);
    }

    #[test]
    fn the_pace_follows_what_comes() {
        let began = Instant::now();
        let mut pace = Pace {
            since: began,
            outcomes: 0,
            rate: 0.0,
        };
        for step in 1..=100 {
            pace.came(1000, began + Duration::from_millis(10) * step);
        }
        assert!((99_000.0..101_000.0).contains(&pace.rate), "{}", pace.rate);
        // Nothing comes any more.
        let (way, end) = (Duration::from_millis(50), began + Duration::from_secs(1));
        assert_eq!(pace.within(way, end + way), pace.rate);
        assert_eq!(pace.within(way, end + Duration::from_secs(1)), 0.0);
        pace.came(1, began + Duration::from_secs(3600));
        assert!(pace.rate < 51_000.0);
    }
}
