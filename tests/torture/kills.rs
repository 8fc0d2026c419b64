//! Workers that are killed, and workers that stand still past their lease and go on as zombies.

use crate::history::History;
use crate::load::Load;
use crate::outcomes;
use crate::support::{Redis, torture};
use crate::world::{LEASE, Process, World, settings};
use crate::{facts, hygiene};
use std::sync::Arc;
use std::time::Duration;

/// What happens to one worker next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// `kill -9`; another process takes its place, under the same name or under a new one.
    Kill { same_name: bool },
    /// It stops for this many leases, then goes on.
    Stop { leases: f64 },
}

/// A worker's schedule: what, and how long after the one before.
pub(crate) fn schedule(name: &str, kills: u64, stops: u64) -> Vec<(Duration, Act)> {
    let mut dice = torture::dice(name);
    let mut acts: Vec<Act> = Vec::new();
    for _ in 0..kills {
        let same_name = dice.bool();
        acts.push(Act::Kill { same_name });
    }
    for _ in 0..stops {
        let leases = 0.3 + 4.7 * dice.f64();
        acts.push(Act::Stop { leases });
    }
    dice.shuffle(&mut acts);
    let paused = acts.into_iter();
    paused
        .map(|act| (Duration::from_millis(dice.u64(50..400)), act))
        .collect()
}

pub(crate) async fn live(
    mut process: Process,
    acts: Vec<(Duration, Act)>,
    history: Arc<History>,
) -> Process {
    let slot = process.id.clone();
    let mut names = 0;
    for (pause, act) in acts {
        tokio::time::sleep(pause).await;
        history.note("act", "invoke", &slot, "", &format!("{act:?}"));
        match act {
            Act::Kill { same_name } => {
                process.kill();
                if !same_name {
                    names += 1;
                    process.id = format!("{slot}-{names}");
                }
                process.start();
            }
            Act::Stop { leases } => {
                process.signal("STOP");
                tokio::time::sleep(LEASE.mul_f64(leases)).await;
                process.signal("CONT");
            }
        }
    }
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_workers_lose_nothing_and_zombies_commit_nothing_twice() {
    let kills = torture::size("TORTURE_WORKER_KILLS", 50, 1000);
    let stops = torture::size("TORTURE_ZOMBIES", 25, 300);
    let rate = torture::size("TORTURE_RATE", 500, 1000);
    let mut world = World::begin("kills", Redis::start(), 4, settings()).await;
    let (client, _wire) = world.client().await;
    let load = Load::start(client, world.history.clone(), rate);
    let mut lives = Vec::new();
    for (number, process) in std::mem::take(&mut world.workers).into_iter().enumerate() {
        let share = |all: u64| all / 4 + u64::from((number as u64) < all % 4);
        let acts = schedule(&format!("kills {number}"), share(kills), share(stops));
        lives.push(tokio::spawn(live(process, acts, world.history.clone())));
    }
    for life in lives {
        world.workers.push(life.await.unwrap());
    }
    let events = load.stop().await;
    let counts = outcomes::check(&world, &events).await;
    facts::rise(&world).await;
    let left = hygiene::check(&world).await;
    world.drain().await;
    counts
        .tell(torture::Report::default())
        .fault(kills, "worker kills")
        .fault(stops, "zombies")
        .event(counts.dead, "dead letters that were to be")
        .note(format!("{} lines of log in 10 s at most", left.lines))
        .tell("kills");
}
