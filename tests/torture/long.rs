//! Handlers that run for many leases, some of them blocking their thread: nobody takes their entries.

use crate::outcomes::{self, Stored};
use crate::support::{Redis, torture, until};
use crate::worker::{Long, Manner};
use crate::world::{World, settings};
use crate::{facts, history};
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use std::time::Duration;

const WORKERS: u64 = 4;
/// How long each run takes.
const RUN: Duration = Duration::from_secs(10);

/// How long an entry may be idle: a tenth of a run, or more where other tests have the machine as well, and a worker may
/// get no time for a second.
fn lease() -> Duration {
    RUN / if torture::is_full() { 10 } else { 4 }
}

/// One in ten blocks: mostly a thread of the runtime, and now and then the lane's own.
fn manner(n: u64) -> Manner {
    match n {
        _ if n % 250 == 125 => Manner::BlocksAtOnce,
        _ if n.is_multiple_of(10) => Manner::BlocksLater,
        _ => Manner::Waits,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_runs_of_live_workers_are_not_stolen() {
    let count = torture::size("TORTURE_LONG", 500, 10_000);
    let settings = Settings {
        concurrency: 256,
        claim_idle: lease(),
        heartbeat_ttl: 3 * lease(),
        ..settings()
    };
    let redis = Redis::start();
    let mut world = World::with_threads("long", redis, WORKERS as usize, settings, 16).await;
    world.until_alive(WORKERS as usize).await;
    let (client, _wire) = world.client().await;
    let ms = RUN.as_millis() as u64;
    let mut blocking = 0;
    for first in (0..count).step_by(1000) {
        let numbers = first..(first + 1000).min(count);
        let events: Vec<Outgoing> = numbers
            .clone()
            .map(|n| {
                let manner = manner(n);
                blocking += u64::from(manner != Manner::Waits);
                Outgoing::new("load.long", &Long { n, ms, manner }).id(format!("l-{n}"))
            })
            .collect();
        // Little by little: whoever is idle takes all that there is.
        for some in events.chunks(20) {
            for stored in client.publish_many(some).await {
                stored.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        until_all_ran(&world, numbers.end).await;
    }
    outcomes::settled(&world).await;
    let stored = Stored::read(&world).await;
    assert_eq!(stored.results.len() as u64, count);
    assert!(stored.results.values().all(|results| *results == 1));
    let records = history::all(&world.dir);
    let stolen: Vec<_> = records
        .iter()
        .filter(|record| record.op == "run" && record.value != "1")
        .collect();
    assert!(stolen.is_empty(), "taken from a live worker: {stolen:?}");
    facts::nobody_was_lost(&world).await;
    world.drain().await;
    torture::Report::default()
        .event(count, "handlers of many leases")
        .event(blocking, "of them blocking a thread")
        .event(stolen.len() as u64, "steals")
        .tell("long");
}

async fn until_all_ran(world: &World, count: u64) {
    // It takes three times as long as one of them, about.
    tokio::time::sleep(RUN.mul_f64(2.5)).await;
    until("all of them ran", || async {
        let records = history::all(&world.dir);
        let ends = records.iter().filter(|r| r.op == "run" && r.phase == "ok");
        ends.count() as u64 >= count
    })
    .await;
}
