//! Trimming: history goes, what a group still needs stays.

use crate::setup::{Bus, GROUP};
use crate::support::name;
use convoke::protocol::event::EntryId;
use convoke::streams::trim::{Trimmed, Trimmer, remove, trim};

const STREAM: &str = "cb:events:image";
/// Entries in a node of a stream: only whole nodes are removed.
const NODE: u64 = 100;

async fn grow(bus: &mut Bus, count: usize) -> Vec<EntryId> {
    bus.add(count).await
}

async fn length(bus: &mut Bus) -> u64 {
    bus.ask(&format!("XLEN {STREAM}")).await
}

/// Trims again and again, so that there are samples.
async fn settle(bus: &mut Bus, trimmer: &mut Trimmer, history: u64) -> Vec<Trimmed> {
    let streams = [(name("image", STREAM), history)];
    let mut all = Vec::new();
    for _ in 0..3 {
        let mut results = trimmer.run_once(&mut bus.connection, &streams).await;
        all.push(results.remove(0).unwrap());
    }
    all
}

async fn read_and_acknowledge(bus: &mut Bus, count: usize) {
    let claims = bus.committer("w-1").claims();
    for held in bus.deliver("w-1", &claims, count).await {
        bus.run(&format!("XACK {STREAM} {GROUP} {}", held.entry.id))
            .await;
    }
}

#[tokio::test]
async fn where_nobody_needs_anything_the_history_remains() {
    let mut bus = Bus::start().await;
    grow(&mut bus, 1000).await;
    read_and_acknowledge(&mut bus, 1000).await;
    let trimmed = settle(&mut bus, &mut Trimmer::default(), 250).await;
    assert_eq!(trimmed[0].removed, 700);
    assert_eq!(trimmed[0].read, 1000);
    assert!((250..250 + NODE).contains(&length(&mut bus).await));
    assert_eq!(trimmed[2].removed, 0);
    // That shows the first and the last entry, of any size.
    assert_eq!(bus.calls("xinfo|stream").await, 0);
    // Without any group as well.
    bus.run(&format!("XGROUP DESTROY {STREAM} {GROUP}")).await;
    settle(&mut bus, &mut Trimmer::default(), 100).await;
    assert!((100..100 + NODE).contains(&length(&mut bus).await));
}

#[tokio::test]
async fn what_a_group_has_not_been_given_stays_however_long_the_stream() {
    let mut bus = Bus::start().await;
    let mut trimmer = Trimmer::default();
    for _ in 0..5 {
        grow(&mut bus, 300).await;
        settle(&mut bus, &mut trimmer, 10).await;
    }
    assert_eq!(length(&mut bus).await, 1500);
    // The other group has read all and does not matter.
    bus.run(&format!("XGROUP CREATE {STREAM} other $")).await;
    settle(&mut bus, &mut trimmer, 10).await;
    assert_eq!(length(&mut bus).await, 1500);
    read_and_acknowledge(&mut bus, 700).await;
    settle(&mut bus, &mut trimmer, 10).await;
    let left = length(&mut bus).await;
    assert!((800..=800 + NODE).contains(&left), "{left}");
    let claims = bus.committer("w-1").claims();
    let rest = bus.deliver("w-1", &claims, 10_000).await;
    assert_eq!(rest.len(), 800);
}

#[tokio::test]
async fn a_pending_entry_stays_with_all_that_follows_it() {
    let mut bus = Bus::start().await;
    let mut trimmer = Trimmer::default();
    let ids = grow(&mut bus, 1000).await;
    let claims = bus.committer("w-1").claims();
    bus.deliver("w-1", &claims, 1000).await;
    let kept = ids[450];
    for id in ids.iter().filter(|id| **id != kept) {
        bus.run(&format!("XACK {STREAM} {GROUP} {id}")).await;
    }
    for _ in 0..4 {
        settle(&mut bus, &mut trimmer, 50).await;
        grow(&mut bus, 100).await;
        read_and_acknowledge(&mut bus, 100).await;
    }
    let left = length(&mut bus).await;
    assert!((950..=950 + NODE).contains(&left), "{left}");
    let found: Vec<redis::Value> = bus.ask(&format!("XRANGE {STREAM} {kept} {kept}")).await;
    assert_eq!(found.len(), 1);
    bus.run(&format!("XACK {STREAM} {GROUP} {kept}")).await;
    settle(&mut bus, &mut trimmer, 50).await;
    assert!(length(&mut bus).await <= 50 + NODE);
}

#[tokio::test]
async fn a_stream_that_is_never_quite_read_is_trimmed_to_its_history_too() {
    let mut bus = Bus::start().await;
    let mut trimmer = Trimmer::default();
    grow(&mut bus, 1).await;
    for round in 1..=10 {
        grow(&mut bus, 300).await;
        read_and_acknowledge(&mut bus, 300).await;
        settle(&mut bus, &mut trimmer, 500).await;
        let left = length(&mut bus).await;
        assert!(left >= (1 + 300 * round).min(500), "{left}");
    }
    let left = length(&mut bus).await;
    // One entry is always unread. The samples are as far apart as the rounds here.
    assert!((500..500 + 300 + 2 * NODE).contains(&left), "{left}");
}

#[tokio::test]
async fn ids_are_compared_as_numbers_of_any_length() {
    let mut bus = Bus::start().await;
    bus.run(&format!("DEL {STREAM}")).await;
    for id in 1..=500 {
        bus.run(&format!("XADD {STREAM} {id}-{id} a b")).await;
    }
    for id in 1..=500u64 {
        bus.run(&format!(
            "XADD {STREAM} {}-{id} a b",
            1_000_000_000_000_000_000 + id
        ))
        .await;
    }
    bus.run(&format!("XGROUP CREATE {STREAM} {GROUP} 300-300"))
        .await;
    let candidate = EntryId {
        ms: 1_000_000_000_000_000_400,
        seq: 0,
    };
    let trimmed = trim(&mut bus.connection, STREAM, 10, Some(candidate)).await;
    assert_eq!(trimmed.unwrap().removed, 200);
    bus.run(&format!(
        "XGROUP SETID {STREAM} {GROUP} 1000000000000000450-0"
    ))
    .await;
    let trimmed = trim(&mut bus.connection, STREAM, 10, Some(candidate)).await;
    assert_eq!(trimmed.unwrap().removed, 600);
}

#[tokio::test]
async fn a_stream_that_can_not_be_trimmed_keeps_no_other_from_it() {
    let mut bus = Bus::start().await;
    grow(&mut bus, 300).await;
    read_and_acknowledge(&mut bus, 300).await;
    bus.run("SET cb:events:odd text").await;
    let streams =
        ["cb:events:odd", "cb:events:none", STREAM].map(|plain| (name("image", plain), 10));
    let results = Trimmer::default()
        .run_once(&mut bus.connection, &streams)
        .await;
    assert_eq!(results[0].as_ref().unwrap_err().code(), Some("WRONGTYPE"));
    assert_eq!(results[1].as_ref().unwrap(), &Trimmed::default());
    assert!(results[2].as_ref().unwrap().removed >= 200);
    assert_eq!(bus.ask::<u32>("EXISTS cb:events:none").await, 0);
}

#[tokio::test]
async fn one_entry_is_removed_once_no_group_needs_it() {
    let mut bus = Bus::start().await;
    let ids = grow(&mut bus, 3).await;
    let gone = async |bus: &mut Bus| remove(&mut bus.connection, STREAM, ids[1]).await.unwrap();
    bus.run(&format!("XGROUP CREATE {STREAM} other 0")).await;
    let claims = bus.committer("w-1").claims();
    bus.deliver("w-1", &claims, 3).await;
    assert!(!gone(&mut bus).await, "it is pending");
    bus.run(&format!("XACK {STREAM} {GROUP} {}", ids[1])).await;
    assert!(!gone(&mut bus).await, "the other group was not given it");
    bus.run(&format!("XGROUP SETID {STREAM} other {}", ids[0]))
        .await;
    assert!(!gone(&mut bus).await, "the other group is just before it");
    bus.run(&format!("XGROUP SETID {STREAM} other {}", ids[1]))
        .await;
    assert!(gone(&mut bus).await);
    assert!(!gone(&mut bus).await, "it is gone");
    assert_eq!(length(&mut bus).await, 2);
    bus.run(&format!("DEL {STREAM}")).await;
    assert!(!gone(&mut bus).await, "there is no stream");
}
