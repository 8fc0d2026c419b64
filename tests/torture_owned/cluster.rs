//! The same on a cluster, while its nodes fail beside the workers: what a failover forgets runs again, in order.

use crate::acts::Acts;
use crate::bus::{Bus, connector, keys};
use crate::faults::Way;
use crate::history::{self, Fates, Said};
use crate::load::{DOMAINS, domain_of, id};
use crate::nodes::Nodes;
use crate::support::{torture, users};
use crate::workers::{self, Process, Workers};
use crate::{PARTITIONS, TTL, WORKERS, until_settled};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Publishers, each of its own subjects.
const PUBLISHERS: u64 = 8;
/// Partitions of a domain whose slots move; there may be fewer.
const MOVING: u16 = 16;
/// What happens to nodes, and how many of a hundred faults are such.
const WAYS: [(Way, u64); 8] = [
    (Way::FailOver, 30),
    (Way::KillPrimary, 20),
    (Way::FreezePrimary, 10),
    (Way::KillReplica, 10),
    (Way::MoveSlot, 10),
    (Way::OpenSlotBeside, 5),
    (Way::CutPrimary, 10),
    (Way::KillAhead, 5),
];

/// Publishes one number after the other of some subjects, each until a replica has it; how many of each.
async fn publish(client: Client, of: Vec<u64>, pause: Duration, over: Arc<AtomicBool>) -> u64 {
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        for subject in &of {
            let kind = format!("{}.step", domain_of(*subject));
            let event = Outgoing::new(kind, &(subject, number));
            let event = event.subject(format!("s-{subject}"));
            let event = event.id(id(*subject, number)).dedup(true);
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

fn publishers(url: &str, subjects: u64, over: &Arc<AtomicBool>) -> Vec<Published> {
    let one = |which: u64| {
        let options = ClientOptions {
            patience: Duration::ZERO,
            ..ClientOptions::default()
        };
        let client = Client::new(connector(url.to_owned()), keys(PARTITIONS), options).unwrap();
        let of: Vec<u64> = (which..subjects).step_by(PUBLISHERS as usize).collect();
        let (pause, over) = (Duration::from_millis(subjects * 5), over.clone());
        tokio::spawn(async move {
            let numbers = publish(client, of.clone(), pause, over).await;
            (of, numbers)
        })
    };
    (0..PUBLISHERS).map(one).collect()
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

/// How far a subject is.
#[derive(Default)]
struct Subject<'a> {
    /// Behind the highest number that ever ended well.
    ended: u64,
    /// What is next in each partition. A failover may set one back, and not another.
    next: HashMap<u16, u64>,
    under_way: Option<&'a str>,
}

/// `place_of` says in which partition a number of a subject was.
fn runs(said: &[Said], fates: &Fates, place_of: impl Fn(u64, u64) -> Option<u16>) -> Runs {
    let mut found = Runs::default();
    let mut subjects: HashMap<u64, Subject<'_>> = HashMap::new();
    for (line, said) in said.iter().enumerate() {
        let (worker, number) = (said.worker.as_str(), said.number);
        let Some(partition) = place_of(said.subject, number) else {
            continue;
        };
        let subject = subjects.entry(said.subject).or_default();
        let ended = said.what == "ended";
        // What one says that was stopped may be late.
        if fates.is_late(worker, line) {
            if ended {
                subject.ended = subject.ended.max(number + 1);
                let next = subject.next.entry(partition).or_default();
                *next = (*next).max(number + 1);
            }
            continue;
        }
        if said.what == "began" {
            let of = || format!("{worker} began {} {number} in line {line}", said.subject);
            // The first one in a partition follows those of another one.
            let next = subject.next.get(&partition).copied();
            let next = next.unwrap_or(subject.ended);
            found.began += 1;
            if number > next {
                found.early.push(format!("{}, and {next} was next", of()));
            }
            found.again += u64::from(number + 1 < next);
            // It goes on from there, whatever was done before.
            subject.next.insert(partition, number);
            if let Some(beside) = subject.under_way.replace(worker)
                && !fates.may_have_left(beside)
            {
                found.beside.push(format!("{}, beside {beside}", of()));
            }
        } else if subject.under_way == Some(worker) {
            subject.under_way = None;
            if ended {
                subject.ended = subject.ended.max(number + 1);
                subject.next.insert(partition, number + 1);
            }
        }
    }
    found
}

/// Faults of nodes, one after the other, beside all else.
async fn suffer(mut nodes: Nodes, ways: Vec<Way>) -> Nodes {
    let suffering = tokio::task::spawn_blocking(move || {
        for (number, way) in ways.into_iter().enumerate() {
            nodes.suffer(way);
            println!("{number}: {way:?}");
        }
        nodes.until_whole();
        nodes
    });
    suffering.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes minutes: scripts/torture owned"]
async fn on_a_cluster_faults_of_nodes_and_workers_and_more_partitions_leave_each_subject_in_order()
{
    let acts = Acts::of_size();
    let subjects = torture::size("TORTURE_OWNED_SUBJECTS", 50, 1000);
    let faults = torture::size("TORTURE_OWNED_NODES", 6, 40);
    let moving = DOMAINS.iter().flat_map(|domain| {
        (0..MOVING).map(move |partition| format!("{{cb:{domain}:{partition}}}:events"))
    });
    // Where no replica confirms anything, nothing is published.
    let start = || Nodes::start(moving.collect(), Vec::new());
    let mut nodes = tokio::task::block_in_place(start);
    let url_of = |user: &str| nodes.url_for(user);
    let publisher = url_of(users::PUBLISHER);
    let bus = Bus::with_order(&url_of, &DOMAINS, PARTITIONS).await;
    let settings = workers::settings(PARTITIONS, TTL);
    let mut workers = Workers::new(&url_of, &DOMAINS, settings);
    nodes.hear(&workers.dir);
    let mut running: Vec<Process> = (0..WORKERS).map(|_| workers.spawn()).collect();
    let over = Arc::new(AtomicBool::new(false));
    let publishing = publishers(&publisher, subjects, &over);
    until_settled(&bus, subjects).await;
    let mut ways: Vec<Way> = WAYS
        .iter()
        .flat_map(|(way, share)| std::iter::repeat_n(*way, (faults * share).div_ceil(100) as usize))
        .collect();
    torture::dice("owned nodes").shuffle(&mut ways);
    let suffering = tokio::spawn(suffer(nodes, ways.clone()));
    let split = async |domain| {
        let is = bus.split(domain).await;
        println!("{domain} has {} partitions", is.partitions);
    };
    let happen = acts.happen(&mut workers, &mut running, TTL, split);
    let fates = Box::pin(happen).await;
    // The servers go with it.
    let _nodes = suffering.await.unwrap();
    over.store(true, Ordering::Relaxed);
    let mut numbers: HashMap<u64, u64> = HashMap::new();
    for publishing in publishing {
        let (of, count) = publishing.await.unwrap();
        numbers.extend(of.into_iter().map(|subject| (subject, count)));
    }
    let published = bus.published().await;
    let all: usize = published.values().map(HashSet::len).sum();
    until_settled(&bus, all as u64).await;
    let twice = published.iter().filter(|(_, places)| places.len() > 1);
    let twice: HashSet<(u64, u64)> = twice.map(|(event, _)| *event).collect();
    // Their order is not kept.
    let mut left_out = bus.published_too_late().await;
    left_out.extend(twice.iter().map(|(subject, _)| *subject));
    let outcomes = bus.outcomes().await;
    let (mut doubled, mut inverted, mut lost) = (0, 0, 0);
    for (subject, numbers) in &numbers {
        let of = outcomes.get(subject).map_or(&[][..], Vec::as_slice);
        let mut once: HashSet<u64> = HashSet::new();
        let mut last: HashMap<u16, u64> = HashMap::new();
        for outcome in of {
            let is_new = once.insert(outcome.number);
            doubled += u64::from(!is_new && !twice.contains(&(*subject, outcome.number)));
            let last = last.insert(outcome.partition, outcome.number);
            inverted += u64::from(last.is_some_and(|last| last > outcome.number));
        }
        lost += (0..*numbers)
            .filter(|number| !once.contains(number))
            .count();
    }
    let runs = runs(
        &history::read(&workers.history()),
        &fates,
        |subject, number| {
            let places = published.get(&(subject, number));
            let places = places.filter(|_| !left_out.contains(&subject));
            places.and_then(|places| places.iter().next().copied())
        },
    );
    assert!(
        (doubled, inverted, lost, runs.early.len()) == (0, 0, 0, 0),
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
    let count: u64 = numbers.values().sum();
    acts.told(report)
        .event(count, "events of subjects in order on a cluster")
        .event(lost as u64, "lost")
        .event(doubled, "doubled")
        .event(inverted, "inversions")
        .event(runs.again, "runs of what a failover had forgotten")
        .event(runs.beside.len() as u64, "runs beside one of their subject")
        .event(
            twice.len() as u64,
            "published again after a change, as nobody knew",
        )
        .event(left_out.len() as u64, "subjects left out of the order")
        .note(format!("{} runs on a cluster", runs.began))
        .tell("owned on a cluster");
}
