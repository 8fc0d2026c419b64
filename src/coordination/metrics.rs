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
//! that was away for longer than [`KEPT`] and goes on counting is counted anew. The last report is kept for
//! each process: one that drains while another one has its id already goes on counting where it was.
//!
//! Only what sealed instances report of themselves enters totals and gauges. External ones, which anyone may
//! make up, are added up apart, each as it last said, while they live.
//!
//! Averages and quantiles are computed from the summed histograms, never from others.

use super::error::CoordinationError;
use super::instances::{Instances, KEPT};
use crate::connect::clock::ServerTime;
use crate::coordination::instances::instance::{Beat, MAX_REPORT};
use crate::protocol::event::EntryId;
use crate::protocol::histogram::{BUCKETS, Histogram};
use crate::protocol::keys::is_event_type;
use redis::ScriptInvocation;
use rmpv::Value;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Event types of one report.
pub const MAX_HANDLERS: usize = 256;
/// Event types of which one call counts what was done: each is added to a histogram that may be long.
const AT_ONCE: usize = 32;
/// Buckets in one report, so that a report takes the server a few ms at most.
pub const MAX_BUCKETS: usize = 4096;
/// Event types whose runs one report has.
pub const MAX_RUNNING: usize = 64;
/// Runs of one report.
pub const MAX_RUNS: usize = 32;
/// Event types of the totals. Those that arrive later count in the sums only.
const MAX_TYPES: usize = 1024;
/// The highest counter: the script counts in numbers that are exact up to 2^53.
const HIGHEST: u64 = 1 << 52;
/// Bytes of the name of a process.
const MAX_PROCESS: usize = 64;
/// The field of the totals that all event types add up to: the name of none of them.
const ALL: &str = "";
/// Instances asked about in one round trip.
const PAGE: usize = 1000;

/// What a handler lets through, the best first.
const CIRCUITS: [&str; 3] = ["closed", "half-open", "open"];

/// What was done, since some process began or by all together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Events whose outcome was committed.
    pub events_processed: u64,
    /// Runs of handlers that failed.
    pub events_failed: u64,
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
    pub runs: Vec<Run>,
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
pub struct Run {
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
    /// | `events_processed`, `events_failed` | counters |
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

    /// Brings a report within its bounds: the least used handlers lose their histogram first, then
    /// they are left out.
    pub(super) fn bounded(&self) -> Packed {
        let mut order: Vec<(&String, &HandlerSums)> = self.handlers.iter().collect();
        order.sort_by_key(|(_, sums)| std::cmp::Reverse(sums.calls));
        let gauges = self.gauges.packed();
        let sums = self.sums.packed();
        let mut bytes = gauges.len() + sums.len();
        let mut buckets = self.sums.latency.counts.len();
        let mut handlers = Vec::new();
        for (kind, sums) in order.into_iter().take(MAX_HANDLERS) {
            let count = sums.latency.as_ref().map_or(0, |all| all.counts.len());
            let mut packed = sums.packed(true);
            if buckets + count > MAX_BUCKETS || bytes + kind.len() + packed.len() > MAX_REPORT {
                packed = sums.packed(false);
            } else {
                buckets += count;
            }
            if bytes + kind.len() + packed.len() > MAX_REPORT {
                break;
            }
            bytes += kind.len() + packed.len();
            handlers.push((kind.clone(), packed));
        }
        let end = self.process.floor_char_boundary(MAX_PROCESS);
        Packed {
            process: self.process[..end].to_owned(),
            gauges,
            sums,
            handlers,
        }
    }
}

/// What this process would report now, for whoever answers for all. Cheap to clone.
#[derive(Clone, Default)]
pub struct OwnReport(Arc<OnceLock<Source>>);

struct Source {
    id: String,
    instances: Instances,
    reporting: Box<Reporting>,
}

type Reporting = dyn Fn() -> Option<Report> + Send + Sync;

impl OwnReport {
    /// Says where the report of that instance comes from, and who reports. Only the first time counts.
    pub fn comes_from(
        &self,
        id: &str,
        instances: Instances,
        reporting: impl Fn() -> Option<Report> + Send + Sync + 'static,
    ) {
        let source = Source {
            id: id.to_owned(),
            instances,
            reporting: Box::new(reporting),
        };
        self.0.set(source).ok();
    }

    /// Reports as it is at this moment; nothing in a process that reports nothing.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn tell(&self) -> Result<(), CoordinationError> {
        let Some(source) = self.0.get() else {
            return Ok(());
        };
        if let Some(report) = (source.reporting)() {
            let beat = Beat {
                metrics: Some(report),
                ..Beat::new(&source.id, None)
            };
            source.instances.heartbeat(&beat).await?;
        }
        Ok(())
    }
}

impl fmt::Debug for OwnReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnReport")
    }
}

/// A report as it is sent to the script.
pub(super) struct Packed {
    process: String,
    pub(super) gauges: Vec<u8>,
    sums: Vec<u8>,
    handlers: Vec<(String, Vec<u8>)>,
}

impl Packed {
    /// The report in parts, each of which one call counts.
    pub(super) fn parts(self) -> Vec<Packed> {
        let mut handlers = self.handlers.chunks(AT_ONCE).map(<[_]>::to_vec);
        let first = handlers.next().unwrap_or_default();
        let part = |handlers| Packed {
            process: self.process.clone(),
            gauges: self.gauges.clone(),
            sums: self.sums.clone(),
            handlers,
        };
        std::iter::once(first).chain(handlers).map(part).collect()
    }

    /// Declares what was done as the last arguments of a pulse.
    pub(super) fn declare(self, call: &mut ScriptInvocation<'_>) {
        call.arg(self.process)
            .arg(KEPT.as_millis() as u64)
            .arg(MAX_TYPES)
            .arg(ALL)
            .arg(self.sums);
        for (kind, sums) in self.handlers {
            call.arg(kind).arg(sums);
        }
    }
}

impl Sums {
    fn packed(&self) -> Vec<u8> {
        let counters = [self.events_processed, self.events_failed, 0, 0, 0];
        pack(counters, Some(&self.latency))
    }
}

impl HandlerSums {
    fn packed(&self, whole: bool) -> Vec<u8> {
        let counters = [
            self.calls,
            self.errors,
            self.retries,
            self.rate_limited,
            self.cache_hits,
        ];
        pack(counters, self.latency.as_ref().filter(|_| whole))
    }
}

fn pack(counters: [u64; 5], latency: Option<&Histogram>) -> Vec<u8> {
    let mut parts: Vec<Value> = counters.map(|n| n.min(HIGHEST).into()).into();
    if let Some(latency) = latency {
        parts.push(latency.sum.min(HIGHEST).into());
        let counts = latency.counts.iter();
        let counts = counts.map(|(&bucket, &count)| (bucket.into(), count.min(HIGHEST).into()));
        parts.push(Value::Map(counts.collect()));
    }
    encode(&Value::Array(parts))
}

impl Gauges {
    fn packed(&self) -> Vec<u8> {
        let number = |n: u64| Value::from(n.min(HIGHEST));
        let mut circuits: Vec<(Value, Value)> = Vec::new();
        for (kind, state) in self.circuits.iter().take(MAX_HANDLERS) {
            let place = CIRCUITS.iter().position(|known| known == state);
            circuits.push((kind.as_str().into(), (place.unwrap_or(0) as u64).into()));
        }
        encode(&Value::Array(vec![
            number(self.memory_bytes),
            number(self.in_flight),
            number(self.window_events),
            number(self.window_ms),
            Value::Map(circuits),
            Value::Map(self.packed_running()),
            Value::Array(self.packed_runs()),
        ]))
    }

    fn packed_running(&self) -> Vec<(Value, Value)> {
        let mut longest: Vec<(&String, &Running)> = self.running.iter().collect();
        longest.sort_by_key(|(_, running)| std::cmp::Reverse((running.full, running.oldest_ms)));
        let packed = longest
            .into_iter()
            .take(MAX_RUNNING)
            .map(|(kind, running)| {
                let numbers = [running.runs, running.oldest_ms, running.full];
                let numbers = numbers.map(|n| Value::from(n.min(HIGHEST)));
                (kind.as_str().into(), Value::Array(numbers.into()))
            });
        packed.collect()
    }

    fn packed_runs(&self) -> Vec<Value> {
        let run = |run: &Run| {
            Value::Array(vec![
                run.kind.as_str().into(),
                run.stream.as_str().into(),
                run.entry.to_string().into(),
                run.age_ms.min(HIGHEST).into(),
            ])
        };
        self.runs.iter().take(MAX_RUNS).map(run).collect()
    }

    pub(super) fn unpacked(packed: &[u8]) -> Option<Gauges> {
        let value = rmpv::decode::read_value(&mut &*packed).ok()?;
        let parts = value.as_array()?;
        let number = |at: usize| parts.get(at).and_then(Value::as_u64).unwrap_or(0);
        let circuits = parts.get(4).and_then(Value::as_map);
        let circuits = circuits.into_iter().flatten().filter_map(|(kind, place)| {
            let state = CIRCUITS.get(place.as_u64()? as usize)?;
            Some((kind.as_str()?.to_owned(), *state))
        });
        Some(Gauges {
            memory_bytes: number(0),
            in_flight: number(1),
            window_events: number(2),
            window_ms: number(3),
            circuits: circuits.collect(),
            running: unpacked_running(parts.get(5)),
            runs: unpacked_runs(parts.get(6)),
        })
    }

    /// Events processed a second.
    pub fn throughput(&self) -> f64 {
        match self.window_ms {
            0 => 0.0,
            ms => self.window_events as f64 * 1000.0 / ms as f64,
        }
    }
}

fn unpacked_running(packed: Option<&Value>) -> BTreeMap<String, Running> {
    let pairs = packed.and_then(Value::as_map).into_iter().flatten();
    let running = pairs.filter_map(|(kind, numbers)| {
        let numbers = numbers.as_array()?;
        let number = |at: usize| numbers.get(at).and_then(Value::as_u64).unwrap_or(0);
        let running = Running {
            runs: number(0),
            oldest_ms: number(1),
            full: number(2).min(1),
        };
        Some((kind.as_str()?.to_owned(), running))
    });
    running.take(MAX_RUNNING).collect()
}

fn unpacked_runs(packed: Option<&Value>) -> Vec<Run> {
    let runs = packed.and_then(Value::as_array).into_iter().flatten();
    let run = |run: &Value| {
        let parts = run.as_array()?;
        let text = |at: usize| parts.get(at).and_then(Value::as_str);
        Some(Run {
            instance: String::new(),
            kind: text(0)?.to_owned(),
            stream: text(1)?.to_owned(),
            entry: text(2)?.parse().ok()?,
            age_ms: parts.get(3).and_then(Value::as_u64)?,
        })
    };
    runs.filter_map(run).take(MAX_RUNS).collect()
}

/// What all did and how they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Global {
    /// What was done since the server has data, also by those who are gone.
    pub sums: Sums,
    /// Likewise, by event type; empty unless asked for.
    pub handlers: BTreeMap<String, HandlerSums>,
    /// The worst circuit of each event type among the living, where any has one.
    pub circuits: BTreeMap<String, &'static str>,
    /// What the living run that takes its time, by event type.
    pub running: BTreeMap<String, Running>,
    /// The runs that each of the living began first, the oldest first.
    pub runs: Vec<Run>,
    /// Instances that are alive.
    pub instances: u64,
    /// Their memory.
    pub memory_bytes: u64,
    /// What they have in flight.
    pub in_flight: u64,
    /// Events that they process a second, each in its own last window.
    pub throughput: f64,
    /// How evenly their load is spread for their capacities, by Jain's index: 1 if all are equally
    /// busy (or none is), towards 1 / instances if one has it all.
    pub load_balance: f64,
    /// How old the oldest report of the living is, in ms.
    pub oldest_ms: u64,
    /// The external instances, which nothing above is of.
    pub external: External,
}

/// What the living external instances last said of themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct External {
    /// How many there are.
    pub instances: u64,
    /// Events that they processed.
    pub events_processed: u64,
    /// Runs of theirs that failed.
    pub events_failed: u64,
    /// Their memory.
    pub memory_bytes: u64,
    /// Events that they process a second.
    pub throughput: f64,
}

impl Instances {
    /// What all instances did and how they are.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn metrics(&self, detailed: bool) -> Result<Global, CoordinationError> {
        let keys = &self.store.keys;
        let mut reads = redis::pipe();
        reads.cmd("HGET").arg(keys.metrics()).arg(ALL);
        self.store.ask_time(&mut reads).await?;
        let (totals, ServerTime(now)): (Option<Vec<u8>>, _) = self.store.ask(&reads).await?;
        let totals = totals.and_then(|packed| Sums::unpacked(&packed));
        let mut global = Global {
            sums: totals.unwrap_or_default(),
            ..Global::default()
        };
        if detailed {
            let mut reads = redis::pipe();
            reads.cmd("HGETALL").arg(keys.metrics());
            let (totals,): (HashMap<String, Vec<u8>>,) = self.store.ask(&reads).await?;
            let handlers = totals.into_iter().filter(|(kind, _)| kind != ALL);
            global.handlers = handlers
                .filter_map(|(kind, packed)| Some((kind, HandlerSums::unpacked(&packed)?)))
                .collect();
        }
        let mut living = redis::pipe();
        living
            .cmd("ZRANGEBYSCORE")
            .arg(keys.active())
            .arg(format!("({now}"))
            .arg("+inf");
        let (ids,): (Vec<String>,) = self.store.ask(&living).await?;
        let mut busy = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE) {
            let mut reads = redis::pipe();
            for id in page {
                reads.cmd("HMGET").arg(keys.instance(id));
                reads.arg(&[
                    "metrics",
                    "reported_at",
                    "load",
                    "capacity",
                    "sealed",
                    "did",
                ]);
            }
            let rows: Vec<Living> = self.store.ask(&reads).await?;
            for (id, (gauges, reported, load, capacity, sealed, did)) in page.iter().zip(rows) {
                let gauges = gauges.and_then(|packed| Gauges::unpacked(&packed));
                if sealed.is_none() {
                    let did = did.and_then(|packed| Sums::unpacked(&packed));
                    global.external.add(gauges, did.unwrap_or_default());
                    continue;
                }
                global.add(id, gauges, reported.map(|at| now.saturating_sub(at)));
                busy.push(load.unwrap_or(0.0) / capacity.unwrap_or(0).max(1) as f64);
            }
        }
        global.runs.sort_by_key(|run| std::cmp::Reverse(run.age_ms));
        global.load_balance = evenness(&busy);
        Ok(global)
    }
}

/// Gauges, when they were reported, load, capacity, whether it is sealed, what it did if it is not.
type Living = (
    Option<Vec<u8>>,
    Option<u64>,
    Option<f64>,
    Option<u64>,
    Option<u8>,
    Option<Vec<u8>>,
);

impl External {
    fn add(&mut self, gauges: Option<Gauges>, did: Sums) {
        self.instances += 1;
        let more = |sum: &mut u64, n: u64| *sum = sum.saturating_add(n);
        more(&mut self.events_processed, did.events_processed);
        more(&mut self.events_failed, did.events_failed);
        if let Some(gauges) = gauges {
            more(&mut self.memory_bytes, gauges.memory_bytes);
            self.throughput += gauges.throughput();
        }
    }
}

impl Global {
    fn add(&mut self, id: &str, gauges: Option<Gauges>, age: Option<u64>) {
        self.instances += 1;
        self.oldest_ms = self.oldest_ms.max(age.unwrap_or(0));
        let Some(gauges) = gauges else {
            return;
        };
        self.memory_bytes = self.memory_bytes.saturating_add(gauges.memory_bytes);
        self.in_flight = self.in_flight.saturating_add(gauges.in_flight);
        self.throughput += gauges.throughput();
        // What ran at the report is taken to run still.
        let age = age.unwrap_or(0);
        for (kind, more) in gauges.running {
            let running = self.running.entry(kind).or_default();
            running.runs += more.runs;
            running.full += more.full;
            running.oldest_ms = running.oldest_ms.max(more.oldest_ms + age);
        }
        self.runs.extend(gauges.runs.into_iter().map(|run| Run {
            instance: id.to_owned(),
            age_ms: run.age_ms + age,
            ..run
        }));
        let place = |state: &str| CIRCUITS.iter().position(|known| *known == state);
        for (kind, state) in gauges.circuits {
            let worst = self.circuits.entry(kind).or_insert(state);
            if place(worst) < place(state) {
                *worst = state;
            }
        }
    }
}

/// Jain's index: the square of the sum over the sum of the squares, per value.
fn evenness(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    if squares == 0.0 {
        return 1.0;
    }
    sum * sum / (squares * values.len() as f64)
}

/// Counters and histogram as the script keeps them.
fn unpack(packed: &[u8]) -> Option<([u64; 5], Histogram)> {
    let value = rmpv::decode::read_value(&mut &*packed).ok()?;
    let parts = value.as_array()?;
    let number = |at: usize| parts.get(at).and_then(Value::as_u64).unwrap_or(0);
    let count = |(bucket, count): (u64, &Value)| {
        let bucket = u16::try_from(bucket)
            .ok()
            .filter(|bucket| *bucket < BUCKETS)?;
        Some((bucket, count.as_u64().filter(|count| *count > 0)?))
    };
    let counts = match parts.get(6)? {
        Value::Map(pairs) => {
            let pairs = pairs.iter();
            let pairs = pairs.filter_map(|(bucket, count)| Some((bucket.as_u64()?, count)));
            pairs.filter_map(count).collect()
        }
        // To Lua, buckets from 1 on without a gap are a list.
        Value::Array(counts) => (1..).zip(counts).filter_map(count).collect(),
        _ => return None,
    };
    let latency = Histogram {
        counts,
        sum: number(5),
    };
    Some(([0, 1, 2, 3, 4].map(number), latency))
}

impl Sums {
    fn unpacked(packed: &[u8]) -> Option<Sums> {
        let ([events_processed, events_failed, ..], latency) = unpack(packed)?;
        Some(Sums {
            events_processed,
            events_failed,
            latency,
        })
    }
}

impl HandlerSums {
    fn unpacked(packed: &[u8]) -> Option<HandlerSums> {
        let ([calls, errors, retries, rate_limited, cache_hits], latency) = unpack(packed)?;
        Some(HandlerSums {
            calls,
            errors,
            retries,
            rate_limited,
            cache_hits,
            latency: Some(latency),
        })
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

fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A vector takes every write.
    rmpv::encode::write_value(&mut bytes, value).ok();
    bytes
}
