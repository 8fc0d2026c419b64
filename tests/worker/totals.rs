//! As many runs of a type go on in all workers together as operators say.

use crate::rig::{Rig, Running};
use crate::support::{keys, until};
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::coordination::seats::{self, Taken};
use convoke::settings::{RedisUrl, Settings};
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

mod waits;

const EVENTS: &str = "cb:events:mail";
const RESULTS: &str = "cb:results:mail";
const DEAD: &str = "cb:dead:mail";

/// What the handlers of all workers of a test do.
#[derive(Clone)]
struct Runs(Arc<Seen>);

struct Seen {
    now: AtomicUsize,
    most: AtomicUsize,
    /// As many runs of `mail.hold` may end.
    ends: Semaphore,
    /// Which ran, in their order, and in which worker.
    ran: Mutex<Vec<(String, u64, String)>>,
}

struct Over(Runs);

impl Runs {
    fn new() -> Self {
        Self(Arc::new(Seen {
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            ends: Semaphore::new(0),
            ran: Mutex::default(),
        }))
    }

    fn now(&self) -> usize {
        self.0.now.load(Ordering::SeqCst)
    }

    /// The most that went on at a time since this was asked last.
    fn most(&self) -> usize {
        self.0.most.swap(self.now(), Ordering::SeqCst)
    }

    fn end(&self, runs: usize) {
        self.0.ends.add_permits(runs);
    }

    fn begins(&self, context: &Context, n: u64) -> Over {
        let now = self.0.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(now, Ordering::SeqCst);
        let subject = context.event().subject().unwrap_or_default().to_owned();
        let ran = (subject, n, context.instance().to_owned());
        self.0.ran.lock().unwrap().push(ran);
        Over(self.clone())
    }

    fn ran(&self) -> Vec<(String, u64, String)> {
        self.0.ran.lock().unwrap().clone()
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        self.0.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Goes on until it may end.
async fn hold(context: Context, n: u64) -> Result<u64, HandlerError> {
    let runs = context.state::<Runs>()?.clone();
    let _over = runs.begins(&context, n);
    runs.0.ends.acquire().await.unwrap().forget();
    Ok(n)
}

/// Is over in a moment, one way or another.
async fn brief(context: Context, n: u64) -> Result<u64, HandlerError> {
    let runs = context.state::<Runs>()?.clone();
    let _over = runs.begins(&context, n);
    tokio::time::sleep(Duration::from_millis(n % 4)).await;
    let is_first = context.event().attempt() == 1;
    match n % 10 {
        1 if is_first => Err(HandlerError::unavailable("later")),
        2 if is_first => panic!("a bug"),
        3 if is_first => std::future::pending().await,
        _ => Ok(n),
    }
}

/// Is over in a moment.
async fn row(context: Context, n: u64) -> Result<u64, HandlerError> {
    let runs = context.state::<Runs>()?.clone();
    let _over = runs.begins(&context, n);
    tokio::time::sleep(Duration::from_millis(n % 4)).await;
    Ok(n)
}

fn worker(rig: &Rig, id: &str, runs: &Runs) -> Builder {
    let settings = Settings {
        id: id.into(),
        concurrency: 8,
        // A loaded machine stands still for less than its lease.
        heartbeat_ttl: Duration::from_secs(30),
        claim_idle: Duration::from_secs(20),
        ..rig.settings()
    };
    let short = Policy::new().timeout(Duration::from_millis(200));
    let long = Policy::new().no_timeout();
    Worker::builder()
        .settings(settings)
        .state(runs.clone())
        .handler_with("mail.hold", hold, long.clone())
        .handler_with("mail.brief", brief, short)
        .handler_with("mail.row", row, Policy::new().ordered())
        .handler_with("mail.few", row, Policy::new().concurrency(1))
        .handler_with("mail.gated", hold, long.clone().ordered())
        .handler_with("mail.own", hold, long.total(2))
}

/// One that answers operators and has none of these handlers.
async fn answering(rig: &Rig) -> Running {
    let settings = Settings {
        id: "w-0".into(),
        ..rig.settings()
    };
    let running = rig.start(Worker::builder().settings(settings));
    rig.wait_for_fact("instance.registered", 1).await;
    running
}

/// Some of them, once all are there; one that answers is there already.
async fn workers(rig: &Rig, runs: &Runs, count: usize) -> Vec<Running> {
    let all = (1..=count).map(|n| rig.start(worker(rig, &format!("w-{n}"), runs)));
    let all = all.collect();
    rig.wait_for_fact("instance.registered", 1 + count).await;
    all
}

async fn limit(rig: &Rig, kind: &str, parts: Value) {
    let mut wanted = json!({"scope": format!("type:{kind}")});
    let all = wanted.as_object_mut().unwrap();
    all.extend(parts.as_object().unwrap().clone());
    rig.ask("system.policy.set", &wanted).await.unwrap();
}

fn total(most: u32) -> Value {
    json!({"concurrency": {"total": most}})
}

async fn clear(rig: &Rig, kind: &str, part: &str) {
    let wanted = json!({"scope": format!("type:{kind}"), "parts": [part]});
    rig.ask("system.policy.clear", &wanted).await.unwrap();
}

/// Who has seats, as operators see it.
async fn seats(rig: &Rig, kind: &str) -> Value {
    let wanted = json!({"scope": format!("type:{kind}")});
    let Ok(reply) = rig.ask("system.policy.get", &wanted).await else {
        return Value::Null;
    };
    let said: Value = rmp_serde::from_slice(&reply.data).unwrap();
    said["policies"][0]["seats"].clone()
}

/// The same as Redis has it.
async fn taken(rig: &Rig, kind: &str) -> Taken {
    let connector = Connector::new(&RedisUrl::new(rig.redis.url()), 1).unwrap();
    seats::look(&connector, &keys(), kind).await.unwrap()
}

async fn all_are_free(rig: &Rig, kind: &str) {
    until("all seats are free", async || {
        taken(rig, kind).await == Taken::default()
    })
    .await;
}

async fn publish(rig: &Rig, kind: &str, subject: &str, n: u64) {
    let event = Outgoing::new(kind, &n);
    let event = match subject {
        "" => event,
        subject => event.subject(subject),
    };
    rig.client.publish(&event).await.unwrap();
}

async fn stop(all: Vec<Running>) {
    for running in all {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_runs_go_on_in_all_workers_than_operators_say_however_they_end() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    limit(&rig, "mail.brief", total(3)).await;
    let all = workers(&rig, &runs, 3).await;
    for n in 0..150 {
        publish(&rig, "mail.brief", &format!("s-{}", n % 20), n).await;
    }
    rig.wait_for(RESULTS, 150).await;
    assert_eq!(runs.most(), 3);
    let ran = runs.ran().into_iter();
    let workers: BTreeSet<String> = ran.map(|(.., worker)| worker).collect();
    assert!(workers.len() > 1, "one of them ran everything");
    all_are_free(&rig, "mail.brief").await;
    stop(all).await;
    asks.stop().await;
    assert_eq!(rig.entries(DEAD).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_total_that_is_raised_lowered_or_cleared_holds_for_what_waits() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    limit(&rig, "mail.hold", total(2)).await;
    let all = workers(&rig, &runs, 3).await;
    for n in 0..40 {
        publish(&rig, "mail.hold", "", n).await;
    }
    until("two run", async || runs.now() == 2).await;
    until("it is said how many wait", async || {
        let seats = seats(&rig, "mail.hold").await;
        seats["taken"] == 2 && seats["waits"].as_u64() > Some(0)
    })
    .await;
    // Others of their stream are not held up.
    rig.ask("mail.row", &1).await.unwrap();
    assert_eq!(runs.most(), 3);
    for n in 40..400 {
        publish(&rig, "mail.hold", "", n).await;
    }
    limit(&rig, "mail.hold", total(6)).await;
    until("six run", async || runs.now() == 6).await;
    assert_eq!(runs.most(), 6);
    limit(&rig, "mail.hold", total(1)).await;
    // What runs goes on; others begin when it has ended.
    until("one is left", async || {
        if runs.0.ends.available_permits() == 0 && runs.now() > 1 {
            runs.end(1);
        }
        runs.now() == 1 && seats(&rig, "mail.hold").await["taken"] == 1
    })
    .await;
    until("one runs at a time", async || {
        runs.most();
        let before = runs.ran().len();
        runs.end(1);
        until("the next has begun", async || runs.ran().len() > before).await;
        runs.most() == 1
    })
    .await;
    clear(&rig, "mail.hold", "concurrency.total").await;
    until("more of them run", async || runs.now() > 6).await;
    limit(&rig, "mail.hold", total(2)).await;
    runs.end(400);
    until("all ran", async || {
        runs.ran().len() == 401 && rig.pending(EVENTS).await == 0
    })
    .await;
    all_are_free(&rig, "mail.hold").await;
    stop(all).await;
    asks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_began_before_the_total_counts() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    let first = rig.start(worker(&rig, "w-1", &runs));
    for n in 0..4 {
        publish(&rig, "mail.hold", "", n).await;
    }
    until("four run", async || runs.now() == 4).await;
    limit(&rig, "mail.hold", total(3)).await;
    until("they count", async || {
        seats(&rig, "mail.hold").await["taken"] == 4
    })
    .await;
    // Who starts knows.
    let second = rig.start(worker(&rig, "w-2", &runs));
    rig.wait_for_fact("instance.registered", 3).await;
    for n in 4..10 {
        publish(&rig, "mail.hold", "", n).await;
    }
    until("those that came wait", async || {
        rig.pending(EVENTS).await == 10 && taken(&rig, "mail.hold").await.waits > 0
    })
    .await;
    assert_eq!(runs.most(), 4);
    runs.end(1);
    until("one has ended", async || runs.now() == 3).await;
    runs.most();
    runs.end(100);
    rig.wait_for(RESULTS, 10).await;
    assert_eq!(runs.most(), 3);
    stop(vec![first, second]).await;
    asks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_entered_before_the_total_waits_for_it() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    let all = workers(&rig, &runs, 2).await;
    // A type has six of eight slots.
    let mut published = 0;
    while runs.now() < 12 && published < 100 {
        publish(&rig, "mail.gated", "", published).await;
        published += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for n in published..100 {
        publish(&rig, "mail.gated", "", n).await;
    }
    until("all have entered, and wait for slots", async || {
        runs.now() == 12 && rig.pending(EVENTS).await == 100
    })
    .await;
    limit(&rig, "mail.gated", total(1)).await;
    until("they count", async || {
        taken(&rig, "mail.gated").await.seats == 12
    })
    .await;
    runs.end(11);
    until("one goes on", async || runs.now() == 1).await;
    assert_eq!(runs.ran().len(), 12, "nothing begins until fewer go on");
    runs.most();
    runs.end(100);
    rig.wait_for(RESULTS, 100).await;
    assert_eq!(runs.most(), 1);
    all_are_free(&rig, "mail.gated").await;
    stop(all).await;
    asks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_may_have_a_total_of_its_own() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    let all = workers(&rig, &runs, 2).await;
    for n in 0..400 {
        publish(&rig, "mail.own", "", n).await;
    }
    until("two run, others wait", async || {
        runs.now() == 2 && taken(&rig, "mail.own").await.waits > 0
    })
    .await;
    // Operators may set another one, and take it back.
    limit(&rig, "mail.own", total(5)).await;
    until("five run", async || runs.now() == 5).await;
    assert_eq!(runs.most(), 5);
    clear(&rig, "mail.own", "concurrency.total").await;
    // Whoever has not heard of that yet has more begin.
    until("two at a time", async || {
        if runs.0.ends.available_permits() == 0 && runs.now() > 2 {
            runs.end(1);
            return false;
        }
        runs.most();
        let before = runs.ran().len();
        runs.end(1);
        until("the next has begun", async || runs.ran().len() > before).await;
        runs.most() == 2
    })
    .await;
    runs.end(400);
    rig.wait_for(RESULTS, 400).await;
    stop(all).await;
    asks.stop().await;
}
