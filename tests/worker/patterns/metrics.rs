//! Metrics that the leader keeps.

use super::{ask, choose_for, count, metrics, worker};
use crate::rig::Rig;
use crate::support::until;
use convoke::Worker;
use convoke::client::publish::Outgoing;
use convoke::protocol::pattern::{Pattern, Patterned};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::time::Duration;

/// An answer that the leader put together, whichever worker gives it.
async fn kept(rig: &Rig, asked: Value) -> Value {
    let told = RefCell::new(Value::Null);
    until("all follow", || async {
        told.replace(ask(&rig.client, "system.metrics", asked.clone()).await);
        is_kept(&told.borrow())
    })
    .await;
    told.into_inner()
}

/// Whether the leader put that together.
fn is_kept(told: &Value) -> bool {
    told.get("merged_ms").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_the_leader_keeps_are_those_that_are_read_and_say_how_old_they_are() {
    const EVENTS: u64 = 60;
    let rig = Rig::new().await;
    let workers = ["w-1", "w-2"].map(|id| rig.start(worker(&rig, id).handler("load.work", count)));
    for number in 0..EVENTS {
        let event = Outgoing::new("load.work", &number);
        rig.client.publish(&event).await.unwrap();
    }
    until("all is counted", || async {
        metrics(&rig.client).await["handlers"]["load.work"]["calls"] == EVENTS
    })
    .await;
    choose_for(&rig, Patterned::Metrics, Pattern::Hybrid).await;
    until("the leader keeps all of it, and all follow", || async {
        let told = metrics(&rig.client).await;
        let all = told["handlers"]["load.work"]["calls"] == EVENTS && told["instances"] == 2;
        all && is_kept(&told)
    })
    .await;
    // What is asked for is told, and no more.
    let told = kept(&rig, json!({"detailed": true})).await;
    let whole = kept(&rig, json!({"detailed": true, "histograms": true})).await;
    let short = kept(&rig, json!({})).await;
    assert!(
        told["oldest_report_ms"].as_u64() >= told["merged_ms"].as_u64(),
        "{told}"
    );
    let latency = |told: &Value| told["handlers"]["load.work"].get("latency").is_some();
    assert_eq!((latency(&whole), latency(&told)), (true, false), "{told}");
    assert!(whole.get("latency").is_some() && told.get("latency").is_none());
    for part in ["handlers", "patterns", "queue", "scaling", "latency"] {
        assert_eq!(short.get(part), None, "{part}");
    }
    until(
        "they are kept for no longer than a time to live",
        async || {
            let mut kept = true;
            for key in rig.keys("cb:metrics:merged:*").await {
                let left = rig.run(&format!("PTTL {key}")).await;
                kept &= matches!(left, redis::Value::Int(1..=3_000));
            }
            kept && rig.keys("cb:metrics:merged:*").await.len() == 2
        },
    )
    .await;
    choose_for(&rig, Patterned::Metrics, Pattern::Centralized).await;
    until("all follow", || async {
        !is_kept(&metrics(&rig.client).await)
    })
    .await;
    let read = metrics(&rig.client).await;
    let same = ["events_failed", "tasks_completed", "instances"];
    for part in same {
        assert_eq!(read[part], whole[part], "{part}");
    }
    assert_eq!(read["handlers"]["load.work"]["calls"], EVENTS);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_nobody_keeps_are_put_together_by_whoever_is_asked() {
    let rig = Rig::new().await;
    let mut settings = rig.settings();
    settings.id = "w-1".into();
    settings.heartbeat_ttl = Duration::from_secs(1800);
    let worker = rig.start(Worker::builder().settings(settings));
    choose_for(&rig, Patterned::Metrics, Pattern::Hybrid).await;
    // It may be about to keep its first answer, and the next is ten minutes away. A later version may keep another.
    for odd in ["", "odd"] {
        until("the asked puts it together", || async {
            for which in ["short", "detailed"] {
                let key = format!("cb:metrics:merged:{which}");
                match odd {
                    "" => rig.run(&format!("DEL {key}")).await,
                    odd => rig.run(&format!("SET {key} {odd}")).await,
                };
            }
            let told = metrics(&rig.client).await;
            told["instances"] == 1 && !is_kept(&told)
        })
        .await;
    }
    worker.stop().await;
}
