//! Events that take effect once (the field `dedup`), each added several times while their workers are killed.

use crate::support::{Redis, torture};
use crate::worker::{Fate, Work};
use crate::world::{World, settings};
use crate::{hygiene, outcomes};
use convoke::streams::read::entries_of;
use std::collections::HashMap;
use std::time::Duration;

const EVENTS: &str = "cb:events:load";
/// How often each is added.
const TIMES: usize = 3;

async fn tally(
    world: &World,
    stream: &str,
    key: impl Fn(&[u8]) -> Option<String>,
    field: &str,
) -> HashMap<String, u32> {
    let mut connection = world.redis.connection().await;
    let mut read = redis::cmd("XRANGE");
    read.arg(stream).arg("-").arg("+");
    let read = read.query_async(&mut connection).await.unwrap();
    let mut counts = HashMap::new();
    for entry in entries_of(read).unwrap() {
        if let Some(key) = entry.get(field).and_then(&key) {
            *counts.entry(key).or_default() += 1;
        }
    }
    counts
}

fn fate(n: u64) -> Fate {
    match n % 10 {
        0 => Fate::Dead,
        1..=3 => Fate::Retry,
        _ => Fate::Done,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_effect_once_does_so_whoever_dies() {
    let events = torture::size("TORTURE_REPEATS", 500, 20_000);
    let mut world = World::begin("repeats", Redis::start(), 2, settings()).await;
    let mut dice = torture::dice("repeats");
    let mut adds: Vec<u64> = (0..events).flat_map(|n| [n; TIMES]).collect();
    dice.shuffle(&mut adds);
    let mut connection = world.redis.connection().await;
    let adding = tokio::spawn(async move {
        for n in adds {
            let work = Work {
                n,
                ms: if n % 3 == 0 { 20 } else { 0 },
                fate: fate(n),
            };
            let mut add = redis::cmd("XADD");
            add.arg(EVENTS)
                .arg(&["*", "type", "load.work", "dedup", "1", "id"])
                .arg(n);
            add.arg("data").arg(rmp_serde::to_vec_named(&work).unwrap());
            add.exec_async(&mut connection).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let mut kills = 0;
    while !adding.is_finished() {
        tokio::time::sleep(Duration::from_millis(dice.u64(50..600))).await;
        let mut victim = world.workers.swap_remove(0);
        victim.kill();
        if dice.bool() {
            victim.id = format!("w-{kills}-again");
        }
        victim.start();
        world.workers.push(victim);
        kills += 1;
    }
    adding.await.unwrap();
    outcomes::settled_in(&world, "load").await;
    let text = |value: &[u8]| Some(String::from_utf8_lossy(value).into_owned());
    let number = |value: &[u8]| {
        rmp_serde::from_slice::<u64>(value)
            .ok()
            .map(|n| n.to_string())
    };
    let effects = tally(&world, "cb:events:effect", number, "data").await;
    let results = tally(&world, "cb:results:load", text, "correlationid").await;
    let dead = tally(&world, "cb:dead:load", text, "id").await;
    let wrong: Vec<String> = (0..events)
        .filter_map(|n| {
            let of =
                |counts: &HashMap<String, u32>| counts.get(&n.to_string()).copied().unwrap_or(0);
            let seen = (of(&effects), of(&results), of(&dead));
            let right = match fate(n) {
                Fate::Dead => (0, 0, 1),
                _ => (1, 1, 0),
            };
            (seen != right).then(|| format!("{n}: {seen:?} is not {right:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {events}: {wrong:?}", wrong.len());
    hygiene::check(&world).await;
    world.drain().await;
    torture::Report::default()
        .fault(kills, "worker kills")
        .event(
            TIMES as u64 * events,
            "entries of events that take effect once",
        )
        .tell("repeats");
}
