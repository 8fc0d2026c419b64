//! Instances that an event made up: they are counted apart, bounded, and decide nothing.

use crate::fleet::Fleet;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::MAX_EXTERNAL;
use convoke::coordination::instances::gossip::{Observed, Opinion};
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::coordination::instances::roster::{Condition, Detail};
use convoke::coordination::metrics::{Gauges, HandlerSums, Report, Sums};

#[tokio::test]
async fn made_up_instances_are_counted_apart_and_make_nobody_unhealthy() {
    let mut fleet = Fleet::start().await;
    for id in ["w-1", "w-2"] {
        fleet.register(id, &["worker"]).await;
    }
    fleet.made_up(40).await;
    let counts = async |fleet: &Fleet| {
        let census = fleet.instances.census().await.unwrap();
        assert_eq!((census.active, census.suspect), (2, 0));
        (
            census.expired,
            census.recently_lost,
            census.external,
            census.is_partitioned(),
        )
    };
    assert_eq!(counts(&fleet).await, (0, 0, 0, false));
    assert!(!fleet.instances.watch_partition().await.unwrap().is);
    // Nor do they keep a real one from being found.
    fleet.register("w-3", &["worker"]).await;
    fleet.run("ZADD cb:instances:active XX 2000 w-3").await;
    let swept = fleet.instances.sweep(4).await.unwrap();
    assert_eq!(swept.lost[0].id, "w-3");
    assert_eq!((swept.lost.len(), swept.active, swept.left), (4, 2, 37));
    while fleet.instances.sweep(16).await.unwrap().left > 0 {}
    assert_eq!(counts(&fleet).await, (0, 1, 0, false));
    let partition = fleet.instances.watch_partition().await.unwrap();
    assert_eq!(
        (partition.is, partition.healthy, partition.total),
        (false, 2, 3)
    );
    // Those that live hide nothing either.
    let events = fleet.asked();
    for number in 0..10 {
        events
            .register(&Registering::new(format!("y-{number}"), ["worker"]))
            .await
            .unwrap();
    }
    fleet.expire("w-1").await;
    fleet.expire("w-2").await;
    let partition = fleet.instances.watch_partition().await.unwrap();
    assert_eq!(
        (partition.is, partition.healthy, partition.total),
        (true, 0, 3)
    );
    // All are listed.
    let known = fleet.instances.known(Detail::Brief, 100).await.unwrap();
    let count = |condition, sealed| {
        let listed = known.listed.iter();
        listed
            .filter(|(is, instance)| (*is, instance.sealed) == (condition, sealed))
            .count()
    };
    assert_eq!((known.total, known.listed.len()), (53, 53));
    assert_eq!(
        (
            count(Condition::Lost, false),
            count(Condition::Healthy, false)
        ),
        (40, 10)
    );
    assert_eq!(
        (
            count(Condition::Lost, true),
            count(Condition::Suspect, true)
        ),
        (1, 2)
    );
}

#[tokio::test]
async fn external_instances_are_bounded() {
    let mut fleet = Fleet::start().await;
    let events = fleet.asked();
    let register = async |number: usize| {
        let mut registering = Registering::new(format!("x-{number}"), ["worker"]);
        // All live until the last one is there, on a slow machine too.
        registering.ttl_ms = 600_000;
        events.register(&registering).await
    };
    for number in 0..MAX_EXTERNAL {
        register(number).await.unwrap();
    }
    let refused = register(MAX_EXTERNAL).await.unwrap_err();
    assert!(
        matches!(&refused, CoordinationError::ResourceExhausted(text) if text.contains("x-1000")),
        "{refused}"
    );
    assert!(!register(3).await.unwrap().new, "it is there already");
    fleet.register("w-1", &["worker"]).await;
    events.unregister("x-3", None).await.unwrap();
    register(MAX_EXTERNAL).await.unwrap();
    // What is over leaves little behind.
    assert!(fleet.ask::<i64>("PTTL cb:instance:x-3").await <= 600_000);
    assert_eq!(
        fleet
            .ask::<u32>("HEXISTS cb:instance:x-3 capabilities")
            .await,
        0
    );
}

#[tokio::test]
async fn what_external_instances_report_enters_no_totals() {
    let mut fleet = Fleet::start().await;
    fleet.register("w-1", &["worker"]).await;
    let events = fleet.asked();
    events
        .register(&Registering::new("x-1", ["worker"]))
        .await
        .unwrap();
    let made_up = |number: usize| Report {
        process: "x".into(),
        sums: Sums {
            events_processed: 1 << 50,
            events_failed: 3,
            ..Sums::default()
        },
        handlers: (0..256)
            .map(|kind| {
                (
                    format!("made.u{number}n{kind}"),
                    HandlerSums {
                        calls: 1,
                        ..HandlerSums::default()
                    },
                )
            })
            .collect(),
        gauges: Gauges {
            memory_bytes: 1 << 40,
            window_events: 10,
            window_ms: 1000,
            ..Gauges::default()
        },
    };
    for number in 0..4 {
        let beat = Beat {
            metrics: Some(made_up(number)),
            load: Some(5.0),
            ..Beat::new("x-1", None)
        };
        assert!(events.heartbeat(&beat).await.unwrap().alive);
    }
    let mut real = Report {
        process: "p".into(),
        ..Report::default()
    };
    real.sums.events_processed = 2;
    real.handlers.insert(
        "image.crop".into(),
        HandlerSums {
            calls: 2,
            ..HandlerSums::default()
        },
    );
    let beat = Beat {
        metrics: Some(real),
        ..Beat::new("w-1", None)
    };
    fleet.instances.heartbeat(&beat).await.unwrap();
    let global = fleet.instances.metrics(true).await.unwrap();
    assert_eq!(global.sums.events_processed, 2);
    assert_eq!(global.handlers.keys().collect::<Vec<_>>(), ["image.crop"]);
    assert_eq!(
        (global.instances, global.memory_bytes, global.throughput),
        (1, 0, 0.0)
    );
    let external = global.external;
    assert_eq!(
        (
            external.instances,
            external.events_processed,
            external.events_failed
        ),
        (1, 1 << 50, 3)
    );
    assert_eq!(
        (external.memory_bytes, external.throughput),
        (1 << 40, 10.0)
    );
    assert_eq!(fleet.ask::<u32>("EXISTS cb:metrics:of:x-1:x").await, 0);
}

#[tokio::test]
async fn made_up_observers_end_no_lease_and_suspect_nobody() {
    let mut fleet = Fleet::start().await;
    let victim = fleet.register("w-1", &["worker"]).await;
    for id in ["w-2", "w-3"] {
        fleet.register(id, &["worker"]).await;
    }
    let events = fleet.asked();
    let observed: Observed = [("w-1".to_owned(), Opinion::Suspect)].into();
    for number in 0..5 {
        let id = format!("x-{number}");
        events
            .register(&Registering::new(&id, ["worker"]))
            .await
            .unwrap();
        let beat = Beat {
            observed: Some(observed.clone()),
            ..Beat::new(&id, None)
        };
        assert!(events.heartbeat(&beat).await.unwrap().alive);
        // Nor in the name of a real one, nor by another process.
        assert!(
            events
                .observe("w-2", None, &observed)
                .await
                .unwrap()
                .is_empty()
        );
        let other = Fleet::seen_from(&fleet.redis, &fleet.keys);
        assert!(
            other
                .observe("w-3", None, &observed)
                .await
                .unwrap()
                .is_empty()
        );
    }
    assert_eq!(fleet.instances.census().await.unwrap().suspect, 0);
    let beat = Beat::new("w-1", Some(victim.incarnation));
    assert!(fleet.instances.heartbeat(&beat).await.unwrap().alive);
    assert!(
        !fleet
            .fact_names()
            .await
            .contains(&"instance.lost".to_owned())
    );
    // The real ones still can.
    fleet
        .instances
        .observe("w-2", None, &observed)
        .await
        .unwrap();
    let lost = fleet
        .instances
        .observe("w-3", None, &observed)
        .await
        .unwrap();
    assert_eq!(lost, ["w-1"]);
}
