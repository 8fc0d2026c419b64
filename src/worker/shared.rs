//! What the parts of a lane share: its streams, what is in its hands, what happened so far.

use super::admission::Share;
use super::inflight::InFlight;
use super::owned::Ownership;
use super::pausing::Pausing;
use super::pool::Pool;
use super::settle::Scene;
use super::sparing::Sparing;
use crate::connect::clock::whole_ms;
use crate::connect::connector::Connector;
use crate::connect::error::{BusError, Reaction};
use crate::connect::silence::Answers;
use crate::coordination::instances::Instances;
use crate::handler::context::Process;
use crate::handler::policy::RetryPolicy;
use crate::handler::router::Router;
use crate::mutex::locked;
use crate::protocol::event::{Entry, Event, Limits};
use crate::protocol::keys::{self, StreamKeys};
use crate::streams::commit::{Claims, Receipt};
use crate::streams::fence::Fence;
use crate::streams::first::{Firsts, Judge};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// An entry in a worker's hands.
#[derive(Debug)]
pub(super) struct Delivery {
    /// Which of the lane's streams.
    pub stream: usize,
    /// The entry.
    pub entry: Entry,
    /// How often it was delivered.
    pub deliveries: u32,
    /// The claim counter known before it was read.
    pub claims: u64,
    /// When it arrived.
    pub since: Instant,
}

impl Delivery {
    /// Which delivery it is.
    pub(super) fn receipt(&self) -> Receipt {
        Receipt {
            stream: self.stream,
            entry: self.entry.id,
            deliveries: self.deliveries,
            claims: self.claims,
            since: self.since,
        }
    }
}

/// What happened in a lane so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Outcomes committed.
    pub committed: AtomicU64,
    /// Outcomes discarded since someone else owned the entry.
    pub fenced: AtomicU64,
    /// Events that were cancelled while they were in hand.
    pub cancelled: AtomicU64,
    /// Entries that were delivered before, to whomever.
    pub taken: AtomicU64,
    /// Events dropped since their deadline had passed.
    pub expired: AtomicU64,
    /// Events that lay in another partition than that of their subject or id.
    pub misplaced: AtomicU64,
    /// Events of types that nobody needs to handle.
    pub ignored: AtomicU64,
    /// Events of an id of which another one came first.
    pub repeats: AtomicU64,
    /// Events that were parked since they are paused, or behind such ones.
    pub parked: AtomicU64,
    /// Events that will be tried again.
    pub retried: AtomicU64,
    /// Events that became dead letters.
    pub dead: AtomicU64,
    /// Entries that were read and are not started yet, now.
    pub ahead: AtomicU64,
}

impl Counts {
    /// Adds what happened in another lane, which is gone.
    pub(super) fn add(&self, other: &Counts) {
        let all: [fn(&Counts) -> &AtomicU64; 11] = [
            |it| &it.committed,
            |it| &it.fenced,
            |it| &it.cancelled,
            |it| &it.taken,
            |it| &it.expired,
            |it| &it.misplaced,
            |it| &it.ignored,
            |it| &it.repeats,
            |it| &it.parked,
            |it| &it.retried,
            |it| &it.dead,
        ];
        for of in all {
            of(self).fetch_add(of(other).load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// What the parts of a lane share.
#[derive(Debug)]
pub(super) struct Shared {
    /// `control`, `tasks` or `data`.
    pub name: &'static str,
    /// The lane's streams.
    pub routes: Arc<[StreamKeys]>,
    /// Domain and partition of each stream.
    pub places: Vec<(String, u16)>,
    /// Which of the streams is this instance's inbox.
    pub inbox: Option<usize>,
    /// Where its partition is one that this worker owns.
    pub owned: Option<Arc<Ownership>>,
    /// What fences its commits then.
    pub fence: Option<Arc<Fence>>,
    /// Reads no more, and finishes what runs.
    pub end: CancellationToken,
    /// Is told when the lane is gone, where the partition is owned.
    pub ended: CancellationToken,
    /// The consumer group.
    pub group: String,
    /// The way to the lane's streams.
    pub connector: Connector,
    /// The process.
    pub process: Arc<Process>,
    /// Who handles what.
    pub router: Arc<Router>,
    /// What is paused.
    pub pausing: Arc<Pausing>,
    /// Who else there is.
    pub instances: Instances,
    /// Bounds on events.
    pub limits: Limits,
    /// What is read and not settled.
    pub inflight: Arc<InFlight>,
    /// When the loop last went round.
    pub turned: Turned,
    /// Since when the lane waits for all its leases to be renewed.
    pub doubt: Doubt,
    /// How long the loop may stand still, or an answer be under way, before others may have taken what it holds:
    /// a third of what they wait for.
    pub patience: Duration,
    /// When the server answered.
    pub answers: Answers,
    /// The claim counters as last seen.
    pub claims: Arc<Claims>,
    /// Handlers that may wait at a time, except for what there is room for beside them.
    pub slots: AtomicUsize,
    /// Slots that it shares with others, where its partition is owned: beyond its own part, which says how far it reads
    /// ahead.
    pub pool: Option<Arc<Pool>>,
    /// How many of those one type may take, as the lane began.
    pub share: Share,
    /// Nothing more is read.
    pub quiet: AtomicBool,
    /// Something may be pending in its streams, whoever holds it: where that is known not to be so, nobody looks.
    pub may_hold: AtomicBool,
    /// The control plane waits for something.
    pub urgent: Arc<AtomicBool>,
    /// How long an entry may be idle before it is taken over.
    pub claim_idle: Duration,
    /// Deliveries before an event counts as poison.
    pub max_deliveries: u32,
    /// Retries of events without a handler's own schedule.
    pub retry: RetryPolicy,
    /// Says which event of an id came first.
    pub judge: Judge,
    /// Keeps it short that nobody could be asked.
    pub unasked: Mutex<Sparing>,
    /// For how long that is remembered.
    pub dedup_window: Duration,
    /// Types that nobody needs to handle.
    pub ignore: Arc<[String]>,
    /// Is told when an event was put off for so short a time that nobody may have looked by then.
    pub soon: Notify,
    /// What happened so far.
    pub counts: Counts,
}

/// Since when others may have taken what a lane holds, told to whoever renews its leases: the lane starts nothing
/// until each of them was renewed after that.
#[derive(Debug)]
pub(super) struct Doubt {
    made: Instant,
    /// In ns after that, and 1; 0 while nothing is in doubt.
    since: AtomicU64,
    begun: Notify,
}

impl Default for Doubt {
    fn default() -> Self {
        Self {
            made: Instant::now(),
            since: AtomicU64::new(0),
            begun: Notify::new(),
        }
    }
}

impl Doubt {
    /// Begins now, or once more.
    pub(super) fn begin(&self) {
        let ns = self.made.elapsed().as_nanos() as u64;
        self.since.store(ns + 1, Ordering::Release);
        self.begun.notify_one();
    }

    pub(super) fn end(&self) {
        self.since.store(0, Ordering::Release);
    }

    /// Since when it lasts, if it does.
    pub(super) fn since(&self) -> Option<Instant> {
        match self.since.load(Ordering::Acquire) {
            0 => None,
            ns => Some(self.made + Duration::from_nanos(ns)),
        }
    }

    pub(super) fn lasts(&self) -> bool {
        self.since().is_some()
    }

    /// Is ready when one has begun since the last call.
    pub(super) async fn begun(&self) {
        self.begun.notified().await;
    }
}

/// When a lane's loop last went round, told to whoever renews its leases: a handler that blocks the
/// loop's thread keeps it from taking in what its read was answered.
#[derive(Debug)]
pub(super) struct Turned {
    began: Instant,
    ms: AtomicU64,
}

impl Default for Turned {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            ms: AtomicU64::new(0),
        }
    }
}

impl Turned {
    /// Notes that it goes round now.
    pub(super) fn now(&self) {
        let ms = whole_ms(self.began.elapsed());
        self.ms.store(ms, Ordering::Relaxed);
    }

    /// Notes that it goes round no more.
    pub(super) fn over(&self) {
        self.ms.store(u64::MAX, Ordering::Relaxed);
    }

    /// How long ago that was; nothing once it is over.
    pub(super) fn ago(&self) -> Duration {
        let ms = self.ms.load(Ordering::Relaxed);
        self.began
            .elapsed()
            .saturating_sub(Duration::from_millis(ms))
    }
}

impl Shared {
    /// The instance's id, which is the consumer's name.
    pub(super) fn instance(&self) -> &str {
        &self.process.instance
    }

    /// Handlers that may wait at a time, except for what there is room for beside them.
    pub(super) fn slots(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }

    /// Handlers that may wait at a time.
    pub(super) fn concurrency(&self) -> usize {
        self.slots() + self.share.beside
    }

    /// How many of those one type may take.
    pub(super) fn share(&self) -> Share {
        Share {
            slots: self.concurrency(),
            ..self.share
        }
    }

    /// Has that many handlers wait at a time. What runs beyond that ends as it would.
    pub(super) fn scale(&self, slots: usize) {
        self.slots.store(slots.max(1), Ordering::Relaxed);
    }

    /// Has it read nothing more, or go on reading. The control plane is read all the same, and the inbox: those who
    /// give tasks are told by others.
    pub(super) fn be_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Relaxed);
    }

    /// Whether it was told to read nothing more, if it is one that follows.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    /// Whether it is to leave room to the control plane, which waits for something: whatever stands in its way on the
    /// server, or on a thread, is to be short.
    pub(super) fn makes_way(&self) -> bool {
        self.name == "data" && self.urgent.load(Ordering::Relaxed)
    }

    /// Tells the other lanes whether the control plane waits for something.
    pub(super) fn tell_urgent(&self, urgent: bool) {
        if self.name == "control" {
            self.urgent.store(urgent, Ordering::Relaxed);
        }
    }

    /// Whether nobody needs to handle an event: its type is one of those, and nobody waits for an answer.
    pub(super) fn ignores(&self, event: &Event) -> bool {
        let covers = |pattern: &String| keys::covers(pattern, event.kind());
        event.reply_to().is_none() && self.ignore.iter().any(covers)
    }

    /// Whether an event lies in a partition that is, or was, that of its subject or id.
    pub(super) fn is_in_place(&self, stream: usize, event: &Event) -> bool {
        let (domain, partition) = &self.places[stream];
        // One without both went anywhere, and has an id since it was tried again.
        let id = || event.given_id().filter(|_| !event.came_again());
        let key = event.subject().or_else(id);
        self.inbox == Some(stream)
            || key.is_none_or(|key| self.process.keys.holds(domain, key, *partition))
    }

    /// The claim counter's key of a consumer, for the commits of one of the streams.
    pub(super) fn claims_key(&self, stream: usize, consumer: &str) -> String {
        let (domain, partition) = &self.places[stream];
        self.process.keys.claims(domain, *partition, consumer)
    }

    /// The keys of its streams.
    pub(super) fn streams(&self) -> String {
        let streams = self.routes.iter().map(|route| route.events.as_str());
        streams.collect::<Vec<_>>().join(" ")
    }

    /// Events that were started and are not settled.
    pub(super) fn under_way(&self) -> u64 {
        let ahead = self.counts.ahead.load(Ordering::Relaxed);
        (self.inflight.len() as u64).saturating_sub(ahead)
    }

    /// Notes that nobody knows yet whether an event is the first of its id. That the server is away others say.
    pub(super) fn unjudged(&self, error: &BusError) {
        let mut unasked = locked(&self.unasked);
        let lane = self.name;
        match error.reaction() == Reaction::GiveUp && unasked.allows(Instant::now()) {
            true => {
                tracing::warn!(lane, %error, "cannot ask which event of an id came first: it waits");
            }
            false => tracing::debug!(lane, %error, "asking again which event of an id came first"),
        }
    }

    /// Who settles a delivery, and what of.
    pub(super) fn scene(&self, receipt: Receipt) -> Scene<'_> {
        Scene {
            receipt,
            stream: &self.routes[receipt.stream].events,
            instance: self.instance(),
            firsts: self.firsts(receipt.stream),
        }
    }

    /// Where events of a stream that take effect once are remembered. An inbox holds those of any domain.
    pub(super) fn firsts(&self, stream: usize) -> Option<Firsts<'_>> {
        let (domain, partition) = &self.places[stream];
        (self.inbox != Some(stream)).then_some(Firsts {
            keys: &self.process.keys,
            domain,
            partition: *partition,
            window: self.dedup_window,
        })
    }
}
