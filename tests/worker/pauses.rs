//! What operators pause waits, in order, and nothing else does.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::protocol::error::Code;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const EVENTS: &str = "cb:events:mail";
const RESULTS: &str = "cb:results:mail";
const PARKED: &str = "cb:parked:mail:mail.send";

/// What ran: subject, number, attempt.
#[derive(Clone, Default)]
struct Log {
    ran: Arc<Mutex<Vec<(String, u64, u32)>>>,
    /// Runs of `mail.hold` that began, and those that may end.
    held: Arc<AtomicUsize>,
    ends: Arc<Mutex<Option<Arc<Semaphore>>>>,
}

impl Log {
    /// The numbers of each subject, in the order in which they ran.
    fn by_subject(&self) -> BTreeMap<String, Vec<u64>> {
        let mut all: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (subject, n, _) in self.ran.lock().unwrap().iter() {
            all.entry(subject.clone()).or_default().push(*n);
        }
        all
    }

    fn count(&self) -> usize {
        self.ran.lock().unwrap().len()
    }
}

async fn send(context: Context, n: u64) -> Result<u64, HandlerError> {
    let log = context.state::<Log>()?;
    let event = context.event();
    let subject = event.subject().unwrap_or_default().to_owned();
    log.ran.lock().unwrap().push((subject, n, event.attempt()));
    Ok(n)
}

async fn hold(context: Context, _: u64) -> Result<(), HandlerError> {
    let log = context.state::<Log>()?;
    log.held.fetch_add(1, Ordering::SeqCst);
    let ends = log.ends.lock().unwrap().clone().unwrap();
    ends.acquire().await.unwrap().forget();
    Ok(())
}

async fn read(_: Context, _: u64) -> Result<(), HandlerError> {
    Ok(())
}

fn worker(rig: &Rig, id: &str, log: &Log) -> Builder {
    let settings = Settings {
        id: id.into(),
        concurrency: 4,
        ..rig.settings()
    };
    Worker::builder()
        .settings(settings)
        .state(log.clone())
        .handler_with("mail.send", send, Policy::new().ordered())
        .handler_with("mail.hold", hold, Policy::new().ordered())
        .handler("mail.read", read)
}

async fn publish(rig: &Rig, kind: &str, subject: Option<&str>, n: u64) {
    let mut event = Outgoing::new(kind, &n);
    if let Some(subject) = subject {
        event = event.subject(subject);
    }
    rig.client.publish(&event).await.unwrap();
}

async fn pause(rig: &Rig, scope: &str) {
    let wanted = json!({"scope": scope, "pause": {"reason": "a test"}});
    rig.ask("system.policy.set", &wanted).await.unwrap();
}

async fn resume(rig: &Rig, scope: &str) {
    let wanted = json!({"scope": scope});
    rig.ask("system.policy.clear", &wanted).await.unwrap();
}

/// Events of a type that are parked.
async fn parked(rig: &Rig) -> u64 {
    let mut count = redis::cmd("ZLEXCOUNT");
    count.arg(&[PARKED, "[s", "(u"]);
    count
        .query_async(&mut rig.connection.clone())
        .await
        .unwrap()
}

/// Waits until the workers know of a pause: what comes then is parked. Gives how many are.
async fn is_known(rig: &Rig) -> u64 {
    let before = parked(rig).await;
    until("the pause is known", async || {
        publish(rig, "mail.send", None, 0).await;
        parked(rig).await > before
    })
    .await;
    until("what was published before ran", async || {
        is_read(rig).await && rig.pending(EVENTS).await == 0
    })
    .await;
    parked(rig).await
}

/// Whether all of the stream was read.
async fn is_read(rig: &Rig) -> bool {
    let groups: Vec<std::collections::HashMap<String, redis::Value>> = redis::cmd("XINFO")
        .arg(&["GROUPS", EVENTS])
        .query_async(&mut rig.connection.clone())
        .await
        .unwrap();
    groups[0]["lag"] == redis::Value::Int(0)
}

async fn entries(rig: &Rig, key: &str) -> u64 {
    let mut count = redis::cmd("XLEN");
    count.arg(key);
    count
        .query_async(&mut rig.connection.clone())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_type_waits_in_order_and_blocks_no_other_one() {
    let rig = Rig::new().await;
    let log = Log::default();
    let running = rig.start(worker(&rig, "w-1", &log));
    rig.wait_for_fact("instance.registered", 1).await;
    pause(&rig, "type:mail.send").await;
    let first = is_known(&rig).await;
    let before = log.count();
    for n in 1..=300 {
        let subject = ["s", "t", "u"][n as usize % 3];
        publish(&rig, "mail.send", Some(subject), n).await;
    }
    publish(&rig, "mail.read", Some("s"), 1).await;
    let results = rig.wait_for(RESULTS, before + 1).await;
    assert_eq!(text(results.last().unwrap(), "type"), "mail.read.result");
    until("nothing of them is in hand", async || {
        parked(&rig).await == first + 300 && rig.pending(EVENTS).await == 0
    })
    .await;
    assert_eq!(log.count(), before, "nothing runs");
    // Those that were published until the pause was known are of no subject.
    pause(&rig, "subject:mail:s").await;
    for (scope, count) in [
        ("type:mail.send", Some(first + 300)),
        ("subject:mail:s", Some(0)),
    ] {
        let reply = rig.ask("system.policy.get", &json!({"scope": scope})).await;
        let said: serde_json::Value = rmp_serde::from_slice(&reply.unwrap().data).unwrap();
        assert_eq!(said["policies"][0]["parked"].as_u64(), count, "{scope}");
    }
    resume(&rig, "subject:mail:s").await;
    // All was read and acknowledged: trimming goes on.
    let trimmed: u64 = redis::cmd("XTRIM")
        .arg(&[EVENTS, "MAXLEN", "0"])
        .query_async(&mut rig.connection.clone())
        .await
        .unwrap();
    assert!(trimmed > 300);
    resume(&rig, "type:mail.send").await;
    rig.wait_for(RESULTS, before + 301 + first as usize).await;
    nothing_is_left(&rig).await;
    running.stop().await;
    let ran = log.by_subject();
    for (at, subject) in ["s", "t", "u"].into_iter().enumerate() {
        let expected: Vec<u64> = (1..=300).filter(|n| *n as usize % 3 == at).collect();
        assert_eq!(ran[subject], expected, "{subject}");
    }
    assert!(
        log.ran
            .lock()
            .unwrap()
            .iter()
            .all(|(_, _, attempt)| *attempt == 1)
    );
    let told = rig.wait_for_fact("policy.changed", 4).await;
    assert_eq!(told.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requester_is_told_why_at_once() {
    let rig = Rig::new().await;
    let log = Log::default();
    let running = rig.start(worker(&rig, "w-1", &log));
    rig.wait_for_fact("instance.registered", 1).await;
    pause(&rig, "domain:mail").await;
    is_known(&rig).await;
    let error = rig.refused("mail.send", &1).await;
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(error.message, "domain:mail is paused: a test");
    assert!(rig.entries("cb:dead:mail").await.is_empty());
    resume(&rig, "domain:mail").await;
    until("it runs again", async || {
        rig.ask("mail.send", &2).await.is_ok()
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paused_waits_while_its_only_handler_is_stopped() {
    let rig = Rig::new().await;
    let log = Log::default();
    let stopped = rig.start(worker(&rig, "w-1", &log));
    let settings = Settings {
        id: "w-2".into(),
        ..rig.settings()
    };
    let other = Worker::builder().settings(settings);
    let other = rig.start(other.handler("mail.read", read));
    rig.wait_for_fact("instance.registered", 2).await;
    pause(&rig, "type:mail.send").await;
    let known = is_known(&rig).await;
    stopped.stop().await;
    let before = log.count();
    for n in 1..=20 {
        publish(&rig, "mail.send", Some("s"), n).await;
    }
    let error = rig.refused("mail.send", &1).await;
    assert_eq!(error.code, Code::Unavailable, "{}", error.message);
    until("all are parked", async || {
        parked(&rig).await == known + 20 && rig.pending(EVENTS).await == 0
    })
    .await;
    assert!(rig.entries("cb:dead:mail").await.is_empty());
    let again = rig.start(worker(&rig, "w-3", &log));
    rig.wait_for_fact("instance.registered", 3).await;
    resume(&rig, "type:mail.send").await;
    rig.wait_for(RESULTS, before + 20 + known as usize).await;
    again.stop().await;
    other.stop().await;
    let expected: Vec<u64> = (1..=20).collect();
    assert_eq!(log.by_subject()["s"], expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_that_cannot_be_parked_holds_up_no_other_one_and_is_tried_again() {
    let rig = Rig::new().await;
    let log = Log::default();
    let running = rig.start(worker(&rig, "w-1", &log));
    rig.wait_for_fact("instance.registered", 1).await;
    // A key of another type stands where it is to be parked.
    pause(&rig, "domain:mail").await;
    is_known(&rig).await;
    rig.run(&format!("DEL {PARKED}")).await;
    rig.run(&format!("SET {PARKED} x")).await;
    for n in 1..=3 {
        publish(&rig, "mail.send", Some("s"), n).await;
    }
    publish(&rig, "mail.hold", Some("s"), 1).await;
    until("those of the other type are parked", async || {
        rig.exists("cb:parked:mail:mail.hold").await
    })
    .await;
    rig.run(&format!("DEL {PARKED}")).await;
    until("they are parked as well", async || {
        rig.pending(EVENTS).await == 0 && is_read(&rig).await
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_subject_waits_alone_and_its_pause_ends_by_itself() {
    let rig = Rig::new().await;
    let log = Log::default();
    let running = rig.start(worker(&rig, "w-1", &log));
    rig.wait_for_fact("instance.registered", 1).await;
    let scope = "subject:mail:s";
    let wanted = json!({"scope": scope, "pause": {"for_ms": 6000, "reason": "r"}});
    rig.ask("system.policy.set", &wanted).await.unwrap();
    until("the pause is known", async || {
        publish(&rig, "mail.send", Some("s"), 1).await;
        parked(&rig).await > 0
    })
    .await;
    let held = log.by_subject().get("s").map_or(0, Vec::len);
    let reply = rig.ask("system.policy.get", &json!({"scope": scope})).await;
    let said: serde_json::Value = rmp_serde::from_slice(&reply.unwrap().data).unwrap();
    assert!(said["policies"][0]["parked"].as_u64() > Some(0), "{said}");
    for n in 2..=5 {
        publish(&rig, "mail.send", Some("s"), n).await;
        publish(&rig, "mail.send", Some("t"), n).await;
    }
    until("the other subject goes on", async || {
        log.by_subject().get("t").is_some_and(|t| t.len() == 4)
    })
    .await;
    let ran = log.by_subject().get("s").map_or(0, Vec::len);
    assert_eq!(ran, held, "the subject waits");
    until("its time passes", async || {
        log.by_subject()
            .get("s")
            .is_some_and(|s| s.ends_with(&[1, 2, 3, 4, 5]))
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_memory_when_it_is_paused_is_parked_too() {
    let rig = Rig::new().await;
    let log = Log::default();
    let ends = Arc::new(Semaphore::new(0));
    *log.ends.lock().unwrap() = Some(ends.clone());
    let running = rig.start(worker(&rig, "w-1", &log));
    rig.wait_for_fact("instance.registered", 1).await;
    // A type has three of four slots; the others wait for one.
    for n in 0..6 {
        publish(&rig, "mail.hold", None, n).await;
    }
    until("they are read, and three run", async || {
        rig.pending(EVENTS).await == 6 && log.held.load(Ordering::SeqCst) == 3
    })
    .await;
    pause(&rig, "type:mail.hold").await;
    until("three run, the others are parked", async || {
        rig.pending(EVENTS).await == 3
    })
    .await;
    ends.add_permits(6);
    rig.wait_for(RESULTS, 3).await;
    assert_eq!(entries(&rig, RESULTS).await, 3);
    resume(&rig, "type:mail.hold").await;
    rig.wait_for(RESULTS, 6).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_begins_knows_what_is_paused_and_one_that_died_loses_nothing() {
    let rig = Rig::new().await;
    let log = Log::default();
    let first = killable(worker(&rig, "w-1", &log));
    rig.wait_for_fact("instance.registered", 1).await;
    pause(&rig, "type:mail.send").await;
    let known = is_known(&rig).await;
    for n in 1..=50 {
        publish(&rig, "mail.send", Some("s"), n).await;
    }
    until("some are parked", async || parked(&rig).await > known + 5).await;
    first.abort();
    let before = log.count();
    let second = rig.start(worker(&rig, "w-2", &log));
    for n in 51..=60 {
        publish(&rig, "mail.send", Some("s"), n).await;
    }
    until("all are parked", async || {
        parked(&rig).await == known + 60 && rig.pending(EVENTS).await == 0
    })
    .await;
    assert_eq!(log.count(), before);
    resume(&rig, "type:mail.send").await;
    rig.wait_for(RESULTS, before + 60 + known as usize).await;
    second.stop().await;
    let expected: Vec<u64> = (1..=60).collect();
    assert_eq!(log.by_subject()["s"], expected);
}

fn killable(builder: Builder) -> JoinHandle<()> {
    let worker = builder.build().unwrap();
    tokio::spawn(async move {
        worker.run_until(CancellationToken::new()).await.unwrap();
    })
}

/// Pauses and resumes under load; whatever it does, each event takes effect once.
async fn flips(rig: &Rig, count: usize, events: u64) {
    let publishing = async {
        for n in 1..=events {
            let subject = format!("s-{}", n % 5);
            publish(rig, "mail.send", Some(&subject), n).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let scopes = ["type:mail.send", "subject:mail:s-1", "domain:mail"];
    let flipping = async {
        for flip in 0..count {
            let scope = scopes[flip % 3];
            pause(rig, scope).await;
            let wait = Duration::from_micros(fastrand::u64(0..20_000));
            tokio::time::sleep(wait).await;
            resume(rig, scope).await;
        }
    };
    tokio::join!(publishing, flipping);
}

/// The numbers whose outcome was committed, sorted.
async fn committed(rig: &Rig, count: u64) -> Vec<u64> {
    let results = rig.wait_for(RESULTS, count as usize).await;
    let mut all: Vec<u64> = results
        .iter()
        .map(|entry| rmp_serde::from_slice(entry.get("data").unwrap()).unwrap())
        .collect();
    all.sort_unstable();
    all
}

async fn order_holds(count: usize, events: u64) {
    let rig = Rig::new().await;
    let log = Log::default();
    let running = rig.start(worker(&rig, "w-1", &log));
    rig.wait_for_fact("instance.registered", 1).await;
    flips(&rig, count, events).await;
    let all = committed(&rig, events).await;
    nothing_is_left(&rig).await;
    running.stop().await;
    assert_eq!(all, (1..=events).collect::<Vec<_>>(), "each once");
    for (subject, ran) in log.by_subject() {
        assert!(ran.is_sorted(), "{subject}: {ran:?}");
    }
}

async fn nothing_is_left(rig: &Rig) {
    until("nothing is left", async || {
        rig.keys("cb:parked:*").await.is_empty()
    })
    .await;
}

async fn nothing_is_lost(count: usize, events: u64) {
    let rig = Rig::new().await;
    let log = Log::default();
    let mut workers: Vec<JoinHandle<()>> = Vec::new();
    for id in ["w-1", "w-2"] {
        workers.push(killable(worker(&rig, id, &log)));
    }
    rig.wait_for_fact("instance.registered", 2).await;
    for (round, running) in workers.iter_mut().enumerate() {
        flips(&rig, count / 4, 0).await;
        tokio::join!(flips_of(&rig, count / 4, events / 2, round), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            running.abort();
            let next = format!("w-{}", round + 3);
            *running = killable(worker(&rig, &next, &log));
        });
    }
    let all = committed(&rig, events).await;
    assert_eq!(all, (1..=events).collect::<Vec<_>>(), "each once");
    for worker in workers {
        worker.abort();
    }
}

async fn flips_of(rig: &Rig, count: usize, events: u64, round: usize) {
    let first = round as u64 * events;
    let publishing = async {
        for n in first + 1..=first + events {
            let subject = format!("s-{}", n % 5);
            publish(rig, "mail.send", Some(&subject), n).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::join!(publishing, flips(rig, count, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_a_subject_holds_however_often_it_is_paused() {
    order_holds(60, 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_workers_that_die_none_loses_or_doubles_what_is_paused() {
    nothing_is_lost(60, 300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: 1,000 flips"]
async fn the_order_of_a_subject_holds_over_a_thousand_flips() {
    order_holds(1000, 8_000).await;
    nothing_is_lost(1000, 5_000).await;
}
