//! A publisher with the shipped user that does its worst, while honest work goes on.

use crate::attacks;
use crate::history;
use crate::load::{self, Load};
use crate::outcomes::{self, Except, Problems};
use crate::support::{Redis, torture, users};
use crate::world::{World, settings};
use crate::{facts, hygiene};
use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::coordination::ballots::MAX_OPEN;
use convoke::settings::Settings;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const WORKERS: usize = 4;
/// Honest events a second.
const HONEST: u64 = 100;
/// Keys of one family that are there at the most.
const KEYS: usize = 4000;
/// Memory of a worker at the most, in KiB.
const RESIDENT: u64 = 256 * 1024;

/// How long an instance lives without a pulse: a sixth of the default, or a half where other tests have the machine as
/// well, and one that gets no time for a moment is suspect.
fn lease() -> Duration {
    Duration::from_secs(if torture::is_full() { 5 } else { 15 })
}

/// Sends this many commands a second; how many it sent, and how many the server refused.
async fn attack(
    mut connection: MultiplexedConnection,
    rate: u64,
    stop: CancellationToken,
) -> (u64, u64) {
    let mut dice = torture::dice("attacks");
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let (mut sent, mut due, mut refused) = (0, 0, 0);
    while !stop.is_cancelled() {
        ticks.tick().await;
        due += rate;
        while due >= 100 {
            due -= 100;
            let command = attacks::draw(&mut dice, sent);
            let outcome = command.exec_async(&mut connection).await;
            refused += u64::from(outcome.is_err());
            sent += 1;
        }
    }
    (sent, refused)
}

/// Whether `health` says healthy; asked as a service asks.
async fn health(client: &Client) -> Result<String, String> {
    let event = Outgoing::new("system.health", &serde_json::json!({}));
    let reply = client.request(event, Duration::from_secs(10)).await;
    let reply = reply.map_err(|error| error.to_string())?;
    let value: serde_json::Value =
        rmp_serde::from_slice(&reply.data).map_err(|error| error.to_string())?;
    Ok(value["status"].as_str().unwrap_or_default().to_owned())
}

/// Checks that each honest event that was to run at once began within a lease; the longest that one waited.
/// At the gate's size other tests share the machine, and nothing is measured.
fn in_time(world: &World, events: &[u64], problems: &mut Problems) -> Duration {
    let records = history::all(&world.dir);
    let mut published: HashMap<&str, u64> = HashMap::new();
    let mut begun: HashMap<&str, u64> = HashMap::new();
    for record in &records {
        let when = match (record.op.as_str(), record.phase.as_str()) {
            ("publish", "ok") => published.entry(&record.id).or_insert(record.ns),
            ("run", "invoke") => begun.entry(&record.id).or_insert(record.ns),
            _ => continue,
        };
        *when = record.ns.min(*when);
    }
    let mut longest = 0;
    for id in events
        .iter()
        .filter(|n| !load::is_delayed(**n))
        .map(|n| load::id(*n))
    {
        let (Some(published), Some(begun)) = (published.get(&*id), begun.get(&*id)) else {
            continue;
        };
        let waited = begun.saturating_sub(*published);
        longest = longest.max(waited);
        if torture::is_full() && u128::from(waited) > lease().as_nanos() {
            problems.found(format!(
                "{id} began {} ms after it was stored",
                waited / 1_000_000
            ));
        }
    }
    Duration::from_nanos(longest)
}

/// Checks that what workers make of the attacks is bounded: keys of each family.
async fn bounded(world: &World, published: usize, seconds: u64, problems: &mut Problems) -> usize {
    let mut connection = world.redis.connection().await;
    let keys: Vec<String> = connection.keys("*").await.unwrap();
    let mut families: HashMap<String, usize> = HashMap::new();
    for key in &keys {
        let family = key.split(':').take(2).collect::<Vec<_>>().join(":");
        *families.entry(family).or_default() += 1;
    }
    for (family, count) in families {
        let most = match family.as_str() {
            // Each honest event is remembered for the window.
            "cb:dedup" => KEYS + published,
            // That many may be open, each of a few keys, and as many more each time that those expire.
            "cb:ballot" => KEYS + 4 * MAX_OPEN * (1 + seconds as usize / 300),
            _ => KEYS,
        };
        if count > most {
            problems.found(format!("{count} keys of {family}"));
        }
    }
    keys.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_publisher_hurts_nobody() {
    let seconds = torture::size("TORTURE_HOSTILE_SECONDS", 10, 600);
    let rate = torture::size("TORTURE_HOSTILE_RATE", 300, 500);
    let settings = Settings {
        heartbeat_ttl: lease(),
        claim_idle: 2 * lease(),
        max_deliveries: 5,
        ..settings()
    };
    let mut world = World::begin("hostile", Redis::start(), WORKERS, settings).await;
    world.until_alive(WORKERS).await;
    let (client, _wire) = world.client().await;
    let load = Load::start(client.clone(), world.history.clone(), HONEST);
    let stop = CancellationToken::new();
    let connection = world.redis.connection_for(users::PUBLISHER).await;
    let attacking = tokio::spawn(attack(connection, rate, stop.clone()));
    let mut problems = Problems::default();
    let (mut asked, mut most) = (0, 0);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1)).await;
        asked += 1;
        match health(&client).await {
            Ok(status) if status == "healthy" => {}
            other => problems.found(format!("health after {asked} s: {other:?}")),
        }
        for process in &mut world.workers {
            most = most.max(process.resident().unwrap_or(0));
            if let Some(status) = process.has_ended() {
                problems.found(format!("{} ended with {status}", process.id));
                process.start();
            }
        }
    }
    stop.cancel();
    let (sent, refused) = attacking.await.unwrap();
    let events = load.stop().await;
    if most > RESIDENT {
        problems.found(format!("a worker had {most} KiB"));
    }
    let others = |id: &str| !id.starts_with("e-");
    let except = Except {
        others: &others,
        ..Except::default()
    };
    let counts = outcomes::check_but(&world, &events, except).await;
    let longest = in_time(&world, &events, &mut problems);
    let keys = bounded(&world, events.len(), seconds, &mut problems).await;
    for lost in facts::lost(&world).await {
        if lost.starts_with("w-") {
            problems.found(format!("{lost} lives and was declared lost"));
        }
    }
    problems.none();
    attacks::take_back(&world.redis).await;
    let left = hygiene::check(&world).await;
    world.drain().await;
    counts
        .tell(torture::Report::default())
        .fault(sent, "hostile commands")
        .fault(refused, "of them refused by the server")
        .event(asked, "looks at health, all healthy")
        .note(format!(
            "hostile: an honest event waited {} ms at the most; a worker had {most} KiB at the most; {keys} keys in the end, {} without a time to live",
            longest.as_millis(),
            left.lasting
        ))
        .tell("hostile");
}
