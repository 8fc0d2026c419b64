//! Parking and releasing: what is paused is in the stream or beside it, and keeps the order of its subject.

use crate::setup::{Bus, GROUP, Held};
use convoke::protocol::event::EntryId;
use convoke::streams::delay::encode_member;
use convoke::streams::park::{self, Candidate, How, Weighed};

const KIND: &str = "image.made";
const PARKED: &str = "cb:parked:image:image.made";
const MOST: usize = 1 << 20;

fn pending<'a>(entry: EntryId, name: &str, subject: Option<&'a str>, how: How) -> Candidate<'a> {
    let fields = ["type", KIND, "id", name];
    Candidate {
        entry,
        deliveries: 1,
        subject,
        how,
        member: encode_member(&entry.to_string(), &fields),
    }
}

async fn weigh(bus: &mut Bus, entries: &[Candidate<'_>]) -> Vec<Weighed> {
    let (mut connection, route) = (bus.connection.clone(), bus.route.clone());
    park::weigh(&mut connection, &route, GROUP, "me", KIND, entries)
        .await
        .unwrap()
}

async fn release(bus: &mut Bus, limit: usize, paused: &[&str]) -> (u64, bool) {
    let (mut connection, route) = (bus.connection.clone(), bus.route.clone());
    let paused = paused.iter().copied();
    park::release(&mut connection, &route, GROUP, KIND, limit, MOST, paused)
        .await
        .unwrap()
}

/// Delivers what is new: the entry and the event's id of each.
async fn deliver(bus: &mut Bus, count: usize) -> Vec<(EntryId, String)> {
    let committer = bus.committer("me");
    let held: Vec<Held> = bus.deliver("me", &committer.claims(), count).await;
    let all = held.into_iter().map(|held| {
        let id = String::from_utf8(held.entry.get("id").unwrap().to_vec()).unwrap();
        (held.entry.id, id)
    });
    all.collect()
}

/// Acknowledges all that is pending; then nothing is known of it any more.
async fn is_done_with(bus: &mut Bus) {
    for one in bus.pending().await {
        bus.run(&format!("XACK cb:events:image {GROUP} {}", one.id))
            .await;
    }
    assert_eq!(release(bus, 9, &[]).await, (0, false));
    assert_eq!(parked(bus).await, 0);
}

async fn parked(bus: &mut Bus) -> u64 {
    bus.ask(&format!("ZCARD {PARKED}")).await
}

#[tokio::test]
async fn what_is_parked_leaves_the_stream_and_comes_back_in_its_order() {
    let mut bus = Bus::start().await;
    bus.add(3).await;
    let held = deliver(&mut bus, 3).await;
    // In another order than that of the stream.
    for at in [2, 0, 1] {
        let one = pending(held[at].0, &held[at].1, None, How::Type);
        assert_eq!(
            weigh(&mut bus, std::slice::from_ref(&one)).await,
            [Weighed::Parked]
        );
        // Whoever got no answer asks again.
        assert_eq!(weigh(&mut bus, &[one]).await, [Weighed::Gone]);
    }
    assert!(bus.pending().await.is_empty());
    assert_eq!(parked(&mut bus).await, 3);
    let (mut connection, route) = (bus.connection.clone(), bus.route.clone());
    let kinds = park::kinds(&mut connection, &[&route]).await.unwrap();
    assert_eq!(kinds, [[KIND.to_owned()]]);
    assert_eq!(release(&mut bus, 2, &[]).await, (2, true));
    assert_eq!(release(&mut bus, 2, &[]).await, (1, false));
    let back: Vec<String> = deliver(&mut bus, 9)
        .await
        .into_iter()
        .map(|one| one.1)
        .collect();
    assert_eq!(back, ["e0", "e1", "e2"]);
    let left: u64 = bus
        .ask("EXISTS cb:parked:image cb:parked:image:image.made")
        .await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn what_is_somebody_elses_or_deleted_is_not_parked() {
    let mut bus = Bus::start().await;
    bus.add(2).await;
    let held = deliver(&mut bus, 2).await;
    bus.hand_on(held[0].0, "other").await;
    bus.run(&format!("XDEL cb:events:image {}", held[1].0))
        .await;
    let both: Vec<_> = held
        .iter()
        .map(|(entry, id)| pending(*entry, id, Some("s"), How::Type))
        .collect();
    assert_eq!(weigh(&mut bus, &both).await, [Weighed::Gone, Weighed::Gone]);
    assert_eq!(parked(&mut bus).await, 0);
}

#[tokio::test]
async fn a_later_one_of_a_subject_never_passes_one_that_was_parked_again() {
    let mut bus = Bus::start().await;
    bus.add(3).await;
    let held = deliver(&mut bus, 3).await;
    let those: Vec<_> = held
        .iter()
        .map(|(entry, id)| pending(*entry, id, Some("s"), How::Type))
        .collect();
    assert_eq!(weigh(&mut bus, &those).await, [Weighed::Parked; 3]);
    assert_eq!(release(&mut bus, 9, &[]).await, (3, false));
    let held = deliver(&mut bus, 3).await;
    let one = |at: usize, how| pending(held[at].0, &held[at].1, Some("s"), how);
    // The pause is back for the first one, and over for the second.
    let weighed = weigh(&mut bus, &[one(0, How::Type), one(1, How::Not)]).await;
    assert_eq!(weighed, [Weighed::Parked, Weighed::Parked]);
    assert_eq!(release(&mut bus, 9, &[]).await, (2, false));
    // The third was read before they came back, behind it: it waits, though nothing is parked any more.
    assert_eq!(
        weigh(&mut bus, &[one(2, How::Not)]).await,
        [Weighed::Parked]
    );
    // Of another subject, or none, nothing waits.
    bus.add(2).await;
    let fresh = deliver(&mut bus, 4).await;
    let ids: Vec<&str> = fresh.iter().map(|one| one.1.as_str()).collect();
    assert_eq!(ids, ["e0", "e1", "e0", "e1"]);
    let others = [
        pending(fresh[2].0, "e0", Some("t"), How::Not),
        pending(fresh[3].0, "e1", None, How::Not),
    ];
    assert_eq!(weigh(&mut bus, &others).await, [Weighed::May; 2]);
    for (entry, id) in fresh.iter().take(2) {
        let one = pending(*entry, id, Some("s"), How::Not);
        assert_eq!(weigh(&mut bus, &[one]).await, [Weighed::May]);
    }
    // Another one came after it, and before it is released.
    bus.add(1).await;
    let after = deliver(&mut bus, 1).await;
    let after = pending(after[0].0, "after", Some("s"), How::Not);
    assert_eq!(weigh(&mut bus, &[after]).await, [Weighed::Parked]);
    assert_eq!(release(&mut bus, 1, &[]).await, (1, true));
    let last = deliver(&mut bus, 9).await;
    assert_eq!(last[0].1, "e2");
    let one = pending(last[0].0, "e2", Some("s"), How::Not);
    assert_eq!(weigh(&mut bus, &[one]).await, [Weighed::May]);
    // It was to begin, and is paused once more: it has its place still.
    let one = pending(last[0].0, "e2", Some("s"), How::Type);
    assert_eq!(weigh(&mut bus, &[one]).await, [Weighed::Parked]);
    assert_eq!(release(&mut bus, 9, &[]).await, (2, false));
    for name in ["e2", "after"] {
        let next = deliver(&mut bus, 1).await;
        assert_eq!(next[0].1, name);
        let one = pending(next[0].0, name, Some("s"), How::Not);
        assert_eq!(weigh(&mut bus, &[one]).await, [Weighed::May]);
    }
    is_done_with(&mut bus).await;
}

#[tokio::test]
async fn one_that_was_released_and_ended_unweighed_is_in_nobodys_way() {
    let mut bus = Bus::start().await;
    bus.add(1).await;
    let held = deliver(&mut bus, 1).await;
    let one = pending(held[0].0, "e0", Some("s"), How::Subject);
    assert_eq!(weigh(&mut bus, &[one]).await, [Weighed::Parked]);
    assert_eq!(release(&mut bus, 9, &["s"]).await, (0, false));
    assert_eq!(release(&mut bus, 9, &["t"]).await, (1, false));
    bus.add(1).await;
    // Unread, and pending, it is in the way.
    let back = deliver(&mut bus, 1).await;
    let next = deliver(&mut bus, 1).await;
    let behind = pending(next[0].0, "e0", Some("s"), How::Not);
    assert_eq!(weigh(&mut bus, &[behind]).await, [Weighed::Parked]);
    assert_eq!(release(&mut bus, 9, &[]).await, (1, false));
    bus.run(&format!("XACK cb:events:image {GROUP} {}", back[0].0))
        .await;
    let next = deliver(&mut bus, 1).await;
    let free = pending(next[0].0, "e0", Some("s"), How::Not);
    assert_eq!(weigh(&mut bus, &[free]).await, [Weighed::May]);
    is_done_with(&mut bus).await;
}

#[tokio::test]
async fn what_is_no_event_stands_in_nobodys_way() {
    let mut bus = Bus::start().await;
    let place = format!("{:020}-{:020}", 1, 1);
    let line = "-".repeat(40);
    bus.run(&format!("ZADD {PARKED} 0 t{place}{line}nonsense"))
        .await;
    bus.run(&format!("HSET cb:parked:image {KIND} 1")).await;
    assert_eq!(release(&mut bus, 9, &[]).await, (1, false));
    assert_eq!(bus.entries("cb:dead:image").await.len(), 1);
    assert_eq!(parked(&mut bus).await, 0);
}

#[tokio::test]
async fn what_somebody_asks_for_is_not_parked_behind_others() {
    let mut bus = Bus::start().await;
    bus.add(2).await;
    let held = deliver(&mut bus, 2).await;
    let first = pending(held[0].0, &held[0].1, Some("s"), How::Asked);
    assert_eq!(weigh(&mut bus, &[first]).await, [Weighed::May]);
    let first = pending(held[0].0, &held[0].1, Some("s"), How::Subject);
    assert_eq!(weigh(&mut bus, &[first]).await, [Weighed::Parked]);
    let second = pending(held[1].0, &held[1].1, Some("s"), How::Asked);
    assert_eq!(weigh(&mut bus, &[second]).await, [Weighed::Behind]);
    assert_eq!(bus.pending().await.len(), 1, "it is to be answered");
}
