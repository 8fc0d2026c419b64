//! How many partitions move when a worker comes, leaves or dies, and how long each of them stands still. What it prints are
//! figures of the machine and of what else runs there.

use crate::bus::{Bus, connector};
use crate::history;
use crate::support::cluster::Cluster;
use crate::support::{Redis, torture, users};
use crate::workers::{self, FIRM, Process, Workers};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinHandle;

const PARTITIONS: u16 = 64;
const WORKERS: usize = 4;
const TTL: Duration = Duration::from_secs(10);
/// Between two events of a partition.
const EACH: Duration = Duration::from_millis(100);

/// A subject in each partition.
fn subjects(bus: &Bus) -> BTreeMap<u16, u64> {
    let mut subjects = BTreeMap::new();
    for subject in FIRM.. {
        let partition = bus.keys.partition_of("line", &format!("s-{subject}"));
        subjects.entry(partition).or_insert(subject);
        if subjects.len() == usize::from(PARTITIONS) {
            break;
        }
    }
    subjects
}

/// Publishes an event for each partition, again and again, until it is told to end.
fn publishes(
    url: String,
    bus: &Bus,
    subjects: &BTreeMap<u16, u64>,
    over: &Arc<AtomicBool>,
) -> JoinHandle<()> {
    let streams = subjects.iter();
    let streams =
        streams.map(|(partition, subject)| (bus.keys.events("line", *partition), *subject));
    let streams: Vec<(String, u64)> = streams.collect();
    let (connector, over) = (connector(url), over.clone());
    tokio::spawn(async move {
        // Then it is known which of them has which slot.
        connector.nodes().await.unwrap();
        let mut ticks = tokio::time::interval(EACH);
        for number in 0_u64.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            ticks.tick().await;
            let names: Vec<&str> = streams.iter().map(|(stream, _)| &**stream).collect();
            for way in connector.ways_to_nodes(&names) {
                let mut round = redis::pipe();
                for at in way.places {
                    let (stream, subject) = &streams[at];
                    let data = rmp_serde::to_vec(&(subject, number)).unwrap();
                    let add = round.cmd("XADD").arg(stream).arg("*");
                    add.arg("type").arg("line.step");
                    add.arg("subject").arg(format!("s-{subject}"));
                    add.arg("id").arg(format!("{subject}-{number}"));
                    add.arg("data").arg(data);
                }
                let mut connection = way.connector.at_its_node().await.unwrap();
                round.exec_async(&mut connection).await.unwrap();
            }
        }
    })
}

/// Waits until these workers have all partitions, and each its share; who owns which.
async fn until_shared(bus: &Bus, running: &[Process]) -> BTreeMap<u16, String> {
    let all = usize::from(PARTITIONS);
    let least = all / running.len();
    let since = Instant::now();
    loop {
        let owners = bus.owners().await;
        let has = |it: &Process| owners.values().filter(|owner| **owner == it.id).count();
        let shares: Vec<usize> = running.iter().map(has).collect();
        let even = shares
            .iter()
            .all(|share| (least..=least + 1).contains(share));
        if even && shares.iter().sum::<usize>() == all {
            return owners;
        }
        assert!(
            since.elapsed() < Duration::from_secs(120),
            "{shares:?} of {all}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_micros() as u64
}

/// What was seen of all changes of one kind.
#[derive(Default)]
struct Seen {
    /// Partitions that had another owner after a change than before it, at the most.
    most: usize,
    /// Their longest pauses between two runs, in ms.
    moved: Vec<u64>,
    /// Of all others.
    stayed: Vec<u64>,
}

impl Seen {
    fn told(mut self, what: &str) -> String {
        self.moved.sort_unstable();
        format!(
            "{what}: {} of {PARTITIONS} partitions move, no run for {} ms (median) to {} ms (worst); where nothing moves \
             for {} ms at the most",
            self.most,
            self.moved[self.moved.len() / 2],
            self.moved.last().unwrap(),
            self.stayed.iter().max().unwrap(),
        )
    }
}

struct Watch<'a> {
    bus: &'a Bus,
    subjects: BTreeMap<u16, u64>,
    workers: &'a Workers,
}

impl Watch<'_> {
    /// Waits until each partition goes on where it is now, and looks how long it stood still since then.
    async fn look(
        &self,
        since: u64,
        before: &BTreeMap<u16, String>,
        running: &[Process],
        seen: &mut Seen,
    ) {
        let after = until_shared(self.bus, running).await;
        let shared = micros();
        let mut began: BTreeMap<u64, Vec<u64>>;
        let waits = Instant::now();
        loop {
            began = BTreeMap::new();
            for said in history::read(&self.workers.history()) {
                if said.what != "began" {
                    continue;
                }
                let of = began.entry(said.subject).or_default();
                // Of those before it the last one counts.
                if said.at < since {
                    of.clear();
                }
                of.push(said.at);
            }
            let goes_on = |subject: &u64| {
                let last = began.get(subject).and_then(|all| all.last());
                last.is_some_and(|last| *last > shared)
            };
            if self.subjects.values().all(goes_on) {
                break;
            }
            assert!(
                waits.elapsed() < Duration::from_secs(60),
                "a partition stands still"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let mut moves = 0;
        for (partition, subject) in &self.subjects {
            let pauses = began[subject]
                .windows(2)
                .map(|two| two[1].saturating_sub(two[0]));
            let longest = pauses.max().unwrap_or_default() / 1000;
            match before[partition] == after[partition] {
                true => seen.stayed.push(longest),
                false => {
                    moves += 1;
                    seen.moved.push(longest);
                }
            }
        }
        seen.most = seen.most.max(moves);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/torture owned"]
async fn a_fifth_of_the_partitions_moves_when_a_fifth_worker_comes_leaves_or_dies() {
    let redis = Redis::start();
    come_leave_and_die("moves", &|user| redis.url_for(user)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/torture owned"]
async fn so_it_is_on_a_cluster_of_three() {
    let cluster = Cluster::of_three();
    come_leave_and_die("moves on a cluster", &|user| cluster.url_for(user)).await;
}

async fn come_leave_and_die(name: &str, url_of: &dyn Fn(&str) -> String) {
    let rounds = torture::size("TORTURE_OWNED_MOVES", 1, 5);
    let bus = Bus::with_order(url_of, &["line"], PARTITIONS).await;
    let mut workers = Workers::new(url_of, &["line"], workers::settings(PARTITIONS, TTL));
    let mut running: Vec<Process> = (0..WORKERS).map(|_| workers.spawn()).collect();
    let subjects = subjects(&bus);
    until_shared(&bus, &running).await;
    let over = Arc::default();
    let publishing = publishes(url_of(users::PUBLISHER), &bus, &subjects, &over);
    let [mut comes, mut leaves, mut dies] = [const {
        Seen {
            most: 0,
            moved: Vec::new(),
            stayed: Vec::new(),
        }
    }; 3];
    for round in 0..2 * rounds {
        let before = until_shared(&bus, &running).await;
        let since = micros();
        running.push(workers.spawn());
        let watch = Watch {
            bus: &bus,
            subjects: subjects.clone(),
            workers: &workers,
        };
        watch.look(since, &before, &running, &mut comes).await;
        let before = until_shared(&bus, &running).await;
        let since = micros();
        let mut goes = running.pop().unwrap();
        match round % 2 {
            0 => {
                goes.leave().await;
                watch.look(since, &before, &running, &mut leaves).await;
            }
            _ => {
                drop(goes);
                watch.look(since, &before, &running, &mut dies).await;
            }
        }
    }
    over.store(true, Ordering::Relaxed);
    publishing.await.unwrap();
    let mut most = BTreeSet::new();
    let mut report = torture::Report::default();
    let died = format!("one of five dies, its lease of {} s", TTL.as_secs());
    for (seen, what) in [
        (comes, "a fifth comes"),
        (leaves, "it leaves"),
        (dies, &died),
    ] {
        most.insert(seen.most);
        report = report.note(seen.told(what));
    }
    report
        .fault(rounds * 4, "changes of four workers to five and back")
        .tell(name);
    let fifth = usize::from(PARTITIONS).div_ceil(WORKERS + 1);
    assert!(
        most.last().unwrap() <= &fifth,
        "{most:?} of {PARTITIONS} moved"
    );
    drop(running);
    std::fs::remove_dir_all(&workers.dir).ok();
}
