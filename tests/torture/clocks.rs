//! Workers whose clocks are wrong by an hour, one behind and one ahead: nothing is timed by them.

use crate::load::Load;
use crate::support::{Redis, torture};
use crate::world::{World, settings};
use crate::{facts, outcomes};
use convoke::settings::Settings;
use std::path::Path;
use std::time::Duration;

/// Where Debian has it. It moves the clock that tells the time, and leaves the monotonic one alone.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

fn clock(offset: &str) -> [(&'static str, String); 3] {
    [
        ("LD_PRELOAD", LIBRARY.to_owned()),
        ("FAKETIME", offset.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_with_wrong_clocks_do_all_in_time() {
    if !Path::new(LIBRARY).exists() {
        println!("skipped: {LIBRARY} is not there; `scripts/install clock` brings it");
        return;
    }
    let rate = torture::size("TORTURE_RATE", 200, 500);
    let seconds = torture::size("TORTURE_CLOCK_SECONDS", 8, 60);
    let settings = Settings {
        // Nobody is declared lost here who only waits for its turn on a busy machine.
        heartbeat_ttl: Duration::from_secs(10),
        claim_idle: Duration::from_secs(20),
        ..settings()
    };
    let mut world = World::begin("clocks", Redis::start(), 0, settings).await;
    for (number, offset) in ["-1h", "+1h", "+0"].into_iter().enumerate() {
        let mut process = world.process(format!("w-{number}")).await;
        process.environment.extend(clock(offset));
        process.start();
        world.workers.push(process);
    }
    world.until_alive(3).await;
    let (client, _wire) = world.client().await;
    let load = Load::start(client, world.history.clone(), rate);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let events = load.stop().await;
    let counts = outcomes::check(&world, &events).await;
    facts::nobody_was_lost(&world).await;
    world.drain().await;
    torture::Report::default()
        .fault(2, "clocks wrong by an hour")
        .event(counts.acknowledged, "acknowledged")
        .event(0, "lost")
        .event(0, "late")
        .event(counts.dead, "dead letters that were to be")
        .tell("clocks");
}
