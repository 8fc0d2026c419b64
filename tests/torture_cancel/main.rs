//! Events that are cancelled at random moments, while workers are killed.

#[path = "../support/mod.rs"]
mod support;

use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::protocol::event::Entry;
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::cancel::{Canceller, Fate, Name, Order, Standing};
use convoke::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use support::fleet::{self, Fleet};
use support::{Redis, signal, torture, until, users};

/// Events that are published before they are cancelled.
const AT_A_TIME: u64 = 20;
/// Calls that cancel at a time.
const CALLS: usize = 4;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Work {
    n: u64,
    /// How long it takes; 0 is ready at once.
    ms: u64,
    /// Tries that fail before.
    fails: u32,
}

/// Takes a moment, fails a few times, and has an effect that is committed with it. It does not listen.
async fn work(context: Context, work: Work) -> Result<u64, HandlerError> {
    if work.ms > 0 {
        tokio::time::sleep(Duration::from_millis(work.ms)).await;
    }
    context.publish("effect.made", &work.n)?;
    if context.event().attempt() <= work.fails {
        return Err(HandlerError::unavailable("once more"));
    }
    Ok(work.n)
}

#[test]
fn a_worker_process() {
    fleet::worker_process(|worker| worker.handler("load.work", work));
}

fn id(n: u64) -> String {
    format!("e-{n}")
}

/// Event `n`: some are ready at once, some take long, some fail, some come later.
fn event(n: u64, dice: &mut fastrand::Rng) -> Outgoing {
    let ms = [0, 0, 5, 30, 200][dice.usize(..5)];
    let fails = [0, 0, 0, 1, 2][dice.usize(..5)];
    let event = Outgoing::new("load.work", &Work { n, ms, fails })
        .id(id(n))
        .reply_to("cb:reply:torture");
    match dice.u8(..4) {
        0 => event.delay(Duration::from_millis(dice.u64(1..300))),
        _ => event,
    }
}

fn text(entry: &Entry, name: &str) -> String {
    String::from_utf8_lossy(entry.get(name).unwrap_or_default()).into_owned()
}

/// What requesters were told, by event: the statuses of its replies.
async fn replies(redis: &Redis) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    fleet::each_entry(redis, "cb:reply:torture", |entry| {
        let told = all.entry(text(entry, "correlationid")).or_default();
        told.push(text(entry, "status"));
    })
    .await;
    all
}

/// How often each event took effect.
async fn effects(redis: &Redis) -> HashMap<String, u32> {
    let mut all = HashMap::new();
    fleet::each_entry(redis, "cb:events:effect", |entry| {
        let n: u64 = rmp_serde::from_slice(entry.get("data").unwrap()).unwrap();
        *all.entry(id(n)).or_default() += 1;
    })
    .await;
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_finished_or_cancelled_never_both_and_never_neither() {
    let events = torture::size("TORTURE_CANCELLED", 200, 1000);
    let kills = torture::size("TORTURE_CANCEL_KILLS", 5, 20);
    fastrand::seed(torture::seed());
    let mut dice = torture::dice("cancel");
    let redis = Redis::start();
    let mut fleet = Fleet::start(&redis, 3);
    // Before, nothing runs that could be cancelled.
    let connection = redis.connection().await;
    until("the workers are there", async || {
        let mut alive = redis::cmd("ZCARD");
        alive.arg("cb:instances:active");
        let alive: usize = alive.query_async(&mut connection.clone()).await.unwrap();
        alive == fleet.len()
    })
    .await;
    let client = fleet::client(&redis);
    let url = RedisUrl::new(redis.url_for(users::OPERATOR));
    let connector = Connector::new(&url, CALLS).unwrap();
    let canceller = Canceller::new(connector, client.keys().clone(), &Settings::default());
    let mut called: BTreeMap<String, (Standing, bool)> = BTreeMap::new();
    let (mut published, mut killed, mut round) = (0, 0, 0);
    while published < events {
        // Now and then nobody reads, so that some wait for sure.
        round += 1;
        let stopped = round % 4 == 0;
        for index in (0..fleet.len()).filter(|_| stopped) {
            signal(fleet.pid(index), "STOP");
        }
        let mut some: Vec<u64> = Vec::new();
        while (some.len() as u64) < AT_A_TIME && published < events {
            client.publish(&event(published, &mut dice)).await.unwrap();
            some.push(published);
            published += 1;
        }
        // Each after a moment of its own: some wait by then, run, have failed, or have ended.
        let calls = some.into_iter().map(|n| {
            let (canceller, wait) = (canceller.clone(), dice.u64(..250));
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait)).await;
                let (names, order) = ([Name::Id(id(n))], order());
                let fate = canceller.cancel("load", &names, &order, usize::MAX);
                let mut fates: Vec<Fate> = fate.await.unwrap();
                (id(n), fates.pop().unwrap())
            })
        });
        let calls: Vec<_> = calls.collect();
        if killed * events < kills * published {
            tokio::time::sleep(Duration::from_millis(dice.u64(..150))).await;
            fleet.kill(dice.usize(..fleet.len()), dice.bool());
            killed += 1;
        }
        for call in calls {
            let (id, fate) = call.await.unwrap();
            called.insert(id, (fate.state, fate.cancelled));
        }
        // Whoever was killed has another one in its place by now.
        for index in (0..fleet.len()).filter(|_| stopped) {
            signal(fleet.pid(index), "CONT");
        }
    }
    until("everything has ended", async || {
        let mut connection = redis.connection().await;
        let mut delayed = redis::cmd("ZCARD");
        delayed.arg("cb:delayed:load");
        let delayed: u64 = delayed.query_async(&mut connection).await.unwrap();
        let told = replies(&redis).await;
        let all = (0..events).all(|n| told.contains_key(&id(n)));
        delayed == 0 && all && fleet::pending(&redis, "cb:events:load").await == 0
    })
    .await;
    let (replies, effects) = (replies(&redis).await, effects(&redis).await);
    let mut wrong = BTreeSet::new();
    let mut counts: BTreeMap<(&str, bool), u64> = BTreeMap::new();
    for n in 0..events {
        let id = id(n);
        let (state, cancelled) = called[&id];
        *counts.entry((state.as_str(), cancelled)).or_default() += 1;
        let told: Vec<&str> = replies[&id].iter().map(String::as_str).collect();
        let took_effect = effects.get(&id).copied().unwrap_or(0);
        let right = match cancelled {
            true => told == ["cancelled"] && took_effect == 0,
            false => told == ["ok"] && took_effect == 1,
        };
        if !right {
            wrong.insert(format!(
                "{id}: {state:?} {cancelled}; told {told:?}; {took_effect} effects"
            ));
        }
    }
    assert!(wrong.is_empty(), "seed {}: {wrong:#?}", torture::seed());
    let of = |state: &str| counts.get(&(state, true)).copied().unwrap_or(0);
    let cancelled: u64 = ["waiting", "delayed", "running"].map(of).iter().sum();
    for state in ["waiting", "delayed", "running"] {
        assert!(of(state) > 0, "none was {state}: {counts:?}");
    }
    assert!(cancelled < events, "none came too late: {counts:?}");
    fleet.drain();
    torture::Report::default()
        .fault(killed, "workers killed")
        .event(cancelled, "events cancelled")
        .event(of("waiting"), "of them waiting")
        .event(of("delayed"), "of them delayed")
        .event(of("running"), "of them running")
        .event(events - cancelled, "events finished before")
        .tell("cancel");
}

fn order() -> Order {
    Order {
        by: "torture".into(),
        reason: "a test".into(),
        keep: false,
    }
}
