//! What a run publishes into another slot.

use crate::rig::{builder, client, counted_in, double, left, start};
use crate::support::cluster::Cluster;
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::{Context, HandlerError};
use serde_json::{Value, json};
use std::time::Duration;

const EVENTS: usize = 300;

/// Publishes three events, and fails at its first try after it did.
async fn spread(context: Context, number: i64) -> Result<i64, HandlerError> {
    for part in 0..3 {
        context.publish("far.double", &(10 * number + part))?;
    }
    match context.event().attempt() {
        1 if number % 3 == 0 => Err(HandlerError::internal("once")),
        _ => Ok(number),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_into_another_slot_arrives_once_whoever_moves_it() {
    let cluster = Cluster::of_three();
    let partitions = 3;
    // All of them move all that there is.
    let workers: Vec<_> = (0..3)
        .map(|_| {
            start(
                builder(&cluster, partitions)
                    .handler("near.spread", spread)
                    .handler("far.double", double),
            )
        })
        .collect();
    let client = client(&cluster, partitions);
    let events: Vec<Outgoing> = (0..EVENTS as i64)
        .map(|number| Outgoing::new("near.spread", &number).subject(format!("s-{number}")))
        .collect();
    for published in client.publish_many(&events).await {
        published.unwrap();
    }
    // The delay queues hold some of it for a while: what arrived is counted first.
    until("all arrived", || async {
        counted_in(&cluster, "far", partitions, "events", "data").len() == 3 * EVENTS
    })
    .await;
    until("all is done", || async {
        left(&cluster, "near", partitions) == 0
            && (0..partitions).all(|partition| {
                let outbox = format!("{{cb:near:{partition}}}:outbox");
                matches!(cluster.try_at(&outbox, &["XLEN", &outbox]), Ok(0_u64))
            })
            && left(&cluster, "far", partitions) == 0
    })
    .await;
    let arrived = counted_in(&cluster, "far", partitions, "events", "data");
    assert_eq!(arrived.len(), 3 * EVENTS, "lost");
    assert!(arrived.values().all(|count| *count == 1), "doubled");
    for worker in workers {
        worker.stop().await;
    }
}

async fn tells(context: Context, number: i64) -> Result<i64, HandlerError> {
    for part in 0..3 {
        context.publish("far.double", &(10 * number + part))?;
    }
    Ok(number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_items_of_batches_and_tasks_publish_into_another_slot_arrives_once() {
    const ITEMS: i64 = 20;
    let cluster = Cluster::of_three();
    let partitions = 2;
    let workers: Vec<_> = (0..2)
        .map(|_| start(builder(&cluster, partitions).handler("near.tell", tells)))
        .collect();
    let client = client(&cluster, partitions);
    for (number, mode) in ["exclusive", "fan_out"].iter().enumerate() {
        let from = number as i64 * ITEMS;
        let items: Vec<i64> = (from..from + ITEMS).collect();
        let batch = json!({
            "batch_id": format!("b-{mode}"), "item_type": "near.tell", "items": items, "mode": mode,
        });
        let asked = Outgoing::new("system.batch.process", &batch);
        let done = client.request(asked, Duration::from_secs(60)).await;
        let done: Value = done.unwrap().decode().unwrap();
        assert_eq!(done["items_processed"], ITEMS, "{mode}: {done}");
    }
    for number in 2 * ITEMS..3 * ITEMS {
        let task = json!({"kind": "near.tell", "payload": number});
        let asked = Outgoing::new("task.create", &task);
        let created = client.request(asked, Duration::from_secs(60)).await;
        created.unwrap();
    }
    let arrived = || counted_in(&cluster, "far", partitions, "events", "data");
    until("all arrived", || async {
        arrived().len() as i64 >= 9 * ITEMS
    })
    .await;
    let arrived = arrived();
    assert_eq!(arrived.len() as i64, 9 * ITEMS, "lost");
    assert!(
        arrived.values().all(|count| *count == 1),
        "doubled: {arrived:?}"
    );
    client.close().await;
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stream_does_not_take_keeps_no_other_slot_waiting() {
    const STUCK: u64 = 1100;
    let cluster = Cluster::of_three();
    let (outbox, blocked, free) = (
        "{cb:near:0}:outbox",
        "{cb:blocked:0}:events",
        "{cb:far:0}:events",
    );
    // No stream: it takes nothing.
    cluster.at::<()>(blocked, &["SET", blocked, "x"]);
    // More than is looked at before whoever looks pauses.
    let mut entries = redis::pipe();
    for number in 0..STUCK {
        let entry = entries.cmd("XADD").arg(outbox).arg("*");
        entry.arg("@stream").arg(blocked).arg("id").arg(number);
    }
    let mut node = cluster.nodes[cluster.owner(outbox)].connect();
    entries.exec(&mut node).unwrap();
    let worker = start(builder(&cluster, 1).handler("near.spread", spread));
    // The second one comes when all was looked at.
    for number in 1..3_u64 {
        let id = format!("free-{number}");
        let words = ["XADD", outbox, "*", "@stream", free, "id", &id];
        cluster.at::<String>(outbox, &words);
        until("the other one is moved", || async {
            cluster.try_at::<u64>(free, &["XLEN", free]).ok() == Some(number)
        })
        .await;
    }
    // It leaves the outbox a moment after it is in its stream.
    until("what could not be moved stays", || async {
        cluster.try_at::<u64>(outbox, &["XLEN", outbox]).ok() == Some(STUCK)
    })
    .await;
    cluster.at::<()>(blocked, &["DEL", blocked]);
    until("all is moved", || async {
        matches!(cluster.try_at(outbox, &["XLEN", outbox]), Ok(0_u64))
    })
    .await;
    worker.stop().await;
    let moved: Vec<(String, [(String, u64); 1])> =
        cluster.at(blocked, &["XRANGE", blocked, "-", "+"]);
    let moved = moved.into_iter().map(|(_, [(_, number)])| number);
    assert!(moved.eq(0..STUCK), "each once, in their order");
}
