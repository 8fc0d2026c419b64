//! What workers report of themselves, and how peers see each other, over the bus.

use crate::rig::Rig;
use crate::support::{Redis, keys, until};
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::gossip::{PING, Peer};
use convoke::handler::policy::Policy;
use convoke::protocol::error::Code;
use convoke::settings::RedisUrl;
use convoke::{Context, HandlerError, Worker};
use serde_json::{Value, json};
use std::time::Duration;

async fn even(_: Context, number: u64) -> Result<u64, HandlerError> {
    match number % 2 {
        0 => Ok(number),
        _ => Err(HandlerError::invalid_argument("odd")),
    }
}

fn instances(redis: &Redis) -> Instances {
    let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
    Instances::new(connector, keys())
}

async fn metrics(rig: &Rig, detailed: bool) -> Value {
    let ask = json!({ "detailed": detailed });
    rig.ask("system.metrics", &ask)
        .await
        .unwrap()
        .decode()
        .unwrap()
}

fn worker(rig: &Rig, id: &str, ttl: Duration) -> convoke::worker::builder::Builder {
    let mut settings = rig.settings();
    settings.id = id.into();
    settings.heartbeat_ttl = ttl;
    let policy = Policy::new().circuit(100, Duration::from_secs(60));
    let builder = Worker::builder().settings(settings);
    builder.handler_with("number.even", even, policy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_who_answers_tells_its_numbers_of_this_moment() {
    let rig = Rig::new().await;
    // No pulse comes while this test runs.
    let running = rig.start(worker(&rig, "w-1", Duration::from_secs(1800)));
    for number in 0..10_u64 {
        let event = Outgoing::new("number.even", &number);
        let _ = rig.client.request(event, Duration::from_secs(20)).await;
    }
    let told = metrics(&rig, false).await;
    assert_eq!(told["events_failed"], 5);
    assert!(told["events_processed"].as_u64().unwrap() >= 9);
    assert_eq!(
        (&told["instances"], &told["tasks_completed"]),
        (&json!(1), &json!(0))
    );
    assert!(told["memory_bytes"].as_u64().unwrap() > 1 << 20);
    for positive in ["average_latency_ms", "p50_ms", "p99_ms", "throughput"] {
        assert!(told[positive].as_f64().unwrap() > 0.0, "{positive}: {told}");
    }
    assert!(told["p50_ms"].as_f64() <= told["p99_ms"].as_f64());
    for detail in ["handlers", "queue", "scaling", "latency"] {
        assert!(told.get(detail).is_none(), "{detail}");
    }
    let told = metrics(&rig, true).await;
    let even = &told["handlers"]["number.even"];
    assert_eq!((&even["calls"], &even["errors"]), (&json!(10), &json!(5)));
    for zero in ["retries", "rate_limited", "cache_hits"] {
        assert_eq!(even[zero], 0, "{zero}");
    }
    assert_eq!(even["circuit"], "closed");
    assert!(even.get("latency").is_none());
    assert_eq!(told["handlers"]["system.metrics"]["circuit"], Value::Null);
    assert_eq!(
        told["scaling"],
        json!({"instance_count": 1, "load_balance": 1.0})
    );
    assert!(
        told["queue"]["in_flight"].as_u64().unwrap() >= 1,
        "the request itself"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_has_drained_leaves_all_its_counts() {
    let rig = Rig::new().await;
    let first = rig.start(worker(&rig, "w-1", Duration::from_secs(1800)));
    for number in 0..6_u64 {
        let event = Outgoing::new("number.even", &number);
        let _ = rig.client.request(event, Duration::from_secs(20)).await;
    }
    first.stop().await;
    let second = rig.start(worker(&rig, "w-2", Duration::from_secs(1800)));
    let told = metrics(&rig, true).await;
    assert_eq!(told["handlers"]["number.even"]["calls"], 6);
    assert_eq!(
        (&told["events_failed"], &told["instances"]),
        (&json!(3), &json!(1))
    );
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulses_carry_what_the_others_did() {
    let rig = Rig::new().await;
    let one = rig.start(worker(&rig, "w-1", Duration::from_secs(1)));
    let two = rig.start(worker(&rig, "w-2", Duration::from_secs(1)));
    for number in 0..40_u64 {
        let event = Outgoing::new("number.even", &(2 * number));
        rig.client.publish(&event).await.unwrap();
    }
    let told = until_told(&rig, |told| {
        told["handlers"]["number.even"]["calls"] == 40 && told["instances"] == 2
    })
    .await;
    assert!(told["memory_bytes"].as_u64().unwrap() > 1 << 20);
    one.stop().await;
    two.stop().await;
}

async fn until_told(rig: &Rig, as_wanted: impl Fn(&Value) -> bool) -> Value {
    let began = std::time::Instant::now();
    loop {
        let told = metrics(rig, true).await;
        if as_wanted(&told) {
            return told;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{told}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_answers_pings_over_its_inbox_and_nobody_else_does() {
    let rig = Rig::new().await;
    let running = rig.start(worker(&rig, "w-1", Duration::from_secs(30)));
    let instances = instances(&rig.redis);
    until("it is there", || async {
        let capable = instances.capable(PING).await.unwrap();
        capable.alive == ["w-1"] && rig.exists("cb:inbox:w-1").await
    })
    .await;
    let left = Duration::from_secs(1);
    let peers = ["w-1", "w-2"].map(|id| Peer {
        id: id.into(),
        left,
    });
    let wait = Duration::from_secs(3);
    let answered = instances.ping_peers("me", &peers, wait).await.unwrap();
    assert_eq!(answered.into_iter().collect::<Vec<_>>(), ["w-1"]);
    assert!(!rig.exists("cb:inbox:w-2").await);
    // The ping is an event that can be decoded.
    let dead = rig.keys("cb:dead:*").await;
    assert!(dead.is_empty(), "{dead:?}");
    let leftover: Vec<String> = rig.keys("cb:reply:ping*").await;
    assert!(leftover.is_empty(), "{leftover:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_others_reports_itself_and_its_peers_with_its_heartbeat() {
    let rig = Rig::new().await;
    let running = rig.start(worker(&rig, "w-1", Duration::from_secs(30)));
    let ask = async |kind: &str, payload: Value| -> Value {
        rig.ask(kind, &payload).await.unwrap().decode().unwrap()
    };
    for id in ["mine", "other"] {
        ask("system.register", json!({"id": id, "roles": []})).await;
    }
    let before = ask("system.metrics", json!({})).await;
    let beat = json!({
        "instance_id": "mine",
        "observed": {"other": "suspect", "nobody": "suspect"},
        "metrics": {
            "process": "p", "events_processed": 1_000_000, "memory_bytes": 1_u64 << 40,
            "handlers": {"shop.sell": {"calls": 5, "circuit": "open"}}
        }
    });
    for _ in 0..2 {
        assert_eq!(ask("system.heartbeat", beat.clone()).await["alive"], true);
    }
    // What it says is told apart, and makes nobody suspect.
    let health = ask("system.health", json!({})).await;
    assert_eq!(health["status"], "healthy");
    assert_eq!(
        health["instances"],
        json!({"healthy": 1, "suspect": 0, "lost": 0, "external": 2})
    );
    let told = ask("system.metrics", json!({"detailed": true})).await;
    let count = |told: &Value| told["events_processed"].as_u64().unwrap();
    assert!(count(&told) - count(&before) < 100);
    assert_eq!(told["instances"], 1);
    assert!(told["memory_bytes"].as_u64().unwrap() < 1_u64 << 40);
    assert_eq!(told["handlers"].get("shop.sell"), None);
    let external = &told["external"];
    assert_eq!(external["instances"], 2);
    assert_eq!(external["events_processed"], 1_000_000);
    assert_eq!(external["memory_bytes"], 1_u64 << 40);
    // Nor can it speak for a worker.
    for (kind, payload) in [
        ("system.heartbeat", json!({"instance_id": "w-1"})),
        ("system.unregister", json!({"instance_id": "w-1"})),
        ("system.register", json!({"id": "w-1", "roles": []})),
    ] {
        let refused = rig.refused(kind, &payload).await;
        assert_eq!(refused.code, Code::PermissionDenied, "{kind}: {refused}");
    }
    let refused = rig
        .refused(
            "system.heartbeat",
            &json!({"instance_id": "mine", "metrics": [1]}),
        )
        .await;
    assert!(refused.message.starts_with("metrics: "), "{refused}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_trims_what_is_everybodys() {
    let rig = Rig::new().await;
    let mut connection = rig.connection.clone();
    let mut old = redis::pipe();
    for _ in 0..500 {
        old.cmd("XADD")
            .arg(&["cb:broadcast", "*", "type", "batch.progress"]);
    }
    old.exec_async(&mut connection).await.unwrap();
    let mut settings = rig.settings();
    settings.stream_history = 5;
    let running = rig.start(Worker::builder().settings(settings));
    until("it is trimmed", || async {
        rig.entries("cb:broadcast").await.len() < 200
    })
    .await;
    running.stop().await;
}
