//! Who writes that workers live, in each pattern of `system.heartbeat`.

use super::{facts, health};
use crate::rig::Rig;
use crate::support::until;
use convoke::Worker;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::protocol::pattern::Pattern;
use convoke::worker::builder::Builder;
use std::time::Duration;

fn collected(rig: &Rig, id: &str) -> Builder {
    let mut settings = rig.settings();
    settings.id = id.into();
    settings.heartbeat_ttl = Duration::from_secs(6);
    settings.patterns.heartbeat = Pattern::Hybrid;
    Worker::builder().settings(settings)
}

/// Waits until that many pulses more were sent to a collector.
async fn more_pulses(rig: &Rig, more: usize) {
    let count = rig.entries("cb:pulses").await.len();
    rig.wait_for("cb:pulses", count + more).await;
}

/// When a worker was seen last.
async fn seen(rig: &Rig, id: &str) -> u64 {
    let key = format!("cb:instance:{id}");
    rig.hash(&key, "last_seen").await.parse().unwrap()
}

/// Waits until a collector wrote a pulse of that worker after `since`. With its own pulses it reports, too; so if it
/// was seen later than it reported, somebody else wrote that.
async fn is_collected(rig: &Rig, id: &str, since: u64) {
    let key = format!("cb:instance:{id}");
    until("a collector wrote a pulse", || async {
        let reported: u64 = rig.hash(&key, "reported_at").await.parse().unwrap();
        seen(rig, id).await > reported.max(since)
    })
    .await;
}

async fn nobody_was_lost(rig: &Rig) {
    let lost = facts(rig.wait_for_fact("instance.lost", 0).await);
    assert!(lost.is_empty(), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_keeps_all_alive_and_whoever_comes_after_it_does_so_too() {
    let rig = Rig::new().await;
    let mut workers: Vec<_> = ["w-1", "w-2", "w-3", "w-4"]
        .map(|id| (id, rig.start(collected(&rig, id))))
        .into();
    more_pulses(&rig, 15).await;
    until("all four are healthy", || async {
        health(&rig).await["instances"]["healthy"] == 4
    })
    .await;
    let leader = rig.hash("cb:leader", "id").await;
    let place = workers.iter().position(|(id, _)| *id == leader).unwrap();
    let leading = workers.remove(place).1;
    for (id, _) in &workers {
        is_collected(&rig, id, 0).await;
    }
    leading.stop().await;
    let mut since = Vec::new();
    for (id, _) in &workers {
        since.push((*id, seen(&rig, id).await));
    }
    more_pulses(&rig, 15).await;
    // Who leads pulses by itself only.
    let next = rig.hash("cb:leader", "id").await;
    for (id, since) in since.into_iter().filter(|(id, _)| *id != next) {
        is_collected(&rig, id, since).await;
    }
    until("the other three are healthy", || async {
        health(&rig).await["instances"]["healthy"] == 3
    })
    .await;
    // A pulse says until when somebody waits for it.
    for pulse in rig.entries("cb:pulses").await {
        let until = std::str::from_utf8(pulse.get("until").unwrap()).unwrap();
        assert!(until.parse::<u64>().unwrap() > pulse.id.ms, "{until}");
    }
    nobody_was_lost(&rig).await;
    for (_, worker) in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_collects_each_keeps_itself_alive() {
    let rig = Rig::new().await;
    let instances = {
        let url = convoke::settings::RedisUrl::new(rig.redis.url());
        let connector = convoke::connect::connector::Connector::new(&url, 2).unwrap();
        let keys = crate::support::keys();
        Instances::of_process(connector, keys, "data")
    };
    // It leads, and collects nothing.
    let mut registering = Registering::new("w-data", ["data"]);
    registering.ttl_ms = 3_600_000;
    let registered = instances.register(&registering).await.unwrap();
    instances
        .contend("w-data", registered.incarnation)
        .await
        .unwrap();
    let workers = ["w-1", "w-2"].map(|id| rig.start(collected(&rig, id)));
    more_pulses(&rig, 10).await;
    nobody_was_lost(&rig).await;
    for worker in workers {
        worker.stop().await;
    }
}
