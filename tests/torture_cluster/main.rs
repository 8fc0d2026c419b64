//! Three primaries, each with a replica, under load: nodes are killed, frozen, promoted, cut off from the others while
//! clients reach them, added and removed, slots move, workers are killed and stopped past their lease, all drawn from one
//! seed; some faults of nodes begin while one of another shard lasts.
//!
//! What was published with a confirmation of the replica is there in the end, and no commit is there twice. A plain
//! publish may be lost with a primary that dies: how many were is told.

#[path = "../support/mod.rs"]
mod support;

mod faults;
mod load;
mod nodes;
mod outcomes;
mod workers;

use faults::{Mix, Way};
use load::Load;
use nodes::Nodes;
use outcomes::Done;
use std::sync::Arc;
use std::time::Instant;
use support::torture;
use workers::Workers;

/// Workers of the load.
const WORKERS: usize = 4;
/// Partitions of its domains.
const PARTITIONS: u16 = 6;
/// What is done is read and removed after this many faults of nodes, or replicas would get ever more to load.
const READ_EACH: usize = 5;
/// What a stream keeps of what is done. More than is done between two readings.
const HISTORY: u64 = 5_000;

/// The streams of a domain.
fn streams(domain: &str, kind: &str) -> Vec<String> {
    let partitions = 0..PARTITIONS;
    partitions
        .map(|n| format!("{{cb:{domain}:{n}}}:{kind}"))
        .collect()
}

#[test]
fn a_worker_process() {
    workers::process();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: scripts/torture runs it"]
async fn faults_of_nodes_slots_and_workers_lose_nothing_confirmed_and_double_no_commit() {
    let count = torture::size("TORTURE_CLUSTER_FAULTS", 200, 2000);
    let domains = ["load", "line", "effect"];
    let mut keys = domains.map(|domain| streams(domain, "events")).concat();
    keys.push("{cb}:broadcast".into());
    // What is published plainly goes on where no replica confirms anything.
    let growing = streams("load", "results");
    let start = || Nodes::start(keys, growing);
    let mut nodes = tokio::task::block_in_place(start);
    let load = Load::start(&nodes.url_for(support::users::PUBLISHER)).await;
    let dir = support::new_directory("torture-cluster");
    nodes.hear(&dir);
    let workers = Workers::start(&nodes.url_for(support::users::WORKER), &dir, WORKERS);
    load.until_done(&nodes, 100);
    let mix = Arc::new(Mix::drawn(count));
    let vexing = tokio::spawn(workers::vex(workers, mix.clone()));
    let mut done = Done::default();
    let began = Instant::now();
    for (number, way) in mix.of_nodes().enumerate() {
        let before = Instant::now();
        tokio::task::block_in_place(|| {
            nodes.until_whole();
            if number % READ_EACH == 0 {
                done.read(&nodes);
            }
        });
        let whole = before.elapsed();
        tokio::task::block_in_place(|| nodes.suffer(way));
        let took = before.elapsed();
        println!("{number}: {way:?} took {took:.1?}, {whole:.1?} of it until all was whole");
    }
    let each = began.elapsed().as_secs_f64() / mix.of_nodes().count() as f64;
    let workers = vexing.await.unwrap();
    let published = load.stop().await;
    let counts = done.check(&nodes, &published, &dir).await;
    let problems = counts.problems(&published);
    assert!(
        problems.is_empty(),
        "{counts:?}; histories are kept in {}; the same schedule again: TORTURE_SEED={} scripts/torture cluster\n{}",
        dir.display(),
        torture::seed(),
        problems.join("\n")
    );
    workers.drain();
    std::fs::remove_dir_all(&dir).ok();
    let report = Way::ALL
        .iter()
        .fold(torture::Report::default(), |report, way| {
            way.told(report, mix.count(*way))
        });
    let report = counts.tell(report, &published);
    let report = report.note(format!("a fault of nodes took {each:.1} s"));
    report.tell("cluster");
}
