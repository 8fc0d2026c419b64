//! Who is told what: a requester, or an operator by a dead letter; and what an answer may be.

use crate::rig::{Rig, text};
use crate::support::{name, until};
use convoke::protocol::error::Code;
use convoke::{Context, HandlerError};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

async fn bad(_: Context, kind: String) -> Result<(), HandlerError> {
    match &*kind {
        "good" => Ok(()),
        "gone" => Err(HandlerError::not_found("no such image")),
        _ => Err(HandlerError::unavailable("always")),
    }
}

/// Fails in each way, with these fields besides.
async fn fail_in_each_way(rig: &Rig, fields: &[&str]) {
    let named = |name: &str| rmp_serde::to_vec(name).unwrap();
    for (kind, data) in [
        ("job.none", named("x")),
        ("job.do", vec![0xc1]),
        ("job.do", named("gone")),
        ("job.do", named("always")),
    ] {
        let mut add = redis::cmd("XADD");
        add.arg("cb:events:job").arg("*").arg("type").arg(kind);
        add.arg("data").arg(data).arg(fields);
        add.exec_async(&mut rig.connection.clone()).await.unwrap();
    }
}

const WAYS: [&str; 4] = [
    "invalid_argument",
    "not_found",
    "unavailable",
    "unimplemented",
];

fn sorted(entries: &[convoke::protocol::event::Entry], field: &str) -> Vec<String> {
    let mut all: Vec<String> = entries.iter().map(|entry| text(entry, field)).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_is_told_to_who_asked_and_a_dead_letter_where_nobody_was_told() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().handler("job.do", bad));
    fail_in_each_way(&rig, &["replyto", "cb:reply:me"]).await;
    let replies = rig.wait_for("cb:reply:me", 4).await;
    assert_eq!(sorted(&replies, "status"), WAYS);
    assert!(!rig.exists("cb:dead:job").await);
    // Nobody asked; an inbox that is not there; a key that is no stream.
    let odd = name("job", "cb:reply:odd");
    rig.run(&format!("SET {odd} text")).await;
    let mut places: Vec<&[&str]> = vec![
        &[],
        &["replyto", "cb:reply:odd"],
        &["replyto", "cb:inbox:ghost"],
    ];
    // There it is in another slot, and so no event may name it.
    if rig.redis.is_cluster() {
        places.pop();
    }
    let letters = 4 * places.len();
    for (at, fields) in places.into_iter().enumerate() {
        fail_in_each_way(&rig, fields).await;
        let dead = rig.wait_for("cb:dead:job", 4 * (at + 1)).await;
        assert_eq!(sorted(&dead[4 * at..], "deadreason"), WAYS);
        let kinds = sorted(&dead[4 * at..], "type");
        assert_eq!(kinds, ["job.do", "job.do", "job.do", "job.none"]);
    }
    assert!(!rig.exists("cb:inbox:ghost").await);
    until("all is acknowledged", || async {
        rig.pending("cb:events:job").await == 0
    })
    .await;
    assert_eq!(rig.entries("cb:dead:job").await.len(), letters);
    assert_eq!(rig.entries("cb:reply:me").await.len(), 4);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_makes_no_inbox_and_a_reply_stream_that_it_makes_goes_away() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().handler("job.do", bad));
    rig.run("XADD cb:inbox:me 1-1 a b").await;
    let good = rmp_serde::to_vec("good").unwrap();
    let inboxes = ["cb:inbox:ghost", "cb:inbox:me"].into_iter();
    // An inbox is in another slot there, and so no event may name it.
    let inboxes = inboxes.filter(|_| !rig.redis.is_cluster());
    for to in inboxes.chain(["cb:reply:me"]) {
        let mut add = redis::cmd("XADD");
        add.arg("cb:events:job").arg("*").arg("type").arg("job.do");
        add.arg("data").arg(&good).arg("replyto").arg(to);
        add.exec_async(&mut rig.connection.clone()).await.unwrap();
    }
    rig.wait_for("cb:reply:me", 1).await;
    let told = if rig.redis.is_cluster() { 1 } else { 2 };
    rig.wait_for("cb:inbox:me", told).await;
    until("all is acknowledged", || async {
        rig.pending("cb:events:job").await == 0
    })
    .await;
    assert!(!rig.exists("cb:inbox:ghost").await);
    assert!(!rig.exists("cb:dead:job").await);
    let mut ttl = redis::cmd("PTTL");
    ttl.arg("cb:reply:me");
    let left: i64 = ttl.query_async(&mut rig.connection.clone()).await.unwrap();
    assert!(left > 0, "{left}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_handler_gives_out_is_within_the_limits_of_a_payload() {
    async fn give(context: Context, what: String) -> Result<Value, HandlerError> {
        let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
        match &*what {
            "many" => Ok(json!(vec![0; 70_000])),
            "deep" => Ok(deep),
            "long" => Ok(json!("x".repeat(2_200_000))),
            "published" => {
                context.publish("job.made", &"x".repeat(2_200_000))?;
                Ok(json!(1))
            }
            _ => {
                let mut error = HandlerError::not_found("with details");
                error.details = Some(rmpv::Value::Binary(vec![0; 2_200_000]));
                Err(error)
            }
        }
    }
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().handler("job.give", give));
    for (what, named) in [
        ("many", "the result: data: more than 65536 values"),
        (
            "deep",
            "the result: data: arrays and maps are nested deeper than 32",
        ),
        (
            "long",
            "the result: data: payload of 2200005 bytes is over the limit of 1048576",
        ),
        (
            "published",
            "publish job.made: data: payload of 2200005 bytes is over the limit",
        ),
    ] {
        let error = rig.refused("job.give", &what).await;
        assert_eq!((error.code, error.retryable), (Code::Internal, false));
        assert!(error.message.contains(named), "{}", error.message);
    }
    assert!(!rig.exists("cb:results:job").await);
    let error = rig.refused("job.give", &"details").await;
    assert_eq!((error.code, error.details), (Code::NotFound, None));
    // A task, and the item of a batch.
    let task = json!({"task_id": "t-1", "kind": "job.give", "payload": "many"});
    rig.ask("task.create", &task).await.unwrap();
    until("the task failed", || async {
        let found = rig.ask("task.get", &json!({"task_id": "t-1"})).await;
        let found: Value = found.unwrap().decode().unwrap();
        found["status"] == "failed" && found["error"].to_string().contains("65536 values")
    })
    .await;
    let batch = json!({"batch_id": "b-1", "item_type": "job.give", "items": ["many", "deep"]});
    let done: Value = rig
        .ask("system.batch.process", &batch)
        .await
        .unwrap()
        .decode()
        .unwrap();
    assert_eq!(
        (&done["items_failed"], &done["items_processed"]),
        (&json!(2), &json!(0))
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_away_by_hand_during_a_run_is_not_committed() {
    let rig = Rig::new().await;
    let ended = Arc::new(AtomicU32::new(0));
    let go = Arc::new(tokio::sync::Notify::new());
    let (counted, gate) = (ended.clone(), go.clone());
    let slow = move |context: Context, (): ()| {
        let (counted, gate) = (counted.clone(), gate.clone());
        async move {
            let released = gate.notified();
            context.publish("note.begun", &())?;
            released.await;
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, HandlerError>(7)
        }
    };
    let quick = async |_: Context, (): ()| Ok::<_, HandlerError>(1);
    let kinds = ["claimed.run", "acked.run", "deleted.run", "dropped.run"];
    let mut builder = rig.builder().handler("claimed.quick", quick);
    let mut settings = rig.settings();
    settings.id = "w-1".into();
    // Nobody renews meanwhile: what was taken away is found out by the commit.
    settings.claim_idle = Duration::from_secs(60);
    builder = builder.settings(settings);
    for kind in kinds {
        builder = builder.handler(kind, slow.clone());
    }
    let worker = rig.start(builder);
    for kind in kinds {
        let domain = kind.split('.').next().unwrap();
        rig.run(&format!(
            "XADD cb:events:{domain} 5-1 type {kind} replyto cb:reply:me"
        ))
        .await;
        until("it is in hand", || async {
            rig.pending(&format!("cb:events:{domain}")).await == 1
        })
        .await;
    }
    // Only what has been in hand for a moment is looked at like that.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    rig.run("XCLAIM cb:events:claimed workers human 0 5-1")
        .await;
    rig.run("XACK cb:events:acked workers 5-1").await;
    rig.run("XDEL cb:events:deleted 5-1").await;
    rig.run("XGROUP DELCONSUMER cb:events:dropped workers w-1")
        .await;
    until("all have ended", || async {
        go.notify_waiters();
        ended.load(Ordering::SeqCst) == 4
    })
    .await;
    // What ends after them is committed after them.
    for _ in 0..2 {
        rig.ask("claimed.quick", &()).await.unwrap();
    }
    assert!(!rig.exists("cb:reply:me").await);
    assert!(!rig.exists("cb:events:note").await);
    for domain in ["claimed", "acked", "deleted", "dropped"] {
        assert!(!rig.exists(&format!("cb:dead:{domain}")).await, "{domain}");
    }
    let mut held = redis::cmd("XPENDING");
    held.arg("cb:events:claimed")
        .arg("workers")
        .arg("-")
        .arg("+")
        .arg(9);
    let held: Vec<(String, String, u64, u64)> =
        held.query_async(&mut rig.connection.clone()).await.unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!((&*held[0].0, &*held[0].1), ("5-1", "human"));
    worker.stop().await;
}
