//! What the first of an id ended as, and what the others of that id hear about it.

use super::{EVENTS, Log, add, effects, once, run, settled, with};
use crate::rig::{Rig, text};
use crate::support::{Redis, until, users};
use convoke::handler::policy::RetryPolicy;
use convoke::operator::replay::{Source, again};
use convoke::protocol::event::EntryId;
use convoke::settings::Settings;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::Value;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dead_stays_the_first_and_there_is_one_letter() {
    let (rig, log) = (Rig::new().await, Log::new());
    let policy = Policy::new().retry(RetryPolicy {
        max_attempts: 1,
        ..RetryPolicy::default()
    });
    let builder = Worker::builder()
        .settings(rig.settings())
        .state(log.clone());
    let worker = rig.start(builder.handler_with("image.once", run, policy));
    for _ in 0..3 {
        once(&rig, "bad", &[]).await;
        add(
            &rig,
            &[("type", "image.unknown"), ("id", "u"), ("dedup", "1")],
        )
        .await;
        settled(&rig).await;
    }
    let dead = rig.entries("cb:dead:image").await;
    let mut reasons: Vec<String> = dead
        .iter()
        .map(|letter| text(letter, "deadreason"))
        .collect();
    reasons.sort();
    assert_eq!(reasons, ["not_found", "unimplemented"]);
    assert_eq!(log.runs_of("bad"), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_that_ended_unrun_does_not_hold_its_id() {
    let (rig, log) = (Rig::new().await, Log::new());
    let policy = Policy::new().circuit(1, Duration::from_secs(3));
    let broken = |context: Context, data: Value| async move {
        if context.event().id().starts_with("break") {
            return Err(HandlerError::internal("down").permanent());
        }
        run(context, data).await
    };
    let settings = Settings {
        concurrency: 4,
        ..rig.settings()
    };
    let builder = with(settings, &log).handler_with("image.broken", broken, policy);
    let worker = rig.start(builder);
    // All of its type that may run does: what comes next is judged, and waits past its deadline.
    let now = async || -> u64 {
        let time = rig.run("TIME").await;
        let (s, us): (u64, u64) = redis::from_redis_value(time).unwrap();
        s * 1000 + us / 1000
    };
    let mark = async |id: &str| -> Option<String> {
        redis::from_redis_value(rig.run(&format!("GET cb:dedup:image:{id}")).await).unwrap()
    };
    for slow in ["slow-1", "slow-2", "slow-3"] {
        once(&rig, slow, &[]).await;
        until("it runs", || async { log.runs_of(slow) == 1 }).await;
    }
    let deadline = (now().await + 4000).to_string();
    let late = [
        ("quiet", vec![("deadline", &*deadline)]),
        (
            "asked",
            vec![("deadline", &*deadline), ("replyto", "cb:reply:late")],
        ),
    ];
    for (id, fields) in &late {
        let entry = once(&rig, id, fields).await;
        until("it is judged", || async {
            mark(id).await.as_ref() == Some(&entry)
        })
        .await;
    }
    let reply = rig.wait_for("cb:reply:late", 1).await.remove(0);
    assert_eq!(text(&reply, "status"), "deadline_exceeded");
    until("both are settled", || async {
        rig.pending(EVENTS).await == 3
    })
    .await;
    log.open.add_permits(3);
    once(&rig, "quiet", &[]).await;
    for _ in 0..2 {
        once(&rig, "asked", &[("replyto", "cb:reply:again")]).await;
        once(&rig, "quiet", &[]).await;
    }
    let replies = rig.wait_for("cb:reply:again", 1).await;
    assert_eq!(text(&replies[0], "status"), "ok");
    settled(&rig).await;
    assert_eq!((log.runs_of("quiet"), log.runs_of("asked")), (1, 1));
    // An open circuit refuses it, and its requester asks again.
    let ask = async |id: &str, to: &str| {
        let before = rig.entries(to).await.len();
        let fields = [("type", "image.broken"), ("id", id), ("dedup", "1")];
        add(&rig, &[&fields[..], &[("replyto", to)]].concat()).await;
        rig.wait_for(to, before + 1).await.remove(before)
    };
    ask("break", "cb:reply:break").await;
    let refused = ask("shut", "cb:reply:shut").await;
    assert_eq!(text(&refused, "status"), "unavailable");
    until("it is let in", || async {
        let again = ask("shut", "cb:reply:shut").await;
        text(&again, "status") == "ok"
    })
    .await;
    ask("shut", "cb:reply:shut").await;
    assert_eq!(log.runs_of("shut"), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_is_renewed_with_the_mark_and_of_a_wrong_type_it_is_nothing() {
    let (rig, log) = (Rig::new().await, Log::new());
    let worker = rig.start(with(rig.settings(), &log));
    let first = once(&rig, "slow", &[("replyto", "cb:reply:slow")]).await;
    until("it runs", || async { log.runs_of("slow") == 1 }).await;
    let said = format!("cb:said:image:{first}:slow");
    rig.run(&format!("PEXPIRE {said} 60000")).await;
    once(&rig, "slow", &[("replyto", "cb:reply:slow")]).await;
    until("the repeat is settled", || async {
        rig.pending(EVENTS).await == 1
            && redis::from_redis_value::<u64>(rig.run(&format!("PTTL {said}")).await).unwrap()
                > 3_000_000
    })
    .await;
    rig.run(&format!("DEL {said}")).await;
    rig.run(&format!("RPUSH {said} a b")).await;
    once(&rig, "slow", &[("replyto", "cb:reply:other")]).await;
    let told = rig.wait_for("cb:reply:other", 1).await.remove(0);
    assert_eq!(text(&told, "status"), "already_exists");
    log.open.add_permits(1);
    rig.wait_for("cb:reply:slow", 1).await;
    settled(&rig).await;
    assert_eq!(log.runs_of("slow"), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_one_counts_only_in_the_history_in_which_it_was_judged() {
    if users::skip_without("INFO") {
        return;
    }
    let (mut rig, log) = (Rig::on(Redis::durable()).await, Log::new());
    let worker = rig.start(with(rig.settings(), &log));
    let first = once(&rig, "slow-1", &[]).await;
    until("it runs", || async { log.runs() == ["slow-1"] }).await;
    // The server forgets what came last: that it was asked. Another one of the id is the first there.
    rig.redis.restart();
    rig.connection = rig.redis.connection().await;
    let other = first.replace('-', "-9");
    rig.run(&format!("SET cb:dedup:image:slow-1 {other} PX 60000"))
        .await;
    log.open.add_permits(2);
    settled(&rig).await;
    assert!(effects(&rig).await.is_empty(), "the other one's is to come");
    assert_eq!(log.runs_of("slow-1"), 1, "asked again, it is a repeat");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_that_is_replayed_while_it_is_pending_asks_still() {
    let (rig, log) = (Rig::new().await, Log::new());
    let own = EntryId { ms: 7, seq: 1 };
    let replayed = |id: &str, dedup: &str, source: Source| {
        let fields = [("type", "image.once"), ("id", id), ("dedup", dedup)];
        let fields = fields.iter().flat_map(|(name, value)| [*name, *value]);
        let fields: Vec<Vec<u8>> = fields.map(Vec::from).collect();
        again(&fields, Some(own), source, 0).fields
    };
    let twice = again(
        &replayed("twice", "1", Source::Range),
        Some(own),
        Source::Pending,
        0,
    );
    for (id, fields) in [
        // Of each another one came first. This one was not judged yet.
        ("repeat", replayed("repeat", "1", Source::Pending)),
        ("moved", replayed("moved", "6-1", Source::Pending)),
        // An operator wants these to run once more.
        ("range", replayed("range", "1", Source::Range)),
        ("dead", replayed("dead", "6-1", Source::Dead)),
        ("twice", twice.fields),
    ] {
        rig.run(&format!("SET cb:dedup:image:{id} 5-1 PX 60000"))
            .await;
        let mut add = redis::cmd("XADD");
        add.arg(EVENTS).arg("*").arg(fields);
        let mut connection = rig.connection.clone();
        add.exec_async(&mut connection).await.unwrap();
    }
    // The first one, whose entry was replayed before it took effect.
    rig.run("SET cb:dedup:image:first 7-1 PX 60000").await;
    let mut add = redis::cmd("XADD");
    add.arg(EVENTS).arg("*");
    add.arg(replayed("first", "1", Source::Pending));
    let mut connection = rig.connection.clone();
    add.exec_async(&mut connection).await.unwrap();
    let worker = rig.start(with(rig.settings(), &log));
    rig.wait_for("cb:events:effect", 4).await;
    settled(&rig).await;
    let mut ran = log.runs();
    ran.sort_unstable();
    assert_eq!(ran, ["dead", "first", "range", "twice"]);
    worker.stop().await;
}
