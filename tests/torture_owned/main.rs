//! Workers of domains with an order are killed, stopped past their lease, come and leave, and the domains get more
//! partitions: no subject has an outcome before an earlier one, twice, or not at all, and no two runs of one subject are
//! under way at a time.

#[path = "../support/mod.rs"]
mod support;

mod acts;
mod bus;
mod cluster;
mod failing;
mod history;
mod load;
mod moves;
mod workers;

#[allow(dead_code)] // Those of the torture of clusters.
#[path = "../torture_cluster/faults.rs"]
mod faults;
#[allow(dead_code)]
#[path = "../torture_cluster/nodes/mod.rs"]
mod nodes;

use acts::Acts;
use bus::{Bus, assert_in_order};
use load::{DOMAINS, Load};
use std::time::{Duration, Instant};
use support::{Redis, torture};
use workers::{Process, Workers};

const WORKERS: usize = 4;
const TTL: Duration = Duration::from_secs(4);
/// Of each domain, at first.
const PARTITIONS: u16 = 2;

/// A worker process: the test binary, started again.
#[test]
fn a_worker_process() {
    workers::process();
}

/// Waits until that many are settled, as long as it goes on.
async fn until_settled(bus: &Bus, all: u64) {
    let (mut settled, mut since) = (0, Instant::now());
    while settled < all {
        let now = bus.settled().await;
        if now > settled {
            (settled, since) = (now, Instant::now());
        }
        let stands = since.elapsed();
        assert!(
            stands < Duration::from_secs(90),
            "{settled} of {all} are settled"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/torture owned"]
async fn kills_stops_moves_and_more_partitions_leave_each_subject_in_order() {
    let acts = Acts::of_size();
    let subjects = torture::size("TORTURE_OWNED_SUBJECTS", 50, 1000);
    let redis = Redis::start();
    let url_of = |user: &str| redis.url_for(user);
    let bus = Bus::with_order(&url_of, &DOMAINS, PARTITIONS).await;
    let mut workers = Workers::new(&url_of, &DOMAINS, workers::settings(PARTITIONS, TTL));
    let mut running: Vec<Process> = (0..WORKERS).map(|_| workers.spawn()).collect();
    let pause = Duration::from_millis(subjects * 5);
    let load = Load::start(&url_of, PARTITIONS, subjects, pause);
    until_settled(&bus, subjects).await;
    let split = async |domain| load.changed(domain, bus.split(domain).await);
    let happen = acts.happen(&mut workers, &mut running, TTL, split);
    let mut fates = Box::pin(happen).await;
    let published = load.stop().await;
    until_settled(&bus, published.sum(subjects)).await;
    let outcomes = bus.outcomes().await;
    let late = bus.published_too_late().await;
    for subject in 0..subjects {
        let of = outcomes.get(&subject).map_or(&[][..], |of| of);
        assert_in_order(subject, of, published.of(subject), late.contains(&subject));
    }
    for lapsed in workers.that_lapsed() {
        fates.stopped.entry(lapsed).or_insert(0);
    }
    let said = history::read(&workers.history());
    let began = history::assert_one_at_a_time(&said, &fates, &late);
    drop(running);
    let mut report = acts
        .told(torture::Report::default())
        .event(published.sum(subjects), "events of subjects in order")
        .note(format!("{began} runs, each alone"));
    if !late.is_empty() {
        report = report.note(format!(
            "{} subjects left out: published too late",
            late.len()
        ));
    }
    report.tell("owned");
    std::fs::remove_dir_all(&workers.dir).ok();
}
