//! A partition that one worker owns: what its former owner still sends changes nothing.

use crate::setup::{Bus, GROUP, Held as Delivered, NEXT, REPLY};
use convoke::connect::error::BusError;
use convoke::protocol::dead::DeadLetter;
use convoke::protocol::event::{Entry, EntryId};
use convoke::streams::claim;
use convoke::streams::commit::{Committer, Disposition, Settlement, Tally};
use convoke::streams::fence::Fence;
use convoke::streams::hold::{self, Held};
use convoke::streams::park::{self, Candidate, How};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const FENCE: u64 = 7;

/// A server with some entries in the hands of the worker that owns their partition.
struct Owned {
    bus: Bus,
    fence: Arc<Fence>,
    committer: Committer,
    held: Vec<Delivered>,
}

impl Owned {
    async fn holding(count: usize) -> Self {
        let mut bus = Bus::start().await;
        let key = bus.keys.fence("image", 0, GROUP);
        bus.run(&format!("SET {key} {FENCE}")).await;
        let held = bus.keys.held("image", 0, GROUP);
        let fence = Fence::new(&key, FENCE, &held, CancellationToken::new());
        let fence = Arc::new(fence);
        let mut committer = bus.committer("w-1").fenced(fence.clone());
        committer.start().await.unwrap();
        bus.add(count).await;
        let held = bus.deliver("w-1", &committer.claims(), count).await;
        Self {
            bus,
            fence,
            committer,
            held,
        }
    }

    /// Another worker owns the partition from now on, and has not taken anything over.
    async fn change(&mut self) {
        let key = self.bus.keys.fence("image", 0, GROUP);
        self.bus.run(&format!("INCR {key}")).await;
    }

    async fn nothing_happened(&mut self, tally: &Tally, entries: u64) {
        assert_eq!((tally.committed, tally.fenced), (0, entries));
        assert_eq!(tally.unwritten.len() as u64, entries);
        assert!(self.fence.is_lost());
        assert!(self.bus.replied().await.is_empty());
        assert!(self.bus.entries(NEXT).await.is_empty());
        assert_eq!(self.bus.pending().await.len() as u64, entries);
    }

    async fn holds(&mut self, of: &[usize], held: &Held) -> Result<Vec<EntryId>, BusError> {
        let mut entries = Vec::new();
        for at in of {
            entries.push((self.held[*at].receipt.entry, 1, held));
        }
        let stream = &self.bus.route.events;
        let connection = &mut self.bus.connection;
        hold::hold(connection, stream, GROUP, "w-1", &self.fence, &entries).await
    }

    async fn noted(&mut self) -> HashMap<EntryId, Held> {
        let entries: Vec<EntryId> = self.held.iter().map(|held| held.receipt.entry).collect();
        let noted = hold::noted(&mut self.bus.connection, &self.fence, &entries);
        noted.await.unwrap()
    }
}

/// The slow way: the lease is from before the last takeover.
fn stale(mut settlement: Settlement) -> Settlement {
    settlement.receipt.claims = 0;
    settlement
}

fn note(attempt: u32) -> Held {
    Held {
        attempt,
        due: 1_700_000_000_000,
        deliveries: 1,
        code: "internal".into(),
        message: "it failed".into(),
    }
}

#[tokio::test]
async fn the_owner_commits_either_way() {
    let mut owned = Owned::holding(4).await;
    let batch = owned.held[..2].iter().map(Delivered::done).collect();
    assert_eq!(owned.committer.commit(batch).await.committed, 2);
    let execs = owned.bus.calls("exec").await;
    assert!(execs > 0, "in a transaction");
    let slow = owned.held[2..].iter().map(|held| stale(held.done()));
    let tally = owned.committer.commit(slow.collect()).await;
    assert_eq!((tally.committed, tally.fenced), (2, 0));
    assert!(!owned.fence.is_lost());
    assert_eq!(owned.bus.replied().await, ["e0", "e1", "e2", "e3"]);
}

#[tokio::test]
async fn what_a_former_owner_commits_in_a_batch_changes_nothing() {
    let mut owned = Owned::holding(3).await;
    // Between what it watches and what it sends.
    owned.change().await;
    let batch = owned.held.iter().map(Delivered::done).collect();
    let tally = owned.committer.commit(batch).await;
    owned.nothing_happened(&tally, 3).await;
}

#[tokio::test]
async fn what_a_former_owner_commits_one_by_one_changes_nothing() {
    let mut owned = Owned::holding(3).await;
    owned.change().await;
    let batch = owned.held.iter().map(|held| stale(held.done())).collect();
    let tally = owned.committer.commit(batch).await;
    owned.nothing_happened(&tally, 3).await;
}

#[tokio::test]
async fn nor_does_what_is_too_long_for_a_script() {
    let mut owned = Owned::holding(1).await;
    owned.change().await;
    let held = &owned.held[0];
    let words = (0..20_000).map(|n| n.to_string());
    let letter = DeadLetter {
        entry: Entry::new(held.receipt.entry, words),
        reason: "internal".into(),
        message: "it failed".into(),
        attempts: 1,
        deliveries: 1,
        stream: owned.bus.route.events.clone(),
        instance: "w-1".into(),
        time: 9,
    };
    let dead = held.ending(Disposition::Dead(letter.into()));
    let tally = owned.committer.commit(vec![dead]).await;
    owned.nothing_happened(&tally, 1).await;
}

#[tokio::test]
async fn a_further_connection_of_a_former_owner_is_no_way_round() {
    let mut owned = Owned::holding(2).await;
    let mut another = owned.committer.another();
    owned.change().await;
    let batch = owned.held.iter().map(Delivered::done).collect();
    let tally = another.commit(batch).await;
    owned.nothing_happened(&tally, 2).await;
}

#[tokio::test]
async fn where_the_fence_is_gone_the_partition_is_nobodys() {
    for slow in [false, true] {
        let mut owned = Owned::holding(2).await;
        let key = owned.bus.keys.fence("image", 0, GROUP);
        owned.bus.run(&format!("DEL {key}")).await;
        let outcome = |held: &Delivered| match slow {
            true => stale(held.done()),
            false => held.done(),
        };
        let batch = owned.held.iter().map(outcome).collect();
        let tally = owned.committer.commit(batch).await;
        owned.nothing_happened(&tally, 2).await;
    }
}

#[tokio::test]
async fn a_former_owner_takes_nothing_over_from_the_next_one() {
    let mut owned = Owned::holding(1).await;
    owned.bus.add(1).await;
    owned.change().await;
    let claims = owned.committer.claims();
    owned.bus.deliver("w-2", &claims, 1).await;
    let mut pending = owned.bus.pending().await;
    pending.retain(|entry| entry.consumer == "w-2");
    let (stream, keys) = (owned.bus.route.events.clone(), owned.bus.keys.clone());
    let taken = claim::take_owned(
        &mut owned.bus.connection,
        &stream,
        GROUP,
        "w-1",
        Duration::ZERO,
        &pending,
        |owner| keys.claims("image", 0, owner),
        Some(&owned.fence),
    )
    .await;
    assert!(owned.fence.hears(&taken.unwrap_err()) && owned.fence.is_lost());
    let pending = owned.bus.pending().await;
    let of_the_next = |entry: &&claim::Pending| entry.consumer == "w-2" && entry.deliveries == 1;
    assert_eq!(pending.iter().filter(of_the_next).count(), 1);
}

#[tokio::test]
async fn a_former_owner_parks_nothing() {
    let mut owned = Owned::holding(1).await;
    owned.change().await;
    let candidate = Candidate {
        entry: owned.held[0].receipt.entry,
        deliveries: 1,
        subject: Some("s"),
        how: How::Type,
        member: Vec::new(),
    };
    let route = owned.bus.route.clone();
    let weighed = park::weigh_owned(
        &mut owned.bus.connection,
        &route,
        GROUP,
        "w-1",
        "image.made",
        &[candidate],
        Some(&owned.fence),
    )
    .await;
    assert!(owned.fence.hears(&weighed.unwrap_err()));
    assert_eq!(owned.bus.pending().await.len(), 1);
}

#[tokio::test]
async fn what_waits_in_its_place_is_noted_and_stays_pending() {
    let mut owned = Owned::holding(3).await;
    let entries: Vec<EntryId> = owned.held.iter().map(|held| held.receipt.entry).collect();
    owned.bus.hand_on(entries[2], "w-2").await;
    let lost = owned.holds(&[0, 1, 2], &note(2)).await.unwrap();
    assert_eq!(lost, entries[2..]);
    // Its answer was lost, and the next try failed as well.
    assert!(owned.holds(&[0], &note(3)).await.unwrap().is_empty());
    let noted = owned.noted().await;
    let expected = [(entries[0], note(3)), (entries[1], note(2))];
    assert_eq!(noted, HashMap::from(expected));
    assert_eq!(owned.bus.pending().await.len(), 3);
}

#[tokio::test]
async fn a_former_owner_notes_nothing() {
    let mut owned = Owned::holding(1).await;
    owned.change().await;
    let error = owned.holds(&[0], &note(2)).await.unwrap_err();
    assert!(owned.fence.hears(&error));
    assert!(owned.noted().await.is_empty());
}

#[tokio::test]
async fn what_is_settled_is_noted_no_more_whichever_way_it_goes() {
    for slow in [false, true] {
        let mut owned = Owned::holding(3).await;
        owned.holds(&[0, 2], &note(2)).await.unwrap();
        let outcome = |held: &Delivered| match slow {
            true => stale(held.done()),
            false => held.done(),
        };
        let batch = owned.held[..2].iter().map(outcome).collect();
        assert_eq!(owned.committer.commit(batch).await.committed, 2);
        let left: Vec<EntryId> = owned.noted().await.into_keys().collect();
        assert_eq!(left, [owned.held[2].receipt.entry], "slow: {slow}");
        assert_eq!(owned.bus.replied().await, ["e0", "e1"]);
        let failed = owned.bus.entries("cb:dead:image").await;
        assert!(failed.is_empty(), "{failed:?}");
    }
}

#[tokio::test]
async fn a_note_of_what_is_not_there_any_more_is_swept_away() {
    let mut owned = Owned::holding(2).await;
    owned.holds(&[0, 1], &note(2)).await.unwrap();
    let key = owned.bus.keys.held("image", 0, GROUP);
    owned
        .bus
        .run(&format!("HSET {key} 1-1 text odd text"))
        .await;
    let swept = hold::sweep(&mut owned.bus.connection, &owned.fence).await;
    assert_eq!((swept.unwrap(), owned.noted().await.len()), (2, 2));
    assert!(owned.bus.entries(REPLY).await.is_empty());
}
