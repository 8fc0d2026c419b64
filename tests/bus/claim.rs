//! Taking over, renewing, handing over: only what is still as the caller saw it.

use crate::setup::{Bus, GROUP};
use convoke::connect::silence::CallTime;
use convoke::protocol::event::EntryId;
use convoke::streams::claim::{self, CLAIMS_TTL, Given, Handing, Idle, Pending};
use std::time::Duration;

/// This many entries pending with `w-1`.
async fn held(count: usize) -> (Bus, Vec<Pending>) {
    let mut bus = Bus::start().await;
    bus.add(count).await;
    let claims = bus.committer("w-1").claims();
    bus.deliver("w-1", &claims, count).await;
    let pending = bus.pending().await;
    assert_eq!(pending.len(), count);
    (bus, pending)
}

async fn counter(bus: &mut Bus, consumer: &str) -> Option<u64> {
    bus.ask(&format!("GET {}", bus.claims(consumer))).await
}

#[tokio::test]
async fn what_is_taken_is_the_takers_and_its_owner_is_fenced_in_the_same_step() {
    let (mut bus, pending) = held(3).await;
    let taken = bus.take("w-2", &pending[..2]).await;
    assert_eq!(taken.len(), 2);
    for (taken, pending) in taken.iter().zip(&pending) {
        assert_eq!(taken.entry.id, pending.id);
        assert_eq!(taken.entry.get("type"), Some(&b"image.made"[..]));
        assert_eq!((taken.deliveries, taken.deleted), (2, false));
    }
    assert_eq!(counter(&mut bus, "w-1").await, Some(1));
    assert_eq!(counter(&mut bus, "w-2").await, None);
    let ttl: u64 = bus.ask(&format!("PTTL {}", bus.claims("w-1"))).await;
    let whole = CLAIMS_TTL.as_millis() as u64;
    assert!((whole - 60_000..=whole).contains(&ttl), "{ttl}");
    let now = bus.pending().await;
    let owners: Vec<&str> = now.iter().map(|p| p.consumer.as_str()).collect();
    assert_eq!(owners, ["w-2", "w-2", "w-1"]);
}

#[tokio::test]
async fn nothing_is_taken_that_moved_since_the_caller_looked() {
    let (mut bus, pending) = held(4).await;
    assert_eq!(bus.take("w-2", &pending[..1]).await.len(), 1);
    // Another owner, another delivery, acknowledged.
    assert!(bus.take("w-3", &pending[..1]).await.is_empty());
    bus.take("w-1", &pending[1..2]).await;
    assert!(bus.take("w-3", &pending[1..2]).await.is_empty());
    bus.run(&format!("XACK cb:events:image {GROUP} {}", pending[2].id))
        .await;
    assert!(bus.take("w-3", &pending[2..3]).await.is_empty());
    bus.hand_on(pending[3].id, "w-2").await;
    assert!(bus.take("w-3", &pending[3..]).await.is_empty());
    // One raise for each entry that was taken, none for what was not.
    assert_eq!(counter(&mut bus, "w-1").await, Some(2));
    assert_eq!(counter(&mut bus, "w-2").await, None);
}

#[tokio::test]
async fn an_entry_that_is_not_idle_for_long_enough_stays() {
    let (mut bus, pending) = held(2).await;
    let stream = bus.route.events.clone();
    // The second one has not been touched for an hour.
    let (id, hour) = (pending[1].id, 3_600_000);
    bus.run(&format!(
        "XCLAIM {stream} {GROUP} w-1 0 {id} IDLE {hour} RETRYCOUNT 1 JUSTID"
    ))
    .await;
    let keys = bus.keys.clone();
    let claims = |owner: &str| keys.claims("image", 0, owner);
    let idle = Duration::from_millis(hour);
    let taken = claim::take(
        &mut bus.connection,
        &stream,
        GROUP,
        "w-2",
        idle,
        &pending,
        claims,
    );
    let taken = taken.await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].entry.id, id);
}

#[tokio::test]
async fn a_call_that_runs_at_another_time_takes_nothing() {
    let (mut bus, pending) = held(1).await;
    let (stream, keys) = (bus.route.events.clone(), bus.keys.clone());
    let clock: (u64, u64) = bus.ask("TIME").await;
    let now = clock.0 * 1000;
    for (from, until, takes) in [
        (now + 60_000, now + 120_000, 0),
        (now - 120_000, now - 60_000, 0),
        (now - 60_000, now + 60_000, 1),
    ] {
        let (since, least) = (0, Duration::ZERO);
        let within = CallTime { since, from, until };
        let idle = Idle { least, within };
        let claims = |owner: &str| keys.claims("image", 0, owner);
        let connection = &mut bus.connection;
        let taken = claim::take(connection, &stream, GROUP, "w-2", idle, &pending, claims);
        assert_eq!(taken.await.unwrap().len(), takes, "{from} to {until}");
    }
}

#[tokio::test]
async fn one_call_takes_from_several_owners_and_fences_each() {
    let mut bus = Bus::start().await;
    bus.add(4).await;
    for consumer in ["w-1", "w-2", "w-1", "w-3"] {
        let claims = bus.committer(consumer).claims();
        bus.deliver(consumer, &claims, 1).await;
    }
    let pending = bus.pending().await;
    assert_eq!(bus.take("w-9", &pending[..3]).await.len(), 3);
    let counters = [
        counter(&mut bus, "w-1").await,
        counter(&mut bus, "w-2").await,
        counter(&mut bus, "w-3").await,
    ];
    assert_eq!(counters, [Some(1), Some(1), None]);
}

#[tokio::test]
async fn a_deleted_entry_is_named_and_pending_no_more_and_the_rest_is_taken() {
    let (mut bus, pending) = held(3).await;
    bus.run(&format!("XDEL cb:events:image {}", pending[1].id))
        .await;
    let taken = bus.take("w-2", &pending).await;
    let deleted: Vec<bool> = taken.iter().map(|taken| taken.deleted).collect();
    assert_eq!(deleted, [false, true, false]);
    assert_eq!(taken[1].entry.id, pending[1].id);
    assert!(taken[1].entry.is_empty());
    assert_eq!(bus.pending().await.len(), 2);
    assert_eq!(counter(&mut bus, "w-1").await, Some(1));
}

#[tokio::test]
async fn a_renewed_lease_is_young_again_and_was_not_delivered_again() {
    let (mut bus, pending) = held(5).await;
    let stream = bus.route.events.clone();
    let hour = 3_600_000;
    let ids: Vec<String> = pending.iter().map(|p| p.id.to_string()).collect();
    let ids = ids.join(" ");
    bus.run(&format!(
        "XCLAIM {stream} {GROUP} w-1 0 {ids} IDLE {hour} RETRYCOUNT 1 JUSTID"
    ))
    .await;
    // Taken over, delivered again, deleted, handed on; one is still as it was.
    bus.take("w-2", &pending[..1]).await;
    bus.take("w-1", &pending[1..2]).await;
    bus.run(&format!("XDEL {stream} {}", pending[2].id)).await;
    bus.hand_on(pending[3].id, "w-2").await;
    let mut leases: Vec<_> = pending.iter().map(|p| (p.id, p.deliveries)).collect();
    // What was delivered again is held as that delivery.
    leases.push((pending[1].id, 2));
    let lost = claim::renew(&mut bus.connection, &stream, GROUP, "w-1", &leases).await;
    assert_eq!(lost.unwrap(), leases[..4]);
    let now = bus.pending().await;
    assert_eq!(now.len(), 4);
    assert_eq!(now[0].consumer, "w-2");
    let renewed = &now[3];
    assert_eq!((renewed.consumer.as_str(), renewed.deliveries), ("w-1", 1));
    assert!(renewed.idle < Duration::from_secs(60));
    assert_eq!(counter(&mut bus, "w-1").await, Some(2));
}

#[tokio::test]
async fn a_delivery_that_is_taken_back_does_not_count_and_only_its_own_consumer_takes_it_back() {
    let (mut bus, pending) = held(6).await;
    let stream = bus.route.events.clone();
    let hour = 3_600_000;
    let id = pending[0].id;
    bus.run(&format!(
        "XCLAIM {stream} {GROUP} w-1 0 {id} IDLE {hour} RETRYCOUNT 1 JUSTID"
    ))
    .await;
    // Taken over, delivered again, acknowledged, deleted.
    bus.take("w-2", &pending[1..2]).await;
    bus.take("w-1", &pending[2..3]).await;
    bus.run(&format!("XACK {stream} {GROUP} {}", pending[3].id))
        .await;
    bus.run(&format!("XDEL {stream} {}", pending[4].id)).await;
    let mut connection = bus.connection.clone();
    let mut undeliver = async |held: &[(EntryId, u32)]| {
        claim::undeliver(&mut connection, &stream, GROUP, "w-1", held)
            .await
            .unwrap()
    };
    let all: Vec<_> = pending.iter().map(|p| (p.id, p.deliveries)).collect();
    assert_eq!(undeliver(&all[..5]).await, 1);
    // Another time there is nothing to take back, nor below zero.
    assert_eq!(undeliver(&all[..5]).await, 0);
    assert_eq!(undeliver(&[(pending[0].id, 0)]).await, 0);
    // What was delivered again is one delivery less.
    assert_eq!(undeliver(&[(pending[2].id, 2)]).await, 1);
    let now = bus.pending().await;
    let now: Vec<_> = now
        .iter()
        .map(|p| {
            (
                p.id,
                p.consumer.as_str(),
                p.deliveries,
                p.idle.as_secs() >= 3600,
            )
        })
        .collect();
    assert_eq!(
        now,
        [
            (pending[0].id, "w-1", 0, true),
            (pending[1].id, "w-2", 2, false),
            (pending[2].id, "w-1", 1, false),
            (pending[5].id, "w-1", 1, false),
        ]
    );
    // Whoever takes it has it as if it were new.
    let now = bus.pending().await;
    let taken = bus.take("w-2", &now[..1]).await;
    assert_eq!(taken[0].deliveries, 1);
}

#[tokio::test]
async fn what_is_given_reaches_the_receiver_as_its_first_delivery() {
    let (mut bus, pending) = held(3).await;
    let stream = bus.route.events.clone();
    let mut connection = bus.connection.clone();
    let mut give = async |(entry, deliveries)| {
        let handing = Handing {
            from: "w-1",
            to: "w-2",
            entry,
            deliveries,
            handed: &format!("cb:handed:image:{entry}"),
        };
        let given = claim::give(&mut connection, &stream, GROUP, handing).await;
        given.unwrap()
    };
    assert_eq!(give((pending[0].id, 1)).await, Given::Given);
    assert_eq!(
        give((pending[0].id, 1)).await,
        Given::Lost,
        "it is w-2's now"
    );
    assert_eq!(
        give((pending[1].id, 2)).await,
        Given::Lost,
        "another delivery"
    );
    let now = bus.pending().await;
    assert_eq!((now[0].consumer.as_str(), now[0].deliveries), ("w-2", 0));
    let taken = bus.take("w-2", &now[..1]).await;
    assert_eq!(taken[0].deliveries, 1);
    bus.run(&format!("XDEL cb:events:image {}", pending[2].id))
        .await;
    assert_eq!(give((pending[2].id, 1)).await, Given::Lost, "deleted");
    bus.hand_on(pending[1].id, "w-3").await;
    assert_eq!(
        give((pending[1].id, 1)).await,
        Given::Lost,
        "w-3's with the same count"
    );
    // Only what was handed over counts, and that only for a while.
    let handed = format!("cb:handed:image:{}", pending[0].id);
    assert_eq!(bus.ask::<u32>(&format!("GET {handed}")).await, 1);
    assert!(bus.ask::<i64>(&format!("PTTL {handed}")).await > 0);
    assert_eq!(
        bus.ask::<u32>(&format!("EXISTS cb:handed:image:{}", pending[1].id))
            .await,
        0
    );
}

#[tokio::test]
async fn what_the_receiver_cannot_be_told_of_since_memory_is_full_stays_with_the_giver() {
    let (mut bus, pending) = held(1).await;
    let mut connection = bus.connection.clone();
    let handing = Handing {
        from: "w-1",
        to: "w-2",
        entry: pending[0].id,
        deliveries: 1,
        handed: "cb:handed:image:x",
    };
    let before = bus.pending().await;
    bus.run("CONFIG SET maxmemory 1").await;
    let given = claim::give(&mut connection, &bus.route.events, GROUP, handing).await;
    assert_eq!(given.unwrap_err().code(), Some("OOM"));
    bus.run("CONFIG SET maxmemory 0").await;
    let after = bus.pending().await;
    assert_eq!(
        (&after[0].consumer, after[0].deliveries),
        (&before[0].consumer, 1)
    );
    let given = claim::give(&mut connection, &bus.route.events, GROUP, handing).await;
    assert_eq!(given.unwrap(), Given::Given);
}

#[tokio::test]
async fn what_was_handed_over_a_few_times_is_not_handed_over_again() {
    let (mut bus, pending) = held(1).await;
    let stream = bus.route.events.clone();
    let mut connection = bus.connection.clone();
    for time in 0..=claim::HANDOVERS {
        let handing = Handing {
            from: "w-1",
            to: "w-2",
            entry: pending[0].id,
            deliveries: 1,
            handed: "cb:handed:image:x",
        };
        let given = claim::give(&mut connection, &stream, GROUP, handing).await;
        if time == claim::HANDOVERS {
            assert_eq!(given.unwrap(), Given::TooOften);
            assert_eq!(
                bus.pending().await[0].consumer,
                "w-1",
                "nothing was changed"
            );
            return;
        }
        assert_eq!(given.unwrap(), Given::Given);
        let now = bus.pending().await;
        bus.take("w-1", &now[..1]).await;
    }
}

#[tokio::test]
async fn a_consumer_is_not_forgotten_while_something_is_pending_with_it() {
    let (mut bus, pending) = held(1).await;
    let stream = bus.route.events.clone();
    let mut connection = bus.connection.clone();
    let mut forget = async |consumer| {
        claim::forget(&mut connection, &stream, GROUP, consumer)
            .await
            .unwrap()
    };
    assert!(!forget("w-1").await);
    assert_eq!(bus.pending().await.len(), 1);
    bus.take("w-2", &pending).await;
    assert!(forget("w-1").await);
    assert!(forget("nobody").await);
    let consumers: Vec<std::collections::HashMap<String, redis::Value>> = bus
        .ask(&format!("XINFO CONSUMERS cb:events:image {GROUP}"))
        .await;
    assert_eq!(consumers.len(), 1);
    let holders = claim::holders(&mut bus.connection, "cb:events:image", GROUP);
    assert_eq!(holders.await.unwrap(), ["w-2"]);
}

#[tokio::test]
async fn a_consumer_of_any_name_stops_nobody_and_is_taken_over_from() {
    let mut bus = Bus::start().await;
    bus.add(2).await;
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP")
        .arg(GROUP)
        .arg(b"w\xff")
        .arg("COUNT")
        .arg(1);
    read.arg("STREAMS").arg(&bus.route.events).arg(">");
    read.exec_async(&mut bus.connection).await.unwrap();
    let claims = bus.committer("w-1").claims();
    bus.deliver("w-1", &claims, 1).await;
    let stream = bus.route.events.clone();
    let holders = claim::holders(&mut bus.connection, &stream, GROUP).await;
    let mut holders = holders.unwrap();
    holders.sort();
    assert_eq!(holders, ["w-1", "w\u{fffd}"]);
    let pending = bus.pending().await;
    assert_eq!(bus.take("w-2", &pending).await.len(), 2);
    let owners: Vec<String> = bus
        .pending()
        .await
        .into_iter()
        .map(|p| p.consumer)
        .collect();
    assert_eq!(owners, ["w-2", "w-2"]);
}
