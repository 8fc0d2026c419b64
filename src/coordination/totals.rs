//! What all instances did, and how they are.

use super::answered::{self, Answers};
use super::metrics::{ALL, CIRCUITS, Gauges, HandlerSums, OldestRun, Running, Sums};
use crate::connect::clock::ServerTime;
use crate::coordination::answer::answer;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use std::collections::{BTreeMap, HashMap};

/// Instances asked about in one round trip.
const PAGE: usize = 1000;

/// What all did and how they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Global {
    /// What was done since the server has data, also by those who are gone.
    pub sums: Sums,
    /// Likewise, by event type; empty unless asked for.
    pub handlers: BTreeMap<String, HandlerSums>,
    /// How system events were answered, by event and by pattern; empty unless asked for.
    pub answered: BTreeMap<String, BTreeMap<String, Answers>>,
    /// The worst circuit of each event type among the living, where any has one.
    pub circuits: BTreeMap<String, &'static str>,
    /// What the living run that takes its time, by event type.
    pub running: BTreeMap<String, Running>,
    /// The runs that each of the living began first, the oldest first.
    pub runs: Vec<OldestRun>,
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
            global.answered = answered::taken_from(&mut global.handlers);
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
            for (id, row) in page.iter().zip(rows) {
                let gauges = row.gauges.and_then(|packed| Gauges::unpacked(&packed));
                if row.sealed.is_none() {
                    let did = row.did.and_then(|packed| Sums::unpacked(&packed));
                    global.external.add(gauges, did.unwrap_or_default());
                    continue;
                }
                let age = row.reported_at.map(|at| now.saturating_sub(at));
                global.add(id, gauges, age);
                let capacity = row.capacity.unwrap_or(0).max(1) as f64;
                busy.push(row.load.unwrap_or(0.0) / capacity);
            }
        }
        global.runs.sort_by_key(|run| std::cmp::Reverse(run.age_ms));
        global.load_balance = evenness(&busy);
        Ok(global)
    }
}

answer! {
    /// What the hash of an instance says of it.
    struct Living {
        gauges: Option<Vec<u8>>,
        reported_at: Option<u64>,
        load: Option<f64>,
        capacity: Option<u64>,
        sealed: Option<u8>,
        /// What it did, if it is external.
        did: Option<Vec<u8>>,
    }
}

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
        self.runs
            .extend(gauges.runs.into_iter().map(|run| OldestRun {
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
