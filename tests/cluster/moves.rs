//! Slots that move, and primaries that die, under load.

use crate::rig::{builder, client, counted_in, double, left, start};
use crate::support::cluster::Cluster;
use crate::support::until;
use convoke::client::publish::Outgoing;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const PARTITIONS: u16 = 3;

/// Publishes events with ids, each until it is known to be stored, until it is told to end; how many.
async fn publish(cluster: &Cluster, end: Arc<AtomicBool>, stored: Arc<AtomicUsize>) -> usize {
    let client = client(cluster, PARTITIONS);
    let mut number = 0;
    while !end.load(Ordering::Acquire) {
        let event = Outgoing::new("math.double", &number)
            .id(format!("e-{number}"))
            .dedup(true);
        // Unknown or refused: the same again, which is stored once.
        while client.publish(&event).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stored.fetch_add(1, Ordering::AcqRel);
        number += 1;
    }
    number as usize
}

async fn under_load(cluster: Arc<Cluster>, disturb: impl FnOnce(&Cluster) + Send + 'static) {
    let workers: Vec<_> = (0..2)
        .map(|_| start(builder(&cluster, PARTITIONS).handler("math.double", double)))
        .collect();
    let end = Arc::new(AtomicBool::new(false));
    let stored = Arc::new(AtomicUsize::new(0));
    let publishing = {
        let (cluster, end, stored) = (cluster.clone(), end.clone(), stored.clone());
        tokio::spawn(async move { publish(&cluster, end, stored).await })
    };
    until("events flow", || async {
        stored.load(Ordering::Acquire) > 50
    })
    .await;
    let disturbed = cluster.clone();
    tokio::task::spawn_blocking(move || disturb(&disturbed))
        .await
        .unwrap();
    let so_far = stored.load(Ordering::Acquire);
    until("events flow again", || async {
        stored.load(Ordering::Acquire) > so_far + 50
    })
    .await;
    end.store(true, Ordering::Release);
    let count = publishing.await.unwrap();
    until("all is done", || async {
        left(&cluster, "math", PARTITIONS) == 0
    })
    .await;
    let results = counted_in(&cluster, "math", PARTITIONS, "results", "correlationid");
    let doubled = results.values().filter(|count| **count > 1).count();
    println!(
        "{count} published, {} lost, {doubled} doubled",
        count - results.len()
    );
    assert_eq!((results.len(), doubled), (count, 0));
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_load_and_nothing_is_lost_or_doubled() {
    under_load(Arc::new(Cluster::of_three()), |cluster| {
        for round in 0..2 {
            for partition in 0..PARTITIONS {
                let key = format!("{{cb:math:{partition}}}:events");
                let to = (cluster.owner(&key) + 1 + round) % 3;
                cluster.move_slot(&key, to, Duration::from_millis(200));
            }
        }
        let control = "{cb}:broadcast";
        cluster.move_slot(
            control,
            (cluster.owner(control) + 1) % 3,
            Duration::from_millis(200),
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primaries_die_under_load_and_nothing_is_lost_or_doubled() {
    under_load(Arc::new(Cluster::with_replicas()), |cluster| {
        cluster.kill_primary_of("{cb:math:0}:events");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_planes_primary_dies_and_workers_go_on() {
    under_load(Arc::new(Cluster::with_replicas()), |cluster| {
        cluster.kill_primary_of("{cb}:broadcast");
    })
    .await;
}
