//! Every part of a policy with every other, under load, while workers are killed, stand still past their
//! lease, and drain: what the table at `Policy` says is what the histories show.

mod handlers;
mod parts;
mod rules;
mod seen;

pub(crate) use handlers::handlers;

use crate::history::History;
use crate::load::{Load, Made};
use crate::support::{Redis, torture};
use crate::worker::BESIDES;
use crate::world::{Process, World, settings};
use crate::{facts, hygiene, outcomes};
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use parts::Numbered;
use seen::Seen;
use std::sync::Arc;
use std::time::{Duration, Instant};

const WORKERS: usize = 4;
/// How long an instance lives without a pulse: long enough for a machine that does other things as well.
const TTL: Duration = Duration::from_secs(2);
/// Where replies go.
const REPLIES: &str = "cb:reply:pairs";

/// What happens to one worker next.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// `kill -9`; another process takes its place, under the same name or under a new one.
    Kill { same_name: bool },
    /// It stops for this many ttls, then goes on.
    Stop { ttls: f64 },
    /// It is told to end, ends, and is started again.
    Drain { same_name: bool },
}

fn draw(dice: &mut fastrand::Rng) -> Act {
    let same_name = dice.bool();
    match dice.u32(..4) {
        0 => Act::Kill { same_name },
        1 => Act::Drain { same_name },
        2 => Act::Stop {
            ttls: 0.1 + 0.6 * dice.f64(),
        },
        _ => Act::Stop {
            ttls: 1.2 + 1.3 * dice.f64(),
        },
    }
}

/// One worker's life until that time; how many kills, stops and drains it saw.
async fn live(
    number: usize,
    mut process: Process,
    end: Instant,
    history: Arc<History>,
) -> (Process, [u64; 3]) {
    let slot = process.id.clone();
    let mut dice = torture::dice(&format!("pairs {number}"));
    let (mut names, mut acts) = (0, [0; 3]);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(dice.u64(200..1500))).await;
        let act = draw(&mut dice);
        history.note("act", "invoke", &slot, "", &format!("{act:?}"));
        let same_name = match act {
            Act::Kill { same_name } => {
                process.kill();
                acts[0] += 1;
                same_name
            }
            Act::Stop { ttls } => {
                process.signal("STOP");
                tokio::time::sleep(TTL.mul_f64(ttls)).await;
                process.signal("CONT");
                acts[1] += 1;
                continue;
            }
            Act::Drain { same_name } => {
                process.signal("TERM");
                let status = process.ended().await;
                assert!(status.success(), "{} ended with {status}", process.id);
                acts[2] += 1;
                same_name
            }
        };
        if !same_name {
            names += 1;
            process.id = format!("{slot}-{names}");
        }
        process.start();
    }
    (process, acts)
}

fn made(n: u64) -> Made {
    let numbered = Numbered(n);
    let event = Outgoing::new(numbered.pair().kind(), &numbered.payload())
        .id(numbered.id())
        .subject(numbered.subject())
        .source(numbered.source())
        .dedup(true);
    Made {
        id: numbered.id(),
        event: match numbered.is_asked() {
            true => event.reply_to(REPLIES),
            false => event,
        },
        plain: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pairs_of_policies_hold_while_workers_are_killed_stopped_and_drained() {
    let seconds = torture::size("TORTURE_PAIRS_SECONDS", 6, 360);
    let rate = torture::size("TORTURE_PAIRS_RATE", 500, 500);
    let settings = Settings {
        heartbeat_ttl: TTL,
        claim_idle: 2 * TTL,
        // A stop is not the event's fault, nor is a time-out by it.
        max_attempts: 50,
        ..settings()
    };
    let mut world = World::begin("pairs", Redis::start(), 0, settings).await;
    for number in 1..=WORKERS {
        let mut process = world.process(format!("w-{number}")).await;
        process.environment = vec![(BESIDES, "pairs".to_owned())];
        // Nothing happens to its wire.
        process.direct = true;
        process.start();
        world.workers.push(process);
    }
    world.until_alive(WORKERS).await;
    let (client, _wire) = world.client().await;
    let load = Load::of(made, client, world.history.clone(), rate);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut lives = Vec::new();
    for (number, process) in std::mem::take(&mut world.workers).into_iter().enumerate() {
        let history = world.history.clone();
        lives.push(tokio::spawn(live(number, process, end, history)));
    }
    let mut acts = [0; 3];
    for life in lives {
        let (process, some) = life.await.unwrap();
        world.workers.push(process);
        for (sum, some) in acts.iter_mut().zip(some) {
            *sum += some;
        }
    }
    let events = load.stop().await;
    outcomes::settled_in(&world, "pair").await;
    let seen = Seen::read(&world, &events).await;
    let counts = rules::check(&seen);
    facts::rise(&world).await;
    hygiene::check(&world).await;
    world.drain().await;
    let [kills, stops, drains] = acts;
    let report = torture::Report::default()
        .fault(kills, "kills of workers with pairs of policies")
        .fault(stops, "stops of them, most past their lease")
        .fault(drains, "drains of them under load");
    counts.tell(report).tell("pairs");
}
