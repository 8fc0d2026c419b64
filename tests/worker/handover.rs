//! Events of types that another worker has a handler for, while the server has not heard of it.

use crate::rig::{Rig, Running, text};
use crate::support::{Redis, until};
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::settings::RedisUrl;
use convoke::{Context, HandlerError};
use redis::AsyncCommands;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const KIND: &str = "far.away";

/// A worker without that handler, that sweeps about once a second; the other one, which has it, is
/// registered and does not run.
async fn alone(rig: &Rig) -> Running {
    let mut settings = rig.settings();
    settings.id = "w-1".into();
    settings.heartbeat_ttl = Duration::from_secs(60);
    let near = async |_: Context, n: u64| Ok::<_, HandlerError>(n);
    let builder = rig.builder().settings(settings);
    let worker = rig.start(builder.handler("far.near", near));
    rig.ask("far.near", &1).await.unwrap();
    rig.wait_for_fact("leader.elected", 1).await;
    let connector = Connector::new(&RedisUrl::new(rig.redis.url()), 2).unwrap();
    let instances = Instances::new(connector, rig.client.keys().clone());
    let mut other = Registering::new("w-2", ["worker"]);
    other.capabilities = vec![KIND.into()];
    instances.register(&other).await.unwrap();
    let reads = instances.reads("workers", "w-2", &other.capabilities);
    reads.await.unwrap();
    worker
}

/// The other one missed its pulses.
async fn expire(rig: &mut Rig) {
    let active = rig.client.keys().active();
    let added: u64 = rig.connection.zadd(active, "w-2", 1).await.unwrap();
    assert_eq!(added, 0, "it was registered");
}

fn events() -> [Outgoing; 2] {
    let batch =
        json!({"batch_id": "b-1", "item_type": KIND, "items": [1, 2, 3], "mode": "fan_out"});
    let events = [
        Outgoing::new(KIND, &7_u64).id("e-1"),
        Outgoing::new("system.batch.process", &batch).id("e-2"),
    ];
    events.map(|event| event.dedup(true))
}

/// The entries that were ever added to a stream.
async fn added(rig: &Rig, stream: &str) -> u64 {
    let mut connection = rig.connection.clone();
    let mut info = redis::cmd("XINFO");
    info.arg("STREAM").arg(stream);
    let info: std::collections::HashMap<String, redis::Value> =
        info.query_async(&mut connection).await.unwrap();
    match info["entries-added"] {
        redis::Value::Int(added) => added as u64,
        ref other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_events_wait_for_those_that_did_not_pulse_yet() {
    let mut rig = Rig::on(Redis::durable()).await;
    let worker = alone(&rig).await;
    rig.redis.restart();
    rig.connection = rig.redis.connection().await;
    expire(&mut rig).await;
    for event in events() {
        until("it is stored", || async {
            rig.client.publish(&event).await.is_ok()
        })
        .await;
    }
    // Both were looked at again and again, for longer than from one sweep to the next.
    until("both wait", || async {
        added(&rig, "cb:events:far").await >= 4 && added(&rig, "cb:events:system").await >= 3
    })
    .await;
    let mut settings = rig.settings();
    settings.id = "w-2".into();
    let builder = rig.builder().settings(settings);
    let other = rig.start(builder.handler(KIND, async |_, n: u64| Ok::<_, HandlerError>(n)));
    until("both are done", || async {
        rig.entries("cb:results:far")
            .await
            .iter()
            .any(|result| result.get("correlationid") == Some(b"e-1"))
            && !rig.entries("cb:results:system").await.is_empty()
    })
    .await;
    let result = &rig.entries("cb:results:system").await[0];
    assert_eq!(text(result, "type"), "system.batch.process.result");
    assert_eq!(text(result, "status"), "ok");
    for domain in ["far", "system"] {
        assert!(!rig.exists(&format!("cb:dead:{domain}")).await, "{domain}");
    }
    let facts = rig.entries("cb:broadcast").await;
    assert!(
        !facts
            .iter()
            .any(|fact| fact.get("type") == Some(b"instance.lost"))
    );
    other.stop().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_type_whose_handlers_are_lost_are_dead_and_not_before() {
    let mut rig = Rig::new().await;
    let worker = alone(&rig).await;
    expire(&mut rig).await;
    for event in events() {
        rig.client.publish(&event).await.unwrap();
    }
    let lost = &rig.wait_for_fact("instance.lost", 1).await[0];
    for domain in ["far", "system"] {
        let dead = &rig.wait_for(&format!("cb:dead:{domain}"), 1).await[0];
        assert_eq!(text(dead, "deadreason"), "unimplemented", "{domain}");
        assert_eq!(text(dead, "deadattempts"), "1", "{domain}");
        // Perhaps in the same ms.
        assert!(
            dead.id.ms >= lost.id.ms,
            "{domain}: dead before it was lost"
        );
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_not_left_for_one_of_another_group_and_its_stream_is_trimmed_again() {
    const EVENTS: usize = 300;
    let rig = Rig::new().await;
    let ran = Arc::new(AtomicUsize::new(0));
    let start = |id: &str, group: &str, kind: &str| {
        let mut settings = rig.settings();
        (settings.id, settings.group) = (id.into(), group.into());
        settings.stream_history = 10;
        let ran = ran.clone();
        let run = move |_: Context, n: u64| {
            ran.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, HandlerError>(n) }
        };
        rig.start(rig.builder().settings(settings).handler(kind, run))
    };
    let one = start("w-1", "workers", "text.upper");
    let other = start("a-1", "audit", "text.audit");
    // A stream is trimmed past a group that is not there yet.
    until("both groups are there", || async {
        let mut connection = rig.connection.clone();
        let mut look = redis::cmd("XINFO");
        look.arg(&["GROUPS", "cb:events:text"]);
        let groups: redis::RedisResult<Vec<redis::Value>> = look.query_async(&mut connection).await;
        groups.is_ok_and(|groups| groups.len() == 2)
    })
    .await;
    for _ in 0..EVENTS {
        let event = Outgoing::new("text.audit", &1_u64);
        rig.client.publish(&event).await.unwrap();
    }
    let dead = rig.wait_for("cb:dead:text", EVENTS).await;
    assert_eq!(text(&dead[0], "deadreason"), "unimplemented");
    until("the other group ran all", || async {
        ran.load(Ordering::SeqCst) == EVENTS
    })
    .await;
    until("the stream is trimmed", || async {
        // Whole nodes of 100 entries go.
        rig.entries("cb:events:text").await.len() < 200
    })
    .await;
    assert_eq!(rig.entries("cb:dead:text").await.len(), EVENTS);
    assert_eq!(rig.pending("cb:events:text").await, 0);
    assert!(rig.keys("cb:handed:*").await.is_empty());
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_nobody_runs_who_said_so_is_handed_over_a_few_times_and_then_dead() {
    let rig = Rig::new().await;
    let mut settings = rig.settings();
    settings.id = "w-1".into();
    settings.claim_idle = Duration::from_millis(300);
    let near = async |_: Context, n: u64| Ok::<_, HandlerError>(n);
    let worker = rig.start(rig.builder().settings(settings).handler("far.near", near));
    rig.ask("far.near", &1).await.unwrap();
    let connector = Connector::new(&RedisUrl::new(rig.redis.url()), 2).unwrap();
    let instances = Instances::new(connector, rig.client.keys().clone());
    let other = Registering::new("w-2", ["worker"]);
    instances.register(&other).await.unwrap();
    let kinds = [KIND.into()];
    instances.reads("workers", "w-2", &kinds).await.unwrap();
    let event = Outgoing::new(KIND, &7_u64).id("e-1");
    rig.client.publish(&event).await.unwrap();
    let dead = &rig.wait_for("cb:dead:far", 1).await[0];
    assert_eq!(text(dead, "deadreason"), "unimplemented");
    assert!(text(dead, "deadmessage").contains("4 times"), "{dead:?}");
    assert_eq!(rig.entries("cb:inbox:w-2").await.len(), 4);
    assert_eq!(rig.pending("cb:events:far").await, 0);
    worker.stop().await;
}
