//! What is there in the end, against what was published.

use crate::load::{Known, Published};
use crate::nodes::Nodes;
use crate::streams;
use crate::support::torture::Report;
use convoke::protocol::event::{Entry, EntryId};
use redis::Value;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long settling may take.
const SETTLING: Duration = Duration::from_secs(180);

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    lost: Vec<String>,
    plain_lost: u64,
    /// Events with more than one result.
    doubled: Vec<String>,
    /// Effects in other slots, more than once.
    effects_doubled: u64,
    /// Events that are done and whose effect in another slot is not there.
    effects_lost: u64,
    /// Results of a subject that came before an earlier one's: a failover that loses a delivery has that event run again,
    /// after those that were under way.
    inversions: Vec<String>,
    /// What workers said of groups that are gone.
    alarms: Vec<String>,
    dead: u64,
    steps: usize,
}

impl Counts {
    /// What must not be.
    pub(crate) fn problems(&self, published: &Published) -> Vec<String> {
        let mut problems = Vec::new();
        for (what, found) in [
            ("confirmed and lost", &self.lost),
            ("committed twice", &self.doubled),
            (
                "lines of log about a group that nobody destroyed",
                &self.alarms,
            ),
        ] {
            if let Some(first) = found.first() {
                problems.push(format!("{} {what}, the first of them {first}", found.len()));
            }
        }
        if self.dead > 0 {
            problems.push(format!("{} dead letters", self.dead));
        }
        if published.confirmed.acknowledged.is_empty() || published.ordered.acknowledged.is_empty()
        {
            problems.push("nothing was published".into());
        }
        problems
    }

    pub(crate) fn tell(&self, report: Report, published: &Published) -> Report {
        let confirmed =
            published.confirmed.acknowledged.len() + published.ordered.acknowledged.len();
        let of = |count: fn(&Known) -> u64| {
            count(&published.confirmed) + count(&published.plain) + count(&published.ordered)
        };
        report
            .event(confirmed as u64, "confirmed by a replica")
            .event(self.lost.len() as u64, "of them lost")
            .event(self.doubled.len() as u64, "commits doubled")
            .event(self.steps as u64, "of subjects in order")
            .event(
                self.inversions.len() as u64,
                "run again after a later one of their subject",
            )
            .event(
                published.plain.acknowledged.len() as u64,
                "plain publishes on a cluster",
            )
            .event(self.plain_lost, "of these lost with a primary")
            .event(self.effects_doubled, "doubled in another slot")
            .event(self.effects_lost, "lost in another slot")
            .event(of(|known| known.unknown), "answers unknown")
            .event(of(|known| known.rejected), "publishes refused")
    }
}

fn field(entry: &Entry, name: &str) -> String {
    String::from_utf8_lossy(entry.get(name).unwrap_or_default()).into_owned()
}

/// How many results of a domain are there.
pub(crate) fn results(nodes: &Nodes, domain: &str) -> u64 {
    let streams = streams(domain, "results").into_iter();
    let length = |stream: String| nodes.at::<u64>(&stream, &["XLEN", &stream]);
    streams.filter_map(|stream| length(stream).ok()).sum()
}

/// Whether all that was published of a domain is done, and what it published is where it belongs.
fn is_settled(nodes: &Nodes, domain: &str) -> Result<(), String> {
    for stream in streams(domain, "events") {
        type Info = HashMap<String, Value>;
        let info: Info = nodes
            .at(&stream, &["XINFO", "STREAM", &stream])
            .map_err(told)?;
        let groups: Vec<Info> = nodes
            .at(&stream, &["XINFO", "GROUPS", &stream])
            .map_err(told)?;
        let group = groups
            .first()
            .ok_or_else(|| format!("{stream} has no group"))?;
        if group["pending"] != Value::Int(0) {
            return Err(format!("{stream}: {:?} pending", group["pending"]));
        }
        if group["last-delivered-id"] != info["last-generated-id"] {
            return Err(format!("{stream}: not all is read"));
        }
    }
    for (kind, length) in [("delayed", "ZCARD"), ("outbox", "XLEN")] {
        for key in streams(domain, kind) {
            let left: u64 = nodes.at(&key, &[length, &key]).map_err(told)?;
            if left > 0 {
                return Err(format!("{key} has {left}"));
            }
        }
    }
    Ok(())
}

fn told(error: redis::RedisError) -> String {
    error.to_string()
}

/// What was done so far, as the streams told it.
#[derive(Default)]
pub(crate) struct Done {
    /// How many results the events have, by their ids.
    load: HashMap<String, u32>,
    line: HashMap<String, u32>,
    effects: HashMap<u64, u32>,
    /// The last step of each subject.
    steps: HashMap<String, u64>,
    inversions: Vec<String>,
    /// Up to where each stream is read.
    read: HashMap<String, EntryId>,
}

impl Done {
    /// Reads on and removes what is read; what cannot be told now is read the next time. Whether all was told.
    pub(crate) fn read(&mut self, nodes: &Nodes) -> bool {
        let all = [
            ("load", "results"),
            ("line", "results"),
            ("effect", "events"),
        ];
        let mut told = true;
        for (domain, kind) in all {
            for stream in streams(domain, kind) {
                let after = self.read.get(&stream).copied().unwrap_or_default();
                let Some(entries) = nodes.take(&stream, after) else {
                    told = false;
                    continue;
                };
                for entry in entries {
                    self.read.insert(stream.clone(), entry.id);
                    self.note(domain, &entry);
                }
            }
        }
        told
    }

    fn note(&mut self, domain: &str, entry: &Entry) {
        let id = field(entry, "correlationid");
        match domain {
            "effect" => {
                let data = entry.get("data").unwrap_or_default();
                let number = rmp_serde::from_slice(data).expect("a number");
                *self.effects.entry(number).or_default() += 1;
            }
            "load" => *self.load.entry(id).or_default() += 1,
            _ => {
                if let Some((subject, step)) = id.split_once('-') {
                    let step = step.parse().expect("a number");
                    let last = self.steps.insert(subject.to_owned(), step);
                    if let Some(before) = last.filter(|before| *before >= step) {
                        let inversion = format!("{id} after {subject}-{before}");
                        self.inversions.push(inversion);
                    }
                }
                *self.line.entry(id).or_default() += 1;
            }
        }
    }

    fn look(self, nodes: &Nodes, published: &Published) -> Counts {
        let missing = |known: &Known| -> Vec<String> {
            let all = known.acknowledged.iter();
            let missing =
                all.filter(|id| !self.load.contains_key(*id) && !self.line.contains_key(*id));
            missing.cloned().collect()
        };
        let mut counts = Counts {
            lost: missing(&published.confirmed),
            plain_lost: missing(&published.plain).len() as u64,
            steps: self.line.len(),
            ..Counts::default()
        };
        counts.lost.extend(missing(&published.ordered));
        let twice = self.load.iter().chain(&self.line);
        let twice = twice.filter(|(_, count)| **count > 1);
        counts.doubled = twice.map(|(id, count)| format!("{id}: {count}")).collect();
        counts.effects_doubled = self.effects.values().filter(|count| **count > 1).count() as u64;
        let made = |id: &&String| -> bool {
            let number = id.strip_prefix("e-").and_then(|n| n.parse().ok());
            number.is_some_and(|n: u64| self.effects.contains_key(&n))
        };
        counts.effects_lost = self.load.keys().filter(|id| !made(id)).count() as u64;
        for stream in ["load", "line"]
            .map(|domain| streams(domain, "dead"))
            .concat()
        {
            counts.dead += nodes.at::<u64>(&stream, &["XLEN", &stream]).unwrap_or(0);
        }
        counts.inversions = self.inversions;
        counts
    }

    /// Waits until all is done, and compares.
    pub(crate) async fn check(
        mut self,
        nodes: &Nodes,
        published: &Published,
        logs: &Path,
    ) -> Counts {
        let mut counts = tokio::task::block_in_place(|| {
            nodes.until_whole();
            until_settled(nodes);
            nodes.wait("all that is done is told", || self.read(nodes));
            self.look(nodes, published)
        });
        for log in std::fs::read_dir(logs).unwrap().flatten() {
            let text = std::fs::read_to_string(log.path()).unwrap_or_default();
            let alarms = text
                .lines()
                .filter(|line| line.contains("the group is gone"));
            counts.alarms.extend(alarms.map(str::to_owned));
        }
        counts
    }
}

fn until_settled(nodes: &Nodes) {
    let began = Instant::now();
    while let Err(problem) = is_settled(nodes, "load").and_then(|()| is_settled(nodes, "line")) {
        assert!(
            began.elapsed() < SETTLING,
            "not settled: {problem}{}",
            nodes.told()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
