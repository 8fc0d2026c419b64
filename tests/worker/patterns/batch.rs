//! Batches in each pattern of `system.batch.process`.

use super::{ask, choose_for, facts};
use crate::batches::{Runs, adding, batch, batches, ids, process, until_done};
use crate::rig::{Rig, Running};
use crate::support::{until, users};
use convoke::client::publish::Outgoing;
use convoke::coordination::batches::batch::BatchStatus;
use convoke::protocol::pattern::{Pattern, Patterned};
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn short(rig: &Rig, id: &str, pattern: Pattern) -> Settings {
    let mut settings = rig.settings();
    settings.id = id.into();
    settings.heartbeat_ttl = Duration::from_secs(3);
    settings.patterns.batch = pattern;
    settings
}

/// Two workers that answer so, whose items take so long.
fn two(rig: &Rig, pattern: Pattern, ms: u64, runs: &Runs) -> Vec<(&'static str, Running)> {
    let start = |id| {
        let builder: Builder = adding(rig, id, ms, runs);
        let mut settings = short(rig, id, pattern);
        // Whoever leads lives, however slow the machine is; who is ended tells that he has left.
        settings.heartbeat_ttl = Duration::from_secs(20);
        (id, rig.start(builder.settings(settings)))
    };
    ["w-1", "w-2"].map(start).into()
}

async fn leader(rig: &Rig, among: usize) -> String {
    until("all are there, and one leads", || async {
        let health = ask(&rig.client, "system.health", json!({})).await;
        health["instances"]["healthy"] == among && rig.exists("cb:leader").await
    })
    .await;
    rig.hash("cb:leader", "id").await
}

async fn effects(rig: &Rig, count: usize) -> BTreeSet<u64> {
    let made = rig.wait_for("cb:events:effect", count).await;
    assert_eq!(made.len(), count, "an effect was doubled");
    let numbers = made
        .iter()
        .map(|made| rmp_serde::from_slice(made.get("data").unwrap()));
    numbers.map(|number| number.unwrap()).collect()
}

async fn completed(rig: &Rig, count: usize) -> Vec<Value> {
    let told = facts(rig.wait_for_fact("batch.completed", count).await);
    assert_eq!(told.len(), count, "{told:?}");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_the_same_answer_and_the_same_effects_in_each_pattern() {
    let mut all: Vec<Value> = Vec::new();
    for pattern in Patterned::Batch.built().iter().copied() {
        for mode in ["exclusive", "fan_out"] {
            let rig = Rig::new().await;
            let runs = Runs::default();
            let workers = two(&rig, pattern, 0, &runs);
            leader(&rig, 2).await;
            // Whoever reads it.
            for name in ["b-1", "b-2", "b-3", "b-4"] {
                let wanted = batch(name, mode, 0..100);
                let mut told = process(&rig, &wanted).await;
                assert_eq!(process(&rig, &wanted).await, told, "again");
                let told = told.as_object_mut().unwrap();
                assert!(told.remove("fence").unwrap().as_u64() > Some(1_700_000_000_000_000));
                told.remove("processor_id").unwrap();
                all.push(Value::Object(told.clone()));
            }
            assert_eq!(effects(&rig, 4 * 99).await.len(), 99);
            assert_eq!(ids(&runs).len(), 400);
            let told = completed(&rig, 4).await;
            assert!(told.iter().all(|told| told["items_processed"] == 99));
            for (_, worker) in workers {
                worker.stop().await;
            }
        }
    }
    let expected = json!({
        "processed": true, "items_processed": 99, "items_failed": 1, "total": 100, "status": "completed",
        "failures": [{"index": 13, "code": "not_found", "message": "no 13"}],
    });
    assert!(all.iter().all(|told| *told == expected), "{all:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_holds_all_batches_whoever_reads_their_events() {
    let rig = Rig::new().await;
    let runs = Runs::default();
    let start = |id| {
        let mut settings = short(&rig, id, Pattern::Centralized);
        // Whoever leads lives, however slow the machine is.
        settings.heartbeat_ttl = Duration::from_secs(20);
        rig.start(adding(&rig, id, 0, &runs).settings(settings))
    };
    let workers = ["w-1", "w-2"].map(start);
    let mut leads = leader(&rig, 2).await;
    let mut asked = 0;
    // Until the other one has read some.
    while rig.keys("cb:handed:*").await.is_empty() {
        assert!(asked < 400, "the other one reads nothing");
        let some = (asked..asked + 8).map(|number| {
            let mode = ["exclusive", "fan_out"][number % 2];
            batch(&format!("b-{number}"), mode, 20..30)
        });
        let some: Vec<Value> = some.collect();
        let told = join_all(some.iter().map(|wanted| process(&rig, wanted))).await;
        // Another one may lead since they were asked for, where the machine is slow.
        let before = std::mem::replace(&mut leads, leader(&rig, 2).await);
        for told in told {
            assert_eq!(told["items_processed"], 10);
            let holder = told["processor_id"].as_str().unwrap();
            assert!([&before, &leads].contains(&&holder.to_owned()), "{told}");
        }
        asked += 8;
    }
    completed(&rig, asked).await;
    for key in rig.keys("cb:handed:*").await {
        let kept = rig.run(&format!("PTTL {key}")).await;
        let kept: i64 = redis::from_redis_value(kept).unwrap();
        assert!((1..=300_000).contains(&kept), "{key}: {kept} ms");
    }
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_handler_for_the_items_leaves_an_exclusive_batch_to_who_has_one() {
    let rig = Rig::new().await;
    let without = Worker::builder().settings(short(&rig, "w-1", Pattern::Centralized));
    let without = rig.start(without);
    assert_eq!(leader(&rig, 1).await, "w-1");
    let runs = Runs::default();
    let settings = short(&rig, "w-2", Pattern::Centralized);
    let with = rig.start(adding(&rig, "w-2", 0, &runs).settings(settings));
    leader(&rig, 2).await;
    for asked in 0..10 {
        let told = process(&rig, &batch(&format!("b-{asked}"), "exclusive", 20..30)).await;
        assert_eq!(told["items_processed"], 10);
        assert_eq!(told["processor_id"], "w-2");
    }
    // Whoever cannot run them hands them on, and gets none back.
    for key in rig.keys("cb:handed:*").await {
        let times = rig.run(&format!("GET {key}")).await;
        let times: u8 = redis::from_redis_value(times).unwrap();
        assert_eq!(times, 1, "{key}");
    }
    without.stop().await;
    with.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_leader_held_when_it_died_is_gone_on_with_under_a_higher_fence() {
    for mode in ["exclusive", "fan_out"] {
        let rig = Rig::new().await;
        let runs = Runs::default();
        // Long enough that the batch is not over before the leader is.
        let ms = if mode == "exclusive" { 20 } else { 200 };
        let mut workers = two(&rig, Pattern::Centralized, ms, &runs);
        let leads = leader(&rig, 2).await;
        let wanted = Outgoing::new("system.batch.process", &batch("b-1", mode, 100..250));
        rig.client.publish(&wanted).await.unwrap();
        let held = until_done(&rig, "b-1", 1).await;
        assert_eq!(held.processor_id, leads, "{mode}");
        let place = workers.iter().position(|(id, _)| *id == held.processor_id);
        workers.remove(place.unwrap()).1.kill().await;
        let told = &completed(&rig, 1).await[0];
        assert_eq!(told["items_processed"], 150, "{mode}");
        assert_eq!(told["processor_id"], workers[0].0, "{mode}");
        assert!(told["fence"].as_u64() > Some(held.fence), "{mode}: {told}");
        assert_eq!(effects(&rig, 150).await.len(), 150, "{mode}");
        for (_, worker) in workers {
            worker.stop().await;
        }
    }
}

/// Whether a handler holds the thread of its worker: not yet, it does, no more.
static HOLDS: AtomicUsize = AtomicUsize::new(0);

/// Runs a worker with one thread, which a handler can hold.
fn on_one_thread(settings: Settings, drain: CancellationToken) -> std::thread::JoinHandle<()> {
    let hold = async |_: Context, _: u64| {
        HOLDS.store(1, Ordering::SeqCst);
        while HOLDS.load(Ordering::SeqCst) == 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok::<(), HandlerError>(())
    };
    let builder = Worker::builder().settings(settings);
    let worker = builder.handler("thread.hold", hold).build().unwrap();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(worker.run_until(drain)).unwrap();
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_handed_to_a_leader_whose_thread_is_held_is_with_another_one_after_a_while() {
    let rig = Rig::new().await;
    let drain = CancellationToken::new();
    let thread = on_one_thread(short(&rig, "w-0", Pattern::Centralized), drain.clone());
    assert_eq!(leader(&rig, 1).await, "w-0");
    let runs = Runs::default();
    let settings = short(&rig, "w-1", Pattern::Centralized);
    let other = rig.start(adding(&rig, "w-1", 0, &runs).settings(settings));
    leader(&rig, 2).await;
    let hold = Outgoing::new("thread.hold", &1u64);
    rig.client.publish(&hold).await.unwrap();
    until("it holds", || async { HOLDS.load(Ordering::SeqCst) == 1 }).await;
    for number in 0..4 {
        let wanted = batch(&format!("b-{number}"), "fan_out", 20..30);
        let event = Outgoing::new("system.batch.process", &wanted);
        rig.client.publish(&event).await.unwrap();
    }
    // The read that the leader had begun brings it one, which waits for it.
    let told = facts(rig.wait_for_fact("batch.completed", 3).await);
    assert_eq!(HOLDS.swap(2, Ordering::SeqCst), 1, "nobody waited for it");
    assert!(told.iter().all(|told| told["processor_id"] == "w-1"));
    assert!(rig.keys("cb:handed:*").await.len() >= 3);
    completed(&rig, 4).await;
    drain.cancel();
    other.stop().await;
    thread.join().unwrap();
}

/// Two workers whose items wait until the gate is open.
fn gated(rig: &Rig, gate: &watch::Sender<bool>) -> Vec<(&'static str, Running)> {
    let start = |id| {
        let gate = gate.subscribe();
        let add = move |context: Context, n: u64| {
            let mut gate = gate.clone();
            async move {
                gate.wait_for(|open| *open).await.ok();
                context.publish("effect.made", &n)?;
                Ok::<u64, HandlerError>(n)
            }
        };
        let builder = Worker::builder().settings(short(rig, id, Pattern::Distributed));
        (id, rig.start(builder.handler("number.add", add)))
    };
    ["w-1", "w-2"].map(start).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_nobody_holds_run_on_when_the_one_who_published_them_is_gone() {
    let rig = Rig::new().await;
    let gate = watch::Sender::new(false);
    let mut workers = gated(&rig, &gate);
    leader(&rig, 2).await;
    let asking = {
        let client = rig.client.clone();
        let wanted = batch("b-1", "fan_out", 100..400);
        tokio::spawn(async move { ask(&client, "system.batch.process", wanted).await })
    };
    // All are on the stream, though none has run.
    rig.wait_for("cb:events:number", 300).await;
    let found = batches(&rig).find("b-1").await.unwrap().unwrap();
    assert_eq!(found.status, BatchStatus::Running);
    let place = workers.iter().position(|(id, _)| *id == found.processor_id);
    let leaving = workers.remove(place.unwrap()).1;
    let leaving = tokio::spawn(leaving.stop());
    until("the other one goes on with it", || async {
        let now = batches(&rig).find("b-1").await.unwrap().unwrap();
        now.processor_id == workers[0].0
    })
    .await;
    gate.send_replace(true);
    leaving.await.unwrap();
    let told = asking.await.unwrap();
    assert_eq!(
        (&told["processed"], &told["items_processed"]),
        (&json!(true), &json!(300))
    );
    assert_eq!(told["fence"], found.fence, "nobody took it from anybody");
    assert_eq!(effects(&rig, 300).await.len(), 300);
    completed(&rig, 1).await;
    for (_, worker) in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_its_circuit_refused_is_published_again_under_a_name_that_all_know() {
    let rig = Rig::new().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let flaky = move |_: Context, n: u64| {
        let counted = counted.clone();
        async move {
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => Err(HandlerError::internal("broken").permanent()),
                _ => Ok(n),
            }
        }
    };
    let policy = Policy::new().circuit(1, Duration::from_secs(1));
    let builder = Worker::builder().settings(short(&rig, "w-1", Pattern::Distributed));
    let worker = rig.start(builder.handler_with("number.add", flaky, policy));
    let told = process(&rig, &batch("b-1", "fan_out", 0..3)).await;
    assert_eq!(
        (&told["items_processed"], &told["items_failed"]),
        (&json!(2), &json!(1))
    );
    let ids = rig.entries("cb:events:number").await;
    let ids: BTreeSet<String> = ids
        .iter()
        .map(|item| crate::rig::text(item, "id"))
        .collect();
    let again = ids.iter().filter(|id| id.ends_with("~1")).count();
    assert!(again > 0, "{ids:?}");
    choose_for(&rig, Patterned::Batch, Pattern::Hybrid).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_waits_for_its_next_try_when_it_is_looked_for_is_run_once() {
    let rig = Rig::new().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let busy = move |context: Context, n: u64| {
        let counted = counted.clone();
        async move {
            match counted.fetch_add(1, Ordering::SeqCst) {
                // Longer than an item is left alone, and not twice as long.
                0 => Err(HandlerError::later(Duration::from_secs(5), "busy")),
                _ => {
                    context.publish("effect.made", &n)?;
                    Ok(n)
                }
            }
        }
    };
    let mut settings = short(&rig, "w-1", Pattern::Distributed);
    // An item is looked for after 4 s.
    settings.handler_timeout = Duration::from_secs(1);
    settings.max_attempts = 1;
    settings.backoff_cap = Duration::from_secs(1);
    settings.claim_idle = Duration::from_secs(1);
    let builder = Worker::builder().settings(settings);
    let policy = Policy::new().attempts(3);
    let worker = rig.start(builder.handler_with("number.add", busy, policy));
    let told = process(&rig, &batch("b-1", "fan_out", [7])).await;
    assert_eq!(told["items_processed"], 1);
    assert_eq!(effects(&rig, 1).await.len(), 1);
    assert_eq!(calls.load(Ordering::SeqCst), 2, "it was published again");
    let ids = rig.entries("cb:events:number").await;
    let ids: BTreeSet<String> = ids.iter().map(|it| crate::rig::text(it, "id")).collect();
    assert_eq!(ids.len(), 1, "it was published again: {ids:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_while_items_wait_has_none_of_them_run_twice() {
    // One that does not say which history of its data it has may have forgotten them.
    if users::skip_without("INFO") {
        return;
    }
    for pattern in [Pattern::Distributed, Pattern::Hybrid] {
        let rig = Rig::new().await;
        let gate = watch::Sender::new(false);
        let open = gate.subscribe();
        let add = move |context: Context, n: u64| {
            let mut open = open.clone();
            async move {
                open.wait_for(|open| *open).await.ok();
                context.publish("effect.made", &n)?;
                Ok::<u64, HandlerError>(n)
            }
        };
        let mut settings = short(&rig, "w-1", pattern);
        // By then nobody remembers which items were published.
        settings.reply_ttl = Duration::from_secs(4);
        let builder = Worker::builder().settings(settings);
        let worker = rig.start(builder.handler("number.add", add));
        let wanted = batch("b-1", "fan_out", 100..120);
        let event = Outgoing::new("system.batch.process", &wanted);
        rig.client.publish(event).await.unwrap();
        rig.wait_for("cb:events:number", 20).await;
        until("the marks are gone", || async {
            rig.keys("cb:dedup:*").await.is_empty()
        })
        .await;
        rig.run("CLIENT KILL TYPE normal SKIPME yes").await;
        gate.send_replace(true);
        completed(&rig, 1).await;
        assert_eq!(rig.entries("cb:events:number").await.len(), 20);
        assert_eq!(effects(&rig, 20).await.len(), 20);
        worker.stop().await;
    }
}
