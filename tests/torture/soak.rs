//! Nothing grows: memory, keys, consumers, streams, while workers are replaced again and again.

use crate::load::Load;
use crate::support::{Redis, torture, until};
use crate::world::{World, settings};
use crate::{hygiene, outcomes};
use convoke::settings::Settings;
use redis::AsyncCommands;
use std::time::{Duration, Instant};

/// What the streams keep.
const HISTORY: u64 = 1000;
/// What a worker's memory may grow by after it is warm, in KiB.
const GROWTH: u64 = 8 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_with_workers_that_come_and_go_leaves_nothing_behind() {
    let seconds = torture::size("TORTURE_SOAK_SECONDS", 15, 600);
    let every = torture::size("TORTURE_SOAK_REPLACES_MS", 1000, 10_000);
    let settings = Settings {
        stream_history: HISTORY,
        ..settings()
    };
    let mut world = World::begin("soak", Redis::start(), 3, settings).await;
    let (client, _wire) = world.client().await;
    let load = Load::start(client, world.history.clone(), 300);
    let end = Instant::now() + Duration::from_secs(seconds);
    let warm = Instant::now() + Duration::from_secs(seconds / 3);
    let (mut replaced, mut before) = (0, None);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(every)).await;
        // The first one stays.
        let at = 1 + replaced as usize % 2;
        world.workers[at].kill();
        replaced += 1;
        world.workers[at].id = format!("w-{at}-{replaced}");
        world.workers[at].start();
        if before.is_none() && Instant::now() >= warm {
            before = world.workers[0].resident();
        }
    }
    let events = load.stop().await;
    outcomes::settled(&world).await;
    let (before, after) = (before.unwrap(), world.workers[0].resident().unwrap());
    assert!(
        after <= before + GROWTH,
        "{before} KiB when it was warm, {after} KiB in the end"
    );
    let left = hygiene::check(&world).await;
    let connection = world.redis.connection().await;
    for stream in ["cb:events:load", "cb:results:load", "cb:broadcast"] {
        // Who trims it may have been replaced just now.
        until(&format!("{stream} is trimmed"), || async {
            let length: u64 = connection.clone().xlen(stream).await.unwrap();
            length <= 2 * HISTORY
        })
        .await;
    }
    world.drain().await;
    torture::Report::default()
        .fault(replaced, "workers replaced in the soak")
        .event(events.len() as u64, "events of the soak")
        .note(format!(
            "soak of {seconds} s: {before} KiB when warm, {after} KiB in the end; {} keys without a time to live, {} consumers, pending 0",
            left.lasting, left.consumers
        ))
        .tell("soak");
}
