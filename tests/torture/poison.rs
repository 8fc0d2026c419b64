//! Events that fail, panic, hang or kill their worker, among good ones.

use crate::history;
use crate::load::{self, Load};
use crate::outcomes::{self, Except, Problems, Stored};
use crate::support::{Redis, torture};
use crate::worker::{Fate, Poison};
use crate::world::{Process, World, settings};
use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const KINDS: [Poison; 6] = [
    Poison::Error,
    Poison::Panic,
    Poison::Overflow,
    Poison::Abort,
    Poison::Kill,
    Poison::Hang,
];
const MAX_DELIVERIES: u32 = 5;
const MAX_ATTEMPTS: u32 = 3;
const RATE: u64 = 400;

fn kills(kind: Poison) -> bool {
    matches!(kind, Poison::Overflow | Poison::Abort | Poison::Kill)
}

fn id(n: u64) -> String {
    format!("poison-{n}")
}

/// Restarts a worker whenever it dies, as an init system does; how often.
async fn supervise(mut process: Process, stop: CancellationToken) -> (Process, u32) {
    while !stop.is_cancelled() {
        if process.has_ended().is_some() {
            process.start();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let restarts = process.started - 1;
    (process, restarts)
}

async fn publish(client: Client, kinds: Vec<Poison>) {
    for (n, kind) in kinds.iter().enumerate() {
        let event = Outgoing::new("load.poison", kind)
            .id(id(n as u64))
            .dedup(true);
        client.publish(&event).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100_000 / RATE)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_of_every_kind_ends_as_a_dead_letter_and_stops_nothing() {
    let count = torture::size("TORTURE_POISON", 18, 100);
    let settings = Settings {
        max_deliveries: MAX_DELIVERIES,
        max_attempts: MAX_ATTEMPTS,
        handler_timeout: Duration::from_secs(2),
        ..settings()
    };
    let mut world = World::begin("poison", Redis::start(), 3, settings).await;
    let (client, _wire) = world.client().await;
    let mut kinds: Vec<Poison> = KINDS.into_iter().cycle().take(count as usize).collect();
    torture::dice("poison").shuffle(&mut kinds);
    let killers = kinds.iter().filter(|kind| kills(**kind)).count() as u64;
    let stop = CancellationToken::new();
    let processes = std::mem::take(&mut world.workers).into_iter();
    let supervised: Vec<_> = processes
        .map(|process| tokio::spawn(supervise(process, stop.clone())))
        .collect();
    // A hundred good ones for each of the others.
    let load = Load::start(client.clone(), world.history.clone(), RATE);
    publish(client, kinds.clone()).await;
    let events = load.stop().await;
    outcomes::settled(&world).await;
    stop.cancel();
    let mut restarts = 0;
    for process in supervised {
        let (process, times) = process.await.unwrap();
        world.workers.push(process);
        restarts += u64::from(times);
    }
    let stored = Stored::read(&world).await;
    let records = history::all(&world.dir);
    let mut problems = Problems::default();
    for n in 0..count {
        let (dead, results) = (
            stored.dead.get(&id(n)).copied().unwrap_or(0),
            stored.results.get(&id(n)).copied().unwrap_or(0),
        );
        let kind = kinds[n as usize];
        if (dead, results) != (1, 0) {
            problems.found(format!(
                "{} {kind:?}: {dead} dead letters, {results} results",
                id(n)
            ));
        }
        let runs = records
            .iter()
            .filter(|record| record.op == "run" && record.id == id(n) && record.phase == "invoke");
        let runs = runs.count() as u32;
        // Beside one that kills, each try of the others may be delivered as often.
        let most = match kills(kind) {
            true => MAX_DELIVERIES,
            false => MAX_DELIVERIES * MAX_ATTEMPTS,
        };
        if runs > most {
            problems.found(format!("{} {kind:?} ran {runs} times", id(n)));
        }
    }
    problems.none();
    let bound = killers * u64::from(MAX_DELIVERIES);
    assert!(restarts <= bound, "{restarts} restarts, at most {bound} do");
    let good = events.iter().filter(|n| load::fate(**n) != Fate::Dead);
    let good = good.count() as u64;
    let counts = outcomes::check_but(
        &world,
        &events,
        Except {
            others: &|id| id.starts_with("poison-"),
            ..Except::default()
        },
    )
    .await;
    world.drain().await;
    torture::Report::default()
        .fault(count, "poison events")
        .fault(killers, "of them kill their worker")
        .event(count, "poison events dead, once each")
        .event(good, "good ones beside them done")
        .event(counts.redeliveries, "redeliveries")
        .note(format!(
            "restarts of workers by poison: {restarts}, {:.1} for each that kills",
            restarts as f64 / killers.max(1) as f64
        ))
        .tell("poison");
}
