//! How a worker leaves: what runs is finished, what it only read ahead or could not finish is another one's.

use crate::rig::{Rig, Running};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

async fn nap(_: Context, ms: u64) -> Result<u64, HandlerError> {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    Ok(ms)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_worker_finishes_what_runs_and_leaves_nothing_behind() {
    let rig = Rig::new().await;
    let mut settings = rig.settings();
    settings.id = "leaver".into();
    let started = Arc::new(AtomicU32::new(0));
    let counted = started.clone();
    let counted_nap = move |context: Context, ms: u64| {
        counted.fetch_add(1, Ordering::SeqCst);
        nap(context, ms)
    };
    let worker = rig.start(
        Worker::builder()
            .settings(settings)
            .handler("text.nap", counted_nap),
    );
    rig.ask("text.nap", &1).await.unwrap();
    for n in 0..10 {
        rig.client
            .publish(&Outgoing::new("text.nap", &500).id(format!("e-{n}")))
            .await
            .unwrap();
    }
    // What was read and not started would be left to others.
    until("they run", || async {
        started.load(Ordering::SeqCst) == 11
    })
    .await;
    worker.stop().await;
    assert_eq!(rig.entries("cb:results:text").await.len(), 10);
    assert_eq!(rig.pending("cb:events:text").await, 0);
    let mut connection = rig.connection.clone();
    let consumers: Vec<redis::Value> = redis::cmd("XINFO")
        .arg("CONSUMERS")
        .arg("cb:events:text")
        .arg("workers")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert!(consumers.is_empty());
    let left: Vec<String> = redis::cmd("KEYS")
        .arg("*leaver*")
        .query_async(&mut connection)
        .await
        .unwrap();
    for key in left {
        let ttl: i64 = redis::cmd("PTTL")
            .arg(&key)
            .query_async(&mut connection)
            .await
            .unwrap();
        assert!(ttl > 0, "{key} lives for ever");
    }
}

/// A worker that runs one event at a time and has read more ahead; what it ran, and how to let it go on.
async fn one_ahead(rig: &Rig, id: &str) -> (Running, Arc<AtomicU32>, Arc<Semaphore>) {
    let (runs, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
    let worker = rig.start(gated(rig, id, &runs, &gate));
    for _ in 0..5 {
        let event = Outgoing::new("text.gated", &());
        rig.client.publish(&event).await.unwrap();
    }
    until("one runs and more was read ahead", || async {
        runs.load(Ordering::SeqCst) == 1 && rig.pending("cb:events:text").await >= 2
    })
    .await;
    (worker, runs, gate)
}

fn gated(rig: &Rig, id: &str, runs: &Arc<AtomicU32>, gate: &Arc<Semaphore>) -> Builder {
    let mut settings = rig.settings();
    settings.id = id.into();
    settings.concurrency = 1;
    let (runs, gate) = (runs.clone(), gate.clone());
    let run = move |_: Context, (): ()| {
        runs.fetch_add(1, Ordering::SeqCst);
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Ok::<_, HandlerError>(())
        }
    };
    Worker::builder()
        .settings(settings)
        .handler("text.gated", run)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_last_worker_only_read_ahead_is_given_back() {
    let rig = Rig::new().await;
    let (worker, runs, gate) = one_ahead(&rig, "leaver").await;
    tokio::join!(worker.stop(), async { gate.add_permits(5) });
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(rig.pending("cb:events:text").await, 0);
    let heir = rig.start(gated(&rig, "heir", &runs, &gate));
    let results = rig.wait_for("cb:results:text", 5).await;
    heir.stop().await;
    let of_heir = results.iter().filter(|r| r.get("source") == Some(b"heir"));
    assert_eq!(of_heir.count(), 4);
    assert_eq!(runs.load(Ordering::SeqCst), 5);
    assert!(!rig.exists("cb:dead:text").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_flight_is_what_runs_and_the_load_is_tasks() {
    let rig = Rig::new().await;
    let (worker, _, gate) = one_ahead(&rig, "w-1").await;
    let ask = json!({ "detailed": true });
    let told = rig.ask("system.metrics", &ask).await.unwrap();
    let told: Value = told.decode().unwrap();
    // The request itself is the other one.
    assert_eq!(told["queue"]["in_flight"], 2);
    let before = rig.hash("cb:instance:w-1", "last_seen").await;
    until("it pulsed", || async {
        rig.hash("cb:instance:w-1", "last_seen").await != before
    })
    .await;
    assert_eq!(rig.hash("cb:instance:w-1", "load").await, "0");
    gate.add_permits(5);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_drained_worker_could_not_finish_is_taken_over_at_once() {
    let rig = Rig::new().await;
    let mut settings = rig.settings();
    settings.id = "leaver".into();
    settings.drain_timeout = Duration::from_millis(200);
    // Only the facts can be the reason for a takeover here.
    settings.claim_idle = Duration::from_secs(600);
    let mut heir = settings.clone();
    heir.id = "heir".into();
    async fn stuck_on_leaver(context: Context, (): ()) -> Result<String, HandlerError> {
        if context.instance() == "leaver" {
            context.cancellation().cancelled().await;
            std::future::pending::<()>().await;
        }
        Ok(context.instance().to_owned())
    }
    let policy = || Policy::new().no_timeout();
    let leaver = rig.start(Worker::builder().settings(settings).handler_with(
        "text.stuck",
        stuck_on_leaver,
        policy(),
    ));
    rig.client
        .publish(&Outgoing::new("text.stuck", &()))
        .await
        .unwrap();
    rig.wait_for_fact("instance.registered", 1).await;
    until("it runs", || async {
        rig.pending("cb:events:text").await == 1
    })
    .await;
    let heir = rig.start(Worker::builder().settings(heir).handler_with(
        "text.stuck",
        stuck_on_leaver,
        policy(),
    ));
    rig.wait_for_fact("instance.registered", 2).await;
    leaver.stop().await;
    let results = rig.wait_for("cb:results:text", 1).await;
    assert_eq!(results[0].get("source"), Some(&b"heir"[..]));
    heir.stop().await;
}
