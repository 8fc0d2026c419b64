//! What this worker reports of itself with its pulses.

use super::activity;
use super::handover::NUDGE;
use super::lane_list::LaneList;
use super::lanes::Lanes;
use crate::connect::clock::whole_ms;
use crate::coordination::metrics::{Gauges, HandlerSums, Report, Sums};
use crate::coordination::patterns::PatternStore;
use crate::handler::router::{Route, Router};
use crate::mutex::locked;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The time over which the rate is taken, at least, once the worker has run so long.
const WINDOW: Duration = Duration::from_secs(10);
/// The least time between two samples of it.
const APART: Duration = Duration::from_secs(1);

/// Reads the counts of lanes and handlers.
pub(super) struct Reporter {
    process: String,
    lanes: LaneList,
    router: Arc<Router>,
    patterns: PatternStore,
    samples: Mutex<VecDeque<(Instant, u64)>>,
    acknowledged: Mutex<BTreeMap<String, HandlerSums>>,
}

impl Reporter {
    /// The reporter of a worker with these lanes, in the process of that name.
    pub(super) fn new(lanes: &Lanes, process: &str, patterns: &PatternStore) -> Self {
        Self {
            process: process.to_owned(),
            lanes: lanes.list().clone(),
            router: lanes.router().clone(),
            patterns: patterns.clone(),
            samples: Mutex::new([(Instant::now(), 0)].into()),
            acknowledged: Mutex::default(),
        }
    }

    /// What it did since it began and how it is now.
    pub(super) fn report(&self) -> Report {
        let lanes = self.lanes.now();
        let mut sums = Sums {
            events_processed: self.lanes.count(|counts| &counts.committed),
            events_cancelled: self.lanes.count(|counts| &counts.cancelled),
            events_misplaced: self.lanes.count(|counts| &counts.misplaced),
            ..Sums::default()
        };
        let in_flight = lanes.iter().map(|lane| lane.under_way()).sum();
        let (window, events) = self.window(sums.events_processed);
        let (running, runs) = activity::running(&lanes);
        let mut gauges = Gauges {
            running,
            runs,
            memory_bytes: resident_bytes(),
            in_flight,
            window_events: events,
            window_ms: whole_ms(window),
            ..Gauges::default()
        };
        let mut handlers = BTreeMap::new();
        for route in self.router.routes().filter(|route| route.kind != NUDGE) {
            let did = did(route);
            if let Some(circuit) = &route.circuit {
                let state = circuit.state().as_str();
                gauges.circuits.insert(route.kind.clone(), state);
            }
            sums.events_failed += did.errors;
            if let Some(latency) = &did.latency {
                sums.latency.add(latency);
            }
            if did.calls > 0 {
                handlers.insert(route.kind.clone(), did);
            }
        }
        handlers.extend(self.patterns.sums());
        Report {
            process: self.process.clone(),
            sums,
            handlers,
            gauges,
        }
    }

    /// How many tasks it has in hand.
    pub(super) fn tasks(&self) -> usize {
        let lanes = self.lanes.now();
        let inboxes = lanes.iter().filter(|lane| lane.inbox.is_some());
        inboxes.map(|lane| lane.inflight.len()).sum()
    }

    /// The same without the handlers that did nothing since the last report that arrived.
    pub(super) fn news_of(&self, report: &Report) -> Report {
        let known = self.known();
        let news = report.handlers.iter();
        let news = news.filter(|(kind, did)| known.get(*kind) != Some(*did));
        Report {
            handlers: news
                .map(|(kind, did)| (kind.clone(), did.clone()))
                .collect(),
            process: report.process.clone(),
            sums: report.sums.clone(),
            gauges: report.gauges.clone(),
        }
    }

    /// Notes that a report arrived.
    pub(super) fn acknowledged(&self, report: Report) {
        *self.known() = report.handlers;
    }

    /// The server may have lost what it was told: the next report tells all.
    pub(super) fn forget(&self) {
        self.known().clear();
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, HandlerSums>> {
        locked(&self.acknowledged)
    }

    /// The time since the youngest sample that is old enough, and what was processed in it.
    fn window(&self, processed: u64) -> (Duration, u64) {
        let now = Instant::now();
        let mut samples = locked(&self.samples);
        while samples
            .get(1)
            .is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW)
        {
            samples.pop_front();
        }
        let (began, before) = samples.front().copied().unwrap_or((now, processed));
        if samples
            .back()
            .is_none_or(|(at, _)| now.duration_since(*at) >= APART)
        {
            samples.push_back((now, processed));
        }
        (now.duration_since(began), processed.saturating_sub(before))
    }
}

fn did(route: &Route) -> HandlerSums {
    let stats = &route.stats;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    HandlerSums {
        calls: count(&stats.calls),
        errors: count(&stats.errors),
        retries: count(&stats.retries),
        rate_limited: count(&stats.rate_limited),
        cache_hits: count(&stats.cache_hits),
        latency: Some(stats.latency()),
    }
}

/// The resident memory of this process; 0 where the system does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
