//! Pulses and leaving, and who counts as what.

use crate::fleet::Fleet;
use convoke::coordination::instances::gossip::Opinion;
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::coordination::instances::orders::WorkerMode;
use convoke::coordination::instances::roster::{Capable, Reader};
use convoke::coordination::metrics::{Gauges, Report};
use serde_json::json;

async fn pulse(fleet: &Fleet, incarnation: Option<u64>) -> (bool, u64) {
    let beat = Beat::new("w-1", incarnation);
    let pulse = fleet.instances.heartbeat(&beat).await.unwrap();
    (pulse.alive, pulse.ttl_ms)
}

#[tokio::test]
async fn a_pulse_renews_the_living_and_carries_its_report() {
    let mut fleet = Fleet::start().await;
    let incarnation = fleet.register("w-1", &["worker"]).await.incarnation;
    fleet
        .run("ZADD cb:instances:active XX 9000000000000 w-1")
        .await;
    let metrics = Report {
        gauges: Gauges {
            memory_bytes: 7,
            ..Gauges::default()
        },
        ..Report::default()
    };
    let pulse = fleet
        .instances
        .heartbeat(&Beat {
            id: "w-1".into(),
            incarnation: Some(incarnation),
            load: Some(0.25),
            observed: Some([("w-1".into(), Opinion::Suspect)].into()),
            metrics: Some(metrics.clone()),
            seal: None,
            lasting: false,
        })
        .await
        .unwrap();
    assert!(pulse.alive);
    assert_eq!(pulse.ttl_ms, 30_000);
    assert_eq!((pulse.leader, pulse.watch), (None, Vec::new()));
    let is = &fleet.instances.list().await.unwrap()[0];
    assert_eq!(is.load, 0.25);
    assert_eq!(is.gauges.as_ref(), Some(&metrics.gauges));
    assert!(!is.suspect, "its own word");
    let expires: f64 = fleet.ask("ZSCORE cb:instances:active w-1").await;
    assert_eq!(expires as u64, is.last_seen + 30_000);
    // A bare one keeps the report, and needs no incarnation.
    let bare = fleet.instances.heartbeat(&Beat::new("w-1", None)).await;
    assert!(bare.unwrap().alive);
    assert_eq!(fleet.instances.list().await.unwrap()[0].load, 0.25);
    assert_eq!(fleet.fact_names().await, ["instance.registered"]);
}

#[tokio::test]
async fn an_events_pulse_brings_nobody_back_to_life() {
    let mut fleet = Fleet::start().await;
    fleet.instances = fleet.asked();
    // Never registered.
    assert_eq!(pulse(&fleet, None).await, (false, 0));
    assert!(fleet.all_keys().await.is_empty());
    let first = fleet.register("w-1", &["worker"]).await.incarnation;
    // Another incarnation, expired, lost, unregistered.
    assert_eq!(pulse(&fleet, Some(first + 1)).await, (false, 0));
    assert_eq!(pulse(&fleet, Some(first)).await, (true, 30_000));
    fleet.expire("w-1").await;
    assert_eq!(pulse(&fleet, Some(first)).await, (false, 0));
    assert_eq!(
        fleet.ask::<f64>("ZSCORE cb:instances:active w-1").await,
        1000.0
    );
    fleet.instances.sweep(16).await.unwrap();
    assert_eq!(pulse(&fleet, None).await, (false, 0));
    fleet.register("w-1", &["worker"]).await;
    fleet.instances.unregister("w-1", None).await.unwrap();
    assert_eq!(pulse(&fleet, None).await, (false, 0));
    assert!(fleet.instances.list().await.unwrap().is_empty());
    // The hash is gone but not the expiry.
    fleet.register("w-1", &["worker"]).await;
    fleet.run("DEL cb:instance:w-1").await;
    assert_eq!(pulse(&fleet, None).await, (false, 0));
}

#[tokio::test]
async fn pulses_leaving_and_losses_pass_while_the_memory_is_full() {
    let mut fleet = Fleet::start().await;
    for id in ["w-1", "w-2", "w-3"] {
        fleet.register(id, &["worker"]).await;
    }
    fleet.expire("w-3").await;
    fleet.run("SCRIPT FLUSH").await;
    fleet.run("CONFIG SET maxmemory 1").await;
    let beat = Beat {
        metrics: Some(Report::default()),
        observed: Some([("w-2".into(), Opinion::Suspect)].into()),
        load: Some(1.0),
        ..Beat::new("w-1", None)
    };
    assert!(fleet.instances.heartbeat(&beat).await.unwrap().alive);
    let left = fleet.instances.unregister("w-2", None).await.unwrap();
    assert!(left.unregistered);
    let swept = fleet.instances.sweep(16).await.unwrap();
    assert_eq!((swept.lost.len(), swept.active), (1, 1));
    assert_eq!(fleet.members("worker").await, ["w-1"]);
}

#[tokio::test]
async fn who_unregisters_leaves_nothing_but_its_hash_for_a_while() {
    let mut fleet = Fleet::start().await;
    let mut registering = Registering::new("w-1", ["a", "b"]);
    registering.capabilities = vec!["image.crop".into()];
    let incarnation = fleet
        .instances
        .register(&registering)
        .await
        .unwrap()
        .incarnation;
    let leave = async |incarnation| {
        let left = fleet
            .instances
            .unregister("w-1", incarnation)
            .await
            .unwrap();
        (left.unregistered, left.tasks_reassigned)
    };
    assert_eq!(leave(Some(incarnation - 1)).await, (false, 0));
    assert_eq!(leave(Some(incarnation)).await, (true, 0));
    assert_eq!(leave(Some(incarnation)).await, (true, 0), "again");
    assert_eq!(leave(None).await, (true, 0));
    assert_eq!(leave(Some(incarnation + 1)).await, (false, 0));
    let keys = ["cb:broadcast", "cb:instance:w-1", "cb:state"];
    assert_eq!(fleet.all_keys().await, keys);
    assert!(fleet.ask::<i64>("PTTL cb:instance:w-1").await > 3_000_000);
    let fact = json!({"id": "w-1", "incarnation": incarnation, "tasks_reassigned": 0});
    let facts = fleet.facts().await;
    assert_eq!(facts.len(), 2, "said once");
    assert_eq!(facts[1], ("instance.unregistered".into(), fact));
}

#[tokio::test]
async fn only_an_active_instance_can_leave() {
    let mut fleet = Fleet::start().await;
    let left = fleet.instances.unregister("w-1", None).await.unwrap();
    assert!(!left.unregistered);
    // Expired and not swept: it may, and then nobody declares it lost.
    fleet.register("w-1", &["worker"]).await;
    fleet.expire("w-1").await;
    assert!(
        fleet
            .instances
            .unregister("w-1", None)
            .await
            .unwrap()
            .unregistered
    );
    assert!(fleet.instances.sweep(16).await.unwrap().lost.is_empty());
    // Lost: too late.
    fleet.register("w-1", &["worker"]).await;
    fleet.expire("w-1").await;
    fleet.instances.sweep(16).await.unwrap();
    assert!(
        !fleet
            .instances
            .unregister("w-1", None)
            .await
            .unwrap()
            .unregistered
    );
    assert!(fleet.members("worker").await.is_empty());
}

#[tokio::test]
async fn the_census_counts_and_the_capable_are_alive() {
    let mut fleet = Fleet::start().await;
    for id in ["w-1", "w-2", "w-3", "w-4"] {
        let mut registering = Registering::new(id, ["worker"]);
        registering.capabilities = vec!["a.b".into(), "a.b.c".into(), format!("only.{}", &id[2..])];
        fleet.instances.register(&registering).await.unwrap();
    }
    fleet.expire("w-2").await;
    fleet.expire("w-3").await;
    fleet.instances.sweep(1).await.unwrap();
    let census = fleet.instances.census().await.unwrap();
    assert_eq!(
        (census.active, census.expired, census.recently_lost),
        (2, 1, 1)
    );
    assert!(census.at > 1_700_000_000_000);
    let named = async |kind| fleet.instances.capable(kind).await.unwrap();
    let capable = async |kind| named(kind).await.alive;
    assert_eq!(capable("a.b").await, ["w-1", "w-4"]);
    assert_eq!(capable("a.b.c").await, ["w-1", "w-4"]);
    assert_eq!(capable("only.4").await, ["w-4"]);
    let none: [&str; 0] = [];
    assert_eq!(capable("only.3").await, none, "expired");
    assert_eq!(named("only.3").await.expired, ["w-3"]);
    assert_eq!(named("only.2").await, Capable::default(), "lost");
    assert_eq!(capable("a").await, none);
    assert_eq!(capable("").await, none);
    let asked: Vec<String> = ["w-4", "w-3", "w-9", "w-1"].map(String::from).into();
    let alive = fleet.instances.active_among(&asked).await.unwrap();
    assert_eq!(alive, ["w-4", "w-1"]);
    let listed = fleet.instances.list().await.unwrap();
    let listed: Vec<&str> = listed.iter().map(|is| is.id.as_str()).collect();
    assert_eq!(listed, ["w-1", "w-4"]);
    // A loss that is long past is not recent any more.
    fleet.run("ZADD cb:instances:lost 1000 w-2").await;
    assert_eq!(fleet.instances.census().await.unwrap().recently_lost, 0);
}

#[tokio::test]
async fn a_reader_is_alive_of_that_group_and_of_both_types() {
    let mut fleet = Fleet::start().await;
    let reads = async |fleet: &Fleet, group: &str, id: &str, kinds: &[&str]| {
        fleet.register(id, &["worker"]).await;
        let kinds: Vec<String> = kinds.iter().map(|&kind| kind.into()).collect();
        fleet.instances.reads(group, id, &kinds).await.unwrap();
    };
    reads(&fleet, "workers", "w-1", &["a.b", "c.d"]).await;
    reads(&fleet, "workers", "w-2", &["a.b"]).await;
    reads(&fleet, "audit", "w-3", &["a.b", "e.f"]).await;
    let found = async |fleet: &Fleet, kind: &str, besides: Option<&str>, not_it: &str| {
        let reader = fleet.instances.reader("workers", kind, besides, not_it);
        reader.await.unwrap()
    };
    let is = |id: &str| Reader::Found(id.into());
    assert_eq!(found(&fleet, "a.b", None, "w-1").await, is("w-2"));
    assert_eq!(found(&fleet, "a.b", Some("c.d"), "w-2").await, is("w-1"));
    assert_eq!(found(&fleet, "c.d", Some("a.b"), "w-2").await, is("w-1"));
    assert_eq!(
        found(&fleet, "a.b", Some("c.d"), "w-1").await,
        Reader::Nobody
    );
    assert_eq!(
        found(&fleet, "a.b", Some("e.f"), "me").await,
        Reader::Nobody
    );
    assert_eq!(found(&fleet, "e.f", None, "me").await, Reader::Nobody);
    fleet.expire("w-1").await;
    assert_eq!(found(&fleet, "a.b", Some("c.d"), "me").await, Reader::Late);
    assert_eq!(found(&fleet, "a.b", None, "me").await, is("w-2"));
    fleet.instances.sweep(16).await.unwrap();
    assert_eq!(found(&fleet, "c.d", None, "me").await, Reader::Nobody);
    // Very many of them, of whom one is alive.
    let mut many = redis::cmd("ZADD");
    many.arg("cb:readers:workers:c.d");
    for number in 0..300 {
        many.arg(9e15).arg(format!("x-{number}"));
    }
    many.exec_async(&mut fleet.connection).await.unwrap();
    fleet.register("x-77", &["worker"]).await;
    let mut looks = 0;
    while found(&fleet, "c.d", None, "me").await != is("x-77") {
        looks += 1;
        assert!(looks < 1000, "never found");
    }
    // What was said lapses.
    assert!(fleet.ask::<i64>("PTTL cb:readers:workers:a.b").await > 0);
    fleet.run("ZADD cb:readers:workers:a.b 1 w-2").await;
    reads(&fleet, "workers", "w-4", &["a.b"]).await;
    let left: Vec<String> = fleet.ask("ZRANGE cb:readers:workers:a.b 0 -1").await;
    assert_eq!(left, ["w-1", "w-4"]);
}

#[tokio::test]
async fn an_entry_is_handed_to_one_that_lives_stays_and_reads_both_types_and_once() {
    let mut fleet = Fleet::start().await;
    let kinds: Vec<String> = ["a.b", "c.d"].map(Into::into).into();
    for id in ["w-1", "w-2"] {
        fleet.register(id, &["worker"]).await;
        fleet.instances.reads("workers", id, &kinds).await.unwrap();
    }
    let takes = async |fleet: &Fleet, group: &str, kinds: [&str; 2]| {
        let handed = fleet.keys.handed("x", 0, "1");
        let takes = fleet.instances.takes("w-1", group, kinds, &handed);
        takes.await.unwrap()
    };
    let both = ["a.b", "c.d"];
    assert!(takes(&fleet, "workers", both).await);
    assert!(takes(&fleet, "workers", ["a.b"; 2]).await);
    assert!(!takes(&fleet, "workers", ["a.b", "e.f"]).await);
    assert!(!takes(&fleet, "audit", both).await);
    fleet.run("SET cb:handed:x:1 1").await;
    assert!(!takes(&fleet, "workers", both).await, "it was handed on");
    fleet.run("DEL cb:handed:x:1").await;
    for draining in [true, false] {
        let mode = WorkerMode {
            draining,
            ..WorkerMode::default()
        };
        let mode = fleet.instances.look_for_orders("w-1", &mode).await;
        mode.unwrap();
        assert_eq!(takes(&fleet, "workers", both).await, !draining);
    }
    fleet.expire("w-1").await;
    assert!(!takes(&fleet, "workers", both).await, "it is late");
    let nothing = fleet.keys.handed("x", 0, "2");
    let other = fleet.instances.takes("w-2", "workers", both, &nothing);
    assert!(other.await.unwrap());
}
