//! Batches whose holder goes, or is stopped, and what the next one finds.

use crate::batches::{Runs, adding, batch, batches, ids, process, started, until_done};
use crate::rig::Rig;
use crate::support::{Redis, until};
use convoke::client::publish::Outgoing;
use convoke::coordination::batches::batch::BatchStatus;
use convoke::protocol::error::Code;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_holder_gives_the_batch_back_at_once_between_two_items() {
    for (mode, items, heirs_ms) in [("exclusive", 60, 0), ("fan_out", 300, 60)] {
        let rig = Rig::new().await;
        let runs = Runs::default();
        // Slow enough that it is not done before the heir is there.
        let leaver = started(&rig, adding(&rig, "leaver", 200, &runs)).await;
        let mut wanted = batch("b-1", mode, 0..items);
        // Nobody could wait for this lease.
        wanted["lease_ms"] = json!(3_600_000);
        let asked = async { process(&rig, &wanted).await };
        let drained = async {
            until_done(&rig, "b-1", 1).await;
            let heir = adding(&rig, "heir", heirs_ms, &runs);
            let heir = rig.start(heir);
            let both = || async {
                let mut connection = rig.connection.clone();
                let count: u64 = redis::cmd("ZCARD")
                    .arg("cb:instances:active")
                    .query_async(&mut connection)
                    .await
                    .unwrap();
                count == 2
            };
            until("the heir is there", both).await;
            leaver.stop().await;
            heir
        };
        let (result, heir) = tokio::join!(asked, drained);
        assert_eq!(result["processor_id"], "heir", "{mode}");
        assert_eq!(result["items_processed"], items - 1, "{mode}");
        let mut run = ids(&runs);
        run.sort();
        run.dedup();
        assert_eq!(run.len() as u64, items, "{mode}");
        if mode == "exclusive" {
            assert_eq!(runs.lock().unwrap().len(), 60, "an item was run again");
        }
        let effects = rig.wait_for("cb:events:effect", items as usize - 1).await;
        assert_eq!(effects.len() as u64, items - 1, "{mode}");
        heir.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_a_drained_worker_leaves_to_nobody_waits_for_whoever_comes() {
    for mode in ["exclusive", "fan_out"] {
        let rig = Rig::new().await;
        let runs = Runs::default();
        let leaver = started(&rig, adding(&rig, "leaver", 200, &runs)).await;
        let mut wanted = batch("b-1", mode, 100..300);
        wanted["lease_ms"] = json!(3_600_000);
        let event = Outgoing::new("system.batch.process", &wanted);
        rig.client.publish(&event).await.unwrap();
        until_done(&rig, "b-1", 1).await;
        leaver.stop().await;
        let left = batches(&rig).find("b-1").await.unwrap().unwrap();
        assert_eq!(
            (left.status, left.expires_at),
            (BatchStatus::Running, 0),
            "{mode}"
        );
        assert_eq!(rig.pending("cb:events:system").await, 1, "{mode}");
        let heir = started(&rig, adding(&rig, "heir", 0, &runs)).await;
        let done = until_done(&rig, "b-1", 200).await;
        assert_eq!(
            (done.status, done.processed),
            (BatchStatus::Completed, 200),
            "{mode}"
        );
        assert_eq!(done.processor_id, "heir", "{mode}");
        let effects = rig.wait_for("cb:events:effect", 200).await;
        assert_eq!(effects.len(), 200, "{mode}");
        heir.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_item_that_blocks_its_thread_for_longer_than_the_lease_keeps_the_batch() {
    let rig = Rig::new().await;
    let block = async |_: Context, n: u64| {
        std::thread::sleep(Duration::from_millis(6500));
        Ok::<_, HandlerError>(n)
    };
    let mut settings = rig.settings();
    settings.id = "w-1".into();
    let builder = Worker::builder().settings(settings);
    let worker = started(&rig, builder.handler("number.add", block)).await;
    let mut wanted = batch("b-1", "exclusive", [1]);
    wanted["lease_ms"] = json!(5000);
    let url = rig.redis.admin_url();
    let watching = std::thread::spawn(move || lowest_lease(&url, "cb:batch:b-1"));
    let result = process(&rig, &wanted).await;
    assert_eq!(result["items_processed"], 1);
    let (looks, lowest) = watching.join().unwrap();
    assert!(
        looks > 20 && lowest > 0,
        "{looks} looks, {lowest} ms left at the least"
    );
    worker.stop().await;
}

/// Looks at the lease of a batch until it is completed: how often, and what was left of it at the
/// least, in ms.
fn lowest_lease(url: &str, key: &str) -> (u32, i64) {
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    let (mut looks, mut lowest) = (0, i64::MAX);
    loop {
        let mut look = redis::pipe();
        look.atomic().cmd("TIME");
        look.cmd("HMGET").arg(&[key, "status", "expires"]);
        type Looked = ((i64, i64), (Option<String>, Option<i64>));
        let ((seconds, micros), (status, expires)): Looked = look.query(&mut connection).unwrap();
        match (status.as_deref(), expires) {
            (Some("completed"), _) => return (looks, lowest),
            (Some(_), Some(expires)) => {
                looks += 1;
                lowest = lowest.min(expires - seconds * 1000 - micros / 1000);
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_lost_its_lease_stops_its_item_at_once_and_answers_aborted() {
    let rig = Rig::new().await;
    let (running, dropped) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (begun, ended) = (running.clone(), dropped.clone());
    struct Ended(Arc<AtomicBool>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let stuck = move |_: Context, _: u64| {
        let (begun, ended) = (begun.clone(), Ended(ended.clone()));
        async move {
            begun.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
            drop(ended);
            Ok::<u64, HandlerError>(0)
        }
    };
    let policy = Policy::new().no_timeout();
    let worker = started(
        &rig,
        rig.builder().handler_with("number.add", stuck, policy),
    )
    .await;
    let mut wanted = batch("b-1", "exclusive", [1]);
    wanted["lease_ms"] = json!(300);
    let refused = rig.refused("system.batch.process", &wanted);
    let taken = async {
        until("the item runs", || async { running.load(Ordering::SeqCst) }).await;
        let mut connection = rig.connection.clone();
        redis::cmd("HINCRBY")
            .arg(&["cb:batch:b-1", "fence", "1"])
            .exec_async(&mut connection)
            .await
            .unwrap();
    };
    let (error, ()) = tokio::join!(refused, taken);
    assert_eq!(error.code, Code::Aborted);
    assert!(dropped.load(Ordering::SeqCst), "the item still runs");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_outlives_a_restart_of_the_server() {
    for mode in ["exclusive", "fan_out"] {
        let mut rig = Rig::on(Redis::durable()).await;
        let runs = Runs::default();
        let worker = started(&rig, adding(&rig, "w-1", 10, &runs)).await;
        let wanted = batch("b-1", mode, 100..200);
        let event = Outgoing::new("system.batch.process", &wanted);
        rig.client.publish(&event).await.unwrap();
        until_done(&rig, "b-1", 10).await;
        rig.redis.restart();
        rig.connection = rig.redis.connection().await;
        let done = until_done(&rig, "b-1", 100).await;
        assert_eq!(
            (done.status, done.processed),
            (BatchStatus::Completed, 100),
            "{mode}"
        );
        let effects = rig.wait_for("cb:events:effect", 100).await;
        assert_eq!(effects.len(), 100, "{mode}");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_makes_progress_never_becomes_poison() {
    let rig = Rig::new().await;
    let mut connection = rig.connection.clone();
    let mut run = async |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.exec_async(&mut connection).await.unwrap();
    };
    let events = "cb:events:system";
    run(&["XGROUP", "CREATE", events, "workers", "0", "MKSTREAM"]).await;
    let wanted = batch("b-1", "exclusive", 100..160);
    let event = Outgoing::new("system.batch.process", &wanted);
    let first = rig.client.publish(&event).await.unwrap().entry().unwrap();
    let first = first.to_string();
    // Two holders died with it, long ago.
    run(&[
        "XREADGROUP",
        "GROUP",
        "workers",
        "ghost",
        "STREAMS",
        events,
        ">",
    ])
    .await;
    let claim = ["XCLAIM", events, "workers", "ghost", "0", &first];
    run(&[&claim[..], &["IDLE", "600000", "RETRYCOUNT", "2"]].concat()).await;
    let worker = started(&rig, adding(&rig, "w-1", 60, &Runs::default())).await;
    let pending = || async {
        let mut connection = rig.connection.clone();
        let rows: Vec<(String, String, u64, u32)> = redis::cmd("XPENDING")
            .arg(&[events, "workers", "-", "+", "10"])
            .query_async(&mut connection)
            .await
            .unwrap();
        rows
    };
    until("it goes on as a new entry", || async {
        let rows = pending().await;
        rows.iter().any(|row| row.0 != first && row.3 == 1)
    })
    .await;
    let done = until_done(&rig, "b-1", 60).await;
    assert_eq!((done.status, done.processed), (BatchStatus::Completed, 60));
    until("it is acknowledged", || async {
        pending().await.is_empty()
    })
    .await;
    assert_eq!(rig.entries("cb:results:system").await.len(), 1);
    worker.stop().await;
}
