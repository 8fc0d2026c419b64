//! Schedules that tick each second while workers and the server are killed and the server's clock steps by an hour.

use crate::support::{Redis, torture, until};
use crate::world::{World, settings};
use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::protocol::event::Entry;
use convoke::streams::read::entries_of;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

const MISSED: [&str; 3] = ["once", "skip", "all"];

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// `kill -9` of a worker, and another one in its place.
    Worker(usize),
    /// `kill -9` of the server, which is away for a moment.
    Server,
    /// The server's clock is an hour ahead from now on.
    Clock,
}

fn acts(workers: u64, servers: u64) -> Vec<Act> {
    let mut dice = torture::dice("schedules");
    let mut acts: Vec<Act> = (0..workers).map(|_| Act::Worker(dice.usize(..3))).collect();
    acts.extend((0..servers).map(|_| Act::Server));
    acts.push(Act::Clock);
    dice.shuffle(&mut acts);
    acts
}

async fn ask(client: &Client, kind: &str, data: Value) -> Value {
    loop {
        let event = Outgoing::new(kind, &data).source("ann");
        match client.request(event, Duration::from_secs(5)).await {
            Ok(reply) => return reply.decode().unwrap(),
            // Nobody may be there to answer, just now.
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn entries(world: &World, stream: &str) -> Vec<Entry> {
    let mut connection = world.redis.connection().await;
    let mut range = redis::cmd("XRANGE");
    let reply = range.arg(stream).arg("-").arg("+");
    entries_of(reply.query_async(&mut connection).await.unwrap()).unwrap()
}

fn text(entry: &Entry, field: &str) -> String {
    String::from_utf8_lossy(entry.get(field).unwrap_or_default()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_store_each_tick_once_whoever_dies() {
    let seconds = torture::size("TORTURE_SCHEDULE_SECONDS", 10, 600);
    let kills = torture::size("TORTURE_SCHEDULE_KILLS", 4, 30);
    let servers = torture::size("TORTURE_SCHEDULE_SERVER_KILLS", 1, 5);
    let options = [
        "--save",
        "",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
    ];
    let redis = Redis::with(&options).clocked();
    let mut world = World::begin("schedules", redis, 3, settings()).await;
    world.until_alive(3).await;
    let (client, _wire) = world.client().await;
    for missed in MISSED {
        let schedule = json!({
            "name": missed, "cron": "* * * * * *", "type": "load.work", "missed": missed,
            "payload": {"n": 1, "ms": 0, "fate": "Done"},
        });
        ask(&client, "system.schedule.put", schedule).await;
    }
    let acts = acts(kills, servers);
    let pause = Duration::from_secs(seconds) / (acts.len() as u32 + 1);
    let mut dice = torture::dice("schedules pauses");
    for act in acts {
        tokio::time::sleep(pause.mul_f64(0.5 + dice.f64())).await;
        world.history.note("act", "ok", "", "", &format!("{act:?}"));
        match act {
            Act::Worker(number) => {
                world.workers[number].kill();
                world.workers[number].start();
            }
            Act::Server => {
                world.redis.kill();
                tokio::time::sleep(Duration::from_millis(dice.u64(0..2500))).await;
                world.redis.restart();
            }
            Act::Clock => world.redis.step_clock(3600).await,
        }
    }
    tokio::time::sleep(pause).await;
    // The one of before says deadlines by the clock that was stepped.
    let (client, _wire) = world.client().await;
    let mut stands = BTreeMap::new();
    for missed in MISSED {
        let paused = json!({"name": missed, "paused": true});
        ask(&client, "system.schedule.put", paused).await;
        let all = ask(&client, "system.schedule.list", json!({})).await;
        let all = all["schedules"].as_array().unwrap().clone();
        let one = all.into_iter().find(|one| one["name"] == missed).unwrap();
        stands.insert(missed, one);
    }
    let stored = entries(&world, "cb:events:load").await;
    until("all of them ran", || async {
        entries(&world, "cb:results:load").await.len() >= stored.len()
    })
    .await;
    let results = entries(&world, "cb:results:load").await;
    let answered: BTreeSet<String> = results
        .iter()
        .map(|one| text(one, "correlationid"))
        .collect();
    let ids: Vec<String> = stored.iter().map(|one| text(one, "id")).collect();
    assert_eq!(
        (results.len(), answered.len()),
        (ids.len(), ids.len()),
        "each ran once"
    );
    assert_eq!(ids.iter().cloned().collect::<BTreeSet<_>>(), answered);
    let facts = entries(&world, "cb:broadcast").await;
    let facts = facts
        .iter()
        .filter(|fact| text(fact, "type") == "schedule.missed");
    let facts: Vec<Value> = facts
        .map(|fact| rmp_serde::from_slice(fact.get("data").unwrap()).unwrap())
        .collect();
    let (mut ticked, mut left) = (0, 0);
    for (missed, one) in stands {
        let own = ids
            .iter()
            .filter(|id| id.starts_with(&format!("{missed}@")));
        // As text they rise as the ticks do.
        let own: Vec<&String> = own.collect();
        assert!(own.is_sorted_by(|a, b| a < b), "{missed}: {own:?}");
        let told = facts.iter().filter(|fact| fact["name"] == missed);
        let told: u64 = told.map(|fact| fact["count"].as_u64().unwrap()).sum();
        assert_eq!(one["left_out"], told, "{missed}");
        assert_eq!(one["stored"], own.len(), "{missed}");
        let seconds = |id: &str| {
            let (_, tick) = id.split_once('@').unwrap();
            let tick = humantime::parse_rfc3339(tick).unwrap();
            tick.duration_since(UNIX_EPOCH).unwrap().as_secs()
        };
        let span = seconds(own[own.len() - 1]) - seconds(own[0]) + 1;
        // The last one that is left out lies behind the last one that is stored only where it was late.
        assert_eq!(
            own.len() as u64 + told,
            span,
            "{missed}: each is stored or told: {one}"
        );
        if missed == "all" {
            assert!(told <= 3600 - 90, "{told}");
        }
        (ticked, left) = (ticked + own.len() as u64, left + told);
    }
    world.drain().await;
    torture::Report::default()
        .fault(kills, "worker kills")
        .fault(servers, "server kills")
        .fault(1, "steps of the clock")
        .event(ticked, "ticks stored once")
        .event(left, "ticks left out and told")
        .tell("schedules");
}
