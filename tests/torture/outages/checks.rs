//! What outages may have done to workers, events and tasks.

use super::{EVENT, Kind, TASK};
use crate::facts::{self, Fact};
use crate::history::{self, Record};
use crate::outcomes::{self, Problems};
use crate::support::fleet::tally;
use crate::support::torture::Report;
use crate::world::World;
use convoke::protocol::event::EntryId;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// What was counted, and what of it must not be.
#[derive(Default)]
pub(super) struct Counts {
    /// Which there were: the kind, and the length in tenths of a ttl.
    pub(crate) outages: Vec<(Kind, u32)>,
    /// How many ms after the outage those were declared lost who died in it; and those in one by wires that
    /// went silent.
    pub(crate) found: [Vec<u64>; 2],
    /// What became of the load.
    pub(crate) load: outcomes::Counts,
    held: u64,
    lost: Vec<String>,
    again: Vec<String>,
    failed: Vec<String>,
    twice: Vec<String>,
}

impl Counts {
    /// Looks at what was told since that mark, when an outage is over. That worker died in it.
    pub(super) async fn judge(&mut self, world: &World, mark: EntryId, dead: Option<usize>) {
        let dead = dead.map(|who| world.workers[who].id.as_str());
        for Fact { id, kind, data } in facts::since(world, mark).await {
            let who = data["id"].as_str();
            let told = format!("{id} {kind} {data}");
            match kind.as_str() {
                "instance.lost" if who != dead => self.lost.push(told),
                // Who lives goes on as who it was.
                "instance.registered" if who != dead => self.again.push(told),
                "task.failed" => self.failed.push(told),
                _ => {}
            }
        }
    }

    /// Looks at what ran, when all is over.
    pub(super) async fn finish(&mut self, world: &World) {
        let records = history::all(&world.dir);
        self.twice = started_twice(&records);
        let results = tally(&world.redis, "cb:results:through", "correlationid").await;
        let tasks = facts::since(world, EntryId::default()).await.into_iter();
        let tasks = tasks.filter(|fact| fact.kind == "task.completed");
        let tasks = tasks.filter_map(|fact| fact.data["task_id"].as_str().map(str::to_owned));
        let mut done: HashMap<String, u32> = HashMap::new();
        for task in tasks {
            *done.entry(task).or_default() += 1;
        }
        for (id, count) in results {
            done.insert(String::from_utf8(id).unwrap(), count);
        }
        let invoked = records
            .iter()
            .filter(|record| record.op == "run" && record.phase == "invoke");
        for record in invoked {
            if record.id.starts_with(EVENT) || record.id.starts_with(TASK) {
                done.entry(record.id.clone()).or_default();
            }
        }
        let twice = done.iter().filter(|(_, count)| **count != 1);
        let twice = twice.map(|(id, count)| format!("{id} is done {count} times"));
        self.twice.extend(twice);
        self.held = done.len() as u64;
    }

    pub(super) fn add(&mut self, other: Counts) {
        self.outages.extend(other.outages);
        for (all, some) in self.found.iter_mut().zip(other.found) {
            all.extend(some);
        }
        self.held += other.held;
        self.lost.extend(other.lost);
        self.again.extend(other.again);
        self.failed.extend(other.failed);
        self.twice.extend(other.twice);
    }

    /// Fails if anybody or anything that lived was harmed, or a dead one was found later than that.
    pub(super) fn none_was_harmed(&self, latest: Duration) {
        let mut problems = Problems::default();
        let all = [
            ("a live worker was lost", &self.lost),
            ("a live worker registered again", &self.again),
            ("a task failed", &self.failed),
            ("started twice", &self.twice),
        ];
        for (what, found) in all {
            for told in found {
                problems.found(format!("{what}: {told}"));
            }
        }
        for ms in self
            .found
            .iter()
            .flatten()
            .filter(|ms| u128::from(**ms) > latest.as_millis())
        {
            problems.found(format!("a dead worker was lost {ms} ms after the outage"));
        }
        problems.none();
    }

    pub(super) fn tell(mut self, ttl: Duration) -> Report {
        let mut each: BTreeMap<(String, u32), u64> = BTreeMap::new();
        for (kind, tenths) in &self.outages {
            let kind = format!("{kind:?}").to_lowercase();
            *each.entry((kind, *tenths)).or_default() += 1;
        }
        let mut report = Report::default();
        for ((kind, tenths), count) in each {
            let ttls = f64::from(tenths) / 10.0;
            report = report.fault(count, &format!("outages of {ttls} ttl by {kind}"));
        }
        let killed = self.found.iter().map(Vec::len).sum::<usize>();
        let mut report = self
            .load
            .tell(report)
            .fault(killed as u64, "workers killed in them")
            .event(self.lost.len() as u64, "live workers lost")
            .event(self.held, "events and tasks that ran through an outage")
            .event(self.failed.len() as u64, "tasks failed")
            .event(self.twice.len() as u64, "started or done twice");
        for (found, what) in self
            .found
            .iter_mut()
            .zip(["an outage", "a cut without a word"])
        {
            found.sort_unstable();
            let Some(last) = found.last() else { continue };
            let ttls = |ms: u64| ms as f64 / ttl.as_millis() as f64;
            report = report.note(format!(
                "the dead declared lost after {what}: {:.2} ttls at the median, {:.2} at the most",
                ttls(found[found.len() / 2]),
                ttls(*last)
            ));
        }
        report
    }
}

/// Tries that were begun again although the process that had begun them lived.
fn started_twice(records: &[Record]) -> Vec<String> {
    let killed: HashMap<&str, u64> = records
        .iter()
        .filter(|record| record.op == "fault" && record.value == "KILL")
        .map(|record| (record.key.as_str(), record.ns))
        .collect();
    let mut tries: HashMap<(&str, &str), Vec<&Record>> = HashMap::new();
    for record in records {
        if record.op == "run" && record.phase == "invoke" {
            let key = (record.id.as_str(), record.key.as_str());
            tries.entry(key).or_default().push(record);
        }
    }
    let mut twice = Vec::new();
    for runs in tries.values_mut() {
        runs.sort_unstable_by_key(|run| run.ns);
        for [first, second] in runs.array_windows() {
            let pid = first.process.rsplit('/').next().unwrap_or_default();
            if killed.get(pid).is_none_or(|killed| *killed > second.ns) {
                twice.push(format!("{first:?}, then {second:?}"));
            }
        }
    }
    twice
}

#[test]
fn outages_are_blamed_for_what_is_begun_again_without_a_death() {
    let record = |ns, process: &str, op: &str, phase: &str, id: &str, key: &str, value: &str| {
        let [process, op, phase, id, key, value] =
            [process, op, phase, id, key, value].map(str::to_owned);
        Record {
            ns,
            process,
            op,
            phase,
            id,
            key,
            value,
        }
    };
    let run = |ns, process, id, attempt| record(ns, process, "run", "invoke", id, attempt, "1");
    let kill = |ns, pid| record(ns, "rig", "fault", "ok", "w-1", pid, "KILL");
    let first = run(1, "w-1/7", "h-1", "1");
    let second = run(3, "w-2/8", "h-1", "1");
    assert!(started_twice(&[first.clone(), kill(2, "7"), second.clone()]).is_empty());
    assert_eq!(started_twice(&[first.clone(), second.clone()]).len(), 1);
    assert_eq!(
        started_twice(&[first.clone(), second, kill(4, "7")]).len(),
        1
    );
    assert!(started_twice(&[first, run(3, "w-2/8", "h-1", "2")]).is_empty());
}
