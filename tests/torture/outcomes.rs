//! The set checker: what became of each event, after the faults stopped and all has settled.

use crate::history::{self, Record};
use crate::load::{self, REPLIES};
use crate::support::torture::Report;
use crate::support::{self, fleet::tally};
use crate::worker::Fate;
use crate::world::World;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long settling may take.
const SETTLING: Duration = Duration::from_secs(120);

/// What was found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) acknowledged: u64,
    /// Publishes without an answer, and how many of them are stored.
    pub(crate) unknown: u64,
    pub(crate) unknown_stored: u64,
    pub(crate) rejected: u64,
    /// Acknowledged and without an outcome.
    pub(crate) lost: u64,
    /// Events with more than one result or dead letter, or another number of effects than of results.
    pub(crate) twice: u64,
    pub(crate) dead: u64,
    /// Runs beside the first of each try.
    pub(crate) redeliveries: u64,
    /// Runs of events that an earlier run had finished.
    pub(crate) again: u64,
}

impl Counts {
    /// Adds another world's.
    pub(crate) fn add(&mut self, other: Counts) {
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.unknown_stored += other.unknown_stored;
        self.rejected += other.rejected;
        self.lost += other.lost;
        self.twice += other.twice;
        self.dead += other.dead;
        self.redeliveries += other.redeliveries;
        self.again += other.again;
    }

    /// Adds them to a report.
    pub(crate) fn tell(&self, report: Report) -> Report {
        report
            .event(self.acknowledged, "acknowledged")
            .event(self.lost, "lost")
            .event(self.twice, "duplicate effects")
            .event(self.unknown, "unknown")
            .event(self.unknown_stored, "of them stored")
            .event(self.rejected, "rejected")
            .event(self.redeliveries, "redeliveries")
    }
}

/// Problems, of which the first are told.
#[derive(Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    pub(crate) fn found(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    pub(crate) fn told(&self) -> &[String] {
        &self.0
    }

    /// Fails if there are any.
    #[track_caller]
    pub(crate) fn none(self) {
        let count = self.0.len();
        let first: Vec<_> = self.0.into_iter().take(10).collect();
        assert!(
            count == 0,
            "{count} problems, the first of them:\n{}",
            first.join("\n")
        );
    }
}

/// Waits until nothing of the load is unread, pending or waiting for its time.
pub(crate) async fn settled(world: &World) {
    settled_in(world, "load").await;
}

/// The same for another domain's events.
pub(crate) async fn settled_in(world: &World, domain: &str) {
    let mut connection = world.redis.connection().await;
    let began = Instant::now();
    loop {
        let left = support::left(&mut connection, domain).await;
        if left == (0, 0, 0) {
            return;
        }
        assert!(
            began.elapsed() < SETTLING,
            "not settled within {SETTLING:?}: {left:?} unread, pending, waiting"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What is stored in the end.
pub(crate) struct Stored {
    /// Results and replies by event id.
    pub(crate) results: HashMap<String, u32>,
    /// Effects by the event's number.
    pub(crate) effects: HashMap<u64, u32>,
    /// Dead letters by event id.
    pub(crate) dead: HashMap<String, u32>,
}

impl Stored {
    pub(crate) async fn read(world: &World) -> Self {
        let text = |found: HashMap<Vec<u8>, u32>| -> HashMap<String, u32> {
            let named = found.into_iter();
            named
                .map(|(id, count)| (String::from_utf8(id).unwrap(), count))
                .collect()
        };
        let redis = &world.redis;
        let mut results = text(tally(redis, "cb:results:load", "correlationid").await);
        for (id, count) in text(tally(redis, REPLIES, "correlationid").await) {
            *results.entry(id).or_default() += count;
        }
        let effects = tally(redis, "cb:events:effect", "data").await.into_iter();
        let effects = effects
            .map(|(data, count)| (rmp_serde::from_slice(&data).unwrap(), count))
            .collect();
        let dead = text(tally(redis, "cb:dead:load", "id").await);
        Self {
            results,
            effects,
            dead,
        }
    }
}

/// What the histories say of one event.
#[derive(Default)]
struct Lived {
    published: Option<String>,
    invoked: bool,
    /// Begin and end of its runs, by try and delivery, and process.
    begun: Vec<(u64, String)>,
    ended: Vec<(u64, String)>,
}

fn lives(records: &[Record]) -> HashMap<&str, Lived> {
    let mut lives: HashMap<&str, Lived> = HashMap::new();
    for record in records {
        match (record.op.as_str(), record.phase.as_str()) {
            ("publish", "invoke") => lives.entry(&record.id).or_default().invoked = true,
            ("publish", phase) => {
                lives.entry(&record.id).or_default().published = Some(phase.to_owned());
            }
            ("run", phase) => {
                let life = lives.entry(&record.id).or_default();
                let run = (record.ns, record.key.clone());
                match phase {
                    "invoke" => life.begun.push(run),
                    _ => life.ended.push(run),
                }
            }
            _ => {}
        }
    }
    lives
}

/// Checks these events of the load against what is stored, each once.
pub(crate) async fn check(world: &World, events: &[u64]) -> Counts {
    check_but(world, events, Except::default()).await
}

/// What else may be.
pub(crate) struct Except<'a> {
    /// These acknowledged events may be lost.
    pub(crate) lost: &'a (dyn Fn(&str) -> bool + Sync),
    /// These are not of the load.
    pub(crate) others: &'a (dyn Fn(&str) -> bool + Sync),
}

impl Default for Except<'_> {
    fn default() -> Self {
        Self {
            lost: &|_| false,
            others: &|_| false,
        }
    }
}

/// The same, with exceptions.
pub(crate) async fn check_but(world: &World, events: &[u64], except: Except<'_>) -> Counts {
    settled(world).await;
    let stored = Stored::read(world).await;
    let records = history::all(&world.dir);
    let lives = lives(&records);
    let mut problems = Problems::default();
    let mut counts = Counts::default();
    for &n in events {
        let id = load::id(n);
        let empty = Lived::default();
        let life = lives.get(id.as_str()).unwrap_or(&empty);
        let results = stored.results.get(&id).copied().unwrap_or(0);
        let dead = stored.dead.get(&id).copied().unwrap_or(0);
        let effects = stored.effects.get(&n).copied().unwrap_or(0);
        let outcomes = results + dead;
        match life.published.as_deref() {
            Some("ok") => {
                counts.acknowledged += 1;
                counts.lost += u64::from(outcomes == 0);
                if outcomes == 0 && !(except.lost)(&id) {
                    problems.found(format!("{id} was acknowledged and is lost"));
                }
            }
            Some("fail") => {
                counts.rejected += 1;
                if outcomes > 0 {
                    problems.found(format!("{id} was rejected and yet it happened"));
                }
            }
            // Without an answer it may be either.
            Some("unknown") => {
                counts.unknown += 1;
                counts.unknown_stored += u64::from(outcomes > 0);
            }
            phase => problems.found(format!("{id}: publishing it ended with {phase:?}")),
        }
        counts.dead += u64::from(dead > 0);
        counts.twice += u64::from(outcomes > 1 || effects != results);
        if outcomes > 1 {
            problems.found(format!("{id} has {results} results, {dead} dead letters"));
        }
        if effects != results {
            problems.found(format!("{id} has {results} results, {effects} effects"));
        }
        match load::fate(n) {
            Fate::Dead if results > 0 => problems.found(format!("{id} never works and is done")),
            Fate::Done | Fate::Retry if dead > 0 => problems.found(format!("{id} is dead")),
            _ => {}
        }
        if results > 0 && life.ended.is_empty() {
            problems.found(format!("{id} has a result and no run of it ended"));
        }
        let tries: HashSet<&str> = life.begun.iter().map(|run| run.1.as_str()).collect();
        counts.redeliveries += (life.begun.len() - tries.len()) as u64;
        let again = life.begun.iter().filter(|begun| {
            let mut ended = life.ended.iter();
            ended.any(|ended| ended.1 == begun.1 && ended.0 < begun.0)
        });
        counts.again += again.count() as u64;
        let most = tries.iter().filter_map(|text| text.parse::<u32>().ok());
        if let Some(most) = most.max().filter(|most| *most > 5) {
            problems.found(format!("{id} was tried {most} times, more than the limit"));
        }
    }
    for id in stored.results.keys().chain(stored.dead.keys()) {
        let published = lives.get(id.as_str()).is_some_and(|life| life.invoked);
        if !published && !(except.others)(id) {
            problems.found(format!("{id} was done and never published"));
        }
    }
    problems.none();
    counts
}
