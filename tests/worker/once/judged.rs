//! From when an event asks whether it is the first of its id until it has the answer.

use super::{EVENTS, Log, add, effects, once, run, settled, with};
use crate::rig::{Rig, text};
use crate::support::until;
use convoke::settings::Settings;
use convoke::{Policy, Worker};
use std::collections::HashMap;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_judged_and_never_committed_runs_with_whoever_has_it_next() {
    let (rig, log) = (Rig::new().await, Log::new());
    rig.run("XGROUP CREATE cb:events:image workers 0 MKSTREAM")
        .await;
    // Whoever held them asked under their names, and died; before and after that they were added again.
    let first = once(&rig, "a", &[]).await;
    let name = |entry: &str| entry.to_owned();
    rig.run(&format!("SET cb:dedup:image:a {first} PX 60000"))
        .await;
    once(&rig, "a", &[]).await;
    let repeat = once(&rig, "b", &[]).await;
    let b = once(&rig, "b", &[]).await;
    rig.run(&format!("SET cb:dedup:image:b {} PX 60000", name(&b)))
        .await;
    // One that was moved after it was judged, by what carried its name.
    let moved = [("type", "image.once"), ("id", "c"), ("attempt", "2")];
    add(&rig, &[&moved[..], &[("dedup", "7-1")]].concat()).await;
    rig.run("SET cb:dedup:image:c 7-1 PX 60000").await;
    // One that was moved by whoever does not know the field, so that nobody knows its name.
    add(
        &rig,
        &[
            ("type", "image.once"),
            ("id", "d"),
            ("attempt", "2"),
            ("dedup", "1"),
        ],
    )
    .await;
    rig.run("SET cb:dedup:image:d 7-1 PX 60000").await;
    rig.run("XREADGROUP GROUP workers gone STREAMS cb:events:image >")
        .await;
    rig.run("HSET cb:instance:gone status lost").await;
    let worker = rig.start(with(rig.settings(), &log));
    settled(&rig).await;
    let effects = effects(&rig).await;
    assert_eq!(effects.values().sum::<usize>(), 4, "{effects:?}");
    for id in ["a", "b", "c", "d"] {
        assert_eq!(effects.get(id), Some(&1), "{id}, {repeat}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_back_is_the_same_event_still() {
    let (rig, log) = (Rig::new().await, Log::new());
    let settings = Settings {
        concurrency: 2,
        ..rig.settings()
    };
    let worker = rig.start(with(settings.clone(), &log));
    for n in 0..2 {
        let slow = format!("slow-{n}");
        once(&rig, &slow, &[]).await;
        until("it runs", || async { log.runs_of(&slow) == 1 }).await;
    }
    // One of them was judged by whoever had it before.
    let judged = once(&rig, "judged", &[]).await;
    rig.run(&format!("SET cb:dedup:image:judged {judged} PX 60000"))
        .await;
    once(&rig, "fresh", &[]).await;
    until("all are read", || async { rig.pending(EVENTS).await == 4 }).await;
    let open = async {
        tokio::task::yield_now().await;
        log.open.add_permits(2);
    };
    tokio::join!(worker.stop(), open);
    assert_eq!(log.runs(), ["slow-0", "slow-1"]);
    once(&rig, "judged", &[]).await;
    once(&rig, "fresh", &[]).await;
    let worker = rig.start(with(settings, &log));
    settled(&rig).await;
    let effects = effects(&rig).await;
    assert_eq!((effects.len(), effects.values().sum::<usize>()), (4, 4));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_ask_asks_again_and_the_event_stays_where_it_is() {
    let (mut rig, log) = (Rig::new().await, Log::new());
    rig.redis.expect_refusals();
    let worker = rig.start(with(rig.settings(), &log));
    once(&rig, "before", &[]).await;
    settled(&rig).await;
    let user = crate::support::users::WORKER;
    rig.run(&format!("ACL SETUSER {user} -evalsha")).await;
    let entry = once(&rig, "e", &[]).await;
    let refused = async || {
        let log = rig.redis.refused();
        log.iter().any(|line| line.contains("evalsha"))
    };
    until("it was refused", || async { refused().await }).await;
    let delayed = rig.exists("cb:delayed:image").await;
    assert_eq!((log.runs_of("e"), delayed), (0, false));
    rig.run(&format!("ACL SETUSER {user} +evalsha")).await;
    settled(&rig).await;
    let results = rig.entries("cb:results:image").await;
    assert_eq!(results.len(), 2);
    let mark = rig.run("GET cb:dedup:image:e").await;
    assert_eq!(redis::from_redis_value::<String>(mark).unwrap(), entry);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_its_subject_passes_an_event_that_is_judged() {
    let (rig, log) = (Rig::new().await, Log::new());
    let ordered = Worker::builder()
        .settings(rig.settings())
        .state(log.clone())
        .handler_with("image.once", run, Policy::new().ordered());
    let mut expected: HashMap<String, Vec<String>> = HashMap::new();
    for n in 0..120 {
        let (subject, id) = (format!("s{}", n % 6), format!("e-{n}"));
        match n % 4 {
            0 | 1 => once(&rig, &id, &[("subject", &subject)]).await,
            _ => {
                add(
                    &rig,
                    &[("type", "image.once"), ("id", &id), ("subject", &subject)],
                )
                .await
            }
        };
        if n % 4 == 0 {
            once(&rig, &id, &[("subject", &subject)]).await;
        }
        expected.entry(subject).or_default().push(id);
    }
    let worker = rig.start(ordered);
    settled(&rig).await;
    let runs = log.runs();
    assert_eq!(runs.len(), 120);
    for ids in expected.values() {
        let of_subject: Vec<&String> = runs.iter().filter(|run| ids.contains(run)).collect();
        assert_eq!(of_subject, ids.iter().collect::<Vec<_>>());
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspect_is_judged_and_run_alone_and_poison_is_one_dead_letter() {
    let (rig, log) = (Rig::new().await, Log::new());
    rig.run("XGROUP CREATE cb:events:image workers 0 MKSTREAM")
        .await;
    let mut suspects = Vec::new();
    for (id, deliveries) in [("suspect-1", 3), ("poison", 9), ("poison", 9)] {
        let entry = once(&rig, id, &[]).await;
        suspects.push((entry, deliveries));
    }
    rig.run("XREADGROUP GROUP workers gone STREAMS cb:events:image >")
        .await;
    for (entry, deliveries) in suspects {
        let claim =
            format!("XCLAIM {EVENTS} workers gone 0 {entry} RETRYCOUNT {deliveries} FORCE JUSTID");
        rig.run(&claim).await;
    }
    let settings = Settings {
        concurrency: 4,
        claim_idle: Duration::from_secs(2),
        ..rig.settings()
    };
    let worker = rig.start(with(settings, &log));
    // Nobody says that its holder is gone: it is taken once it is stale, while others are read and run.
    let mut added = 0;
    until("the suspects have an end", || {
        added += 2;
        let (rig, log, from) = (&rig, &log, added - 2);
        async move {
            for n in from..from + 2 {
                let id = format!("beside-{n}");
                match n % 4 {
                    0 => once(rig, &id, &[]).await,
                    _ => add(rig, &[("type", "image.once"), ("id", &id)]).await,
                };
            }
            log.runs_of("suspect-1") > 0 && rig.exists("cb:dead:image").await
        }
    })
    .await;
    settled(&rig).await;
    assert_eq!(log.runs_of("suspect-1"), 1);
    assert_eq!(log.running.lock().unwrap().1, 0, "others ran beside it");
    let dead = rig.entries("cb:dead:image").await;
    assert_eq!(dead.len(), 1);
    assert_eq!(text(&dead[0], "deadreason"), "poison");
    assert_eq!(rig.entries("cb:results:image").await.len(), added + 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_begins_beside_a_suspect_that_is_judged() {
    // Without TIME, a worker keeps a clock by SET, which is taken away here.
    if crate::support::users::skip_without("TIME") {
        return;
    }
    let (mut rig, log) = (Rig::new().await, Log::new());
    rig.redis.expect_refusals();
    rig.run("XGROUP CREATE cb:events:image workers 0 MKSTREAM")
        .await;
    let entry = once(&rig, "suspect-1", &[]).await;
    rig.run("XREADGROUP GROUP workers gone STREAMS cb:events:image >")
        .await;
    let claim = format!("XCLAIM {EVENTS} workers gone 0 {entry} RETRYCOUNT 3 FORCE JUSTID");
    rig.run(&claim).await;
    let user = crate::support::users::WORKER;
    let worker = rig.start(with(rig.settings(), &log));
    rig.wait_for_fact("instance.registered", 1).await;
    // It cannot be asked whether it is the first, from before it is taken over.
    rig.run(&format!("ACL SETUSER {user} -set")).await;
    rig.run("HSET cb:instance:gone status lost").await;
    until("it was taken over", || async {
        match rig.run("XPENDING cb:events:image workers - + 9 gone").await {
            redis::Value::Array(held) => held.is_empty(),
            other => panic!("{other:?}"),
        }
    })
    .await;
    for n in 0..50 {
        let id = format!("beside-{n}");
        add(&rig, &[("type", "image.once"), ("id", &id)]).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(log.runs(), Vec::<String>::new());
    rig.run(&format!("ACL SETUSER {user} +set")).await;
    settled(&rig).await;
    assert_eq!(log.runs()[0], "suspect-1");
    assert_eq!((log.runs().len(), log.running.lock().unwrap().1), (51, 0));
    worker.stop().await;
}
