//! What was seen: the histories of the rig and its workers, and what is stored in the end.

use super::REPLIES;
use super::parts::Numbered;
use crate::facts;
use crate::history::{self, Record};
use crate::support::fleet::{each_entry, tally};
use crate::world::World;
use convoke::protocol::event::EntryId;
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Ok,
    Failed,
    /// It was dropped in the middle of it.
    Dropped,
}

/// The end of a run, and how long it took by the clock of its process.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(crate) ns: u64,
    pub(crate) how: How,
    pub(crate) took: Duration,
}

/// One run of a handler, or what passed through a layer.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(crate) event: Numbered,
    /// The instance and the process id.
    pub(crate) process: String,
    /// Its number within the process.
    pub(crate) number: u64,
    pub(crate) entry: EntryId,
    pub(crate) attempt: u32,
    pub(crate) deliveries: u32,
    pub(crate) began: u64,
    /// Its worker was told to end before.
    pub(crate) draining: bool,
    pub(crate) end: Option<End>,
}

/// The life of a process.
#[derive(Clone, Debug, Default)]
pub(super) struct Life {
    pub(crate) started: u64,
    pub(crate) ended: Option<u64>,
    /// When it was told to end.
    pub(crate) told: Option<u64>,
    /// From when to when it stood still.
    pub(crate) stops: Vec<(u64, u64)>,
}

impl Life {
    /// How many ns of that time it stood still.
    pub(super) fn stood_still(&self, from: u64, to: u64) -> u64 {
        let overlap = |(stop, on): &(u64, u64)| to.min(*on).saturating_sub(from.max(*stop));
        self.stops.iter().map(overlap).sum()
    }
}

/// What answered an event.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(crate) status: String,
    /// The process and the number of the run that made it.
    pub(crate) made_by: (String, u64),
    /// When it was stored.
    pub(crate) ns: u64,
}

/// A circuit opened or closed.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(crate) process: String,
    pub(crate) kind: String,
    pub(crate) opened: bool,
    pub(crate) ns: u64,
}

#[derive(Default)]
pub(super) struct Seen {
    /// How publishing each event ended.
    pub(crate) published: HashMap<Numbered, String>,
    pub(crate) runs: Vec<Run>,
    /// What passed through layers.
    pub(crate) layers: Vec<Run>,
    /// Calls of layers that were not ready.
    pub(crate) unready: Vec<String>,
    pub(crate) lives: HashMap<String, Life>,
    pub(crate) answers: HashMap<Numbered, Vec<Answer>>,
    pub(crate) effects: HashMap<u64, u32>,
    pub(crate) dead: Vec<String>,
    pub(crate) changes: Vec<Change>,
}

impl Seen {
    /// Reads all of it, once it has settled.
    pub(super) async fn read(world: &World, events: &[u64]) -> Self {
        let mut seen = Self::default();
        let published = events.iter().map(|n| (Numbered(*n), "never".to_owned()));
        seen.published.extend(published);
        seen.take_in(&history::all(&world.dir));
        let began = world.history.began().duration_since(UNIX_EPOCH).unwrap();
        let ns =
            |id: EntryId| (u128::from(id.ms) * 1_000_000).saturating_sub(began.as_nanos()) as u64;
        for stream in ["cb:results:pair", REPLIES] {
            each_entry(&world.redis, stream, |entry| {
                let text = |field| {
                    String::from_utf8_lossy(entry.get(field).unwrap_or_default()).into_owned()
                };
                let Some(event) = Numbered::of_id(&text("correlationid")) else {
                    return;
                };
                let made_by: String =
                    rmp_serde::from_slice(entry.get("data").unwrap()).unwrap_or_default();
                let (process, number) = made_by.split_once(' ').unwrap_or_default();
                let answer = Answer {
                    status: text("status"),
                    made_by: (process.to_owned(), number.parse().unwrap_or(u64::MAX)),
                    ns: ns(entry.id),
                };
                seen.answers.entry(event).or_default().push(answer);
            })
            .await;
        }
        let effects = tally(&world.redis, "cb:events:effect", "data").await;
        let effects = effects.into_iter();
        seen.effects = effects
            .map(|(data, count)| (rmp_serde::from_slice(&data).unwrap(), count))
            .collect();
        let dead = tally(&world.redis, "cb:dead:pair", "id").await.into_keys();
        seen.dead = dead.map(|id| String::from_utf8(id).unwrap()).collect();
        for fact in facts::since(world, EntryId::default()).await {
            let opened = match fact.kind.as_str() {
                "circuit.opened" => true,
                "circuit.closed" => false,
                _ => continue,
            };
            let text = |name: &str| fact.data[name].as_str().unwrap_or_default().to_owned();
            let ns = ns(fact.id);
            let process = seen.process_of(&text("instance"), ns);
            seen.changes.push(Change {
                process,
                kind: text("type"),
                opened,
                ns,
            });
        }
        seen
    }

    /// The process that had that name then.
    fn process_of(&self, instance: &str, ns: u64) -> String {
        let lives = self.lives.iter();
        let named = lives.filter(|(process, life)| {
            let of = process.split('/').next();
            of == Some(instance) && life.started <= ns
        });
        let last = named.max_by_key(|(_, life)| life.started);
        last.map(|(process, _)| process.clone()).unwrap_or_default()
    }

    /// Takes in what histories say.
    pub(super) fn take_in(&mut self, records: &[Record]) {
        // Where the runs are that have begun: in which list, and at which place.
        let mut begun: HashMap<(&str, &str), usize> = HashMap::new();
        for record in records {
            match record.op.as_str() {
                "publish" if record.phase != "invoke" => {
                    if let Some(event) = Numbered::of_id(&record.id) {
                        self.published.insert(event, record.phase.clone());
                    }
                }
                "start" | "fault" => self.live(record),
                op @ ("pair" | "layer") => {
                    let runs = match op {
                        "pair" => &mut self.runs,
                        _ => &mut self.layers,
                    };
                    let key = (record.process.as_str(), record.key.as_str());
                    match record.phase.as_str() {
                        "invoke" => {
                            begun.insert(key, runs.len());
                            runs.extend(run(record));
                        }
                        "fail" if op == "layer" => self.unready.push(format!("{record:?}")),
                        phase => {
                            let run = begun.get(&key).and_then(|at| runs.get_mut(*at));
                            if let Some(run) = run {
                                run.end = Some(End {
                                    ns: record.ns,
                                    how: match phase {
                                        "ok" => How::Ok,
                                        "fail" => How::Failed,
                                        _ => How::Dropped,
                                    },
                                    took: Duration::from_micros(record.value.parse().unwrap()),
                                });
                            }
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn live(&mut self, record: &Record) {
        let process = format!("{}/{}", record.id, record.key);
        let life = self.lives.entry(process).or_default();
        match record.value.as_str() {
            _ if record.op == "start" => life.started = record.ns,
            "STOP" => life.stops.push((record.ns, u64::MAX)),
            "CONT" => {
                if let Some(stop) = life.stops.last_mut() {
                    stop.1 = record.ns;
                }
            }
            "TERM" => life.told = Some(record.ns),
            _ => life.ended = Some(record.ns),
        }
    }
}

fn run(record: &Record) -> Option<Run> {
    let mut words = record.value.split(' ');
    Some(Run {
        event: Numbered::of_id(&record.id)?,
        process: record.process.clone(),
        number: record.key.parse().ok()?,
        entry: words.next()?.parse().ok()?,
        attempt: words.next()?.parse().ok()?,
        deliveries: words.next()?.parse().ok()?,
        began: record.ns,
        draining: words.next() == Some("draining"),
        end: None,
    })
}
