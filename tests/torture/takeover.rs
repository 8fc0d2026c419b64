//! How soon the entries of a killed worker are run by others.

use crate::history;
use crate::outcomes::{self, Stored};
use crate::support::{Redis, torture, until};
use crate::worker::{Long, Manner};
use crate::world::{LEASE, World, settings};
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use std::collections::HashMap;
use std::time::Duration;

/// Workers of each round; each of them is killed.
const WORKERS: u64 = 4;
/// Entries of each round.
const HELD: u64 = 500;
/// The pause between two looks for the lost, of all instances together; with room for a slow one.
const SCAN: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_of_what_a_killed_worker_held_takes_about_a_lease() {
    let orphans = torture::size("TORTURE_ORPHANS", 500, 1000);
    let settings = Settings {
        // Any of them may hold all.
        concurrency: HELD as usize,
        ..settings()
    };
    let mut world = World::begin("takeover", Redis::start(), 0, settings).await;
    let (client, _wire) = world.client().await;
    let mut published = 0;
    let mut rounds = 0;
    while published < orphans {
        rounds += 1;
        for number in 0..WORKERS {
            let mut process = world.process(format!("w-{rounds}-{number}")).await;
            process.start();
            world.workers.push(process);
        }
        world.until_alive(WORKERS as usize).await;
        let events: Vec<Outgoing> = (published..published + HELD)
            .map(|n| {
                let manner = Manner::HoldsFirst;
                Outgoing::new("load.long", &Long { n, ms: 0, manner }).id(format!("o-{n}"))
            })
            .collect();
        // Little by little: whoever is idle takes all that there is.
        for some in events.chunks(10) {
            for stored in client.publish_many(some).await {
                stored.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        published += HELD;
        until("all are held", || async {
            let records = history::all(&world.dir);
            let held = records.iter().filter(|r| r.op == "run" && r.value == "1");
            held.filter(|r| r.phase == "invoke").count() as u64 == published
        })
        .await;
        // Whoever is left takes over; the last one has a witness that holds nothing.
        let mut witness = world.process(format!("witness-{rounds}")).await;
        witness.start();
        world.until_alive(WORKERS as usize + 1).await;
        for mut process in std::mem::take(&mut world.workers) {
            process.kill();
            tokio::time::sleep(2 * LEASE).await;
        }
        outcomes::settled(&world).await;
        witness.signal("TERM");
        witness.ended().await;
    }
    let stored = Stored::read(&world).await;
    assert_eq!(stored.results.len() as u64, published);
    assert!(stored.results.values().all(|count| *count == 1));
    let took = times(&world);
    assert_eq!(took.len() as u64, published);
    let leases =
        |part: usize| took[(took.len() - 1) * part / 100].as_secs_f64() / LEASE.as_secs_f64();
    let (p50, p99) = (leases(50), leases(99));
    let promised = 1.5 + SCAN.as_secs_f64() / LEASE.as_secs_f64();
    let bound = if torture::is_full() { 1.0 } else { 5.0 } * promised;
    assert!(p99 <= bound, "p99 of {p99:.2} leases is over {bound:.2}");
    torture::Report::default()
        .fault(WORKERS * rounds, "holders killed")
        .event(published, "orphans taken over")
        .note(format!(
            "takeover p50 {p50:.2}, p99 {p99:.2} leases (promised {promised:.1})"
        ))
        .tell("takeover");
}

/// From the kill of whoever held it to its next run, for each entry. One that is late is killed in the middle of that run,
/// and there is another.
fn times(world: &World) -> Vec<Duration> {
    let records = history::all(&world.dir);
    let killed: HashMap<&str, u64> = records
        .iter()
        .filter(|record| record.op == "fault" && record.value == "KILL")
        .map(|record| (record.key.as_str(), record.ns))
        .collect();
    let begun = |wanted: fn(&str) -> bool| {
        let runs = records
            .iter()
            .filter(|record| record.op == "run" && record.phase == "invoke");
        runs.filter(move |record| wanted(&record.value))
    };
    let holders: HashMap<&str, &str> = begun(|deliveries| deliveries == "1")
        .map(|record| (record.id.as_str(), record.process.as_str()))
        .collect();
    let mut next: HashMap<&str, u64> = HashMap::new();
    for record in begun(|deliveries| deliveries != "1") {
        let first = next.entry(&record.id).or_insert(record.ns);
        *first = record.ns.min(*first);
    }
    let took = next.into_iter().map(|(id, ns)| {
        let (_, pid) = holders[id].split_once('/').unwrap();
        Duration::from_nanos(ns.saturating_sub(killed[pid]))
    });
    let mut took: Vec<Duration> = took.collect();
    took.sort_unstable();
    took
}
