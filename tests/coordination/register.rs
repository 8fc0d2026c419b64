//! Registering: what is new, what stays, what is replaced.

use crate::fleet::Fleet;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::instance::{Beat, Registering};
use serde_json::json;

#[tokio::test]
async fn a_new_instance_is_active_with_its_fact() {
    let mut fleet = Fleet::start().await;
    fleet.register("w-9", &[]).await;
    fleet
        .run("HSET cb:leader id w-9 term 3 until 9000000000000")
        .await;
    let mut registering = Registering::new("w-1", ["worker", "indexer"]);
    registering.capabilities = vec!["image.resize".into(), "image.crop".into()];
    registering.capacity = 4;
    registering.metadata = rmp_serde::to_vec_named(&json!({"zone": "b"})).unwrap();
    let registered = fleet.instances.register(&registering).await.unwrap();
    assert!(registered.new);
    assert_eq!(registered.ttl_ms, 30_000);
    assert_eq!(registered.leader.as_deref(), Some("w-9"));
    let fact = json!({
        "id": "w-1", "roles": ["indexer", "worker"], "incarnation": registered.incarnation
    });
    assert_eq!(fleet.facts().await[1], ("instance.registered".into(), fact));
    let listed = fleet.instances.list().await.unwrap();
    assert_eq!(listed.len(), 2);
    let is = listed.iter().find(|is| is.id == "w-1").unwrap();
    assert_eq!((is.id.as_str(), is.capacity, is.load), ("w-1", 4, 0.0));
    assert_eq!(is.roles, ["indexer", "worker"]);
    assert_eq!(is.capabilities, ["image.crop", "image.resize"]);
    assert_eq!(is.metadata, registering.metadata);
    assert_eq!(is.incarnation, registered.incarnation);
    assert_eq!(is.registered_at, is.last_seen);
    assert_eq!(fleet.members("worker").await, ["w-1"]);
    assert_eq!(fleet.members("indexer").await, ["w-1"]);
    assert_eq!(fleet.ask::<i64>("PTTL cb:instance:w-1").await, -1);
}

#[tokio::test]
async fn an_instance_without_roles_can_register() {
    let mut fleet = Fleet::start().await;
    let registered = fleet.register("w-1", &[]).await;
    let fact = json!({"id": "w-1", "roles": [], "incarnation": registered.incarnation});
    // An empty Lua table is an array to the encoder.
    assert_eq!(fleet.facts().await[0].1, fact);
}

#[tokio::test]
async fn the_same_registration_again_changes_only_the_expiry() {
    let mut fleet = Fleet::start().await;
    let first = fleet.register("w-1", &["worker"]).await;
    fleet.run("HSET cb:instance:w-1 load 7").await;
    let again = fleet.register("w-1", &["worker", "worker"]).await;
    assert_eq!((again.incarnation, again.new), (first.incarnation, false));
    assert_eq!(fleet.facts().await.len(), 1);
    assert_eq!(fleet.instances.list().await.unwrap()[0].load, 7.0);
}

#[tokio::test]
async fn what_a_live_instance_registered_is_replaced_whole() {
    let mut fleet = Fleet::start().await;
    let mut registering = Registering::new("w-1", ["a", "b"]);
    registering.capabilities = vec!["image.crop".into(), "image.resize".into()];
    let first = fleet.instances.register(&registering).await.unwrap();
    registering.roles = vec!["b".into(), "c".into()];
    registering.capabilities = vec!["image.resize".into(), "text.index".into()];
    registering.ttl_ms = 60_000;
    let again = fleet.instances.register(&registering).await.unwrap();
    assert_eq!((again.incarnation, again.new), (first.incarnation, false));
    let none: [&str; 0] = [];
    assert_eq!(fleet.members("a").await, none);
    assert_eq!(fleet.members("b").await, ["w-1"]);
    assert_eq!(fleet.members("c").await, ["w-1"]);
    let capable = async |kind| fleet.instances.capable(kind).await.unwrap().alive;
    assert_eq!(capable("image.crop").await, none);
    assert_eq!(capable("image.resize").await, ["w-1"]);
    assert_eq!(capable("text.index").await, ["w-1"]);
    let beat = Beat::new("w-1", Some(first.incarnation));
    let pulse = fleet.instances.heartbeat(&beat).await.unwrap();
    assert_eq!((pulse.alive, pulse.ttl_ms), (true, 60_000));
    assert_eq!(fleet.facts().await[1].1["roles"], json!(["b", "c"]));
}

#[tokio::test]
async fn the_incarnation_rises_after_unregister_expiry_loss_deletion_and_flush() {
    let mut fleet = Fleet::start().await;
    let mut last = fleet.register("w-1", &["worker"]).await.incarnation;
    for end in ["unregister", "expiry", "loss", "deletion", "flush"] {
        match end {
            "unregister" => {
                fleet.instances.unregister("w-1", None).await.unwrap();
            }
            "expiry" => fleet.expire("w-1").await,
            "loss" => {
                fleet.expire("w-1").await;
                assert_eq!(fleet.instances.sweep(16).await.unwrap().lost.len(), 1);
            }
            "deletion" => fleet.run("DEL cb:instance:w-1").await,
            _ => fleet.run("FLUSHALL").await,
        }
        // After its expiry the same process goes on as who it was.
        if end == "expiry" {
            fleet.instances = Fleet::seen_from(&fleet.redis, &fleet.keys);
        }
        let registered = fleet.register("w-1", &["worker"]).await;
        assert!(registered.new, "{end}");
        assert!(registered.incarnation > last, "{end}");
        last = registered.incarnation;
    }
    // Even above one that lies in the future.
    let future = 4_000_000_000_000_000u64;
    fleet
        .run(&format!("HSET cb:instance:w-1 incarnation {future}"))
        .await;
    fleet.expire("w-1").await;
    fleet.instances = Fleet::seen_from(&fleet.redis, &fleet.keys);
    assert_eq!(fleet.register("w-1", &[]).await.incarnation, future + 1);
    assert_eq!(fleet.ask::<i64>("PTTL cb:instance:w-1").await, -1);
}

#[tokio::test]
async fn roles_that_the_caller_did_not_know_of_are_cleaned_too() {
    let mut fleet = Fleet::start().await;
    let many: Vec<String> = (0..32).map(|n| format!("role-{n:02}")).collect();
    fleet
        .instances
        .register(&Registering::new("w-1", many))
        .await
        .unwrap();
    // Another process knows nothing of them; nor does one after the expiry.
    let other = Fleet::seen_from(&fleet.redis, &fleet.keys);
    let one = Registering::new("w-1", ["only"]);
    assert!(!other.register(&one).await.unwrap().new);
    let roles = async |fleet: &mut Fleet| {
        let keys = fleet.all_keys().await;
        let roles = keys.into_iter().filter(|key| key.starts_with("cb:role:"));
        roles.collect::<Vec<_>>()
    };
    assert_eq!(roles(&mut fleet).await, ["cb:role:only"]);
    fleet.expire("w-1").await;
    fleet.register("w-1", &["next"]).await;
    assert_eq!(roles(&mut fleet).await, ["cb:role:next"]);
}

#[tokio::test]
async fn registering_with_ever_other_roles_at_once_ends_and_leaves_one_set_of_them() {
    let mut fleet = Fleet::start().await;
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let instances = Fleet::seen_from(&fleet.redis, &fleet.keys);
            let registering = Registering::new("w-1", [format!("role-{number}")]);
            tokio::spawn(async move { instances.register(&registering).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let held = &fleet.instances.list().await.unwrap()[0].roles;
    assert_eq!(held.len(), 1);
    let keys = fleet.all_keys().await;
    let roles: Vec<_> = keys.iter().filter(|k| k.starts_with("cb:role:")).collect();
    assert_eq!(roles, [&format!("cb:role:{}", held[0])]);
}

#[tokio::test]
async fn a_full_memory_refuses_a_registration_whole() {
    let mut fleet = Fleet::start().await;
    fleet.run("CONFIG SET maxmemory 1").await;
    let registering = Registering::new("w-1", ["worker"]);
    let error = fleet.instances.register(&registering).await.unwrap_err();
    assert!(
        matches!(&error, CoordinationError::Bus(bus) if bus.code() == Some("OOM")),
        "{error}"
    );
    fleet.run("CONFIG SET maxmemory 0").await;
    assert!(fleet.all_keys().await.is_empty());
}
