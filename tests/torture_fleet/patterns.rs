//! Health is asked for in each pattern while workers are killed and stopped.

use super::{Look, SLACK};
use crate::support::fleet::{self, Fleet, TTL};
use crate::support::signal;
use crate::support::torture::{Report, dice, size};
use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::protocol::pattern::{Pattern, Patterned};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const WORKERS: usize = 5;

/// What was answered.
#[derive(Default)]
struct Seen {
    answers: u64,
    put_together: u64,
    oldest_ms: u64,
}

/// Asks until told to stop. Whatever dies meanwhile, each request has an answer.
async fn keep_asking(client: Client, over: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        let event = Outgoing::new("system.health", &json!({}));
        let health: Value = match client.request(event, Duration::from_secs(60)).await {
            Ok(reply) => reply.decode().unwrap(),
            Err(error) => panic!("no answer: {error}"),
        };
        assert_eq!(health["services"]["redis"]["status"], "up", "{health}");
        let age = health["age_ms"].as_u64().unwrap();
        // A report lives as long as its instance does without a pulse, and so does what is made of it. Those who
        // look may be slow.
        assert!(age <= (2 * TTL + SLACK).as_millis() as u64, "{health}");
        seen.answers += 1;
        seen.put_together += u64::from(health.get("reports").is_some());
        seen.oldest_ms = seen.oldest_ms.max(age);
    }
    seen
}

/// The totals only rise, whoever dies and in whatever pattern they are asked for; those that a leader keeps are older
/// than those that are read, and only rise too.
async fn keep_counting(client: Client, over: Arc<AtomicBool>) -> u64 {
    let (mut answers, mut read, mut kept) = (0, 0, 0);
    while !over.load(Ordering::Relaxed) {
        let event = Outgoing::new("system.metrics", &json!({}));
        let told: Value = match client.request(event, Duration::from_secs(60)).await {
            Ok(reply) => reply.decode().unwrap(),
            Err(error) => panic!("no answer: {error}"),
        };
        let processed = told["events_processed"].as_u64().unwrap();
        let before = match told.get("merged_ms") {
            Some(_) => &mut kept,
            None => &mut read,
        };
        assert!(processed >= *before, "{processed}, was {before}: {told}");
        (answers, *before) = (answers + 1, processed);
    }
    answers
}

pub(super) async fn choose(client: &Client, event: Patterned, pattern: Pattern) {
    let data = json!({"event": event.as_str(), "pattern": pattern.as_str()});
    loop {
        let event = Outgoing::new("system.pattern.set", &data);
        match client.request(event, Duration::from_secs(60)).await {
            Ok(_) => return,
            Err(RequestError::Remote(error)) if error.retryable => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_health_has_an_answer_that_is_no_older_than_it_may_be() {
    let kills = size("TORTURE_PATTERN_KILLS", 9, 50);
    let stops = size("TORTURE_PATTERN_STOPS", 3, 20);
    let look = Look::new();
    let mut fleet = Fleet::start(&look.redis, WORKERS);
    look.all_are_there(WORKERS).await;
    let client = fleet::client(&look.redis);
    let (stop, over) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
    let load = tokio::spawn(fleet::publish_until(client.clone(), stop.clone()));
    let asking = tokio::spawn(keep_asking(client.clone(), over.clone()));
    let counting = tokio::spawn(keep_counting(client.clone(), over.clone()));
    let mut dice = dice("patterns");
    for fault in 0..kills + stops {
        for event in Patterned::ALL {
            let built = event.built();
            choose(&client, event, built[fault as usize % built.len()]).await;
        }
        // The leader as often as anybody.
        let place = match look.instances.leader().await.unwrap() {
            Some(leader) if dice.bool() => fleet.position(&leader),
            _ => None,
        };
        let place = place.unwrap_or_else(|| dice.usize(..fleet.len()));
        if fault % (kills + stops) < kills {
            fleet.kill(place, dice.bool());
        } else {
            signal(fleet.pid(place), "STOP");
            tokio::time::sleep(TTL.mul_f64(1.5)).await;
            signal(fleet.pid(place), "CONT");
        }
        // Long enough for a lease to end in some rounds, not in all.
        tokio::time::sleep(TTL.mul_f64(dice.f64())).await;
    }
    stop.cancel();
    let (events, _) = load.await.unwrap();
    over.store(true, Ordering::Relaxed);
    let seen = asking.await.unwrap();
    let counted = counting.await.unwrap();
    fleet::check(&look.redis, events).await;
    assert!(seen.answers > 0);
    let mut chosen = std::collections::HashMap::new();
    let told = look.facts().await.into_iter();
    for (_, _, told) in told.filter(|fact| fact.1 == "pattern.changed") {
        let before = chosen.insert(told["event"].to_string(), told["pattern"].clone());
        assert_eq!(told["before"], before.unwrap_or_else(|| json!("")));
    }
    Report::default()
        .fault(kills, "workers killed")
        .fault(stops, "workers stopped past their lease")
        .event(seen.answers, "answers of system.health")
        .event(counted, "answers of system.metrics")
        .event(events, "events, each with one effect")
        .note(format!(
            "{} answers were put together from reports, the oldest part {} ms old",
            seen.put_together, seen.oldest_ms
        ))
        .tell("patterns");
    fleet.drain();
}
