//! What a worker read and never began was not delivered; what killed one was.

use crate::rig::{Rig, text};
use crate::support::keys;
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::settings::{RedisUrl, Settings};
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const EVENTS: &str = "cb:events:film";
const KIND: &str = "film.cut";

/// Each run: the event, its delivery and its attempt.
type Runs = Arc<Mutex<Vec<(u64, u32, u32)>>>;

/// Only the worker `last` ends a run before it drains.
async fn cut(context: Context, n: u64) -> Result<(), HandlerError> {
    let runs = context.state::<Runs>()?;
    let run = (n, context.deliveries(), context.event().attempt());
    runs.lock().unwrap().push(run);
    if context.instance() != "last" {
        context.draining().cancelled().await;
    }
    Ok(())
}

fn settings(rig: &Rig, id: &str) -> Settings {
    Settings {
        id: id.into(),
        // Nothing is taken over but from who is gone.
        claim_idle: Duration::from_secs(600),
        ..rig.settings()
    }
}

fn worker(rig: &Rig, id: &str, runs: &Runs, policy: Policy) -> Builder {
    let builder = Worker::builder().settings(settings(rig, id));
    builder.state(runs.clone()).handler_with(KIND, cut, policy)
}

async fn publish(rig: &Rig, count: u64) {
    for n in 1..=count {
        let event = Outgoing::new(KIND, &n).subject("s");
        rig.client.publish(&event).await.unwrap();
    }
}

/// Who holds what, and its delivery count.
async fn pending(rig: &Rig) -> Vec<(String, u32)> {
    let rows: Vec<(String, String, u64, u32)> = redis::cmd("XPENDING")
        .arg(&[EVENTS, "workers", "-", "+", "100"])
        .query_async(&mut rig.connection.clone())
        .await
        // No group yet.
        .unwrap_or_default();
    rows.into_iter().map(|row| (row.1, row.3)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_waits_through_seven_restarts_is_as_new_as_it_was() {
    const EVENTS: usize = 12;
    const RESTARTS: usize = 7;
    let rig = Rig::new().await;
    let runs = Runs::default();
    publish(&rig, EVENTS as u64).await;
    for restart in 0..RESTARTS {
        let id = format!("w-{restart}");
        let running = rig.start(worker(&rig, &id, &runs, Policy::new().ordered()));
        until("one runs and the others are read", || async {
            let pending = pending(&rig).await;
            let held = pending.iter().filter(|(owner, _)| *owner == id).count();
            held == EVENTS - restart && runs.lock().unwrap().len() == restart + 1
        })
        .await;
        running.stop().await;
    }
    let last = rig.start(worker(&rig, "last", &runs, Policy::new().ordered()));
    rig.wait_for("cb:results:film", EVENTS).await;
    last.stop().await;
    assert!(rig.entries("cb:dead:film").await.is_empty());
    let runs = runs.lock().unwrap().clone();
    let as_new = (1..=EVENTS as u64).map(|n| (n, 1, 1));
    assert_eq!(runs, as_new.collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_and_not_begun_counts_as_not_delivered_and_what_ran_counts() {
    let rig = Rig::new().await;
    // Somebody else reads the stream as well, so nothing is given back.
    let connector = Connector::new(&RedisUrl::new(rig.redis.url()), 2).unwrap();
    let other = Instances::of_process(connector, keys(), "other");
    let mut registering = Registering::new("other", ["worker"]);
    registering.capabilities = vec![KIND.into()];
    registering.ttl_ms = 600_000;
    other.register(&registering).await.unwrap();
    other
        .reads("workers", "other", &registering.capabilities)
        .await
        .unwrap();
    publish(&rig, 10).await;
    let policies = [
        // What waits was read and not looked at, or is on its way through a gate.
        (Policy::new(), 2, 4, 2),
        (Policy::new().concurrency(2), 64, 10, 2),
        (Policy::new().ordered(), 64, 10, 1),
    ];
    for (policy, concurrency, reads, begun) in policies {
        let named = format!("{policy:?}");
        let settings = Settings {
            drain_timeout: Duration::from_millis(500),
            concurrency,
            ..settings(&rig, "w-1")
        };
        let began = Arc::new(AtomicUsize::new(0));
        let begins = began.clone();
        let stuck = move |_: Context, _: u64| {
            begins.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<Result<(), HandlerError>>()
        };
        let builder = Worker::builder().settings(settings);
        let running = rig.start(builder.handler_with(KIND, stuck, policy));
        until("some run and the others are read", || async {
            pending(&rig).await.len() >= reads && began.load(Ordering::SeqCst) == begun
        })
        .await;
        running.stop().await;
        let counts: Vec<u32> = pending(&rig).await.iter().map(|row| row.1).collect();
        let ran = (0..counts.len()).map(|at| u32::from(at < begun));
        assert_eq!(counts, ran.collect::<Vec<_>>(), "{named}");
        // The next one begins with a new stream.
        rig.run(&format!("XGROUP DESTROY {EVENTS} workers")).await;
        rig.run(&format!("XGROUP CREATE {EVENTS} workers 0")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_its_worker_each_time_is_poison() {
    let rig = Rig::new().await;
    let runs = Runs::default();
    publish(&rig, 1).await;
    for round in 1..=5 {
        let settings = Settings {
            drain_timeout: Duration::from_millis(100),
            ..settings(&rig, "w-1")
        };
        let log = runs.clone();
        let ends = move |context: Context, n: u64| {
            let run = (n, context.deliveries(), context.event().attempt());
            log.lock().unwrap().push(run);
            std::future::pending::<Result<(), HandlerError>>()
        };
        let worker = Worker::builder().settings(settings).handler(KIND, ends);
        let worker = worker.build().unwrap();
        let drain = CancellationToken::new();
        let running = tokio::spawn(worker.run_until(drain.clone()));
        until("it runs", || async { runs.lock().unwrap().len() == round }).await;
        match round % 2 {
            // It is killed; it is told to end, and the run does not.
            1 => running.abort(),
            _ => drain.cancel(),
        }
        running.await.ok();
    }
    let last = rig.start(worker(&rig, "w-1", &runs, Policy::new()));
    let dead = rig.wait_for("cb:dead:film", 1).await;
    last.stop().await;
    assert_eq!(text(&dead[0], "deadreason"), "poison");
    assert_eq!(text(&dead[0], "deaddeliveries"), "6");
    let deliveries: Vec<u32> = runs.lock().unwrap().iter().map(|run| run.1).collect();
    assert_eq!(deliveries, [1, 2, 3, 4, 5]);
}
