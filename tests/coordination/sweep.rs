//! Losses: declared once, by whoever comes first.

use crate::fleet::Fleet;
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::coordination::metrics::Report;
use convoke::protocol::keys::Keys;
use serde_json::json;

#[tokio::test]
async fn an_expired_instance_is_declared_lost_with_all_that_it_held() {
    let mut fleet = Fleet::start().await;
    let mut registering = Registering::new("w-1", ["a", "b"]);
    registering.capabilities = vec!["image.crop".into()];
    let incarnation = fleet
        .instances
        .register(&registering)
        .await
        .unwrap()
        .incarnation;
    let beat = Beat {
        metrics: Some(Report::default()),
        ..Beat::new("w-1", None)
    };
    fleet.instances.heartbeat(&beat).await.unwrap();
    let last_seen = fleet.instances.list().await.unwrap()[0].last_seen;
    let swept = fleet.instances.sweep(16).await.unwrap();
    assert_eq!((swept.lost.len(), swept.active, swept.left), (0, 1, 0));
    fleet.expire("w-1").await;
    let swept = fleet.instances.sweep(16).await.unwrap();
    assert_eq!((swept.lost.len(), swept.active, swept.left), (1, 0, 0));
    let lost = &swept.lost[0];
    assert_eq!(
        (lost.id.as_str(), lost.incarnation, lost.last_seen),
        ("w-1", incarnation, last_seen)
    );
    let fact = json!({
        "id": "w-1", "incarnation": incarnation, "last_seen": last_seen, "tasks_reassigned": 0
    });
    assert_eq!(fleet.facts().await[1], ("instance.lost".into(), fact));
    let keys = [
        "cb:broadcast",
        "cb:instance:w-1",
        "cb:instances:lost",
        "cb:metrics",
        "cb:metrics:of:w-1:",
        "cb:state",
    ];
    assert_eq!(fleet.all_keys().await, keys);
    assert!(fleet.ask::<i64>("PTTL cb:instance:w-1").await > 3_000_000);
    assert!(fleet.ask::<i64>("PTTL cb:instances:lost").await > 500_000);
    let reports: u32 = fleet.ask("EXISTS cb:instance:w-1").await;
    assert_eq!(reports, 1);
    let report: Option<String> = fleet.ask("HGET cb:instance:w-1 metrics").await;
    assert_eq!(report, None);
    // Back again: not among the lost any more.
    fleet.register("w-1", &["a"]).await;
    assert_eq!(fleet.instances.census().await.unwrap().recently_lost, 0);
}

#[tokio::test]
async fn a_sweep_takes_the_oldest_first_and_no_more_than_its_limit() {
    let mut fleet = Fleet::start().await;
    for number in 0..5 {
        fleet.register(&format!("w-{number}"), &["worker"]).await;
    }
    for (score, id) in [(3000, "w-0"), (1000, "w-1"), (2000, "w-2"), (4000, "w-3")] {
        fleet
            .run(&format!("ZADD cb:instances:active {score} {id}"))
            .await;
    }
    let swept = fleet.instances.sweep(3).await.unwrap();
    let ids: Vec<&str> = swept.lost.iter().map(|lost| lost.id.as_str()).collect();
    assert_eq!(ids, ["w-1", "w-2", "w-0"]);
    assert_eq!((swept.active, swept.left), (1, 1));
    assert_eq!(fleet.instances.sweep(0).await.unwrap().left, 1);
    assert_eq!(fleet.members("worker").await, ["w-3", "w-4"]);
}

#[tokio::test]
async fn an_instance_whose_hash_was_deleted_is_lost_all_the_same() {
    let mut fleet = Fleet::start().await;
    fleet.register("w-1", &["worker"]).await;
    fleet.run("DEL cb:instance:w-1").await;
    fleet.expire("w-1").await;
    let swept = fleet.instances.sweep(16).await.unwrap();
    let lost = &swept.lost[0];
    assert_eq!(
        (lost.id.as_str(), lost.incarnation, lost.last_seen),
        ("w-1", 0, 1000)
    );
    assert_eq!(fleet.facts().await[1].0, "instance.lost");
    assert_eq!(fleet.instances.census().await.unwrap().expired, 0);
    assert_eq!(fleet.ask::<u32>("EXISTS cb:instance:w-1").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweepers_at_once_declare_each_loss_once() {
    let mut fleet = Fleet::start().await;
    for round in 0..20 {
        for number in 0..6 {
            let id = format!("w-{number}");
            fleet
                .register(&id, &["worker", &format!("role-{number}")])
                .await;
            fleet.expire(&id).await;
        }
        let sweepers = [(); 3].map(|()| {
            let instances = Fleet::seen_from(&fleet.redis, &fleet.keys);
            tokio::spawn(async move { instances.sweep(16).await })
        });
        let mut declared = Vec::new();
        for sweeper in sweepers {
            let swept = sweeper.await.unwrap().unwrap();
            declared.extend(swept.lost.into_iter().map(|lost| lost.id));
        }
        declared.sort();
        let all: Vec<String> = (0..6).map(|number| format!("w-{number}")).collect();
        assert_eq!(declared, all, "round {round}");
    }
    let facts = fleet.fact_names().await;
    let lost = facts.iter().filter(|name| *name == "instance.lost").count();
    assert_eq!(lost, 120);
    let keys = fleet.all_keys().await;
    assert!(
        !keys.iter().any(|key| key.starts_with("cb:role:")),
        "{keys:?}"
    );
}

#[tokio::test]
async fn a_killed_connection_is_replaced_within_the_call() {
    let mut fleet = Fleet::start().await;
    fleet.register("w-1", &["worker"]).await;
    for _ in 0..5 {
        fleet.run("CLIENT KILL TYPE normal SKIPME yes").await;
        assert_eq!(fleet.instances.census().await.unwrap().active, 1);
    }
}

#[tokio::test]
async fn under_hash_tags_all_keys_share_the_control_planes_slot() {
    let mut fleet = Fleet::with(Keys::tagged("cb", 8).unwrap()).await;
    let mut registering = Registering::new("w-1", ["worker"]);
    registering.capabilities = vec!["image.crop".into()];
    fleet.instances.register(&registering).await.unwrap();
    fleet.register("w-2", &["worker"]).await;
    fleet.expire("w-1").await;
    fleet.instances.sweep(16).await.unwrap();
    fleet.instances.unregister("w-2", None).await.unwrap();
    let keys = fleet.all_names().await;
    assert!(keys.iter().all(|key| key.starts_with("{cb}:")), "{keys:?}");
    assert_eq!(fleet.facts().await.len(), 4);
}
