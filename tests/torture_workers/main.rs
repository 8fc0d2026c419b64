//! Workers that are killed and stopped under load.

#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;
use support::fleet::{self, CLAIM_IDLE, Fleet, TTL};
use support::{Redis, signal};
use tokio_util::sync::CancellationToken;

#[test]
fn a_worker_process() {
    fleet::worker_process(|worker| worker.handler("load.work", fleet::work));
}

fn times(name: &str, default: u32) -> u32 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// `TORTURE_KILLS` and `TORTURE_STOPS` say how often; the seed is printed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_stopped_workers_lose_nothing_and_commit_nothing_twice() {
    let (kills, stops) = (times("TORTURE_KILLS", 50), times("TORTURE_STOPS", 20));
    let seed = u64::from(times("TORTURE_SEED", 0));
    fastrand::seed(seed);
    let redis = Redis::start();
    let mut fleet = Fleet::start(&redis, 4);
    let stop = CancellationToken::new();
    let publishing = tokio::spawn(fleet::publish_until(fleet::client(&redis), stop.clone()));
    let (mut killed, mut stopped) = (0, 0);
    while killed < kills || stopped < stops {
        if stopped < stops {
            // The last one stands still past its lease while others are killed, then goes on.
            let zombie = fleet.len() - 1;
            let pid = fleet.pid(zombie);
            signal(pid, "STOP");
            let pause = TTL + CLAIM_IDLE.mul_f64(fastrand::f64() * 0.75);
            let each = pause / 4;
            for _ in 0..3 {
                tokio::time::sleep(each).await;
                if killed < kills {
                    let index = (0..fleet.len())
                        .filter(|i| fleet.pid(*i) != pid)
                        .nth(fastrand::usize(..3))
                        .unwrap();
                    fleet.kill(index, fastrand::bool());
                    killed += 1;
                }
            }
            tokio::time::sleep(each).await;
            signal(pid, "CONT");
            stopped += 1;
        } else {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(50..400))).await;
            fleet.kill(fastrand::usize(..fleet.len()), fastrand::bool());
            killed += 1;
        }
    }
    stop.cancel();
    let (events, unknown) = publishing.await.unwrap();
    fleet::check(&redis, events).await;
    fleet.drain();
    assert_eq!(fleet::pending(&redis, "cb:events:load").await, 0);
    println!(
        "faults: {kills} worker kills, {stops} stops past the lease; events: {events} acknowledged, {unknown} unknown, 0 lost, 0 committed twice; seed {seed}"
    );
}
