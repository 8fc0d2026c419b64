//! Schedules under kills of workers and of the server, and under clocks that step: each tick has one event,
//! or is told as missed.

use crate::facts;
use crate::outcomes::Problems;
use crate::support::{Redis, torture, until, users};
use crate::world::{World, settings};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::event::EntryId;
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use convoke::streams::read::entries_of;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

const HOUR: i64 = 3600;
const STREAM: &str = "cb:events:tick";

/// A server that loses nothing when it is killed, and whose clock can be set.
fn server() -> Redis {
    let options = [
        "--save",
        "",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
    ];
    Redis::with(&options).clocked()
}

async fn put(world: &World, name: &str, cron: &str, missed: &str) {
    let url = RedisUrl::new(world.redis.url_for(users::OPERATOR));
    let connector = Connector::new(&url, 2).unwrap();
    let client = Client::new(
        connector,
        Keys::new("cb").unwrap(),
        ClientOptions::default(),
    );
    let client = client.unwrap();
    let data = json!({
        "name": name, "cron": cron, "time_zone": "Europe/Berlin", "type": "tick.made", "missed": missed,
    });
    // A request has a deadline, by a clock that may be months behind the server's.
    let event = Outgoing::new("system.schedule.put", &data).source("rig");
    client.publish(&event).await.unwrap();
    client.close().await;
    until("the schedule is there", || async {
        let facts = facts::since(world, EntryId::default()).await;
        let put = |fact: &facts::Fact| fact.kind == "schedule.changed" && fact.data["name"] == name;
        facts.iter().any(put)
    })
    .await;
}

/// The server's time, in Unix seconds.
async fn now(world: &World) -> i64 {
    let mut connection = world.redis.connection().await;
    let time: (i64, i64) = redis::cmd("TIME")
        .query_async(&mut connection)
        .await
        .unwrap();
    time.0
}

/// The ticks of a schedule that have an event, in Unix seconds, and how many each.
async fn stored(world: &World, name: &str) -> BTreeMap<i64, usize> {
    let mut connection = world.redis.connection().await;
    let mut range = redis::cmd("XRANGE");
    let reply = range.arg(&[STREAM, "-", "+"]).query_async(&mut connection);
    let entries = entries_of(reply.await.unwrap()).unwrap();
    let mut ticks = BTreeMap::new();
    for entry in entries {
        let id = String::from_utf8_lossy(entry.get("id").unwrap()).into_owned();
        if let Some((of, tick)) = id.split_once('@')
            && of == name
        {
            let tick: Timestamp = tick.parse().unwrap();
            *ticks.entry(tick.as_second()).or_default() += 1;
        }
    }
    ticks
}

/// From and to which tick nothing was stored, as told.
async fn missed(world: &World, name: &str) -> Vec<RangeInclusive<i64>> {
    let facts = facts::since(world, EntryId::default()).await.into_iter();
    let of = facts.filter(|fact| fact.kind == "schedule.missed" && fact.data["name"] == name);
    let second = |value: &Value| match value {
        Value::String(text) => text.parse::<Timestamp>().unwrap().as_second(),
        value => value.as_i64().unwrap() / 1000,
    };
    of.map(|fact| second(&fact.data["first"])..=second(&fact.data["last"]))
        .collect()
}

/// Checks that each tick of every second has one event, or is told as missed; how many have an event.
async fn account(world: &World, name: &str, problems: &mut Problems) -> (u64, u64) {
    let (stored, missed) = (stored(world, name).await, missed(world, name).await);
    let (first, last) = (
        *stored.keys().next().unwrap(),
        *stored.keys().last().unwrap(),
    );
    let mut left_out = 0;
    for tick in first..=last {
        let told = missed.iter().filter(|range| range.contains(&tick)).count();
        let made = stored.get(&tick).copied().unwrap_or_default();
        if made + told != 1 {
            problems.found(format!(
                "{name}@{tick}: {made} events, told {told} times as missed"
            ));
        }
        left_out += told as u64;
    }
    (stored.len() as u64, left_out)
}

async fn until_stored(world: &World, name: &str, tick: i64) {
    until("the ticks are stored", || async {
        let stored = stored(world, name).await;
        stored.keys().last().is_some_and(|last| *last >= tick)
    })
    .await;
}

/// Kills a worker, and starts it again after a moment.
async fn kill_one(world: &mut World, dice: &mut fastrand::Rng) {
    let at = dice.usize(..world.workers.len());
    world.workers[at].kill();
    tokio::time::sleep(Duration::from_millis(dice.u64(0..500))).await;
    world.workers[at].start();
    let (id, started) = (&world.workers[at].id, world.workers[at].started as usize);
    until("it is there again", || async {
        let facts = facts::since(world, EntryId::default()).await.into_iter();
        let own =
            facts.filter(|fact| fact.kind == "instance.registered" && fact.data["id"] == **id);
        own.count() >= started
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tick_has_one_event_whoever_dies_and_however_the_clock_steps() {
    let seconds = torture::size("TORTURE_SCHEDULE_SECONDS", 15, 600);
    let kills = torture::size("TORTURE_SCHEDULE_KILLS", 4, 30);
    let outages = torture::size("TORTURE_SCHEDULE_SERVER_KILLS", 1, 5);
    let mut world = World::begin("schedules", server(), 3, settings()).await;
    world.until_alive(3).await;
    put(&world, "all", "* * * * * *", "all").await;
    put(&world, "once", "* * * * * *", "once").await;
    let mut dice = torture::dice("schedules");
    let mut faults: Vec<(u64, bool)> = (0..kills + outages)
        .map(|number| (dice.u64(0..seconds * 1000), number < outages))
        .collect();
    faults.sort_unstable();
    let (began, half) = (std::time::Instant::now(), seconds * 500);
    let mut stepped = false;
    for (at, server) in faults {
        if !stepped && at > half {
            stepped = true;
            world.redis.step_clock(HOUR).await;
        }
        let wait = Duration::from_millis(at).saturating_sub(began.elapsed());
        tokio::time::sleep(wait).await;
        if server {
            world.history.note("fault", "ok", "server", "", "KILL");
            world.redis.kill();
            tokio::time::sleep(Duration::from_millis(dice.u64(0..3000))).await;
            world.redis.restart();
        } else {
            kill_one(&mut world, &mut dice).await;
        }
    }
    if !stepped {
        world.redis.step_clock(HOUR).await;
    }
    world.until_alive(3).await;
    let end = now(&world).await;
    let mut problems = Problems::default();
    let mut counts = Vec::new();
    for name in ["all", "once"] {
        until_stored(&world, name, end).await;
        counts.push(account(&world, name, &mut problems).await);
    }
    // An hour back, no tick comes again.
    world.redis.step_clock(0).await;
    let before = now(&world).await;
    until("some seconds have passed", || async {
        now(&world).await >= before + 3
    })
    .await;
    let last = end + 60;
    for name in ["all", "once"] {
        account(&world, name, &mut problems).await;
        if let Some(late) = stored(&world, name).await.keys().find(|tick| **tick > last) {
            problems.found(format!(
                "{name}@{late} is stored after the clock stepped back"
            ));
        }
    }
    problems.none();
    world.drain().await;
    torture::Report::default()
        .fault(kills, "worker kills beside schedules")
        .fault(outages, "server kills beside schedules")
        .fault(2, "steps of the clock by an hour")
        .event(counts.iter().map(|one| one.0).sum(), "ticks stored once")
        .event(counts.iter().map(|one| one.1).sum(), "told as missed")
        .tell("schedules");
}

/// The night in which summer time begins, or ends: one expression that ticks each half hour, and one of a
/// time of day that the night does not have, or has twice.
async fn a_night(scenario: &'static str, evening: &str, tick: &str) -> (u64, u64) {
    const HOURS: i64 = 4;
    const STEP: i64 = 600;
    let evening: Timestamp = evening.parse().unwrap();
    let tick: Timestamp = tick.parse().unwrap();
    let mut world = World::begin(scenario, server(), 0, settings()).await;
    let ahead = evening.as_second() - Timestamp::now().as_second();
    world.redis.step_clock(ahead).await;
    world.start_with_handlers(3).await;
    put(&world, "half", "*/30 * * * *", "all").await;
    put(&world, "nightly", "30 2 * * *", "all").await;
    let mut dice = torture::dice(scenario);
    let mut kills = 0;
    for step in 1..=HOURS * HOUR / STEP {
        world.redis.step_clock(ahead + step * STEP).await;
        if step % 4 == 0 {
            kill_one(&mut world, &mut dice).await;
            kills += 1;
        }
    }
    let first = (evening.as_second() / 1800 + 1) * 1800;
    let end = (now(&world).await / 1800) * 1800;
    until_stored(&world, "half", end).await;
    let half = stored(&world, "half").await;
    let ticks: Vec<(i64, usize)> = (first..=end).step_by(1800).map(|tick| (tick, 1)).collect();
    assert_eq!(half.into_iter().collect::<Vec<_>>(), ticks);
    let nightly = stored(&world, "nightly").await;
    assert_eq!(
        nightly.into_iter().collect::<Vec<_>>(),
        [(tick.as_second(), 1)]
    );
    world.until_alive(3).await;
    world.drain().await;
    (kills, ticks.len() as u64 + 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nights_of_summer_time_have_each_tick_once() {
    // Berlin goes from two to three at 01:00 UTC, and in autumn from three to two at 01:00 UTC.
    let spring = a_night("spring", "2027-03-27T23:40:00Z", "2027-03-28T01:00:00Z").await;
    let autumn = a_night("autumn", "2027-10-30T22:40:00Z", "2027-10-31T00:30:00Z").await;
    torture::Report::default()
        .fault(spring.0 + autumn.0, "worker kills beside schedules")
        .event(spring.1 + autumn.1, "ticks stored once")
        .tell("schedules");
}
