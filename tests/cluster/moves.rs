//! Slots that move, and primaries that die, under load.

use crate::rig::{Running, builder, client, counted_in, double, left, settings, start, told};
use crate::support::cluster::Cluster;
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use convoke::{Context, HandlerError, Policy, Worker};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const PARTITIONS: u16 = 3;
const SUBJECTS: u64 = 12;

/// How far a test is.
#[derive(Default)]
struct Progress {
    /// Events that are known to be stored.
    stored: AtomicUsize,
    /// What was to be moved, or killed, is.
    disturbed: AtomicBool,
    /// Enough is published.
    end: AtomicBool,
}

/// Publishes events with ids, each until it is known to be stored, until it is told to end; how many.
async fn publish(cluster: &Cluster, progress: Arc<Progress>) -> usize {
    let client = client(cluster, PARTITIONS);
    let mut number = 0_u64;
    while !progress.end.load(Ordering::Acquire) {
        // Unknown or refused: the same again, which is stored once.
        loop {
            let event = Outgoing::new("math.double", &number)
                .id(format!("e-{number}"))
                .subject(format!("s-{}", number % SUBJECTS))
                .dedup(true);
            // What only the primary has that is killed is lost with it. Its successor has no replica any more.
            let may_be_lost = cluster.has_replicas() && !progress.disturbed.load(Ordering::Acquire);
            let event = match may_be_lost {
                true => event.confirm(1, Duration::from_secs(1)),
                false => event,
            };
            match client.publish(&event).await {
                Ok(_) => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        progress.stored.fetch_add(1, Ordering::AcqRel);
        number += 1;
    }
    number as usize
}

/// Has two workers run what is published while the cluster is disturbed.
async fn under_load(cluster: Arc<Cluster>, disturb: impl FnOnce(&Cluster) + Send + 'static) {
    let worker = |_| start(builder(&cluster, PARTITIONS).handler("math.double", double));
    let workers = (0..2).map(worker).collect();
    done_by(workers, cluster, disturb).await;
}

/// Has workers run what is published while the cluster is disturbed. All of it is done then, each once.
async fn done_by(
    workers: Vec<Running>,
    cluster: Arc<Cluster>,
    disturb: impl FnOnce(&Cluster) + Send + 'static,
) {
    let progress = Arc::new(Progress::default());
    let publishing = {
        let (cluster, progress) = (cluster.clone(), progress.clone());
        tokio::spawn(async move { publish(&cluster, progress).await })
    };
    let stored = || progress.stored.load(Ordering::Acquire);
    until("events flow", || async { stored() > 50 }).await;
    let disturbed = cluster.clone();
    tokio::task::spawn_blocking(move || disturb(&disturbed))
        .await
        .unwrap();
    progress.disturbed.store(true, Ordering::Release);
    let so_far = stored();
    until("events flow again", || async { stored() > so_far + 50 }).await;
    progress.end.store(true, Ordering::Release);
    let count = publishing.await.unwrap();
    // What was seen then: another look may meet a moment in which a node takes no commands.
    let seen = RefCell::new(HashMap::new());
    until("all is done", || async {
        *seen.borrow_mut() = counted_in(&cluster, "math", PARTITIONS, "results", "correlationid");
        left(&cluster, "math", PARTITIONS) == 0 && seen.borrow().len() >= count
    })
    .await;
    let results = seen.into_inner();
    let doubled = results.values().filter(|count| **count > 1).count();
    assert_eq!((results.len(), doubled), (count, 0));
    for worker in workers {
        worker.stop().await;
    }
}

/// Moves the slots of all partitions, twice, and that of the control plane.
fn move_slots(cluster: &Cluster) {
    let moves = |key: &str, by: usize| {
        let to = (cluster.owner(key) + by) % 3;
        cluster.move_slot(key, to, Duration::from_millis(200));
    };
    for by in 1..3 {
        for partition in 0..PARTITIONS {
            moves(&format!("{{cb:math:{partition}}}:events"), by);
        }
    }
    moves("{cb}:broadcast", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_load_and_nothing_is_lost_or_doubled() {
    under_load(Arc::new(Cluster::of_three()), move_slots).await;
}

/// Runs for a while that differs from one to the next.
async fn double_later(context: Context, number: i64) -> Result<i64, HandlerError> {
    let pause = Duration::from_millis(number.unsigned_abs() * 7 % 20);
    tokio::time::sleep(pause).await;
    double(context, number).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_load_and_each_subject_keeps_its_order() {
    let cluster = Arc::new(Cluster::of_three());
    // Nothing is taken over meanwhile.
    let patient = Settings {
        heartbeat_ttl: Duration::from_secs(60),
        claim_idle: Duration::from_secs(60),
        ..settings(&cluster, PARTITIONS)
    };
    let ordered = Policy::new().ordered().concurrency(16);
    let worker = Worker::builder().settings(patient);
    let worker = start(worker.handler_with("math.double", double_later, ordered));
    done_by(vec![worker], cluster.clone(), move_slots).await;
    let mut last = HashMap::new();
    for partition in 0..PARTITIONS {
        let results = format!("{{cb:math:{partition}}}:results");
        for event in told(&cluster, &results, "correlationid") {
            let number: u64 = event.strip_prefix("e-").unwrap().parse().unwrap();
            let before = last.insert(number % SUBJECTS, number);
            assert!(before < Some(number), "{number} after {before:?}");
        }
    }
    assert_eq!(last.len() as u64, SUBJECTS);
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
