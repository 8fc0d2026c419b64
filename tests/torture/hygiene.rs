//! What may be left behind: keys without a time to live, consumers, pending entries, lines of log.

use crate::outcomes::Problems;
use crate::support::{Redis, until};
use crate::world::World;
use redis::AsyncCommands;
use std::collections::HashMap;

/// Lines that a worker may log in ten seconds, in whatever outage.
const LINES: usize = 100;
/// Consumers beside those of workers that are alive.
const CONSUMERS: usize = 10;

/// Keys that live for good: each is bounded by something else than time.
const LASTING: [&str; 21] = [
    "cb:events:",
    "cb:results:",
    "cb:dead:",
    "cb:delayed:",
    "cb:inbox:",
    "cb:broadcast",
    "cb:instances:",
    "cb:instance:",
    "cb:role:",
    "cb:leader",
    "cb:capabilities",
    "cb:metrics",
    "cb:domains",
    "cb:partition",
    "cb:state",
    "cb:claims:",
    "cb:tasks",
    "cb:batches",
    "cb:ballots",
    "cb:patterns",
    "cb:pulses",
];

/// What was found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Left {
    /// Keys without a time to live.
    pub(crate) lasting: usize,
    pub(crate) consumers: usize,
    /// The most lines that a worker logged in ten seconds.
    pub(crate) lines: usize,
}

/// Looks, while the workers still run and the load has settled.
pub(crate) async fn check(world: &World) -> Left {
    let mut problems = Problems::default();
    let mut left = Left::default();
    let mut connection = world.redis.connection().await;
    let keys: Vec<String> = connection.keys("*").await.unwrap();
    for key in keys {
        let ttl: i64 = connection.pttl(&key).await.unwrap();
        if ttl == -1 {
            left.lasting += 1;
            if !LASTING.iter().any(|lasting| key.starts_with(lasting)) {
                problems.found(format!("{key} lives for good"));
            }
        }
    }
    let most = world.workers.len() + CONSUMERS;
    // Those that were killed last go when they are found lost.
    until("the consumers of the dead are gone", || async {
        consumers(&world.redis).await <= most
    })
    .await;
    left.consumers = consumers(&world.redis).await;
    for log in world.files("log.") {
        let text = std::fs::read_to_string(&log).unwrap();
        let lines = busiest(&text);
        left.lines = left.lines.max(lines);
        if lines > LINES {
            let log = log.display();
            problems.found(format!("{log}: {lines} lines within ten seconds"));
        }
    }
    problems.none();
    left
}

async fn consumers(redis: &Redis) -> usize {
    let consumers: Vec<HashMap<String, redis::Value>> = redis::cmd("XINFO")
        .arg(&["CONSUMERS", "cb:events:load", "workers"])
        .query_async(&mut redis.connection().await)
        .await
        .unwrap();
    consumers.len()
}

/// The most lines within the same ten seconds.
fn busiest(text: &str) -> usize {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for line in text.lines() {
        // 2026-01-02T03:04:05.678901Z: all but the last digit of the second.
        if let Some(time) = line.get(..18).filter(|time| time.contains('T')) {
            *counts.entry(time).or_default() += 1;
        }
    }
    counts.into_values().max().unwrap_or(0)
}
