//! The same on a cluster, while its nodes fail beside the workers: what a failover forgets runs again, in order.

use crate::faults::Way;
use crate::history::{self, Fates, Said};
use crate::nodes::Nodes;
use crate::support::{self, torture, until, users};
use crate::workers::{self, Process, Workers};
use crate::{TTL, WORKERS};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::domain::DomainOrder;
use convoke::protocol::event::EntryId;
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::domains::Domains;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

const PARTITIONS: u16 = 16;
/// Publishers, each of its own subjects.
const PUBLISHERS: u64 = 8;
/// What happens to nodes, and how many of a hundred faults are such.
const WAYS: [(Way, u64); 7] = [
    (Way::FailOver, 30),
    (Way::KillPrimary, 20),
    (Way::FreezePrimary, 10),
    (Way::KillReplica, 10),
    (Way::MoveSlot, 15),
    (Way::CutPrimary, 10),
    (Way::KillAhead, 5),
];

fn streams(kind: &str) -> Vec<String> {
    let of = |partition| format!("{{cb:line:{partition}}}:{kind}");
    (0..PARTITIONS).map(of).collect()
}

fn settings(nodes: &Nodes, user: &str) -> Settings {
    Settings {
        redis_url: RedisUrl::new(nodes.url_for(user)),
        partitions: PARTITIONS,
        ..Settings::default()
    }
}

/// Publishes one number after the other of some subjects, each until a replica has it; how many of each.
async fn publish(client: Client, of: Vec<u64>, pause: Duration, over: Arc<AtomicBool>) -> u64 {
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        for subject in &of {
            let event = Outgoing::new("line.step", &(subject, number));
            let event = event.subject(format!("s-{subject}"));
            let event = event.id(format!("{subject}-{number}")).dedup(true);
            let event = event.confirm(1, Duration::from_millis(500));
            while client.publish(&event).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        number += 1;
        tokio::time::sleep(pause).await;
    }
    number
}

/// Subjects and how many numbers each has.
type Published = JoinHandle<(Vec<u64>, u64)>;

fn publishers(nodes: &Nodes, subjects: u64, over: &Arc<AtomicBool>) -> Vec<Published> {
    let settings = settings(nodes, users::PUBLISHER);
    let one = |which: u64| {
        let connector = Connector::of(&settings, 4).unwrap();
        let options = ClientOptions {
            patience: Duration::ZERO,
            ..ClientOptions::default()
        };
        let client = Client::new(connector, settings.keys().unwrap(), options).unwrap();
        let of: Vec<u64> = (which..subjects).step_by(PUBLISHERS as usize).collect();
        let (pause, over) = (Duration::from_millis(subjects * 5), over.clone());
        tokio::spawn(async move {
            let numbers = publish(client, of.clone(), pause, over).await;
            (of, numbers)
        })
    };
    (0..PUBLISHERS).map(one).collect()
}

/// Kills, stops and replaces workers, in an order that is drawn.
async fn vex(workers: &mut Workers, running: &mut Vec<Process>, acts: [(u64, char); 3]) -> Fates {
    let mut dice = torture::dice("owned on a cluster");
    let acts = acts.into_iter();
    let mut acts: Vec<char> = acts
        .flat_map(|(count, act)| std::iter::repeat_n(act, count as usize))
        .collect();
    dice.shuffle(&mut acts);
    let mut fates = Fates::default();
    for act in acts {
        tokio::time::sleep(Duration::from_millis(dice.u64(100..2500))).await;
        let at = dice.usize(0..running.len());
        match act {
            'k' => {
                let mut dies = running.remove(at);
                fates.killed.insert(dies.id.clone());
                dies.signal("KILL");
                dies.child.wait().unwrap();
                running.push(workers.spawn());
            }
            's' => {
                let stops = &running[at];
                let lines = history::read(&workers.history()).len();
                fates.stopped.entry(stops.id.clone()).or_insert(lines);
                stops.signal("STOP");
                tokio::time::sleep(TTL.mul_f64(1.2 + dice.f64())).await;
                stops.signal("CONT");
            }
            _ => {
                running.push(workers.spawn());
                running.remove(at).leave().await;
            }
        }
    }
    fates
}

/// What the workers said of their runs.
#[derive(Debug, Default)]
struct Runs {
    began: u64,
    /// Of an event that had ended well, after later ones of its subject had begun.
    again: u64,
    /// Beside a run of the same subject in a worker that was neither killed nor stopped.
    beside: Vec<String>,
    /// Before an earlier one of the subject had ended well.
    early: Vec<String>,
}

fn runs(said: &[Said], fates: &Fates) -> Runs {
    let mut found = Runs::default();
    let mut next: HashMap<u64, u64> = HashMap::new();
    let mut under_way: HashMap<u64, &str> = HashMap::new();
    for (line, said) in said.iter().enumerate() {
        let (worker, number) = (said.worker.as_str(), said.number);
        let next = next.entry(said.subject).or_default();
        // What one says that was stopped may be late.
        if fates.is_late(worker, line) {
            if said.what == "ended" {
                *next = (*next).max(number + 1);
            }
            continue;
        }
        if said.what == "began" {
            let of = || format!("{worker} began {} {number} in line {line}", said.subject);
            found.began += 1;
            if number > *next {
                found.early.push(format!("{}, and {next} was next", of()));
            }
            found.again += u64::from(number + 1 < *next);
            // It goes on from there, whatever was done before.
            *next = number;
            if let Some(beside) = under_way.insert(said.subject, worker)
                && !fates.may_have_left(beside)
            {
                found.beside.push(format!("{}, beside {beside}", of()));
            }
        } else if under_way.get(&said.subject).is_some_and(|it| *it == worker) {
            under_way.remove(&said.subject);
            if said.what == "ended" {
                *next = number + 1;
            }
        }
    }
    found
}

/// The numbers that each subject has done, in the order of their results.
fn results(nodes: &Nodes) -> HashMap<u64, Vec<u64>> {
    let mut done: HashMap<u64, Vec<u64>> = HashMap::new();
    for stream in streams("results") {
        let mut entries = None;
        support::eventually("its replica has the results", || {
            entries = nodes.take(&stream, EntryId::default());
            entries.is_some()
        });
        for entry in entries.unwrap_or_default() {
            let id = String::from_utf8(entry.get("correlationid").unwrap().to_vec()).unwrap();
            let (subject, number) = id.split_once('-').unwrap();
            let done = done.entry(subject.parse().unwrap()).or_default();
            done.push(number.parse().unwrap());
        }
    }
    done
}

fn settled(nodes: &Nodes) -> u64 {
    let length = |stream: String| nodes.at::<u64>(&stream, &["XLEN", &stream]);
    let lengths = streams("results").into_iter().map(length);
    lengths.filter_map(Result::ok).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes minutes: scripts/torture owned"]
async fn on_a_cluster_faults_of_nodes_and_workers_leave_each_subject_in_order() {
    let kills = torture::size("TORTURE_OWNED_KILLS", 3, 50);
    let stops = torture::size("TORTURE_OWNED_STOPS", 2, 20);
    let changes = torture::size("TORTURE_OWNED_CHANGES", 2, 20);
    let subjects = torture::size("TORTURE_OWNED_SUBJECTS", 50, 1000);
    let faults = torture::size("TORTURE_OWNED_NODES", 6, 40);
    // Where no replica confirms anything, nothing is published.
    let start = || Nodes::start(streams("events"), Vec::new());
    let mut nodes = tokio::task::block_in_place(start);
    let operator = settings(&nodes, users::OPERATOR);
    let connector = Connector::of(&operator, 2).unwrap();
    let domains = Domains::new(connector, operator.keys().unwrap());
    let order = Some(DomainOrder::Subject);
    domains
        .change("line", None, order, None, "ann")
        .await
        .unwrap();
    let url_of = |user: &str| nodes.url_for(user);
    let settings = workers::settings(PARTITIONS, TTL);
    let mut workers = Workers::new(&url_of, &["line"], settings);
    let mut running: Vec<Process> = (0..WORKERS).map(|_| workers.spawn()).collect();
    let over = Arc::new(AtomicBool::new(false));
    let publishing = publishers(&nodes, subjects, &over);
    until("some are run", async || {
        tokio::task::block_in_place(|| settled(&nodes)) > subjects
    })
    .await;
    let mut ways: Vec<Way> = WAYS
        .iter()
        .flat_map(|(way, share)| std::iter::repeat_n(*way, (faults * share).div_ceil(100) as usize))
        .collect();
    torture::dice("owned nodes").shuffle(&mut ways);
    let suffered = ways.clone();
    let suffering = tokio::task::spawn_blocking(move || {
        for (number, way) in suffered.into_iter().enumerate() {
            nodes.until_whole();
            nodes.suffer(way);
            println!("{number}: {way:?}");
        }
        nodes
    });
    let acts = [(kills, 'k'), (stops, 's'), (changes, 'c')];
    let fates = Box::pin(vex(&mut workers, &mut running, acts)).await;
    let nodes = suffering.await.unwrap();
    over.store(true, Ordering::Relaxed);
    let (mut published, mut count) = (Vec::new(), 0);
    for publishing in publishing {
        let (subjects, numbers) = publishing.await.unwrap();
        count += subjects.len() as u64 * numbers;
        published.push((subjects, numbers));
    }
    let done = tokio::task::block_in_place(|| {
        nodes.until_whole();
        let mut before = settled(&nodes);
        while before < count {
            // As long as it goes on.
            support::eventually("one more is settled", || settled(&nodes) > before);
            before = settled(&nodes);
        }
        results(&nodes)
    });
    let (mut doubled, mut inverted, mut lost) = (0, 0, 0);
    for (subjects, numbers) in &published {
        for subject in subjects {
            let done = done.get(subject).map_or(&[][..], Vec::as_slice);
            let once: HashSet<&u64> = done.iter().collect();
            doubled += done.len() - once.len();
            lost += *numbers as usize - once.len().min(*numbers as usize);
            inverted += done.windows(2).filter(|two| two[1] < two[0]).count();
        }
    }
    let runs = runs(&history::read(&workers.history()), &fates);
    let all = [doubled, inverted, lost, runs.early.len()];
    assert!(
        all == [0; 4],
        "{doubled} doubled, {inverted} inverted, {lost} lost, {runs:?}; the history is in {}; TORTURE_SEED={}",
        workers.dir.display(),
        torture::seed()
    );
    drop(running);
    std::fs::remove_dir_all(&workers.dir).ok();
    let report = WAYS
        .iter()
        .fold(torture::Report::default(), |report, (way, _)| {
            way.told(report, ways.iter().filter(|one| *one == way).count() as u64)
        });
    report
        .fault(kills, "kills of owners")
        .fault(stops, "owners stopped past their lease")
        .fault(changes, "workers that came, each for one that left")
        .event(count, "events of subjects in order on a cluster")
        .event(lost as u64, "lost")
        .event(doubled as u64, "doubled")
        .event(inverted as u64, "inversions")
        .event(runs.again, "runs of what a failover had forgotten")
        .event(runs.beside.len() as u64, "runs beside one of their subject")
        .note(format!("{} runs on a cluster", runs.began))
        .tell("owned on a cluster");
}
