//! Metrics: what all instances did, and how they are.
//!
//! Each instance reports with its pulses two kinds of things. *Counters* and histograms, as they
//! stand since its process began: `aggregate_global_metrics` keeps the last report of each and adds
//! what is more than in the one before to the totals. So a report may come twice or get lost, the
//! totals only rise, and what an instance did stays in them when it goes. Reading them costs the same
//! for one instance or a thousand. *Gauges*, which are only true now (memory, what is in flight, the
//! present rate, open circuits): they are kept with the instance, and those of the living are added
//! up when somebody asks.
//!
//! What an instance did after its last report is lost with it: at most a third of its ttl. A process
//! that was away for longer than [`KEPT`](crate::coordination::instances::KEPT) and goes on counting is counted a second time. The last report is kept for
//! each process: one that drains while another one has its id already goes on counting where it was.
//!
//! Only what sealed instances report of themselves enters totals and gauges. External ones, which anyone may
//! make up, are added up apart, each as it last said, while they live.
//!
//! Averages and quantiles are computed from the summed histograms, never from others.

mod packing;

pub(super) use packing::Packed;

use crate::protocol::event::EntryId;
use crate::protocol::histogram::{BUCKETS, Histogram};
use crate::protocol::keys::is_event_type;
use crate::protocol::progress::Progress;
use rmpv::Value;
use std::collections::BTreeMap;

/// Bytes of one report.
pub const MAX_REPORT: usize = 64 * 1024;
/// Event types of one report.
pub const MAX_HANDLERS: usize = 256;
/// Buckets in one report, so that a report takes the server a few ms at most.
pub const MAX_BUCKETS: usize = 4096;
/// Event types whose runs one report has.
pub const MAX_RUNNING: usize = 64;
/// Runs of one report.
pub const MAX_RUNS: usize = 32;
/// Runs of one report that say how far they are.
pub const MAX_PROGRESS: usize = 8;
/// The highest counter: the script counts in numbers that are exact up to 2^53.
const HIGHEST: u64 = 1 << 52;
/// The field of the totals that all event types add up to: the name of none of them.
pub(super) const ALL: &str = "";
/// What a handler lets through, the best first.
pub(super) const CIRCUITS: [&str; 3] = ["closed", "half-open", "open"];

/// What was done, since some process began or by all together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Events whose outcome was committed.
    pub events_processed: u64,
    /// Runs of handlers that failed.
    pub events_failed: u64,
    /// Events that were cancelled in the hands of a worker.
    pub events_cancelled: u64,
    /// Events that lay in another partition than that of their subject or id.
    pub events_misplaced: u64,
    /// How long the runs took.
    pub latency: Histogram,
}

/// What the handlers of one event type did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandlerSums {
    /// Runs.
    pub calls: u64,
    /// Runs that failed.
    pub errors: u64,
    /// Failures that were tried again.
    pub retries: u64,
    /// Runs that the rate limit refused.
    pub rate_limited: u64,
    /// Results that came from the cache.
    pub cache_hits: u64,
    /// How long the runs took; `None` in a report that left it out.
    pub latency: Option<Histogram>,
}

/// How an instance is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Resident memory.
    pub memory_bytes: u64,
    /// Events started and not settled.
    pub in_flight: u64,
    /// Events processed in the window.
    pub window_events: u64,
    /// How long the window is, in ms.
    pub window_ms: u64,
    /// The circuits of its handlers: `closed`, `half-open` or `open`.
    pub circuits: BTreeMap<String, &'static str>,
    /// What runs that takes its time, by event type; the longest of at most [`MAX_RUNNING`] types.
    pub running: BTreeMap<String, Running>,
    /// The runs that began first, at most [`MAX_RUNS`].
    pub runs: Vec<OldestRun>,
}

/// The runs of one event type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// How many.
    pub runs: u64,
    /// How long the oldest goes on, in ms.
    pub oldest_ms: u64,
    /// Instances in which they hold every place that there is.
    pub full: u64,
}

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OldestRun {
    /// Whose; empty in an instance's own report.
    pub instance: String,
    /// The event type.
    pub kind: String,
    /// The stream of its event.
    pub stream: String,
    /// The entry of its event.
    pub entry: EntryId,
    /// How long it goes on, in ms.
    pub age_ms: u64,
    /// How far it is, as it told last; of the first [`MAX_PROGRESS`] that tell.
    pub progress: Option<Progress>,
}

/// What an instance reports with a pulse.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Which process counts; another one began at zero. At most 64 bytes.
    pub process: String,
    /// What it did.
    pub sums: Sums,
    /// What its handlers did; at most [`MAX_HANDLERS`]. Those that did nothing since the last report
    /// may be left out.
    pub handlers: BTreeMap<String, HandlerSums>,
    /// How it is.
    pub gauges: Gauges,
}

impl Report {
    /// Reads the map that a heartbeat carries. A program of others may send any map: what is not
    /// as documented here counts as not sent.
    ///
    /// | key | value |
    /// |---|---|
    /// | `process` | text: another one began at zero |
    /// | `events_processed`, `events_failed`, `events_cancelled`, `events_misplaced` | counters |
    /// | `latency` | `{sum_us, buckets: {bucket: count}}`, see [`crate::protocol::histogram`] |
    /// | `handlers` | `{event type: {calls, errors, retries, rate_limited, cache_hits, circuit, latency}}` |
    /// | `memory_bytes`, `in_flight` | how it is now |
    /// | `window` | `{events, ms}`: how many events it processed in its last this many ms |
    pub fn from_map(map: &Value) -> Report {
        let mut report = Report {
            process: get(map, "process")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            sums: Sums {
                events_processed: counter(map, "events_processed"),
                events_failed: counter(map, "events_failed"),
                events_cancelled: counter(map, "events_cancelled"),
                events_misplaced: counter(map, "events_misplaced"),
                latency: histogram(map).unwrap_or_default(),
            },
            gauges: Gauges {
                memory_bytes: counter(map, "memory_bytes"),
                in_flight: counter(map, "in_flight"),
                window_events: get(map, "window").map_or(0, |window| counter(window, "events")),
                window_ms: get(map, "window").map_or(0, |window| counter(window, "ms")),
                ..Gauges::default()
            },
            handlers: BTreeMap::new(),
        };
        let handlers = get(map, "handlers").and_then(Value::as_map);
        for (kind, handler) in handlers.into_iter().flatten() {
            let Some(kind) = kind.as_str().filter(|kind| is_event_type(kind.as_bytes())) else {
                continue;
            };
            if let Some(circuit) = get(handler, "circuit").and_then(known_circuit) {
                report.gauges.circuits.insert(kind.to_owned(), circuit);
            }
            let sums = HandlerSums {
                calls: counter(handler, "calls"),
                errors: counter(handler, "errors"),
                retries: counter(handler, "retries"),
                rate_limited: counter(handler, "rate_limited"),
                cache_hits: counter(handler, "cache_hits"),
                latency: histogram(handler),
            };
            report.handlers.insert(kind.to_owned(), sums);
        }
        report
    }
}

impl Gauges {
    /// Events processed a second.
    pub fn throughput(&self) -> f64 {
        match self.window_ms {
            0 => 0.0,
            ms => self.window_events as f64 * 1000.0 / ms as f64,
        }
    }
}

fn get<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    let found = map
        .as_map()?
        .iter()
        .find(|(key, _)| key.as_str() == Some(name));
    found.map(|(_, value)| value)
}

/// A counter; what is not a number is 0.
fn counter(map: &Value, name: &str) -> u64 {
    let value = get(map, name).and_then(Value::as_u64);
    value.unwrap_or(0).min(HIGHEST)
}

fn histogram(map: &Value) -> Option<Histogram> {
    let latency = get(map, "latency")?;
    let buckets = get(latency, "buckets")?.as_map()?;
    let pairs = buckets.iter().filter_map(|(bucket, count)| {
        let bucket = u16::try_from(bucket.as_u64()?).ok()?;
        let count = count.as_u64()?;
        (bucket < BUCKETS && count > 0).then_some((bucket, count.min(HIGHEST)))
    });
    Some(Histogram {
        counts: pairs.collect(),
        sum: counter(latency, "sum_us"),
    })
}

fn known_circuit(state: &Value) -> Option<&'static str> {
    let state = state.as_str()?;
    CIRCUITS.into_iter().find(|known| *known == state)
}
