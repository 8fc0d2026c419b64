//! The fenced commit: an outcome takes effect once and whole, or not at all.

use crate::setup::{Bus, NEXT, REPLY, text};
use crate::support::proxy::{Cut, Proxy};
use crate::support::{name, users};
use convoke::protocol::dead::DeadLetter;
use convoke::streams::commit::Disposition;
use std::time::Duration;

#[tokio::test]
async fn a_batch_is_replied_published_and_acknowledged_in_one_transaction() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(3).await;
    let held = bus.deliver("w-1", &committer.claims(), 10).await;
    let before = bus.calls("exec").await;
    let report = committer
        .commit(held.iter().map(|h| h.done()).collect())
        .await;
    assert_eq!((report.committed, report.fenced), (3, 0));
    assert_eq!(bus.replied().await, ["e0", "e1", "e2"]);
    let published = bus.entries(NEXT).await;
    assert_eq!(published.len(), 3);
    assert!(bus.pending().await.is_empty());
    let reply = &bus.entries(REPLY).await[0];
    assert_eq!(text(reply, "type"), "image.made.result");
    assert_eq!(text(reply, "status"), "ok");
    assert_eq!(text(reply, "source"), "w-1");
    assert_eq!(reply["data"], [0xc0]);
    assert_eq!(
        (bus.calls("exec").await - before, bus.calls("evalsha").await),
        (1, 0)
    );
}

#[tokio::test]
async fn a_discarded_outcome_counts_no_dead_letter_and_no_retry() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(2).await;
    let held = bus.deliver("w-1", &committer.claims(), 10).await;
    let pending = bus.pending().await;
    bus.take("w-2", &pending).await;
    let ends = held.iter().map(|held| {
        let letter = DeadLetter {
            entry: held.entry.clone(),
            reason: "internal".into(),
            message: "it failed".into(),
            attempts: 5,
            deliveries: 1,
            stream: bus.route.events.clone(),
            instance: "w-1".into(),
            time: 9,
        };
        held.ending(Disposition::Dead(letter.into()))
    });
    let report = committer.commit(ends.collect()).await;
    assert_eq!((report.fenced, report.committed), (2, 0));
    assert_eq!((report.dead, report.retried), (0, 0));
    assert_eq!(bus.ask::<u64>("EXISTS cb:dead:image").await, 0);
}

#[tokio::test]
async fn an_entry_taken_over_while_the_counter_is_watched_leaves_no_trace() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(2).await;
    let held = bus.deliver("w-1", &committer.claims(), 10).await;
    let pending = bus.pending().await;
    bus.take("w-2", &pending[..1]).await;
    let report = committer
        .commit(held.iter().map(|h| h.done()).collect())
        .await;
    assert_eq!((report.committed, report.fenced), (1, 1));
    assert_eq!(bus.replied().await, ["e1"]);
    assert_eq!(bus.entries(NEXT).await.len(), 1);
    let left = bus.pending().await;
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].consumer.as_str(), left[0].deliveries), ("w-2", 2));
}

#[tokio::test]
async fn a_lease_from_before_a_takeover_does_not_pass_once_the_counter_is_watched_again() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(3).await;
    let held = bus.deliver("w-1", &committer.claims(), 10).await;
    let pending = bus.pending().await;
    bus.take("w-2", &pending[2..]).await;
    // The first commit learns the counter that the takeover left; the second is up to date with it.
    assert_eq!(committer.commit(vec![held[0].done()]).await.committed, 1);
    let report = committer.commit(vec![held[1].done(), held[2].done()]).await;
    assert_eq!((report.committed, report.fenced), (1, 1));
    assert_eq!(bus.replied().await, ["e0", "e1"]);
}

#[tokio::test]
async fn an_older_process_of_the_same_name_is_fenced_by_the_delivery_it_lost() {
    let mut bus = Bus::start().await;
    let mut older = bus.committer("w-1");
    older.start().await.unwrap();
    bus.add(2).await;
    let held = bus.deliver("w-1", &older.claims(), 10).await;
    let mut newer = bus.committer("w-1");
    newer.start().await.unwrap();
    let pending = bus.pending().await;
    let taken = bus.take("w-1", &pending[..1]).await;
    assert_eq!(taken[0].deliveries, 2);
    let report = older.commit(held.iter().map(|h| h.done()).collect()).await;
    // The other one it still holds: nobody took it.
    assert_eq!((report.committed, report.fenced), (1, 1));
    assert_eq!(bus.replied().await, ["e1"]);
}

#[tokio::test]
async fn a_delivery_that_its_own_consumer_took_again_is_fenced() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(1).await;
    let held = bus.deliver("w-1", &committer.claims(), 10).await;
    let claims = committer.claims().known(0);
    let taken = bus.take_all("w-1", "w-1").await;
    let again = crate::setup::Held::new(taken[0].entry.clone(), taken[0].deliveries, claims);
    let report = committer.commit(vec![held[0].done(), again.done()]).await;
    assert_eq!((report.committed, report.fenced), (1, 1));
    assert_eq!(bus.replied().await, ["e0"]);
}

#[tokio::test]
async fn after_a_flush_nothing_old_is_committed_and_new_entries_are() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    for _ in 0..3 {
        bus.add(2).await;
        let held = bus.deliver("w-1", &committer.claims(), 10).await;
        bus.run("FLUSHALL").await;
        let report = committer
            .commit(held.iter().map(|h| h.done()).collect())
            .await;
        assert_eq!((report.committed, report.fenced), (0, 2));
        assert!(bus.replied().await.is_empty());
        let stream = bus.route.events.clone();
        convoke::streams::read::ensure_group(&mut bus.connection, &stream, crate::setup::GROUP)
            .await
            .unwrap();
    }
    bus.add(1).await;
    let held = bus.deliver("w-1", &committer.claims(), 10).await;
    assert_eq!(committer.commit(vec![held[0].done()]).await.committed, 1);
    assert_eq!(bus.replied().await, ["e0"]);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_not_written_twice() {
    let mut bus = Bus::start().await;
    let proxy = Proxy::before(&bus.redis).await;
    let mut committer = bus.committer_at(&proxy.url_of(&bus.redis, users::WORKER), "w-1");
    committer.start().await.unwrap();
    bus.add(4).await;
    let held = bus.deliver("w-1", &committer.claims(), 3).await;
    proxy.cut_next_answer();
    committer
        .commit(held.iter().map(|h| h.done()).collect())
        .await;
    assert!(proxy.has_cut());
    assert_eq!(bus.replied().await, ["e0", "e1", "e2"]);
    assert_eq!(bus.entries(NEXT).await.len(), 3);
    assert!(bus.pending().await.is_empty());
    // The slow way is as safe.
    let held = bus.deliver("w-1", &committer.claims(), 1).await;
    bus.run(&format!("INCR {}", bus.claims("w-1"))).await;
    assert!(committer.commit(Vec::new()).await.refused.is_empty());
    proxy.cut_next_answer();
    committer.commit(vec![held[0].done()]).await;
    assert!(proxy.has_cut());
    assert_eq!(bus.replied().await.len(), 4);
    assert!(bus.pending().await.is_empty());
}

#[tokio::test]
async fn a_reply_stream_expires_though_the_answer_of_the_commit_that_made_it_is_lost() {
    let mut bus = Bus::start().await;
    let proxy = Proxy::before(&bus.redis).await;
    let mut committer = bus.committer_at(&proxy.url_of(&bus.redis, users::WORKER), "w-1");
    committer.start().await.unwrap();
    for lost in [0, 1] {
        bus.run(&format!("DEL {REPLY}")).await;
        bus.add(1).await;
        let held = bus.deliver("w-1", &committer.claims(), 1).await;
        // The slow way.
        bus.run(&format!("INCR {}", bus.claims("w-1"))).await;
        proxy.cut(Cut::After, Some("EVALSHA"), lost);
        committer.commit(vec![held[0].done()]).await;
        assert!(proxy.has_cut());
        assert_eq!(bus.replied().await.len(), 1);
        let ttl: i64 = bus.ask(&format!("PTTL {REPLY}")).await;
        assert!((1..=600_000).contains(&ttl), "{ttl}");
    }
}

#[tokio::test]
async fn a_killed_connection_and_flushed_scripts_cost_nothing() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    for round in 0..3 {
        bus.add(2).await;
        let held = bus.deliver("w-1", &committer.claims(), 10).await;
        bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
        bus.run("SCRIPT FLUSH").await;
        let report = committer
            .commit(held.iter().map(|h| h.done()).collect())
            .await;
        assert_eq!((report.committed, report.fenced), (2, 0), "round {round}");
    }
    assert_eq!(bus.replied().await.len(), 6);
}

#[tokio::test]
async fn what_was_read_before_the_connection_broke_is_compared_one_by_one() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(2).await;
    let held = bus.deliver("w-1", &committer.claims(), 10).await;
    bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
    assert_eq!(committer.commit(vec![held[0].done()]).await.committed, 1);
    // As after a failover to a server that has the counter and the event, but not the delivery.
    let (stream, id) = (bus.route.events.clone(), held[1].receipt.entry);
    bus.run(&format!("XACK {stream} workers {id}")).await;
    let report = committer.commit(vec![held[1].done()]).await;
    assert_eq!((report.committed, report.fenced), (0, 1));
    assert_eq!(bus.replied().await, ["e0"]);
}

#[tokio::test]
async fn the_claim_counter_rises_at_each_connection_even_where_the_server_fell_back() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    let counter = bus.claims("w-1");
    let mut last = committer.claims().known(0);
    for fallen in [last - 1000, last + 1000, 1] {
        bus.run(&format!("SET {counter} {fallen}")).await;
        bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
        // Finds the connection broken, then goes on with a new one.
        bus.add(1).await;
        let held = bus.deliver("w-1", &committer.claims(), 1).await;
        assert_eq!(committer.commit(vec![held[0].done()]).await.committed, 1);
        let known = committer.claims().known(0);
        assert!(
            known > last.max(fallen),
            "{known} after {last} and {fallen}"
        );
        assert_eq!(bus.ask::<u64>(&format!("GET {counter}")).await, known);
        assert!(bus.ask::<i64>(&format!("PTTL {counter}")).await > 0);
        last = known;
    }
}

#[tokio::test]
async fn a_retry_waits_in_the_delay_queue_as_its_next_attempt() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(1).await;
    let held = bus.deliver("w-1", &committer.claims(), 1).await;
    let limits = convoke::protocol::event::Limits::default();
    let stream = bus.route.events.clone();
    let parse = |entry| convoke::protocol::event::Event::parse(entry, &limits, &bus.keys, &stream);
    let event = parse(held[0].entry.clone()).unwrap();
    let before = committer.claims().server_now();
    let mut settlement = held[0].ending(Disposition::Later {
        fields: event.next_attempt(),
        wait: Duration::from_secs(60),
    });
    settlement.reply = None;
    assert_eq!(committer.commit(vec![settlement]).await.committed, 1);
    assert!(bus.pending().await.is_empty());
    let delayed = bus.route.delayed.clone();
    let queue: Vec<(Vec<u8>, f64)> = bus.ask(&format!("ZRANGE {delayed} 0 -1 WITHSCORES")).await;
    assert_eq!(queue.len(), 1);
    let due = queue[0].1 as u64;
    assert!((before + 60_000..before + 120_000).contains(&due));
    let (_, fields) = convoke::streams::delay::decode_member(&queue[0].0, 1 << 20).unwrap();
    let attempt = fields.chunks(2).find(|pair| pair[0] == b"attempt").unwrap();
    assert_eq!(attempt[1], b"2");
}

#[tokio::test]
async fn a_dead_letter_keeps_the_original_fields_and_says_why() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.run("XADD cb:events:image 7-1 type image.made id e0 odd x odd y")
        .await;
    let held = bus.deliver("w-1", &committer.claims(), 1).await;
    let letter = DeadLetter {
        entry: held[0].entry.clone(),
        reason: "internal".into(),
        message: "it failed".into(),
        attempts: 5,
        deliveries: 1,
        stream: bus.route.events.clone(),
        instance: "w-1".into(),
        time: 9,
    };
    let report = committer
        .commit(vec![held[0].ending(Disposition::Dead(letter.into()))])
        .await;
    assert_eq!((report.committed, report.dead), (1, 1));
    let dead: redis::Value = bus.ask("XRANGE cb:dead:image - +").await;
    let dead = convoke::streams::read::entries_of(dead).unwrap();
    let words: Vec<&str> = dead[0]
        .words()
        .map(|word| std::str::from_utf8(word).unwrap())
        .collect();
    assert_eq!(
        words.join(" "),
        "type image.made id e0 odd x odd y deadreason internal deadmessage it failed \
         deadattempts 5 deaddeliveries 1 deadstream cb:events:image deadentry 7-1 \
         deadinstance w-1 deadtime 9"
    );
    assert_eq!(bus.replied().await, ["e0"]);
    assert!(bus.pending().await.is_empty());
}

#[tokio::test]
async fn what_was_executed_is_committed_although_the_counters_can_not_be_read_again() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(1).await;
    let held = bus.deliver("w-1", &committer.claims(), 1).await;
    bus.redis.expect_refusals();
    bus.run("ACL SETUSER convoke-worker -mget").await;
    let report = committer.commit(vec![held[0].done()]).await;
    assert_eq!((report.committed, report.fenced), (1, 0), "{report:?}");
    assert_eq!(bus.replied().await, ["e0"]);
    assert!(bus.pending().await.is_empty());
}

/// Else the server would run the commands of a commit one by one, with no fence around them.
#[tokio::test]
async fn a_committer_that_may_not_begin_a_transaction_does_not_start() {
    for (command, code) in [("multi", "NOPERM"), ("exec", "EXECABORT")] {
        let mut bus = Bus::start().await;
        bus.redis.expect_refusals();
        let deny = format!("ACL SETUSER convoke-worker -{command}");
        bus.run(&deny).await;
        let refused = bus.committer("w-1").start().await.unwrap_err();
        assert_eq!(refused.code(), Some(code), "{command}");
    }
}

#[tokio::test]
async fn a_committer_that_may_not_watch_its_counters_does_not_start() {
    let mut bus = Bus::start().await;
    bus.redis.expect_refusals();
    bus.run("ACL SETUSER convoke-worker -watch").await;
    let refused = bus.committer("w-1").start().await.unwrap_err();
    assert_eq!(refused.code(), Some("NOPERM"));
}

#[tokio::test]
async fn every_reply_stream_of_a_batch_is_kept_at_its_length() {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(5000).await;
    let held = bus.deliver("w-1", &committer.claims(), 5000).await;
    // Replies to two streams in turn, and then a long run to one.
    let other = "cb:reply:other";
    let to = |at: usize| at < 3000 && !at.is_multiple_of(2);
    let batch = held.iter().enumerate().map(|(at, held)| {
        let mut settlement = held.done();
        if to(at) {
            settlement.reply.as_mut().unwrap().to = Some(name("image", other));
        }
        settlement
    });
    let before = bus.calls("exec").await;
    assert_eq!(committer.commit(batch.collect()).await.committed, 5000);
    assert_eq!(bus.calls("exec").await - before, 1);
    for stream in [REPLY, other] {
        let length: usize = bus.ask(&format!("XLEN {stream}")).await;
        assert!((1000..1200).contains(&length), "{stream}: {length}");
    }
    assert!(bus.replied().await.iter().any(|id| id == "e4999"));
}
