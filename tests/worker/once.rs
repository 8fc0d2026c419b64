//! The field `dedup` of a plain `XADD`: an event takes effect once, whatever happens to whoever holds it, and
//! nothing is lost by that.

use crate::rig::{Rig, text};
use crate::support::{Redis, left, until, users};
use convoke::client::publish::Outgoing;
use convoke::handler::policy::RetryPolicy;
use convoke::operator::replay::{Source, again};
use convoke::protocol::event::{Entry, EntryId};
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

const EVENTS: &str = "cb:events:image";

async fn add(rig: &Rig, fields: &[(&str, &str)]) -> String {
    let mut command = redis::cmd("XADD");
    command.arg(EVENTS).arg("*");
    for (name, value) in fields {
        command.arg(name).arg(value);
    }
    let mut connection = rig.connection.clone();
    command.query_async(&mut connection).await.unwrap()
}

/// An event that takes effect once.
async fn once(rig: &Rig, id: &str, besides: &[(&str, &str)]) -> String {
    let fields = [("type", "image.once"), ("id", id), ("dedup", "1")];
    add(rig, &[&fields, besides].concat()).await
}

/// What ran, in order, and what is held until it may go on.
#[derive(Clone)]
struct Log {
    runs: Arc<Mutex<Vec<String>>>,
    open: Arc<Semaphore>,
    /// Running now, and what was seen beside a suspect.
    running: Arc<Mutex<(usize, usize)>>,
}

impl Log {
    fn new() -> Self {
        Self {
            runs: Arc::default(),
            open: Arc::new(Semaphore::new(0)),
            running: Arc::default(),
        }
    }

    fn runs(&self) -> Vec<String> {
        self.runs.lock().unwrap().clone()
    }

    fn runs_of(&self, id: &str) -> usize {
        self.runs().iter().filter(|run| *run == id).count()
    }
}

/// Notes its id; `slow` waits until it may end, `again` fails on its first try, `bad` fails for good.
async fn run(context: Context, _: Value) -> Result<Value, HandlerError> {
    let log = context.state::<Log>()?.clone();
    let id = context.event().id();
    log.runs.lock().unwrap().push(id.clone());
    let kind = id.split('-').next().unwrap_or_default();
    match kind {
        "slow" => log.open.acquire().await?.forget(),
        "again" if context.event().attempt() == 1 => {
            return Err(HandlerError::unavailable("once more"));
        }
        "bad" => return Err(HandlerError::not_found("nothing there")),
        "long" => return Ok("x".repeat(20_000).into()),
        "suspect" | "beside" => {
            log.running.lock().unwrap().0 += 1;
            tokio::time::sleep(Duration::from_millis(30)).await;
            let mut running = log.running.lock().unwrap();
            if kind == "suspect" {
                running.1 += running.0 - 1;
            }
            running.0 -= 1;
        }
        _ => tokio::task::yield_now().await,
    }
    context.publish("effect.made", &id)?;
    Ok(json!({ "id": id }))
}

fn with(settings: Settings, log: &Log) -> Builder {
    let builder = Worker::builder().settings(settings).state(log.clone());
    builder.handler_with("image.once", run, Policy::new())
}

/// The effects of each id.
async fn effects(rig: &Rig) -> HashMap<String, usize> {
    let mut effects = HashMap::new();
    for effect in rig.entries("cb:events:effect").await {
        let id: String = rmp_serde::from_slice(effect.get("data").unwrap()).unwrap();
        *effects.entry(id).or_default() += 1;
    }
    effects
}

/// Waits until nothing is added, pending or delayed, all at once.
async fn settled(rig: &Rig) {
    until("all is settled", || async {
        let mut connection = rig.connection.clone();
        left(&mut connection, "image").await == (0, 0, 0)
    })
    .await;
}

fn data(reply: &Entry) -> Value {
    let data = reply.get("data").unwrap();
    match reply.get("datacontenttype") {
        Some(_) => serde_json::from_slice(data).unwrap(),
        None => rmp_serde::from_slice(data).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_takes_effect_once_however_often_it_is_added_and_whoever_reads_it() {
    let (rig, log) = (Rig::new().await, Log::new());
    let workers = [1, 2].map(|_| rig.start(with(rig.settings(), &log)));
    let ids: Vec<String> = (0..30)
        .map(|n| match n % 3 {
            0 => format!("again-{n}"),
            _ => format!("e-{n}"),
        })
        .collect();
    let mut adds: Vec<&String> = ids.iter().flat_map(|id| [id, id, id]).collect();
    fastrand::shuffle(&mut adds);
    for id in adds {
        once(&rig, id, &[]).await;
    }
    settled(&rig).await;
    let effects = effects(&rig).await;
    assert_eq!(effects.len(), ids.len());
    for id in &ids {
        assert_eq!(effects[id], 1, "{id}");
        let runs = if id.starts_with("again") { 2 } else { 1 };
        assert_eq!(log.runs_of(id), runs, "{id}");
    }
    assert_eq!(rig.entries("cb:results:image").await.len(), ids.len());
    assert!(!rig.exists("cb:dead:image").await);
    for key in rig.keys("cb:*:image:*").await {
        let ttl = rig.run(&format!("PTTL {key}")).await;
        assert!(
            matches!(ttl, redis::Value::Int(1..=3_600_000)),
            "{key}: {ttl:?}"
        );
    }
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_again_gets_the_first_ones_reply_in_kind_or_is_told_that_it_came_before() {
    let (rig, log) = (Rig::new().await, Log::new());
    let worker = rig.start(with(rig.settings(), &log));
    let ask = async |id: &str, to: &str, besides: &[(&str, &str)]| {
        let before = rig.entries(to).await.len();
        once(&rig, id, &[besides, &[("replyto", to)]].concat()).await;
        rig.wait_for(to, before + 1).await.pop().unwrap()
    };
    for (id, status) in [("e", "ok"), ("again", "ok"), ("bad", "not_found")] {
        let first = ask(id, &format!("cb:reply:{id}"), &[]).await;
        assert_eq!(text(&first, "status"), status);
        // Elsewhere, and once more at the same place.
        for to in ["cb:reply:other", &format!("cb:reply:{id}")] {
            let second = ask(id, to, &[]).await;
            for field in ["status", "correlationid", "type", "data"] {
                assert_eq!(first.get(field), second.get(field), "{id}: {field}");
            }
        }
        let as_json = [("datacontenttype", "application/json")];
        let third = ask(id, "cb:reply:json", &as_json).await;
        assert_eq!(text(&third, "datacontenttype"), "application/json");
        assert_eq!(data(&third), data(&first));
    }
    let as_json = [("datacontenttype", "application/json"), ("data", "{}")];
    let first = ask("j", "cb:reply:j", &as_json).await;
    let second = ask("j", "cb:reply:k", &[]).await;
    assert_eq!(
        (data(&first), text(&second, "status")),
        (data(&second), "ok".into())
    );
    assert_eq!(second.get("datacontenttype"), None);
    // One that nobody asked for, and one whose reply is too long to be kept.
    once(&rig, "quiet", &[]).await;
    rig.wait_for("cb:results:image", 1).await;
    let quiet = ask("quiet", "cb:reply:q", &[]).await;
    assert_eq!(text(&quiet, "status"), "already_exists");
    let long = ask("long", "cb:reply:long", &[]).await;
    assert_eq!(text(&long, "status"), "ok");
    for to in ["cb:reply:other", "cb:reply:long"] {
        let again = ask("long", to, &[]).await;
        assert_eq!(text(&again, "status"), "already_exists");
    }
    // While the first runs, its reply serves whoever asks at the same place.
    let first = once(&rig, "slow", &[("replyto", "cb:reply:slow")]).await;
    until("it runs", || async { log.runs_of("slow") == 1 }).await;
    once(&rig, "slow", &[("replyto", "cb:reply:slow")]).await;
    let early = ask("slow", "cb:reply:elsewhere", &[]).await;
    assert_eq!(text(&early, "status"), "already_exists");
    assert!(data(&early)["message"].as_str().unwrap().contains(&first));
    until("they are settled", || async {
        rig.pending(EVENTS).await == 1
    })
    .await;
    // A failover may forget the mark; the effect brings it.
    rig.run("DEL cb:dedup:image:slow").await;
    log.open.add_permits(1);
    rig.wait_for("cb:reply:slow", 1).await;
    once(&rig, "slow", &[]).await;
    settled(&rig).await;
    assert_eq!(rig.entries("cb:reply:slow").await.len(), 1);
    for (bad, fields) in [
        ("needs an id", vec![("dedup", "1")]),
        ("is not 1", vec![("dedup", "yes"), ("id", "x")]),
    ] {
        let fields = [
            &[("type", "image.once"), ("replyto", "cb:reply:bad-field")],
            &fields[..],
        ];
        add(&rig, &fields.concat()).await;
        let refused = rig.wait_for("cb:reply:bad-field", 1).await.remove(0);
        rig.run("DEL cb:reply:bad-field").await;
        assert_eq!(text(&refused, "status"), "invalid_argument");
        assert!(data(&refused)["message"].as_str().unwrap().contains(bad));
    }
    assert_eq!(
        log.runs_of("slow") + log.runs_of("e") + log.runs_of("bad"),
        3
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_forges_the_name_of_an_event_says_nothing_to_those_of_another_id() {
    let (rig, log) = (Rig::new().await, Log::new());
    let worker = rig.start(with(rig.settings(), &log));
    let victim = once(&rig, "slow", &[("replyto", "cb:reply:victim")]).await;
    until("it runs", || async { log.runs_of("slow") == 1 }).await;
    // Of another id, as that entry; it ends.
    let to = "cb:reply:forger";
    let forged = [("type", "image.once"), ("id", "forged"), ("replyto", to)];
    add(&rig, &[&forged[..], &[("dedup", &victim)]].concat()).await;
    let reply = rig.wait_for(to, 1).await.remove(0);
    assert_eq!(text(&reply, "status"), "ok");
    once(&rig, "slow", &[("replyto", "cb:reply:again")]).await;
    let again = rig.wait_for("cb:reply:again", 1).await.remove(0);
    assert_eq!(text(&again, "status"), "already_exists");
    log.open.add_permits(1);
    let first = rig.wait_for("cb:reply:victim", 1).await.remove(0);
    // A mark of one's own id that names the entry finds nothing either.
    rig.run(&format!("SET cb:dedup:image:spy {victim} PX 60000"))
        .await;
    once(&rig, "spy", &[("replyto", "cb:reply:spy")]).await;
    let spied = rig.wait_for("cb:reply:spy", 1).await.remove(0);
    assert_eq!(text(&spied, "status"), "already_exists");
    once(&rig, "slow", &[("replyto", "cb:reply:again")]).await;
    let again = rig.wait_for("cb:reply:again", 2).await.remove(1);
    assert_eq!(data(&again), data(&first));
    worker.stop().await;
}

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
    // Where there is none, a worker keeps a clock by SET, which is taken away here.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_field_and_the_publisher_that_deduplicates_agree() {
    let (rig, log) = (Rig::new().await, Log::new());
    let event = |id: &str| Outgoing::new("image.once", &()).id(id).dedup(true);
    rig.client.publish(&event("stored")).await.unwrap();
    let later = event("later").delay(Duration::from_secs(3600));
    rig.client.publish(&later).await.unwrap();
    let ttl = async |id: &str| -> u64 {
        redis::from_redis_value(rig.run(&format!("PTTL cb:dedup:image:{id}")).await).unwrap()
    };
    let before = ttl("later").await;
    assert!(before > 7_000_000, "{before}");
    for id in ["stored", "later"] {
        once(&rig, id, &[("replyto", &format!("cb:reply:{id}"))]).await;
    }
    let added = once(&rig, "added", &[]).await;
    // What names no place is no mark.
    for (id, junk) in [("junk", "order-7"), ("huge", &"9".repeat(100))] {
        rig.run(&format!("SET cb:dedup:image:{id} {junk}")).await;
        once(&rig, id, &[]).await;
    }
    rig.run("RPUSH cb:dedup:image:list 7-1").await;
    once(&rig, "list", &[]).await;
    let worker = rig.start(with(rig.settings(), &log));
    for id in ["stored", "later"] {
        let reply = rig.wait_for(&format!("cb:reply:{id}"), 1).await.remove(0);
        assert_eq!(text(&reply, "status"), "already_exists");
    }
    until("all else ran", || async { effects(&rig).await.len() == 5 }).await;
    assert!(ttl("later").await > 7_000_000, "its window got shorter");
    let told = rig.client.publish(&event("added")).await.unwrap();
    assert!(told.is_duplicate(), "{told:?}");
    assert!(format!("{told:?}").contains(added.split('-').next().unwrap()));
    // An operator's replay runs.
    once(&rig, "added", &[("replays", "1")]).await;
    until("it ran again", || async { log.runs_of("added") == 2 }).await;
    let counted = effects(&rig).await;
    for id in ["stored", "junk", "huge", "list"] {
        assert_eq!(counted[id], 1, "{id}");
    }
    worker.stop().await;
}

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
    let policy = Policy::new().circuit(1, Duration::from_millis(1500));
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
    let deadline = (now().await + 2500).to_string();
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
