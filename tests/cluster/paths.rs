//! The main paths, on three primaries and on one node that has all slots.

use crate::rig::{builder, client, counted_in, double, left, start};
use crate::support::cluster::Cluster;
use crate::support::until;
use convoke::client::RequestError;
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::protocol::error::Code;
use convoke::settings::RedisUrl;
use convoke::{Context, HandlerError};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

async fn fails_once(context: Context, number: i64) -> Result<i64, HandlerError> {
    match context.event().attempt() {
        1 => Err(HandlerError::internal("once")),
        _ => Ok(number),
    }
}

async fn refuses(_: Context, _: i64) -> Result<i64, HandlerError> {
    Err(HandlerError::internal("never").permanent())
}

/// Requests, results, retries, dead letters, deduplication, the control plane: in each partition.
async fn the_main_paths(cluster: Cluster, partitions: u16) {
    let worker = start(
        builder(&cluster, partitions)
            .handler("math.double", double)
            .handler("math.once", fails_once)
            .handler("math.never", refuses)
            .handler("other.double", double),
    );
    let client = client(&cluster, partitions);
    for number in 0..20_i64 {
        for kind in ["math.double", "other.double"] {
            let event = Outgoing::new(kind, &number).subject(format!("s-{number}"));
            let reply = client.request(event, SOON).await.unwrap();
            assert_eq!(reply.decode::<i64>().unwrap(), 2 * number);
        }
    }
    let refused = client.request(Outgoing::new("math.never", &1), SOON).await;
    match refused {
        Err(RequestError::Remote(error)) => assert_eq!(error.code, Code::Internal),
        other => panic!("{other:?}"),
    }
    let once = client.request(Outgoing::new("math.once", &7), SOON).await;
    assert_eq!(once.unwrap().decode::<i64>().unwrap(), 7);
    // Each twice: the second is a duplicate.
    let event = |number: i64| {
        Outgoing::new("math.double", &number)
            .id(format!("e-{number}"))
            .dedup(true)
    };
    for number in (0..50).chain(0..50) {
        client.publish(event(number)).await.unwrap();
    }
    let many: Vec<Outgoing> = (0..500_i64)
        .map(|number| Outgoing::new("math.double", &number).id(format!("m-{number}")))
        .collect();
    for published in client.publish_many(&many).await {
        published.unwrap();
    }
    let dead = Outgoing::new("math.never", &1).id("d-1");
    client.publish(&dead).await.unwrap();
    until("all is done", || async {
        left(&cluster, "math", partitions) == 0
    })
    .await;
    let results = counted_in(&cluster, "math", partitions, "results", "correlationid");
    assert_eq!(results.len(), 550, "lost");
    assert!(results.values().all(|count| *count == 1), "doubled");
    let letters = counted_in(&cluster, "math", partitions, "dead", "id");
    assert_eq!(
        letters.into_iter().collect::<Vec<_>>(),
        [("d-1".to_owned(), 1)]
    );

    let health = client.request(Outgoing::bare("system.health"), SOON).await;
    let health: Value = health.unwrap().decode().unwrap();
    assert_eq!(health["status"], "healthy", "{health}");
    let state = client
        .request(Outgoing::bare("system.get_state"), SOON)
        .await;
    let state: Value = state.unwrap().decode().unwrap();
    assert_eq!(
        state["instances"].as_array().map(Vec::len),
        Some(1),
        "{state}"
    );
    let task = json!({"kind": "math.double", "payload": 4});
    let created = client
        .request(Outgoing::new("task.create", &task), SOON)
        .await;
    let created: Value = created.unwrap().decode().unwrap();
    let id = created["task_id"].as_str().expect("an id").to_owned();
    until("the task is completed", || async {
        let asked = Outgoing::new("task.get", &json!({"task_id": id}));
        let task: Value = client.request(asked, SOON).await.unwrap().decode().unwrap();
        task["status"] == "completed"
    })
    .await;
    for mode in ["exclusive", "fan_out"] {
        let items: Vec<i64> = (0..20).collect();
        let batch = json!({
            "batch_id": format!("b-{mode}"), "item_type": "math.double", "items": items, "mode": mode,
        });
        let asked = Outgoing::new("system.batch.process", &batch);
        let done: Value = client.request(asked, SOON).await.unwrap().decode().unwrap();
        assert_eq!(done["items_processed"], 20, "{mode}: {done}");
    }
    client.close().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_paths_on_three_primaries() {
    the_main_paths(Cluster::of_three(), 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_paths_in_partitions() {
    the_main_paths(Cluster::of_three(), 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_paths_on_one_node() {
    the_main_paths(Cluster::alone(), 2).await;
}

#[tokio::test]
async fn nodes_that_refused_the_password_are_asked_seldom() {
    let cluster = Cluster::of_three();
    let url = RedisUrl::new(cluster.url().replace("test@", "wrong@"));
    let connector = Connector::new(&url, 4).unwrap();
    let began = std::time::Instant::now();
    for _ in 0..25 {
        assert!(connector.wire().await.is_err());
        assert!(connector.pooled().await.is_err());
        assert!(connector.dedicated().await.is_err());
        assert!(connector.unchecked().await.is_err());
    }
    // After 0, 1, 3, 7 s, however long this took; and again at once where a refusal came too late to be heard.
    let most = began.elapsed().as_secs() as i64 + 4;
    for node in &cluster.nodes {
        let log: Vec<HashMap<String, redis::Value>> = redis::cmd("ACL")
            .arg("LOG")
            .query(&mut node.connect())
            .unwrap();
        let tries = log.iter().map(|entry| match entry["count"] {
            redis::Value::Int(count) => count,
            _ => 0,
        });
        let tries = tries.sum::<i64>();
        assert!(
            (1..=most).contains(&tries),
            "{tries} tries, {most} at the most"
        );
    }
}
