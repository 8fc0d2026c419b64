//! Workers that are told to end, one after the other, under load.

use crate::load::Load;
use crate::support::{Redis, torture};
use crate::world::{World, settings};
use crate::{facts, outcomes};
use convoke::settings::Settings;
use std::time::{Duration, Instant};

const WORKERS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restarts_lose_nothing_and_run_nothing_again_that_was_finished() {
    let restarts = torture::size("TORTURE_RESTARTS", 15, 500);
    let settings = Settings {
        // Nobody is declared lost here who only waits for its turn on a busy machine.
        heartbeat_ttl: Duration::from_secs(10),
        claim_idle: Duration::from_secs(20),
        drain_timeout: Duration::from_secs(30),
        ..settings()
    };
    let limit = settings.drain_timeout;
    let mut world = World::begin("rolling", Redis::start(), WORKERS, settings).await;
    world.until_alive(WORKERS).await;
    let (client, _wire) = world.client().await;
    let load = Load::start(client, world.history.clone(), 300);
    let mut dice = torture::dice("rolling");
    let mut longest = Duration::ZERO;
    for restart in 0..restarts {
        let at = restart as usize % WORKERS;
        tokio::time::sleep(Duration::from_millis(dice.u64(0..300))).await;
        let process = &mut world.workers[at];
        let began = Instant::now();
        process.signal("TERM");
        let status = process.ended().await;
        assert!(status.success(), "{} ended with {status}", process.id);
        longest = longest.max(began.elapsed());
        if dice.bool() {
            process.id = format!("w-{}-{restart}", at + 1);
        }
        process.start();
        world.until_alive(WORKERS).await;
    }
    let events = load.stop().await;
    let counts = outcomes::check(&world, &events).await;
    assert!(longest <= limit, "one took {longest:?} to end");
    assert_eq!(counts.again, 0, "finished events ran again");
    facts::nobody_was_lost(&world).await;
    world.drain().await;
    counts
        .tell(torture::Report::default())
        .fault(restarts, "rolling restarts")
        .event(counts.again, "redeliveries of finished events")
        .note(format!(
            "longest end after SIGTERM {:.1} s",
            longest.as_secs_f64()
        ))
        .tell("rolling");
}
