//! Few events and no faults: each is run at once by whoever reads, and none waits for a lease to end.
//!
//! A read that is given up swallows what the server hands it later. Under load the next one comes too
//! soon for that to be seen.

use crate::support::{Redis, torture};
use crate::world::{World, settings};
use crate::{history, load, outcomes};
use convoke::settings::Settings;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_come_seldom_are_each_delivered_once() {
    let events = torture::size("TORTURE_SELDOM", 40, 2000);
    let mut dice = torture::dice("trickle");
    let settings = Settings {
        // Nothing is taken here from one who only waits for its turn on a busy machine.
        heartbeat_ttl: Duration::from_secs(10),
        claim_idle: Duration::from_secs(20),
        ..settings()
    };
    let mut world = World::begin("trickle", Redis::start(), 2, settings).await;
    world.until_alive(2).await;
    let (client, _wire) = world.client().await;
    for n in 0..events {
        load::publish(&client, &world.history, n).await;
        tokio::time::sleep(Duration::from_millis(dice.u64(0..600))).await;
    }
    let counts = outcomes::check(&world, &(0..events).collect::<Vec<_>>()).await;
    let records = history::all(&world.dir);
    let again: Vec<_> = records
        .iter()
        .filter(|record| record.op == "run" && record.value != "1")
        .collect();
    assert!(
        again.is_empty(),
        "delivered again though nobody failed: {again:?}"
    );
    world.drain().await;
    torture::Report::default()
        .event(counts.acknowledged, "that came seldom")
        .event(0, "delivered twice")
        .tell("trickle");
}
