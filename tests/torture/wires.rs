//! Disturbances of one worker's wire, or of its process: after each of them it consumes again by
//! itself, and nothing is lost or done twice.

use crate::history::History;
use crate::load::{Load, Rate};
use crate::support::proxy::{Cut, Mode, Proxy};
use crate::support::{Redis, torture};
use crate::world::{LEASE, Process, World, settings};
use crate::{facts, hygiene, outcomes};
use std::sync::Arc;
use std::time::Duration;

/// Workers, each disturbed on its own; one more wire is a publisher's.
const WORKERS: u64 = 6;

#[derive(Clone, Copy, Debug)]
enum Fault {
    Wire(Mode),
    Cut(Cut, &'static str),
    Kill,
    /// It stands still for this many leases, then goes on.
    Stop(f64),
}

#[derive(Clone, Copy, Debug)]
struct Disturbance {
    fault: Fault,
    lasts: Duration,
}

/// The kinds of fault that a wire has.
const MODES: [Mode; 10] = [
    Mode::Delay(400),
    Mode::Swallow,
    Mode::SwallowOld,
    Mode::Deaf,
    Mode::Mute,
    Mode::Reset,
    Mode::Close,
    Mode::Refuse,
    Mode::Nowhere,
    Mode::Drip,
];
const CUTS: [Cut; 3] = [Cut::Before, Cut::After, Cut::Half];
/// What a worker sends.
const OF_A_WORKER: [&str; 6] = [
    "XREADGROUP",
    "EXEC",
    "EVALSHA",
    "XPENDING",
    "MULTI",
    "XREAD",
];
/// What a publisher sends.
const OF_A_PUBLISHER: [&str; 2] = ["XADD", "EVALSHA"];

/// The schedule of one wire: every kind comes before one comes again.
fn schedule(name: &str, count: u64, commands: &[&'static str], process: bool) -> Vec<Disturbance> {
    let mut dice = torture::dice(name);
    let mut kinds: Vec<Fault> = Vec::new();
    let mut schedule = Vec::new();
    while schedule.len() < count as usize {
        if kinds.is_empty() {
            kinds.extend(MODES.map(Fault::Wire));
            for cut in CUTS {
                kinds.push(Fault::Cut(cut, commands[dice.usize(..commands.len())]));
            }
            if process {
                kinds.extend([Fault::Kill, Fault::Stop(0.3 + 3.0 * dice.f64())]);
            }
            dice.shuffle(&mut kinds);
        }
        if let Some(fault) = kinds.pop() {
            let lasts = Duration::from_millis(dice.u64(200..2500));
            schedule.push(Disturbance { fault, lasts });
        }
    }
    schedule
}

/// Disturbs a wire, for as long as it takes, and heals it.
async fn disturb(proxy: &Proxy, disturbance: Disturbance) {
    match disturbance.fault {
        Fault::Wire(mode) => {
            proxy.set(mode);
            tokio::time::sleep(disturbance.lasts).await;
        }
        Fault::Cut(cut, command) => {
            proxy.cut(cut, Some(command), 3);
            let done = async {
                while !proxy.has_cut() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(disturbance.lasts, done).await.ok();
        }
        Fault::Kill | Fault::Stop(_) => {}
    }
    proxy.heal();
}

/// How soon a worker must consume again.
fn limit() -> Duration {
    match torture::is_full() {
        true => Duration::from_secs(15),
        // A machine that does other things as well.
        false => Duration::from_secs(60),
    }
}

/// Disturbs one worker as scheduled; how long each time it took until it consumed again.
async fn suffer(
    mut process: Process,
    schedule: Vec<Disturbance>,
    history: Arc<History>,
) -> (Process, Vec<Duration>) {
    let mut took = Vec::new();
    for disturbance in schedule {
        let told = format!("{disturbance:?}");
        history.note("disturb", "invoke", &process.id, "", &told);
        match disturbance.fault {
            Fault::Kill => {
                process.kill();
                process.start();
            }
            Fault::Stop(leases) => {
                process.signal("STOP");
                tokio::time::sleep(LEASE.mul_f64(leases)).await;
                process.signal("CONT");
            }
            _ => disturb(&process.proxy, disturbance).await,
        }
        let healed = history.now();
        history.note("disturb", "ok", &process.id, "", &told);
        let Some(after) = process.consumes_after(healed, limit()).await else {
            panic!("{}: stuck after {told}", process.id);
        };
        took.push(after);
        assert!(
            process.has_ended().is_none(),
            "{}: ended after {told}",
            process.id
        );
    }
    (process, took)
}

async fn vex(proxy: Proxy, schedule: Vec<Disturbance>) {
    for disturbance in schedule {
        disturb(&proxy, disturbance).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // The wire is there until the last event has its outcome.
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wires_that_fail_in_every_way_leave_no_worker_stuck_and_lose_nothing() {
    let count = torture::size("TORTURE_DISTURBANCES", 60, 1000);
    let mut world = World::begin("wires", Redis::start(), WORKERS as usize, settings()).await;
    world.until_alive(WORKERS as usize).await;
    let (calm, _wire) = world.client().await;
    let (vexed, wire) = world.client().await;
    let rate = |load| Rate {
        per_second: 150,
        load,
        loads: 2,
    };
    let history = world.history.clone();
    let calm = Load::start(calm, history.clone(), rate(0));
    let vexed = Load::start(vexed, history.clone(), rate(1));
    let share = count.div_ceil(WORKERS);
    let publishers = schedule("wires publisher", share, &OF_A_PUBLISHER, false);
    let vexing = tokio::spawn(vex(wire, publishers));
    let mut sufferings = Vec::new();
    for process in std::mem::take(&mut world.workers) {
        let name = format!("wires {}", process.id);
        let schedule = schedule(&name, share, &OF_A_WORKER, true);
        sufferings.push(tokio::spawn(suffer(process, schedule, history.clone())));
    }
    let mut took = Vec::new();
    for suffering in sufferings {
        let (process, times) = suffering.await.unwrap();
        world.workers.push(process);
        took.extend(times);
    }
    let mut events = calm.stop().await;
    events.extend(vexed.stop().await);
    vexing.abort();
    let counts = outcomes::check(&world, &events).await;
    facts::rise(&world).await;
    let left = hygiene::check(&world).await;
    world.drain().await;
    took.sort_unstable();
    let [median, p99] = [50, 99].map(|part| took[(took.len() - 1) * part / 100].as_secs_f64());
    counts
        .tell(torture::Report::default())
        .fault(took.len() as u64, "disturbances of workers")
        .fault(share, "disturbances of a publisher")
        .event(share * WORKERS - took.len() as u64, "stuck workers")
        .note(format!(
            "consumes again after a disturbance: p50 {median:.1} s, p99 {p99:.1} s, at most {:.1} s",
            took[took.len() - 1].as_secs_f64()
        ))
        .note(format!("wires: {} lines of log in 10 s at most", left.lines))
        .tell("wires");
}
