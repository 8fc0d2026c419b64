//! The state as the leader saw it.

use super::{ask, choose_for, worker};
use crate::rig::Rig;
use crate::support::until;
use convoke::Worker;
use convoke::protocol::pattern::{Pattern, Patterned};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::time::Duration;

async fn state(rig: &Rig, recent: u64) -> Value {
    ask(&rig.client, "system.get_state", json!({"recent": recent})).await
}

/// A state that the leader saw, whichever worker tells it, and of which that holds.
async fn kept(rig: &Rig, recent: u64, holds: impl Fn(&Value) -> bool) -> Value {
    let told = RefCell::new(Value::Null);
    until("the leader keeps it", || async {
        told.replace(state(rig, recent).await);
        let told = told.borrow();
        told.get("merged_ms").is_some() && holds(&told)
    })
    .await;
    told.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_the_leader_keeps_is_one_that_was_there_and_says_how_old_it_is() {
    let rig = Rig::new().await;
    let workers = ["w-1", "w-2"].map(|id| rig.start(worker(&rig, id)));
    choose_for(&rig, Patterned::State, Pattern::Hybrid).await;
    let before = kept(&rig, 10, |told| told["instances_total"] == 2).await;
    assert_eq!(before["patterns"]["state"], "hybrid");
    assert_eq!(before["worker_version"], env!("CARGO_PKG_VERSION"));
    ask(
        &rig.client,
        "task.create",
        json!({"task_id": "t-1", "kind": "a.b"}),
    )
    .await;
    let task = |told: &Value| told["tasks"]["items"][0]["task_id"] == "t-1";
    let after = kept(&rig, 100, task).await;
    assert_eq!(after["tasks"]["pending"], 1, "{after}");
    assert_eq!(after["tasks"]["items"][0]["status"], "pending");
    // It was read after the change that it shows, and the change was later than what was shown before.
    assert!(after["version"].as_u64() > before["version"].as_u64());
    let facts = after["recent_events"].as_array().unwrap().len();
    assert!(facts > 2, "{after}");
    let short = kept(&rig, 1, task).await;
    assert_eq!(short["recent_events"].as_array().unwrap().len(), 1);
    until("it is kept for no longer than a time to live", async || {
        matches!(
            rig.run("PTTL cb:state:merged").await,
            redis::Value::Int(1..=3_000)
        )
    })
    .await;
    choose_for(&rig, Patterned::State, Pattern::Centralized).await;
    until("whoever is asked looks", || async {
        state(&rig, 1).await.get("merged_ms").is_none()
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_nobody_keeps_is_looked_at_by_whoever_is_asked() {
    let rig = Rig::new().await;
    let mut settings = rig.settings();
    settings.id = "w-1".into();
    settings.heartbeat_ttl = Duration::from_secs(1800);
    let worker = rig.start(Worker::builder().settings(settings));
    choose_for(&rig, Patterned::State, Pattern::Hybrid).await;
    // It may be about to keep its first answer, and the next is ten minutes away. A later version may keep another.
    for change in ["DEL cb:state:merged", "SET cb:state:merged odd"] {
        until("the asked looks", || async {
            rig.run(change).await;
            let told = state(&rig, 1).await;
            told["instances_total"] == 1 && told.get("merged_ms").is_none()
        })
        .await;
    }
    worker.stop().await;
}
