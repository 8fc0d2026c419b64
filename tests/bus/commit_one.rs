//! Commits that go entry by entry: every branch of the script, and what cannot be written.

use crate::setup::{Bus, GROUP, Held, NEXT, REPLY, text};
use crate::support::{Redis, beside, keys, name, users};
use convoke::protocol::dead::DeadLetter;
use convoke::protocol::event::{Entry, EntryId};
use convoke::streams::commit::{Committer, Disposition, Note, Settlement, Tally};
use std::time::Duration;

/// No id comes after it.
const LAST: &str = "18446744073709551615-18446744073709551615";

/// A bus with this many entries delivered to `w-1`.
async fn holding(count: usize) -> (Bus, Committer, Vec<Held>) {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(count).await;
    let held = bus.deliver("w-1", &committer.claims(), count).await;
    (bus, committer, held)
}

/// The slow way: the lease is from before the last takeover.
fn stale(mut settlement: Settlement) -> Settlement {
    settlement.receipt.claims = 0;
    settlement
}

fn dead(bus: &Bus, held: &Held) -> DeadLetter {
    DeadLetter {
        entry: held.entry.clone(),
        reason: "internal".into(),
        message: "it failed".into(),
        attempts: 1,
        deliveries: 1,
        stream: bus.route.events.clone(),
        instance: "w-1".into(),
        time: 9,
    }
}

fn counts(report: &Tally) -> (u64, u64, usize) {
    (report.committed, report.fenced, report.refused.len())
}

#[tokio::test]
async fn an_outcome_counts_for_the_delivery_that_it_is_of_and_no_other() {
    let (mut bus, mut committer, held) = holding(5).await;
    // Not pending, another owner, another delivery of ours, ours; handed to another as its first.
    bus.run(&format!(
        "XACK cb:events:image {GROUP} {}",
        held[0].receipt.entry
    ))
    .await;
    let pending = bus.pending().await;
    bus.take("w-2", &pending[..1]).await;
    bus.take("w-1", &pending[1..2]).await;
    bus.hand_on(held[4].receipt.entry, "w-3").await;
    let mut foreign = held[3].done();
    foreign.receipt.entry = EntryId { ms: 1, seq: 1 };
    let mut batch: Vec<Settlement> = held.iter().map(|h| stale(h.done())).collect();
    batch.push(stale(foreign));
    let report = committer.commit(batch).await;
    assert_eq!(counts(&report), (1, 5, 0));
    assert_eq!(bus.replied().await, ["e3"]);
    assert_eq!(bus.entries(NEXT).await.len(), 1);
    assert_eq!(bus.pending().await.len(), 3);
}

#[tokio::test]
async fn one_by_one_outcomes_are_written_in_the_order_of_the_batch() {
    let (mut bus, mut committer, held) = holding(5).await;
    let batch = held.iter().map(|h| stale(h.done())).collect();
    assert_eq!(committer.commit(batch).await.committed, 5);
    assert_eq!(bus.replied().await, ["e0", "e1", "e2", "e3", "e4"]);
}

#[tokio::test]
async fn what_is_remembered_is_written_with_the_outcome_whatever_is_there_or_not_at_all() {
    for slow in [false, true] {
        let (mut bus, mut committer, held) = holding(2).await;
        bus.run("RPUSH cb:said:image:e0 a b").await;
        let pending = bus.pending().await;
        let noted = |held: &Held| {
            let note = Note {
                key: name("image", &format!("cb:said:image:{}", held.id())),
                value: b"done".to_vec(),
                kept: Duration::from_secs(60),
            };
            let settlement = Settlement {
                notes: vec![note],
                ..held.done()
            };
            match slow {
                true => stale(settlement),
                false => settlement,
            }
        };
        let batch = held.iter().map(noted).collect();
        bus.take("w-2", &pending[1..]).await;
        let report = committer.commit(batch).await;
        assert_eq!(counts(&report), (1, 1, 0), "slow: {slow}");
        assert_eq!(bus.ask::<String>("GET cb:said:image:e0").await, "done");
        let ttl = bus.ask::<i64>("PTTL cb:said:image:e0").await;
        assert!((1..=60_000).contains(&ttl), "{ttl}");
        assert_eq!(bus.ask::<u32>("EXISTS cb:said:image:e1").await, 0);
        assert_eq!(bus.ask::<u32>("EXISTS cb:dead:image").await, 0);
    }
}

#[tokio::test]
async fn what_cannot_be_told_becomes_a_dead_letter_in_the_place_of_the_reply() {
    for slow in [false, true] {
        let (mut bus, mut committer, held) = holding(5).await;
        let replies = ["cb:reply:odd", "cb:reply:full", REPLY].map(|it| name("image", it));
        let [odd, full, reply] = &replies;
        bus.run(&format!("SET {odd} text")).await;
        bus.run(&format!("XADD {full} {LAST} a b")).await;
        let [ghost, there] = ["cb:inbox:ghost", "cb:inbox:there"].map(|it| beside("image", it));
        bus.run(&format!("XADD {there} 1-1 a b")).await;
        let places = [odd, full, &ghost, &there, reply];
        let batch = held.iter().zip(places).map(|(held, to)| {
            let mut settlement = held.ending(Disposition::Told(dead(&bus, held).into()));
            settlement.reply.as_mut().unwrap().to = Some(to.clone());
            settlement.publications.clear();
            match slow {
                true => stale(settlement),
                false => settlement,
            }
        });
        let report = committer.commit(batch.collect()).await;
        assert_eq!(counts(&report), (5, 0, 0));
        assert_eq!(report.dead, 3, "slow: {slow}");
        assert_eq!(bus.replied().await, ["e4"]);
        assert_eq!(bus.entries(&there).await.len(), 2);
        let ghosts: u32 = bus.ask(&format!("EXISTS {ghost}")).await;
        assert_eq!(ghosts, 0);
        assert!(bus.pending().await.is_empty());
        let letters = bus.entries("cb:dead:image").await;
        let mut ids: Vec<String> = letters.iter().map(|letter| text(letter, "id")).collect();
        ids.sort();
        assert_eq!(ids, ["e0", "e1", "e2"], "slow: {slow}");
        assert!(
            letters
                .iter()
                .all(|letter| text(letter, "deadreason") == "internal")
        );
        // Where the dead letters cannot be written, and are needed, nothing is.
        let ids = bus.add(2).await;
        let more = bus.deliver("w-1", &committer.claims(), 2).await;
        bus.run("DEL cb:dead:image").await;
        bus.run("SET cb:dead:image text").await;
        let batch = more.iter().zip([&ghost, reply]).map(|(held, to)| {
            let mut settlement = held.ending(Disposition::Told(dead(&bus, held).into()));
            settlement.reply.as_mut().unwrap().to = Some(to.clone());
            stale(settlement)
        });
        let report = committer.commit(batch.collect()).await;
        assert_eq!(counts(&report), (1, 0, 1), "slow: {slow}");
        assert_eq!(bus.pending().await[0].id, ids[0]);
    }
}

#[tokio::test]
async fn an_entry_that_was_deleted_is_not_committed() {
    let (mut bus, mut committer, held) = holding(2).await;
    bus.run(&format!("XDEL cb:events:image {}", held[0].receipt.entry))
        .await;
    let batch = held.iter().map(|held| stale(held.done())).collect();
    assert_eq!(counts(&committer.commit(batch).await), (1, 1, 0));
    assert_eq!(bus.replied().await, ["e1"]);
    assert!(bus.pending().await.is_empty());
}

#[tokio::test]
async fn a_reply_that_can_not_be_written_becomes_a_dead_letter_and_hurts_nobody_else() {
    for (slow, alone) in [(false, false), (true, false), (true, true)] {
        let (mut bus, mut committer, held) = holding(3).await;
        let places = ["cb:reply:odd", "cb:reply:full", REPLY].map(|it| name("image", it));
        let [odd, full, _] = &places;
        bus.run(&format!("SET {odd} text")).await;
        bus.run(&format!("XADD {full} {LAST} a b")).await;
        let mut batch: Vec<Settlement> = held.iter().map(|h| h.done()).collect();
        for (settlement, to) in batch.iter_mut().zip(&places) {
            settlement.reply.as_mut().unwrap().to = Some(to.clone());
            if alone {
                settlement.publications.clear();
            }
            if slow {
                *settlement = stale(settlement.clone());
            }
        }
        assert_eq!(counts(&committer.commit(batch).await), (3, 0, 0));
        assert_eq!(bus.replied().await, ["e2"], "slow: {slow}");
        assert_eq!(bus.entries(NEXT).await.len(), if alone { 0 } else { 3 });
        assert!(bus.pending().await.is_empty());
        let letters = bus.entries("cb:dead:image").await;
        assert_eq!(letters.len(), 2, "slow: {slow}");
        let keys = ["cb:reply:odd", "cb:reply:full"];
        for ((letter, held), key) in letters.iter().zip(&held).zip(keys) {
            assert_eq!(text(letter, "correlationid"), held.id());
            assert_eq!(text(letter, "status"), "ok");
            assert_eq!(text(letter, "deadreason"), "failed_precondition");
            assert_eq!(text(letter, "deadstream"), key);
            assert_eq!(text(letter, "deadentry"), held.receipt.entry.to_string());
            assert_eq!(text(letter, "deaddeliveries"), "1");
            assert!(text(letter, "deadtime").parse::<u64>().unwrap() > 0);
        }
        assert!(text(&letters[0], "deadmessage").contains("WRONGTYPE"));
    }
}

#[tokio::test]
async fn an_outcome_whose_event_would_vanish_is_refused_with_nothing_written() {
    let (mut bus, mut committer, held) = holding(4).await;
    bus.run("SET cb:dead:image text").await;
    bus.run("SET cb:delayed:image text").await;
    // Such a step writes to its slot only.
    let [odd_one, full_one] = ["cb:events:odd", "cb:events:full"].map(|it| beside("image", it));
    bus.run(&format!("SET {odd_one} text")).await;
    bus.run(&format!("XADD {full_one} {LAST} a b")).await;
    let mut odd = held[2].done();
    odd.publications[0].stream = odd_one;
    let mut full = held[3].done();
    full.publications[0].stream = full_one;
    let report = committer
        .commit(vec![
            held[0].ending(Disposition::Dead(dead(&bus, &held[0]).into())),
            held[1].ending(Disposition::Later {
                fields: held[1].entry.words().map(<[u8]>::to_vec).collect(),
                wait: Duration::ZERO,
            }),
            stale(odd),
            stale(full),
        ])
        .await;
    assert_eq!(counts(&report), (0, 0, 4));
    assert!(bus.replied().await.is_empty());
    assert!(bus.entries(NEXT).await.is_empty());
    assert_eq!(bus.pending().await.len(), 4);
    let refused: Vec<EntryId> = report
        .refused
        .iter()
        .map(|(receipt, _)| receipt.entry)
        .collect();
    let held: Vec<EntryId> = held.iter().map(|held| held.entry.id).collect();
    assert_eq!(refused, held);
}

#[tokio::test]
async fn what_is_half_written_is_finished_never_run_again() {
    let (mut bus, mut committer, held) = holding(1).await;
    let mut settlement = stale(held[0].done());
    let mut full = settlement.publications[0].clone();
    full.stream = beside("image", "cb:events:full");
    bus.run(&format!("XADD {} {LAST} a b", full.stream)).await;
    settlement.publications.push(full);
    assert_eq!(counts(&committer.commit(vec![settlement]).await), (1, 0, 0));
    assert_eq!(bus.replied().await, ["e0"]);
    assert_eq!(bus.entries(NEXT).await.len(), 1);
    assert!(bus.pending().await.is_empty());
    let letters = bus.entries("cb:dead:image").await;
    assert_eq!(text(&letters[0], "type"), "next.step");
}

#[tokio::test]
async fn an_event_of_many_thousand_fields_can_be_a_dead_letter() {
    let (mut bus, mut committer, held) = holding(3).await;
    let mut batch = Vec::new();
    for held in &held {
        let mut letter = dead(&bus, held);
        let words = (0..20_000).map(|n| n.to_string());
        letter.entry = Entry::new(letter.entry.id, words);
        batch.push(held.ending(Disposition::Dead(letter.into())));
    }
    let pending = bus.pending().await;
    bus.take("w-2", &pending[..1]).await;
    bus.take("w-1", &pending[1..2]).await;
    assert_eq!(counts(&committer.commit(batch).await), (1, 2, 0));
    let letters = bus.entries("cb:dead:image").await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].len(), 10_000 + 8);
    assert_eq!(bus.replied().await, ["e2"]);
    assert_eq!(bus.pending().await.len(), 2);
}

#[tokio::test]
async fn without_its_group_an_outcome_is_discarded() {
    let (mut bus, mut committer, held) = holding(2).await;
    bus.run(&format!("XGROUP DESTROY cb:events:image {GROUP}"))
        .await;
    let report = committer.commit(vec![stale(held[0].done())]).await;
    assert_eq!(counts(&report), (0, 1, 0));
    bus.run("DEL cb:events:image").await;
    bus.run("SET cb:events:image text").await;
    let report = committer.commit(vec![stale(held[1].done())]).await;
    assert_eq!(counts(&report), (0, 0, 1));
    assert!(bus.replied().await.is_empty());
}

#[tokio::test]
async fn a_full_memory_delays_a_commit_and_loses_nothing() {
    for slow in [false, true] {
        let (mut bus, mut committer, held) = holding(2).await;
        bus.run("CONFIG SET maxmemory 1").await;
        let mut batch: Vec<Settlement> = held.iter().map(|h| h.done()).collect();
        if slow {
            batch = batch.into_iter().map(stale).collect();
        }
        let running = tokio::spawn(async move { committer.commit(batch).await });
        bus.until_called("evalsha", 2).await;
        assert!(bus.replied().await.is_empty());
        assert_eq!(bus.pending().await.len(), 2);
        bus.run("CONFIG SET maxmemory 0").await;
        assert_eq!(counts(&running.await.unwrap()), (2, 0, 0));
        assert_eq!(bus.replied().await, ["e0", "e1"]);
    }
}

#[tokio::test]
async fn a_committer_that_is_told_to_stop_leaves_the_rest_pending() {
    let mut bus = Bus::start().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let mut options = bus.options(&bus.redis.url(), "w-1");
    options.stop = stop.clone();
    let mut committer = Committer::new(options);
    committer.start().await.unwrap();
    bus.add(2).await;
    let held = bus.deliver("w-1", &committer.claims(), 2).await;
    bus.run("CONFIG SET maxmemory 1").await;
    stop.cancel();
    let report = committer
        .commit(held.iter().map(|h| h.done()).collect())
        .await;
    assert_eq!(report.abandoned, 2);
    bus.run("CONFIG SET maxmemory 0").await;
    assert_eq!(bus.pending().await.len(), 2);
    assert!(bus.replied().await.is_empty());
}

#[tokio::test]
async fn every_reply_stream_gets_a_time_to_live_however_it_came_to_be() {
    let (mut bus, mut committer, held) = holding(6).await;
    let ttl = format!("PTTL {REPLY}");
    // The transaction fails, the slow way makes the stream.
    bus.run(&format!("INCR {}", bus.claims("w-1"))).await;
    committer.commit(vec![held[0].done()]).await;
    assert!(bus.ask::<i64>(&ttl).await > 500_000);
    // The requester removed it, and another reply makes it again.
    for (held, slow) in held[1..5].iter().zip([true, false, true, false]) {
        bus.run(&format!("UNLINK {REPLY}")).await;
        let mut settlement = held.done();
        settlement.receipt.claims = if slow { 0 } else { committer.claims().known(0) };
        assert_eq!(committer.commit(vec![settlement]).await.committed, 1);
        assert!(bus.ask::<i64>(&ttl).await > 500_000, "slow: {slow}");
    }
    // A longer one that the requester gave it stays.
    bus.run(&format!("PEXPIRE {REPLY} 5000000")).await;
    committer.commit(vec![held[5].done()]).await;
    assert!(bus.ask::<i64>(&ttl).await > 1_000_000);
}

#[tokio::test]
async fn a_committer_waits_for_a_server_that_restarts() {
    let mut bus = Bus::on(Redis::durable(), keys()).await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(2).await;
    let held = bus.deliver("w-1", &committer.claims(), 2).await;
    bus.redis.kill();
    let batch = held.iter().map(|h| h.done()).collect();
    let running = tokio::spawn(async move { committer.commit(batch).await });
    bus.redis.restart();
    assert_eq!(counts(&running.await.unwrap()), (2, 0, 0));
    bus.connect().await;
    assert_eq!(bus.replied().await, ["e0", "e1"]);
    assert!(bus.pending().await.is_empty());
}

#[tokio::test]
async fn what_tells_of_another_history_of_the_server_is_left_pending() {
    if users::skip_without("INFO") {
        return;
    }
    let mut bus = Bus::on(Redis::durable(), keys()).await;
    let options = bus.options(&bus.redis.url(), "w-1");
    let connector = options.connector.clone();
    let mut committer = Committer::new(options);
    committer.start().await.unwrap();
    let began = connector.epoch();
    bus.add(5).await;
    let held = bus.deliver("w-1", &committer.claims(), 5).await;
    let of = |at: usize, epoch| Settlement {
        epoch,
        ..held[at].done()
    };
    assert_eq!(
        committer.commit(vec![of(0, Some(began))]).await.committed,
        1
    );
    let report = committer.commit(vec![stale(of(1, Some(began)))]).await;
    assert_eq!(report.committed, 1, "the slow way: {report:?}");
    // Another connection to the same server is no other history.
    bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
    let report = committer.commit(vec![of(2, Some(began))]).await;
    assert_eq!((report.committed, report.outdated), (1, 0), "{report:?}");
    bus.redis.restart();
    bus.connect().await;
    let report = committer
        .commit(vec![of(3, Some(began)), of(4, None)])
        .await;
    assert_eq!((report.committed, report.outdated), (1, 1), "{report:?}");
    assert_eq!(bus.replied().await, ["e0", "e1", "e2", "e4"]);
    assert_eq!(bus.pending().await.len(), 1);
    // A run that began since then.
    let report = committer.commit(vec![of(3, Some(connector.epoch()))]).await;
    assert_eq!(report.committed, 1, "{report:?}");
}
