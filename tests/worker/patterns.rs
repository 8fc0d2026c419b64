//! System events in each of their patterns: the same event, the same result.

mod batch;
mod counted;
mod heartbeat;
mod metrics;
mod neighbours;
mod quorum;
mod register;
mod state;

use crate::rig::Rig;
use crate::support::until;
use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::protocol::event::Entry;
use convoke::protocol::pattern::{Pattern, Patterned};
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Worker};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn worker(rig: &Rig, id: &str) -> Builder {
    let mut settings = rig.settings();
    settings.id = id.into();
    settings.heartbeat_ttl = Duration::from_secs(3);
    Worker::builder().settings(settings)
}

async fn ask(client: &Client, kind: &str, data: Value) -> Value {
    let event = Outgoing::new(kind, &data).source("ann");
    let reply = client
        .request(event, Duration::from_secs(20))
        .await
        .unwrap();
    reply.decode().unwrap()
}

async fn choose(rig: &Rig, pattern: Pattern) -> Value {
    choose_for(rig, Patterned::Health, pattern).await
}

async fn choose_for(rig: &Rig, event: Patterned, pattern: Pattern) -> Value {
    let data = json!({"event": event.as_str(), "pattern": pattern.as_str()});
    ask(&rig.client, "system.pattern.set", data).await
}

async fn health(rig: &Rig) -> Value {
    ask(&rig.client, "system.health", json!({})).await
}

/// Waits until answers are made of that many reports; gives one.
async fn health_of(rig: &Rig, given: u64) -> Value {
    let start = std::time::Instant::now();
    loop {
        let health = health(rig).await;
        let reports = &health["reports"];
        if reports["given"] == given && reports["missing"] == 0 {
            return health;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{health}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn facts(entries: Vec<Entry>) -> Vec<Value> {
    let data = entries
        .into_iter()
        .map(|fact| fact.get("data").unwrap().to_vec());
    data.map(|data| rmp_serde::from_slice(&data).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_choice_is_told_and_every_worker_follows_it_without_a_pulse() {
    let rig = Rig::new().await;
    let calm = |id: &str| {
        let mut settings = rig.settings();
        settings.id = id.into();
        // No pulse comes while this test runs.
        settings.heartbeat_ttl = Duration::from_secs(1800);
        Worker::builder().settings(settings)
    };
    let workers = [rig.start(calm("w-1")), rig.start(calm("w-2"))];
    let chose = choose(&rig, Pattern::Hybrid).await;
    let expected = json!({"event": "health", "pattern": "hybrid", "version": 1});
    assert_eq!(chose, expected);
    // Each of them has it: both keep their part.
    until("both do their part", || async {
        rig.keys("cb:health:of:*").await.len() == 2
    })
    .await;
    let state = ask(&rig.client, "system.get_state", json!({})).await;
    assert_eq!(state["patterns"]["health"], "hybrid");
    let listed = ask(&rig.client, "system.pattern.get", json!({})).await;
    let listed = &listed["patterns"][0];
    assert_eq!(
        (&listed["from"], &listed["by"]),
        (&json!("bus"), &json!("ann"))
    );
    let cleared = json!({"event": "system.health", "version": 1});
    let cleared = ask(&rig.client, "system.pattern.clear", cleared).await;
    assert_eq!(
        cleared,
        json!({"event": "health", "pattern": null, "version": 2})
    );
    let told = facts(rig.wait_for_fact("pattern.changed", 2).await);
    assert_eq!(told[0]["by"], "ann");
    assert_eq!(told[1]["before"], "hybrid");
    until("the setting counts again", || async {
        let listed = ask(&rig.client, "system.pattern.get", json!({})).await;
        listed["patterns"][0]["from"] == "setting"
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test]
async fn what_cannot_be_chosen_is_refused_with_what_can() {
    let rig = Rig::new().await;
    let _worker = rig.start(worker(&rig, "w-1"));
    for (data, says) in [
        (json!({"event": "discover", "pattern": "hybrid"}), "health"),
        (
            json!({"event": "health", "pattern": "anarchic"}),
            "distributed",
        ),
    ] {
        let refused = rig.refused("system.pattern.set", &data).await;
        assert_eq!(refused.code.as_str(), "invalid_argument");
        assert!(refused.message.contains(says), "{}", refused.message);
    }
    let late = json!({"event": "health", "pattern": "hybrid", "version": 3});
    let refused = rig.refused("system.pattern.set", &late).await;
    assert_eq!(refused.code.as_str(), "aborted");
}

/// What only one of three cannot reach: whether an answer says so depends on who is asked, unless all look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_instance_cannot_reach_is_in_every_answer_that_is_put_together() {
    let rig = Rig::new().await;
    let lame = {
        let mut settings = rig.settings();
        settings.id = "w-lame".into();
        settings.heartbeat_ttl = Duration::from_secs(3);
        settings.mcp_server = "exit 1".to_owned().into();
        Worker::builder().settings(settings)
    };
    let workers = [
        rig.start(lame),
        rig.start(worker(&rig, "w-1")),
        rig.start(worker(&rig, "w-2")),
    ];
    let shape = |health: &Value| -> BTreeSet<String> {
        let names = health.as_object().unwrap().keys();
        names.filter(|name| *name != "reports").cloned().collect()
    };
    until("all are there", async || {
        health(&rig).await["instances"]["healthy"] == 3
    })
    .await;
    let plain = health(&rig).await;
    assert_eq!((&plain["age_ms"], plain.get("reports")), (&json!(0), None));
    for pattern in [Pattern::Distributed, Pattern::Hybrid] {
        choose(&rig, pattern).await;
        health_of(&rig, 3).await;
        let mut together = 0;
        while together < 10 {
            let health = health(&rig).await;
            assert_eq!(shape(&health), shape(&plain));
            // On a slow machine a part may have lapsed, or all of it: then the asked looks alone.
            if health["reports"]["given"] != 3 {
                continue;
            }
            together += 1;
            assert_eq!(health["status"], "degraded", "{pattern}: {health}");
            assert_eq!(health["services"]["mcp"]["status"], "down");
            assert_eq!(health["services"]["redis"]["status"], "up");
            assert_eq!(health["instances"]["healthy"], 3);
            let oldest = health["reports"]["oldest"].as_array().unwrap();
            assert_eq!(oldest.len(), 3);
            // Beyond its time to live a report is not there any more.
            assert!(health["age_ms"].as_u64().unwrap() <= 2 * 3_000, "{health}");
        }
    }
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_gone_is_in_no_answer_and_where_nobody_keeps_one_the_asked_looks() {
    let rig = Rig::new().await;
    let stays = rig.start(worker(&rig, "w-1"));
    let goes = rig.start(worker(&rig, "w-2"));
    choose(&rig, Pattern::Distributed).await;
    health_of(&rig, 2).await;
    goes.stop().await;
    let told = health(&rig).await;
    assert_eq!(
        told["reports"]["oldest"].as_array().unwrap().len(),
        1,
        "{told}"
    );
    assert_eq!(told["reports"]["oldest"][0]["instance"], "w-1");
    // An old answer of a leader that is gone would be one that nobody renews: it is not there.
    choose(&rig, Pattern::Hybrid).await;
    health_of(&rig, 1).await;
    // Whoever is left takes the lead first.
    until("it is kept for no longer than a time to live", async || {
        matches!(
            rig.run("PTTL cb:health:merged").await,
            redis::Value::Int(1..=3_000)
        )
    })
    .await;
    stays.stop().await;
    rig.run("DEL cb:health:merged cb:health:of:w-1").await;
    let alone = {
        let mut settings = rig.settings();
        settings.id = "w-3".into();
        settings.heartbeat_ttl = Duration::from_secs(1800);
        Worker::builder().settings(settings)
    };
    let _alone = rig.start(alone);
    until("it does its part", || async {
        rig.exists("cb:health:merged").await || rig.exists("cb:health:of:w-3").await
    })
    .await;
    // It may be about to keep its first answer, and the next is ten minutes away.
    until("nobody keeps an answer, and the asked looks", || async {
        rig.run("DEL cb:health:merged").await;
        let told = health(&rig).await;
        assert_eq!(told["status"], "healthy", "{told}");
        told["age_ms"] == 0
    })
    .await;
}

async fn metrics(client: &Client) -> Value {
    ask(client, "system.metrics", json!({"detailed": true})).await
}

/// A worker that does not pulse while a test runs.
fn calm(rig: &Rig, id: &str) -> Builder {
    let mut settings = rig.settings();
    settings.id = id.into();
    settings.heartbeat_ttl = Duration::from_secs(1800);
    let builder = Worker::builder().settings(settings);
    builder.handler("load.work", count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulled_metrics_are_of_this_moment_and_name_who_did_not_report() {
    const EVENTS: u64 = 60;
    let rig = Rig::new().await;
    let workers = ["w-1", "w-2", "w-3"].map(|id| rig.start(calm(&rig, id)));
    until("all are there", || async {
        health(&rig).await["instances"]["healthy"] == 3
    })
    .await;
    choose_for(&rig, Patterned::Metrics, Pattern::Distributed).await;
    for number in 0..EVENTS {
        let event = Outgoing::new("load.work", &number);
        rig.client.publish(&event).await.unwrap();
    }
    rig.wait_for("cb:events:effect", EVENTS as usize).await;
    until("all have chosen, and all is counted", || async {
        let told = metrics(&rig.client).await;
        told["handlers"]["load.work"]["calls"] == EVENTS && told["missing_total"] == 0
    })
    .await;
    // However often it is asked for, nothing is counted twice.
    for _ in 0..5 {
        // Now and then one may be too slow to report.
        until("all report", || async {
            let told = metrics(&rig.client).await;
            assert_eq!(told["handlers"]["load.work"]["calls"], EVENTS, "{told}");
            assert_eq!(told["instances"], 3, "{told}");
            told["missing"] == json!([])
        })
        .await;
    }
    // One reads its inbox no more, and one never had any.
    let instances = {
        let url = convoke::settings::RedisUrl::new(rig.redis.url());
        let connector = convoke::connect::connector::Connector::new(&url, 2).unwrap();
        let keys = crate::support::keys();
        Instances::of_process(connector, keys, "data")
    };
    for id in ["w-deaf", "w-none"] {
        let registering = Registering::new(id, ["worker"]);
        instances.register(&registering).await.unwrap();
    }
    rig.run("XADD cb:inbox:w-deaf * type a.b").await;
    until("all others report", || async {
        let told = metrics(&rig.client).await;
        assert_eq!(told["instances"], 5, "{told}");
        assert_eq!(told["handlers"]["load.work"]["calls"], EVENTS);
        told["missing"] == json!(["w-deaf", "w-none"]) && told["missing_total"] == 2
    })
    .await;
    assert!(
        rig.keys("cb:reply:report-*").await.is_empty(),
        "a mailbox is left"
    );
    choose_for(&rig, Patterned::Metrics, Pattern::Centralized).await;
    until("all follow", || async {
        metrics(&rig.client).await.get("missing").is_none()
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
}

async fn count(context: Context, number: u64) -> Result<u64, HandlerError> {
    context.publish("effect.made", &number)?;
    Ok(number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_change_under_load_and_nothing_is_lost_doubled_or_refused() {
    const EVENTS: u64 = 600;
    let rig = Rig::new().await;
    let mut workers = Vec::new();
    for id in ["w-1", "w-2", "w-3"] {
        let mut settings = rig.settings();
        settings.id = id.into();
        // However slow the machine, nobody is late.
        settings.heartbeat_ttl = Duration::from_secs(120);
        let builder = Worker::builder().settings(settings);
        workers.push(rig.start(builder.handler("load.work", count)));
    }
    until("all are there", || async {
        health(&rig).await["instances"]["healthy"] == 3
    })
    .await;
    let over = Arc::new(AtomicBool::new(false));
    let mut asking = Vec::new();
    for _ in 0..4 {
        let (client, over) = (rig.client.clone(), over.clone());
        asking.push(tokio::spawn(async move {
            let mut answers = 0;
            while !over.load(Ordering::Relaxed) {
                let health = ask(&client, "system.health", json!({})).await;
                assert_eq!(health["status"], "healthy", "{health}");
                assert_eq!(health["instances"]["healthy"], 3, "{health}");
                answers += 1;
            }
            answers
        }));
    }
    {
        let (client, over) = (rig.client.clone(), over.clone());
        asking.push(tokio::spawn(async move {
            // What the leader keeps is older than what is read now; each of the two only rises.
            let (mut answers, mut read, mut kept) = (0, 0, 0);
            while !over.load(Ordering::Relaxed) {
                let told = metrics(&client).await;
                let processed = told["events_processed"].as_u64().unwrap();
                let before = match told.get("merged_ms") {
                    Some(_) => &mut kept,
                    None => &mut read,
                };
                assert!(processed >= *before, "{processed}, was {before}: {told}");
                (answers, *before) = (answers + 1, processed);
            }
            answers
        }));
    }
    let mut changes = 0;
    for number in 0..EVENTS {
        let event = Outgoing::new("load.work", &number).id(format!("e-{number}"));
        rig.client.publish(&event).await.unwrap();
        if number % 20 == 0 {
            let built = Patterned::Health.built();
            choose(&rig, built[(changes + 1) % built.len()]).await;
            let built = Patterned::Metrics.built();
            choose_for(&rig, Patterned::Metrics, built[(changes + 1) % built.len()]).await;
            changes += 1;
        }
    }
    let made = rig.wait_for("cb:events:effect", EVENTS as usize).await;
    over.store(true, Ordering::Relaxed);
    let mut answers = 0;
    for asked in asking {
        answers += asked.await.unwrap();
    }
    assert!(answers > 0);
    let numbers: BTreeSet<&[u8]> = made.iter().filter_map(|made| made.get("data")).collect();
    assert_eq!((made.len() as u64, numbers.len() as u64), (EVENTS, EVENTS));
    assert!(rig.entries("cb:dead:load").await.is_empty());
    assert!(rig.entries("cb:dead:system").await.is_empty());
    let told = facts(rig.wait_for_fact("pattern.changed", 2 * changes).await);
    let (told, others): (Vec<Value>, Vec<Value>) =
        told.into_iter().partition(|told| told["event"] == "health");
    assert_eq!(others.len(), changes);
    let mut before = json!("");
    for (at, told) in told.iter().enumerate() {
        assert_eq!(
            (&told["version"], &told["before"]),
            (&json!(at + 1), &before)
        );
        before = told["pattern"].clone();
    }
    assert_eq!(told.len(), changes);
    for worker in workers {
        worker.stop().await;
    }
}
