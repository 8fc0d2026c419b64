//! Batches whose items are published, for all replicas to run.

use super::{Runs, adding, batch, batches, ids, note, process, started, until_done};
use crate::rig::Rig;
use crate::support::{name, until};
use convoke::client::publish::Outgoing;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::json;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_replicas_run_the_items_of_a_batch_that_is_fanned_out() {
    let rig = Rig::new().await;
    let runs = Runs::default();
    let first = started(&rig, adding(&rig, "w-1", 5, &runs)).await;
    let second = started(&rig, adding(&rig, "w-2", 5, &runs)).await;
    let by = |id: &str| {
        runs.lock()
            .unwrap()
            .iter()
            .filter(|run| run.0 == id)
            .count()
    };
    // Whoever has just come may not read yet.
    let published = Cell::new(0);
    until("both read", || async {
        let event = Outgoing::new("number.add", &1_u64);
        rig.client.publish(&event).await.unwrap();
        published.set(published.get() + 1);
        by("w-1") > 0 && by("w-2") > 0
    })
    .await;
    until("all of that ran", || async {
        runs.lock().unwrap().len() == published.get()
    })
    .await;
    runs.lock().unwrap().clear();
    let wanted = batch("b-1", "fan_out", 0..600);
    let result = process(&rig, &wanted).await;
    assert_eq!(
        (&result["items_processed"], &result["items_failed"]),
        (&json!(599), &json!(1))
    );
    assert_eq!(result["failures"][0]["code"], "not_found");
    let mut run = ids(&runs);
    assert_eq!(run.len(), 600);
    run.sort();
    run.dedup();
    assert_eq!(run.len(), 600);
    assert!(
        by("w-1") > 0 && by("w-2") > 0,
        "{} {}",
        by("w-1"),
        by("w-2")
    );
    assert_eq!(process(&rig, &wanted).await, result, "again");
    assert_eq!(rig.pending("cb:events:number").await, 0);
    let mut connection = rig.connection.clone();
    let left: Vec<String> = redis::cmd("KEYS")
        .arg("cb:reply:batch-*")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert!(left.is_empty(), "{left:?}");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanned_out_item_that_its_circuit_refused_is_published_again() {
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
    let policy = Policy::new().circuit(1, Duration::from_millis(300));
    let worker = started(
        &rig,
        rig.builder().handler_with("number.add", flaky, policy),
    )
    .await;
    let result = process(&rig, &batch("b-1", "fan_out", 0..3)).await;
    assert_eq!(
        (&result["items_processed"], &result["items_failed"]),
        (&json!(2), &json!(1))
    );
    worker.stop().await;
}

/// The word that only those know who work on a batch, once it is begun.
async fn word_of(rig: &Rig, batch: &str) -> String {
    use redis::AsyncCommands;
    let mut connection = rig.connection.clone();
    let key = format!("cb:batch:{batch}");
    loop {
        let word: Option<String> = connection.hget(&key, "word").await.unwrap();
        if let Some(word) = word {
            return word;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_batches_share_a_word_and_an_answer_without_it_or_of_another_type_is_none() {
    let rig = Rig::new().await;
    let open = tokio_util::sync::CancellationToken::new();
    let gate = open.clone();
    let wait = move |_: Context, n: u64| {
        let gate = gate.clone();
        async move {
            gate.cancelled().await;
            Ok::<_, HandlerError>(n)
        }
    };
    let worker = started(&rig, rig.builder().handler("number.add", wait)).await;
    for id in ["b-1", "b-2"] {
        let event = Outgoing::new("system.batch.process", &batch(id, "fan_out", 0..3));
        rig.client.publish(&event).await.unwrap();
    }
    let (word, other) = (word_of(&rig, "b-1").await, word_of(&rig, "b-2").await);
    assert!(word.len() >= 32 && word != other, "{word} {other}");
    until("all items run", || async {
        rig.pending("cb:events:number").await == 6
    })
    .await;
    // What somebody might write who knows the word: the control is the last one, which counts.
    let stream = name("number", &format!("cb:reply:batch-{word}"));
    let mut connection = rig.connection.clone();
    for (item, kind) in [
        ("b-1/0".to_owned(), "number.add.result"),
        (format!("b-1/{word}/0"), "number.other.result"),
        (format!("b-1/{word}/0"), "number.add"),
        (format!("b-1/{other}/0"), "number.add.result"),
        (format!("b-1/{word}/1"), "number.add.result"),
    ] {
        let mut reply = redis::cmd("XADD");
        reply
            .arg(&stream)
            .arg("*")
            .arg(&["correlationid", &item, "type", kind]);
        reply.arg(&["status", "ok", "data"]).arg(b"\xc0");
        reply.exec_async(&mut connection).await.unwrap();
    }
    let batches = batches(&rig);
    until("the last one is counted", || async {
        batches.find("b-1").await.unwrap().unwrap().processed > 0
    })
    .await;
    assert_eq!(batches.find("b-1").await.unwrap().unwrap().processed, 1);
    open.cancel();
    for id in ["b-1", "b-2"] {
        assert_eq!(until_done(&rig, id, 3).await.processed, 3);
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_without_an_answer_that_nobody_has_is_published_again_and_no_other() {
    let rig = Rig::new().await;
    let runs = Runs::default();
    let mut settings = rig.settings();
    settings.id = "w-0".into();
    settings.max_attempts = 1;
    settings.handler_timeout = Duration::from_millis(500);
    settings.claim_idle = Duration::from_millis(500);
    let (gate, entered) = (
        Arc::new(tokio::sync::Semaphore::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let (wait, count) = (gate.clone(), entered.clone());
    let add = move |context: Context, n: u64| {
        let (runs, wait, count) = (runs.clone(), wait.clone(), count.clone());
        async move {
            note(&runs, &context);
            count.fetch_add(1, Ordering::SeqCst);
            wait.acquire().await.unwrap().forget();
            Ok::<_, HandlerError>(n)
        }
    };
    let mut builder = Worker::builder().settings({
        settings.concurrency = 1;
        settings
    });
    let policy = Policy::new().no_timeout();
    builder = builder.handler_with("number.add", add, policy);
    let worker = started(&rig, builder).await;
    // While one runs it reads one ahead; an idle one might read all items at once.
    let before = Outgoing::new("number.add", &7_u64);
    rig.client.publish(&before).await.unwrap();
    until("one runs", || async { entered.load(Ordering::SeqCst) == 1 }).await;
    let event = Outgoing::new("system.batch.process", &batch("b-1", "fan_out", 0..6));
    rig.client.publish(&event).await.unwrap();
    let entries = rig.wait_for("cb:events:number", 7).await;
    // The last one is not read yet; somebody deletes it.
    let mut connection = rig.connection.clone();
    redis::cmd("XDEL")
        .arg("cb:events:number")
        .arg(entries[6].id.to_string())
        .exec_async(&mut connection)
        .await
        .unwrap();
    let again = rig.wait_for("cb:events:number", 7).await;
    assert_eq!(again[6].get("id"), entries[6].get("id"));
    gate.add_permits(100);
    assert_eq!(until_done(&rig, "b-1", 6).await.processed, 6);
    assert_eq!(entered.load(Ordering::SeqCst), 7, "no item ran twice");
    worker.stop().await;
}
