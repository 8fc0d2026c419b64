//! A server that is killed and restarted under load.

#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;
use support::Redis;
use support::fleet::{self, Fleet};
use tokio_util::sync::CancellationToken;

#[test]
fn a_worker_process() {
    fleet::worker_process(|worker| worker.handler("load.work", fleet::work));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_that_was_acknowledged_and_workers_resume_by_themselves() {
    let kills = 10;
    let mut redis = Redis::durable();
    let fleet = Fleet::start(&redis, 3);
    let stop = CancellationToken::new();
    let publishing = tokio::spawn(fleet::publish_until(fleet::client(&redis), stop.clone()));
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(500..2500))).await;
        redis.kill();
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..1500))).await;
        redis.restart();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    let (events, unknown) = publishing.await.unwrap();
    fleet::check(&redis, events).await;
    fleet.drain();
    assert_eq!(fleet::pending(&redis, "cb:events:load").await, 0);
    println!(
        "faults: {kills} server kills; events: {events} acknowledged, {unknown} unknown, 0 lost, 0 committed twice"
    );
}
