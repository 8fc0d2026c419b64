//! Consumer groups: dropped with what they had not settled, moved only where nobody runs anything twice.

use crate::replay::{facts, operator, sorted};
use crate::setup::{Bus, GROUP};
use crate::support::users;
use convoke::operator::groups::Reset;
use convoke::protocol::event::EntryId;
use convoke::protocol::keys::Keys;
use serde_json::json;

const EVENTS: &str = "cb:events:image";

fn id(ms: u64) -> EntryId {
    EntryId { ms, seq: 1 }
}

/// Six entries, of which the first four are delivered and the first two settled.
async fn half_read(bus: &mut Bus) {
    for ms in 1..=6 {
        bus.run(&format!("XADD {EVENTS} {ms}-1 type image.made"))
            .await;
    }
    bus.run(&format!(
        "XREADGROUP GROUP {GROUP} w-1 COUNT 4 STREAMS {EVENTS} >"
    ))
    .await;
    bus.run(&format!("XACK {EVENTS} {GROUP} 1-1 2-1")).await;
}

/// The entry that a consumer gets next.
async fn next(bus: &mut Bus) -> Option<String> {
    let read = format!("XREADGROUP GROUP {GROUP} w-9 COUNT 1 NOACK STREAMS {EVENTS} >");
    let reply: redis::Value = bus.ask(&read).await;
    let redis::Value::Array(streams) = reply else {
        return None;
    };
    let (_, entries): (String, redis::Value) = redis::from_redis_value(streams[0].clone()).unwrap();
    let entries = convoke::streams::read::entries_of(entries).unwrap();
    entries.first().map(|entry| entry.id.to_string())
}

#[tokio::test]
async fn a_group_is_dropped_once_with_the_fact() {
    let mut bus = Bus::start().await;
    half_read(&mut bus).await;
    let operator = operator(&bus.keys);
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let dropped = operator.drop_group(connection, EVENTS, GROUP).await;
    let dropped = dropped.unwrap().expect("it was there");
    assert_eq!((dropped.pending, dropped.delivered), (2, id(4)));
    for (stream, group) in [
        (EVENTS, GROUP),
        (EVENTS, "other"),
        ("cb:events:none", GROUP),
    ] {
        let again = operator.drop_group(connection, stream, group).await;
        assert_eq!(again.unwrap(), None, "{stream} {group}");
    }
    assert_eq!(bus.entries(EVENTS).await.len(), 6);
    let facts = facts(&mut bus, "cb:broadcast").await;
    assert_eq!(facts.len(), 1);
    assert_eq!(facts[0].0, "operator.group_dropped");
    let expected = json!({
        "run": "run-1", "by": "ada@desk", "stream": EVENTS, "group": GROUP,
        "pending": 2, "delivered": "4-1",
    });
    assert_eq!(sorted(&facts[0].1), sorted(&expected));
}

#[tokio::test]
async fn a_group_goes_back_only_to_where_nothing_behind_is_pending() {
    let mut bus = Bus::start().await;
    half_read(&mut bus).await;
    let operator = operator(&bus.keys);
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    for behind in [EntryId::default(), id(2), id(3)] {
        let held = operator
            .reset_group(connection, EVENTS, GROUP, id(4), behind)
            .await;
        let entry = if behind == id(3) { id(4) } else { id(3) };
        assert_eq!(held.unwrap(), Some(Reset::Held { entry }), "{behind}");
    }
    assert!(bus.entries("cb:broadcast").await.is_empty());
    bus.run(&format!("XACK {EVENTS} {GROUP} 3-1 4-1")).await;
    let moved = operator
        .reset_group(connection, EVENTS, GROUP, id(4), id(2))
        .await;
    assert!(matches!(moved.unwrap(), Some(Reset::Moved { from, .. }) if from == id(4)));
    assert_eq!(next(&mut bus).await.as_deref(), Some("3-1"));
    let gone = operator
        .reset_group(connection, EVENTS, "other", id(4), id(2))
        .await;
    assert_eq!(gone.unwrap(), None);
}

#[tokio::test]
async fn a_group_goes_forward_past_what_is_left_out() {
    let mut bus = Bus::start().await;
    half_read(&mut bus).await;
    let operator = operator(&bus.keys);
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    for _ in 0..2 {
        let moved = operator
            .reset_group(connection, EVENTS, GROUP, id(4), id(5))
            .await;
        assert!(matches!(moved.unwrap(), Some(Reset::Moved { .. })));
    }
    assert_eq!(bus.pending().await.len(), 2);
    assert_eq!(next(&mut bus).await.as_deref(), Some("6-1"));
    let facts = facts(&mut bus, "cb:broadcast").await;
    let expected = json!({
        "run": "run-1", "by": "ada@desk", "stream": EVENTS, "group": GROUP, "from": "4-1", "to": "5-1",
    });
    assert_eq!(facts.len(), 1, "it changed nothing the second time");
    assert_eq!(facts[0].0, "operator.group_reset");
    assert_eq!(sorted(&facts[0].1), sorted(&expected));
}

#[tokio::test]
async fn in_a_cluster_the_fact_of_a_group_follows() {
    let keys = Keys::tagged("cb", 2).unwrap();
    let mut bus = Bus::with(keys.clone()).await;
    let events = keys.events("image", 1);
    bus.run(&format!("XADD {events} 1-1 type image.made")).await;
    bus.run(&format!("XGROUP CREATE {events} audit 0")).await;
    let operator = operator(&keys);
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let moved = operator
        .reset_group(connection, &events, "audit", EntryId::default(), id(1))
        .await;
    assert!(matches!(moved.unwrap(), Some(Reset::Moved { .. })));
    let dropped = operator.drop_group(connection, &events, "audit").await;
    assert!(dropped.unwrap().is_some());
    let facts = facts(&mut bus, "{cb}:broadcast").await;
    let told: Vec<&str> = facts.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(told, ["operator.group_reset", "operator.group_dropped"]);
    assert_eq!(
        (&facts[0].1["to"], &facts[1].1["delivered"]),
        (&json!("1-1"), &json!("1-1"))
    );
}

#[tokio::test]
async fn a_group_that_went_on_meanwhile_stays() {
    let mut bus = Bus::start().await;
    half_read(&mut bus).await;
    let operator = operator(&bus.keys);
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let stays = operator
        .reset_group(connection, EVENTS, GROUP, id(3), id(5))
        .await;
    let delivered = id(4);
    assert_eq!(stays.unwrap(), Some(Reset::WentOn { delivered }));
    assert_eq!(next(&mut bus).await.as_deref(), Some("5-1"));
    assert!(bus.entries("cb:broadcast").await.is_empty());
}
