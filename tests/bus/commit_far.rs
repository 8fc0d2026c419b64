//! Several committers of one lane: what holds for one holds for each.

use crate::setup::Bus;
use crate::support::users;
use convoke::streams::commit::Committer;
use std::time::Duration;

async fn counter(bus: &mut Bus) -> u64 {
    let key = bus.claims("w-1");
    bus.ask(&format!("GET {key}")).await
}

/// Two of a lane, both connected, with as many entries in hand as are asked for.
async fn two(bus: &mut Bus) -> [Committer; 2] {
    let mut first = bus.committer("w-1");
    first.start().await.unwrap();
    bus.add(1).await;
    let held = bus.deliver("w-1", &first.claims(), 1).await;
    let mut second = first.another();
    assert_eq!(second.commit(vec![held[0].done()]).await.committed, 1);
    [first, second]
}

#[tokio::test]
async fn one_that_comes_in_addition_raises_no_counter_so_what_is_in_hand_stays_quick() {
    if users::skip_without("INFO") {
        return;
    }
    let mut bus = Bus::start().await;
    let mut first = bus.committer("w-1");
    first.start().await.unwrap();
    bus.add(3).await;
    let held = bus.deliver("w-1", &first.claims(), 10).await;
    let before = counter(&mut bus).await;
    let mut second = first.another();
    assert_eq!(second.commit(vec![held[0].done()]).await.committed, 1);
    assert_eq!(first.commit(vec![held[1].done()]).await.committed, 1);
    assert_eq!(second.commit(vec![held[2].done()]).await.committed, 1);
    assert_eq!(counter(&mut bus).await, before);
    assert_eq!(bus.calls("evalsha").await, 0);
    assert_eq!(bus.replied().await, ["e0", "e1", "e2"]);
}

#[tokio::test]
async fn each_of_them_is_fenced_by_a_takeover() {
    let mut bus = Bus::start().await;
    let [mut first, mut second] = two(&mut bus).await;
    bus.add(4).await;
    let held = bus.deliver("w-1", &first.claims(), 10).await;
    let pending = bus.pending().await;
    bus.take("w-2", &pending[..2]).await;
    let report = first.commit(vec![held[0].done(), held[2].done()]).await;
    assert_eq!((report.committed, report.fenced), (1, 1));
    // By now the first one knows how the counter stands, and the second one watched it move.
    let report = second.commit(vec![held[1].done(), held[3].done()]).await;
    assert_eq!((report.committed, report.fenced), (1, 1));
    assert_eq!(bus.replied().await, ["e0", "e2", "e3"]);
    let left = bus.pending().await;
    assert!(left.iter().all(|entry| entry.consumer == "w-2"));
    assert_eq!(left.len(), 2);
}

#[tokio::test]
async fn one_that_watched_the_counter_move_commits_what_was_read_since_the_quick_way() {
    let mut bus = Bus::start().await;
    let [mut first, mut second] = two(&mut bus).await;
    bus.add(2).await;
    let held = bus.deliver("w-1", &first.claims(), 1).await;
    let pending = bus.pending().await;
    bus.take("w-2", &pending).await;
    // The first one learns it.
    assert_eq!(first.commit(vec![held[0].done()]).await.fenced, 1);
    let held = bus.deliver("w-1", &first.claims(), 1).await;
    let before = bus.calls("evalsha").await;
    assert_eq!(second.commit(vec![held[0].done()]).await.committed, 1);
    assert_eq!(bus.calls("evalsha").await, before);
}

#[tokio::test]
async fn a_counter_whose_life_is_prolonged_costs_nothing_its_quick_way() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(2).await;
    let held = bus.deliver("w-1", &committer.claims(), 10).await;
    let mut connection = bus.connection.clone();
    committer.claims().keep(&mut connection).await.unwrap();
    let batch = held.iter().map(|held| held.done()).collect();
    assert_eq!(committer.commit(batch).await.committed, 2);
    assert_eq!(bus.calls("evalsha").await, 0);
    assert_eq!(bus.replied().await, ["e0", "e1"]);
}

#[tokio::test]
async fn where_the_data_is_another_one_it_raises_the_counter_like_the_first() {
    let mut bus = Bus::start().await;
    let mut first = bus.committer("w-1");
    first.start().await.unwrap();
    bus.add(1).await;
    let old = bus.deliver("w-1", &first.claims(), 1).await;
    let before = counter(&mut bus).await;
    bus.run("FLUSHALL").await;
    let mut second = first.another();
    let events = bus.route.events.clone();
    bus.run(&format!("XGROUP CREATE {events} workers $ MKSTREAM"))
        .await;
    assert_eq!(second.commit(vec![old[0].done()]).await.fenced, 1);
    assert!(counter(&mut bus).await > before);
    assert!(bus.replied().await.is_empty());
}

#[tokio::test]
async fn one_that_takes_the_place_of_a_broken_one_raises_the_counter() {
    let mut bus = Bus::start().await;
    let [mut first, mut second] = two(&mut bus).await;
    bus.add(2).await;
    let held = bus.deliver("w-1", &first.claims(), 10).await;
    let before = counter(&mut bus).await;
    bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
    bus.connect().await;
    // What the broken connection may have left on its way is fenced before the entry goes the other way.
    assert_eq!(first.commit(vec![held[0].done()]).await.committed, 1);
    assert!(counter(&mut bus).await > before);
    assert_eq!(second.commit(vec![held[1].done()]).await.committed, 1);
    assert_eq!(bus.replied().await, ["e0", "e0", "e1"]);
}

#[tokio::test]
async fn one_that_lost_its_connection_while_it_idled_raises_nothing_so_all_stays_quick() {
    if users::skip_without("INFO") {
        return;
    }
    let mut bus = Bus::start().await;
    let [first, mut second] = two(&mut bus).await;
    bus.add(2).await;
    let held = bus.deliver("w-1", &first.claims(), 10).await;
    let before = (counter(&mut bus).await, bus.calls("evalsha").await);
    bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
    bus.connect().await;
    // Until then its batch would go the other way.
    while !second.heard_the_end() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let batch = held.iter().map(|held| held.done()).collect();
    assert_eq!(second.commit(batch).await.committed, 2);
    let after = (counter(&mut bus).await, bus.calls("evalsha").await);
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_counter_that_was_made_anew_fences_all_that_was_read_before() {
    let mut bus = Bus::start().await;
    let [mut first, mut second] = two(&mut bus).await;
    bus.add(3).await;
    let held = bus.deliver("w-1", &first.claims(), 10).await;
    let known = first.claims().known(0);
    let key = bus.claims("w-1");
    bus.run(&format!("SET {key} 0")).await;
    let pending = bus.pending().await;
    bus.take("w-2", &pending[..2]).await;
    // Whoever looks learns that it fell, raises it, and compares one by one.
    for (committer, at) in [(&mut first, 0), (&mut second, 1)] {
        let report = committer.commit(vec![held[at].done()]).await;
        assert_eq!((report.committed, report.fenced), (0, 1));
    }
    assert_eq!(second.commit(vec![held[2].done()]).await.committed, 1);
    assert_eq!(bus.replied().await, ["e0", "e2"]);
    let raised = counter(&mut bus).await;
    assert!(raised > known, "{raised} after {known}");
}
