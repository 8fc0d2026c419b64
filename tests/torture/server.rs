//! A server with an append-only file that is killed and restarted. It syncs always: with `everysec` it puts off what it
//! writes while the disk is at an fsync, and a kill loses that though it was acknowledged. `power` is about that.

use crate::load::Load;
use crate::outcomes;
use crate::support::{Redis, torture};
use crate::world::{World, settings};
use std::time::Duration;

/// When the server is killed, and for how long it is away.
fn schedule(name: &str, kills: u64) -> Vec<(Duration, Duration)> {
    let mut dice = torture::dice(name);
    let mut ms = |most| Duration::from_millis(dice.u64(0..most));
    (0..kills)
        .map(|_| (Duration::from_millis(300) + ms(900), ms(500)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_kills_lose_nothing_that_was_acknowledged_and_workers_come_back() {
    let kills = torture::size("TORTURE_SERVER_KILLS", 10, 200);
    let rate = torture::size("TORTURE_RATE", 500, 1000);
    let mut world = World::begin("server", Redis::durable(), 3, settings()).await;
    let (client, _wire) = world.client().await;
    let load = Load::start(client, world.history.clone(), rate);
    for (up, away) in schedule("server kills", kills) {
        tokio::time::sleep(up).await;
        world.history.note("fault", "ok", "server", "", "KILL");
        world.redis.kill();
        tokio::time::sleep(away).await;
        world.redis.restart();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let events = load.stop().await;
    let counts = outcomes::check(&world, &events).await;
    world.drain().await;
    counts
        .tell(torture::Report::default())
        .fault(kills, "server kills")
        .tell("server");
}
