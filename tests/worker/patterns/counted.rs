//! What `system.metrics` counts of each pattern.

use super::{ask, choose, choose_for, health, health_of, worker};
use crate::rig::Rig;
use crate::support::until;
use convoke::Worker;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::roster::Detail;
use convoke::protocol::pattern::{Pattern, Patterned};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::time::Duration;

async fn counted(rig: &Rig) -> Value {
    let asked = json!({"detailed": true, "histograms": true});
    ask(&rig.client, "system.metrics", asked).await
}

/// What all counted by now: each of the two has just reported.
async fn whole(rig: &Rig) -> Value {
    let told = RefCell::new(Value::Null);
    until("both have reported", || async {
        let answer = counted(rig).await;
        let whole = answer.get("missing_total") == Some(&json!(0));
        told.replace(answer);
        whole
    })
    .await;
    told.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_counted_by_pattern_with_their_latency_and_their_age_also_of_those_who_left() {
    let rig = Rig::new().await;
    let (first, second) = (rig.start(worker(&rig, "w-1")), worker(&rig, "w-2"));
    let second = rig.start(second);
    until("both are there", || async {
        health(&rig).await["instances"]["healthy"] == 2
    })
    .await;
    let before = counted(&rig).await;
    let calls = |told: &Value, pattern: &str| {
        let calls = &told["patterns"]["health"][pattern]["calls"];
        calls.as_u64().unwrap_or(0)
    };
    assert_eq!(calls(&before, "distributed"), 0, "{before}");
    choose(&rig, Pattern::Distributed).await;
    health_of(&rig, 2).await;
    choose_for(&rig, Patterned::Metrics, Pattern::Distributed).await;
    let (asked, answers) = (calls(&whole(&rig).await, "distributed"), 20);
    assert!(asked > 0);
    for _ in 0..answers {
        assert!(health(&rig).await.get("reports").is_some());
    }
    let told = whole(&rig).await;
    assert_eq!(calls(&told, "distributed"), asked + answers, "{told}");
    let health = &told["patterns"]["health"];
    for pattern in ["centralized", "distributed"] {
        let said = &health[pattern];
        assert!(said["p50_ms"].as_f64().unwrap() > 0.0, "{said}");
        assert!(said["p99_ms"].as_f64() >= said["p50_ms"].as_f64(), "{said}");
        assert_eq!(said["errors"], 0);
    }
    // One looks now, the other says what was found before.
    assert_eq!(health["centralized"]["age_p99_ms"].as_f64(), Some(0.0005));
    assert!(health["distributed"]["age_p50_ms"].as_f64().unwrap() > 1.0);
    until("a pulse is counted", || async {
        let told = counted(&rig).await;
        told["patterns"]["heartbeat"]["centralized"]["calls"].as_u64() > Some(0)
    })
    .await;
    assert!(told["handlers"].get("system.health").is_some());
    let names = told["handlers"].as_object().unwrap().keys();
    assert!(names.into_iter().all(|name| !name.contains(':')), "{told}");
    second.stop().await;
    let after = counted(&rig).await;
    assert!(calls(&after, "distributed") >= asked + answers, "{after}");
    let plain = ask(&rig.client, "system.metrics", json!({})).await;
    assert_eq!(plain.get("patterns"), None);
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_worker_says_in_which_patterns_it_answers() {
    let rig = Rig::new().await;
    let mut settings = rig.settings();
    settings.id = "w-2".into();
    settings.heartbeat_ttl = Duration::from_secs(3);
    settings.patterns.register = Pattern::Hybrid;
    let workers = [
        rig.start(worker(&rig, "w-1")),
        rig.start(Worker::builder().settings(settings)),
    ];
    let instances = {
        let url = convoke::settings::RedisUrl::new(rig.redis.url());
        let connector = convoke::connect::connector::Connector::new(&url, 2).unwrap();
        let keys = crate::support::keys();
        Instances::new(connector, keys)
    };
    let says = async |event: &str| {
        let known = instances.known(Detail::Brief, 10).await.unwrap();
        let said = known.listed.into_iter().map(|(_, one)| {
            let pattern = one.mode.patterns.get(event).cloned();
            (one.id, pattern.unwrap_or_default())
        });
        let mut said: Vec<(String, String)> = said.collect();
        said.sort();
        said
    };
    let pairs = |first: &str, second: &str| {
        let pairs = [("w-1", first), ("w-2", second)];
        pairs.map(|(id, pattern)| (id.to_owned(), pattern.to_owned()))
    };
    until("both say so of themselves", || async {
        says("register").await == pairs("centralized", "hybrid")
    })
    .await;
    choose(&rig, Pattern::Hybrid).await;
    until("both follow what was chosen", || async {
        says("health").await == pairs("hybrid", "hybrid")
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
}
