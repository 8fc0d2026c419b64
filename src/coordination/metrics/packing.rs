//! Reports in the form in which the scripts keep and add them.

use super::{
    ALL, CIRCUITS, Gauges, HIGHEST, HandlerSums, MAX_BUCKETS, MAX_HANDLERS, MAX_PROGRESS,
    MAX_REPORT, MAX_RUNNING, MAX_RUNS, OldestRun, Report, Running, Sums,
};
use crate::connect::clock::whole_ms;
use crate::protocol::histogram::{BUCKETS, Histogram};
use crate::protocol::progress::Progress;
use redis::ScriptInvocation;
use rmpv::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Event types of which one call counts what was done: each is added to a histogram that may be long.
const AT_ONCE: usize = 32;
/// Event types of the totals. Those that arrive later count in the sums only.
const MAX_TYPES: usize = 1024;
/// Bytes of the note of a run's progress.
const MAX_NOTE: usize = 80;
/// Bytes of the name of a process.
const MAX_PROCESS: usize = 64;

/// A report as it is sent to the script.
pub(in crate::coordination) struct Packed {
    process: String,
    pub(in crate::coordination) gauges: Vec<u8>,
    sums: Vec<u8>,
    pub(super) handlers: Vec<(String, Vec<u8>)>,
}

impl Packed {
    /// The report in parts, each of which one call counts.
    pub(in crate::coordination) fn parts(self) -> Vec<Packed> {
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

    /// Declares what was done as the last arguments of a pulse; it is kept for that long.
    pub(in crate::coordination) fn declare(self, call: &mut ScriptInvocation<'_>, kept: Duration) {
        call.arg(self.process)
            .arg(whole_ms(kept))
            .arg(MAX_TYPES)
            .arg(ALL)
            .arg(self.sums);
        for (kind, sums) in self.handlers {
            call.arg(kind).arg(sums);
        }
    }
}

impl Report {
    /// Brings a report within its bounds: the least used handlers lose their histogram first, then
    /// they are left out.
    pub(in crate::coordination) fn bounded(&self) -> Packed {
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

impl Sums {
    fn packed(&self) -> Vec<u8> {
        let counters = [
            self.events_processed,
            self.events_failed,
            self.events_cancelled,
            self.events_misplaced,
            0,
        ];
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

impl Sums {
    pub(in crate::coordination) fn unpacked(packed: &[u8]) -> Option<Sums> {
        let (counters, latency) = unpack(packed)?;
        let [
            events_processed,
            events_failed,
            events_cancelled,
            events_misplaced,
            _,
        ] = counters;
        Some(Sums {
            events_processed,
            events_failed,
            events_cancelled,
            events_misplaced,
            latency,
        })
    }
}

impl HandlerSums {
    pub(in crate::coordination) fn unpacked(packed: &[u8]) -> Option<HandlerSums> {
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
        let mut telling = 0;
        let run = |run: &OldestRun| {
            let mut parts = vec![
                run.kind.as_str().into(),
                run.stream.as_str().into(),
                run.entry.to_string().into(),
                run.age_ms.min(HIGHEST).into(),
            ];
            if let Some(progress) = run.progress.as_ref().filter(|_| telling < MAX_PROGRESS) {
                telling += 1;
                parts.push(packed_progress(progress));
            }
            Value::Array(parts)
        };
        self.runs.iter().take(MAX_RUNS).map(run).collect()
    }

    pub(in crate::coordination) fn unpacked(packed: &[u8]) -> Option<Gauges> {
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
}

fn packed_progress(progress: &Progress) -> Value {
    let note = progress.note.as_deref().unwrap_or_default();
    Value::Array(vec![
        progress.done.into(),
        progress.total.map_or(Value::Nil, Value::from),
        note[..note.floor_char_boundary(MAX_NOTE)].into(),
    ])
}

/// `None` where it tells nothing, or something else: an earlier worker does not.
fn unpacked_progress(packed: Option<&Value>) -> Option<Progress> {
    let parts = packed?.as_array()?;
    let mut progress = Progress::new(parts.first()?.as_u64()?);
    progress.total = parts.get(1).and_then(Value::as_u64);
    let note = parts.get(2).and_then(Value::as_str).unwrap_or_default();
    if !note.is_empty() {
        progress.note = Some(note[..note.floor_char_boundary(MAX_NOTE)].to_owned());
    }
    Some(progress)
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

fn unpacked_runs(packed: Option<&Value>) -> Vec<OldestRun> {
    let runs = packed.and_then(Value::as_array).into_iter().flatten();
    let run = |run: &Value| {
        let parts = run.as_array()?;
        let text = |at: usize| parts.get(at).and_then(Value::as_str);
        Some(OldestRun {
            instance: String::new(),
            kind: text(0)?.to_owned(),
            stream: text(1)?.to_owned(),
            entry: text(2)?.parse().ok()?,
            age_ms: parts.get(3).and_then(Value::as_u64)?,
            progress: unpacked_progress(parts.get(4)),
        })
    };
    runs.filter_map(run).take(MAX_RUNS).collect()
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

fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A vector takes every write.
    rmpv::encode::write_value(&mut bytes, value).ok();
    bytes
}
