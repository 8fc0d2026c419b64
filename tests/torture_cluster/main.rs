//! Three primaries, each with a replica, under load: nodes are killed, frozen, promoted, added and removed, slots move,
//! workers are killed and stopped past their lease, all drawn from one seed.
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
use std::sync::Arc;
use support::torture;
use workers::Workers;

/// Workers of the load.
const WORKERS: usize = 4;
/// Partitions of its domains.
const PARTITIONS: u16 = 6;

#[test]
fn a_worker_process() {
    workers::process();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: scripts/torture runs it"]
async fn faults_of_nodes_slots_and_workers_lose_nothing_confirmed_and_double_no_commit() {
    let count = torture::size("TORTURE_CLUSTER_FAULTS", 200, 2000);
    let mut nodes = tokio::task::block_in_place(Nodes::start);
    let load = Load::start(&nodes.url_for(support::users::PUBLISHER)).await;
    let dir = support::new_directory("torture-cluster");
    let workers = Workers::start(&nodes.url_for(support::users::WORKER), &dir, WORKERS);
    load.until_done(&nodes, 100).await;
    let mix = Arc::new(Mix::drawn(count));
    let vexing = tokio::spawn(workers::vex(workers, mix.clone()));
    for (number, way) in mix.of_nodes().enumerate() {
        let began = std::time::Instant::now();
        tokio::task::block_in_place(|| nodes.suffer(way));
        println!("{number}: {way:?} took {:.1?}", began.elapsed());
    }
    let workers = vexing.await.unwrap();
    let published = load.stop().await;
    let counts = outcomes::check(&nodes, &published, &dir).await;
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
    counts.tell(report, &published).tell("cluster");
}
