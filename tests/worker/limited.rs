//! What operators limit runs so as long as they say, and no event is lost, doubled or out of order for it.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::protocol::error::Code;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Batch, Batches, Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const EVENTS: &str = "cb:events:mail";
const RESULTS: &str = "cb:results:mail";
const DEAD: &str = "cb:dead:mail";

/// What the handlers of all workers of a test do.
#[derive(Clone)]
struct Runs(Arc<Seen>);

struct Seen {
    /// Runs of `mail.hold` that go on, and the most of them at a time.
    now: AtomicUsize,
    most: AtomicUsize,
    /// As many of them may end.
    ends: Semaphore,
    /// Subject and number of what `mail.send` ran.
    ran: Mutex<Vec<(String, u64)>>,
}

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

    fn ran(&self) -> usize {
        self.0.ran.lock().unwrap().len()
    }

    /// Waits in a run until it may end.
    async fn hold(&self) {
        let now = self.0.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(now, Ordering::SeqCst);
        let _over = Over(self.clone());
        self.0.ends.acquire().await.unwrap().forget();
    }
}

struct Over(Runs);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn hold(context: Context, n: u64) -> Result<u64, HandlerError> {
    context.state::<Runs>()?.hold().await;
    Ok(n)
}

type Outcomes = Result<Vec<Result<u64, HandlerError>>, HandlerError>;

async fn hold_many(batch: Batch, numbers: Vec<u64>) -> Outcomes {
    batch.state::<Runs>()?.clone().hold().await;
    Ok(numbers.into_iter().map(Ok).collect())
}

async fn send(context: Context, n: u64) -> Result<u64, HandlerError> {
    let event = context.event();
    let subject = event.subject().unwrap_or_default().to_owned();
    let runs = context.state::<Runs>()?;
    runs.0.ran.lock().unwrap().push((subject, n));
    Ok(n)
}

/// The same, and takes a moment: those of a subject that run at a time end in another order.
async fn line(context: Context, n: u64) -> Result<u64, HandlerError> {
    tokio::time::sleep(Duration::from_micros(fastrand::u64(0..5000))).await;
    send(context, n).await
}

async fn fail(_: Context, _: u64) -> Result<(), HandlerError> {
    Err(HandlerError::unavailable("always"))
}

async fn sleep(_: Context, ms: u64) -> Result<u64, HandlerError> {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    Ok(ms)
}

fn worker(rig: &Rig, id: &str, runs: &Runs) -> Builder {
    let settings = Settings {
        id: id.into(),
        concurrency: 8,
        ..rig.settings()
    };
    let short = Policy::new().timeout(Duration::from_millis(300));
    Worker::builder()
        .settings(settings)
        .state(runs.clone())
        .handler("mail.hold", hold)
        .handler("mail.send", send)
        .handler_with("mail.row", hold, Policy::new().ordered())
        .handler_with("mail.line", line, Policy::new().ordered())
        .handler_with("mail.fail", fail, Policy::new().attempts(3))
        .handler_with("mail.sleep", sleep, short)
}

fn killable(builder: Builder) -> JoinHandle<()> {
    let worker = builder.build().unwrap();
    tokio::spawn(async move {
        worker.run_until(CancellationToken::new()).await.unwrap();
    })
}

async fn limit(rig: &Rig, scope: &str, parts: Value) {
    let mut wanted = json!({"scope": scope});
    wanted
        .as_object_mut()
        .unwrap()
        .extend(parts.as_object().unwrap().clone());
    rig.ask("system.policy.set", &wanted).await.unwrap();
}

async fn clear(rig: &Rig, scope: &str) {
    let wanted = json!({"scope": scope});
    rig.ask("system.policy.clear", &wanted).await.unwrap();
}

async fn publish(rig: &Rig, kind: &str, subject: Option<&str>, n: u64) {
    let mut event = Outgoing::new(kind, &n);
    if let Some(subject) = subject {
        event = event.subject(subject);
    }
    rig.client.publish(&event).await.unwrap();
}

/// A worker that answers what operators ask, and runs nothing else.
fn answering(rig: &Rig) -> crate::rig::Running {
    let settings = Settings {
        id: "w-0".into(),
        ..rig.settings()
    };
    rig.start(Worker::builder().settings(settings))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_runs_go_on_in_each_worker_as_operators_say() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let other = answering(&rig);
    rig.wait_for_fact("instance.registered", 1).await;
    let one = json!({"concurrency": {"worker": 1}});
    limit(&rig, "type:mail.hold", one.clone()).await;
    let first = rig.start(worker(&rig, "w-1", &runs));
    let second = rig.start(worker(&rig, "w-2", &runs));
    rig.wait_for_fact("instance.registered", 3).await;
    // Whoever has just come may not read yet.
    until("one runs in each", async || {
        publish(&rig, "mail.hold", None, 0).await;
        runs.now() == 2
    })
    .await;
    for n in 0..40 {
        publish(&rig, "mail.hold", None, n).await;
    }
    runs.0.ends.add_permits(4);
    rig.wait_for(RESULTS, 4).await;
    until("the next ones run", async || runs.now() == 2).await;
    assert_eq!(runs.0.most.load(Ordering::SeqCst), 2);
    clear(&rig, "type:mail.hold").await;
    until("more of them run", async || runs.now() > 6).await;
    // Those that run count, though no limit was there when they began.
    limit(&rig, "type:mail.hold", one).await;
    let held = AtomicUsize::new(0);
    until("the limit holds for what begins, in both", async || {
        publish(&rig, "mail.hold", None, 1).await;
        runs.0.ends.add_permits(1);
        match runs.now() {
            0..=2 => held.fetch_add(1, Ordering::SeqCst) == 20,
            _ => {
                held.store(0, Ordering::SeqCst);
                false
            }
        }
    })
    .await;
    runs.0.most.store(0, Ordering::SeqCst);
    let done = rig.entries(RESULTS).await.len();
    for more in 1..=10 {
        runs.0.ends.add_permits(1);
        rig.wait_for(RESULTS, done + more).await;
    }
    assert!(runs.0.most.load(Ordering::SeqCst) <= 2);
    runs.0.ends.add_permits(1000);
    until("all have run", async || rig.pending(EVENTS).await == 0).await;
    for running in [first, second, other] {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_slot_in_its_handlers_own_gate_is_limited_too() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let running = rig.start(worker(&rig, "w-1", &runs));
    rig.wait_for_fact("instance.registered", 1).await;
    for n in 0..30 {
        publish(&rig, "mail.row", None, n).await;
    }
    until("some run, the others are read", async || {
        runs.now() == 6 && rig.pending(EVENTS).await == 30
    })
    .await;
    let one = json!({"concurrency": {"worker": 1}});
    limit(&rig, "type:mail.row", one).await;
    let slow = json!({"rate": {"limit": 1, "period_ms": 3_600_000}});
    limit(&rig, "type:mail.send", slow).await;
    until("the limits are known", async || {
        rig.ask("mail.send", &0).await.is_err()
    })
    .await;
    runs.0.ends.add_permits(5);
    until("one runs", async || {
        runs.now() == 1 && rig.pending(EVENTS).await == 25
    })
    .await;
    runs.0.most.store(0, Ordering::SeqCst);
    for left in (15..25).rev() {
        runs.0.ends.add_permits(1);
        until("one more has run", async || {
            rig.pending(EVENTS).await == left
        })
        .await;
    }
    assert_eq!(runs.0.most.load(Ordering::SeqCst), 1);
    clear(&rig, "type:mail.row").await;
    until("more of them run", async || runs.now() == 6).await;
    runs.0.ends.add_permits(100);
    until("all have run", async || rig.pending(EVENTS).await == 0).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_go_on_are_limited_too() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let other = answering(&rig);
    rig.wait_for_fact("instance.registered", 1).await;
    let one = json!({"concurrency": {"worker": 1}});
    limit(&rig, "type:mail.many", one).await;
    let builder = worker(&rig, "w-1", &runs);
    // Each is of two, however slowly they come.
    let batches = Batches::of(2).within(Duration::from_secs(60));
    let running = rig.start(builder.batch_handler("mail.many", hold_many, batches));
    rig.wait_for_fact("instance.registered", 2).await;
    for n in 0..8 {
        publish(&rig, "mail.many", None, n).await;
    }
    until("one runs", async || runs.now() == 1).await;
    until("all are read", async || rig.pending(EVENTS).await == 8).await;
    runs.0.ends.add_permits(1);
    until("one has run", async || rig.pending(EVENTS).await == 6).await;
    assert_eq!(runs.0.most.load(Ordering::SeqCst), 1);
    clear(&rig, "type:mail.many").await;
    until("all run", async || runs.now() == 3).await;
    runs.0.ends.add_permits(10);
    until("all have run", async || rig.pending(EVENTS).await == 0).await;
    running.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_holds_over_two_workers_and_who_waits_for_it_goes_on_when_it_is_raised_or_cleared() {
    for kind in ["mail.send", "mail.line"] {
        let rig = Rig::new().await;
        let runs = Runs::new();
        let other = answering(&rig);
        rig.wait_for_fact("instance.registered", 1).await;
        let scope = format!("type:{kind}");
        let hourly = |limit: u32| json!({"rate": {"limit": limit, "period_ms": 3_600_000}});
        limit(&rig, &scope, hourly(1)).await;
        let first = rig.start(worker(&rig, "w-1", &runs));
        let second = rig.start(worker(&rig, "w-2", &runs));
        rig.wait_for_fact("instance.registered", 3).await;
        for n in 1..=12 {
            publish(&rig, kind, Some("s"), n).await;
        }
        until("one runs, the others wait", async || {
            runs.ran() == 1 && rig.pending(EVENTS).await == 11
        })
        .await;
        let refused = rig.refused(kind, &1).await;
        assert_eq!(refused.code, Code::ResourceExhausted);
        assert!(
            refused.message.contains("all of the type"),
            "{}",
            refused.message
        );
        limit(&rig, &scope, hourly(4)).await;
        until("three more run", async || {
            runs.ran() == 4 && rig.pending(EVENTS).await == 8
        })
        .await;
        clear(&rig, &scope).await;
        rig.wait_for(RESULTS, 12).await;
        assert_eq!(runs.ran(), 12);
        for running in [first, second, other] {
            running.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_per_source_or_subject_is_of_each() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let running = rig.start(worker(&rig, "w-1", &runs));
    rig.wait_for_fact("instance.registered", 1).await;
    let per = |per: &str| json!({"rate": {"limit": 1, "period_ms": 3_600_000, "per": per}});
    limit(&rig, "type:mail.send", per("subject")).await;
    until("the limit is known", async || {
        let event = Outgoing::new("mail.send", &0).subject("known");
        let asked = rig.client.request(event, Duration::from_secs(20)).await;
        asked.is_err()
    })
    .await;
    let before = runs.ran();
    for n in 1..=9 {
        publish(&rig, "mail.send", Some(["s", "t", "u"][n as usize % 3]), n).await;
    }
    until("one of each has run", async || {
        runs.ran() == before + 3 && rig.pending(EVENTS).await == 6
    })
    .await;
    // They have one source: one more runs, since none has counted for it.
    limit(&rig, "type:mail.send", per("source")).await;
    until("one of them runs", async || runs.ran() == before + 4).await;
    clear(&rig, "type:mail.send").await;
    until("all have run", async || runs.ran() == before + 9).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waited_as_one_of_the_type_waits_for_its_source_alone_once_the_rate_is_of_each() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let running = rig.start(worker(&rig, "w-1", &runs));
    rig.wait_for_fact("instance.registered", 1).await;
    let of = |limit: u32, per: &str| json!({"rate": {"limit": limit, "period_ms": 3_600_000, "per": per}});
    limit(&rig, "type:mail.send", of(1, "type")).await;
    until("the limit is known", async || {
        rig.ask("mail.send", &0).await.is_err()
    })
    .await;
    let before = runs.ran();
    for (n, source) in (1..).zip(["a", "a", "a", "a", "b", "b", "b"]) {
        let event = Outgoing::new("mail.send", &n).source(source);
        rig.client.publish(&event.subject(source)).await.unwrap();
    }
    until("they wait", async || rig.pending(EVENTS).await == 7).await;
    limit(&rig, "type:mail.send", of(2, "source")).await;
    until("two of each have run", async || {
        runs.ran() == before + 4 && rig.pending(EVENTS).await == 3
    })
    .await;
    let ran = runs.0.ran.lock().unwrap()[before..].to_vec();
    let of_source = |source: &str| ran.iter().filter(|one| one.0 == source).count();
    assert_eq!([of_source("a"), of_source("b")], [2, 2]);
    clear(&rig, "type:mail.send").await;
    until("all have run", async || runs.ran() == before + 7).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_types_attempts_and_timeout_go_before_its_domains_and_those_before_the_handlers() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let running = rig.start(worker(&rig, "w-1", &runs));
    rig.wait_for_fact("instance.registered", 1).await;
    let tried = async |most: &str| {
        until(&format!("{most} tries"), async || {
            let before = rig.entries(DEAD).await.len();
            publish(&rig, "mail.fail", None, 1).await;
            let dead = rig.wait_for(DEAD, before + 1).await;
            text(&dead[before], "deadattempts") == most
        })
        .await;
    };
    tried("3").await;
    limit(
        &rig,
        "domain:mail",
        json!({"max_attempts": 2, "timeout_ms": 60_000}),
    )
    .await;
    tried("2").await;
    limit(&rig, "type:mail.fail", json!({"max_attempts": 1})).await;
    tried("1").await;
    // The handler's own time-out is shorter than the domain's.
    let slept = rig.ask("mail.sleep", &900).await;
    assert!(slept.is_ok(), "{slept:?}");
    limit(&rig, "type:mail.sleep", json!({"timeout_ms": 50})).await;
    until("it takes too long", async || {
        rig.ask("mail.sleep", &200).await.is_err()
    })
    .await;
    for scope in ["type:mail.fail", "domain:mail", "type:mail.sleep"] {
        clear(&rig, scope).await;
    }
    tried("3").await;
    until("it has its own time", async || {
        rig.ask("mail.sleep", &200).await.is_ok()
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_discovers_a_handler_is_told_whose_runs_its_rate_counts_together() {
    let rig = Rig::new().await;
    let settings = Settings {
        limit: vec!["mail.send=rate:10/m".into()],
        ..rig.settings()
    };
    let running = rig.start(worker(&rig, "w-1", &Runs::new()).settings(settings));
    until("it is known", async || {
        let reply = rig.ask("system.discover", &json!({})).await.unwrap();
        let found: Value = rmp_serde::from_slice(&reply.data).unwrap();
        let mut methods = found["methods"].as_array().unwrap().iter();
        let send = methods.find(|one| one["type"] == "mail.send");
        let rate = json!({"limit": 10, "period_ms": 60_000, "per": "type"});
        send.is_some_and(|send| send["rate_limit"] == rate)
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_and_says_what_would_do() {
    let rig = Rig::new().await;
    let running = answering(&rig);
    rig.wait_for_fact("instance.registered", 1).await;
    let rate = json!({"limit": 1, "period_ms": 1000});
    for (wanted, why) in [
        (
            json!({"scope": "type:mail.send"}),
            "a policy says something",
        ),
        (
            json!({"scope": "domain:mail", "rate": rate}),
            "domain:mail can have pause, timeout_ms, max_attempts",
        ),
        (
            json!({"scope": "subject:mail:s", "max_attempts": 1}),
            "subject:mail:s can have pause",
        ),
        (
            json!({"scope": "type:mail.send", "concurrency": {"total": 0}}),
            "concurrency.total: 0 is not 1 or more",
        ),
        (
            json!({"scope": "type:mail.send", "concurrency": {"per_subject": 1}}),
            "concurrency.per_subject: workers cannot count that",
        ),
        (
            json!({"scope": "type:mail.send", "rate": {"limit": 1, "period_ms": 1, "per": "hour"}}),
            "\"hour\" is not source, subject or type",
        ),
        (
            json!({"scope": "type:mail.send", "timeout_ms": 0}),
            "timeout_ms: 0",
        ),
    ] {
        let error = rig.refused("system.policy.set", &wanted).await;
        assert_eq!(error.code, Code::InvalidArgument, "{wanted}");
        assert!(error.message.contains(why), "{wanted}: {}", error.message);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_changed_what_and_why_is_on_the_bus() {
    let rig = Rig::new().await;
    let running = answering(&rig);
    rig.wait_for_fact("instance.registered", 1).await;
    let rate = json!({"limit": 1, "period_ms": 1000, "per": "source"});
    limit(
        &rig,
        "type:mail.send",
        json!({"rate": rate, "reason": "the relay"}),
    )
    .await;
    limit(&rig, "domain:mail", json!({"pause": {"reason": "repair"}})).await;
    let wanted = json!({"scope": "type:mail.send", "reason": "it is well", "version": 9});
    let aborted = rig.refused("system.policy.clear", &wanted).await;
    assert_eq!(aborted.code, Code::Aborted);
    let wanted = json!({"scope": "type:mail.send", "reason": "it is well", "version": 1});
    rig.ask("system.policy.clear", &wanted).await.unwrap();
    let history = async |wanted: Value| -> Vec<Value> {
        let reply = rig.ask("system.policy.history", &wanted).await.unwrap();
        let said: Value = rmp_serde::from_slice(&reply.data).unwrap();
        said["changes"].as_array().unwrap().clone()
    };
    let all = history(json!({})).await;
    let versions: Vec<_> = all.iter().map(|one| one["version"].as_u64()).collect();
    assert_eq!(versions, [Some(3), Some(2), Some(1)]);
    assert_eq!(all[0]["reason"], "it is well");
    assert_eq!(all[0]["before"], json!({"rate": rate}));
    assert_eq!(all[0]["after"], Value::Null);
    assert_eq!(all[1]["reason"], "repair");
    assert_eq!(all[2]["after"], json!({"rate": rate}));
    let of_type = history(json!({"scope": "type:mail.send", "before": 3})).await;
    assert_eq!(of_type, [all[2].clone()]);
    running.stop().await;
}

/// Changes limits all the time, until it is told to stop.
async fn flips(rig: &Rig, over: &AtomicBool) -> usize {
    let mut count = 0;
    while !over.load(Ordering::SeqCst) {
        let scope = ["type:mail.line", "type:mail.send"][count / 5 % 2];
        match fastrand::u8(..5) {
            0 => clear(rig, scope).await,
            1 => {
                let runs = fastrand::u32(1..4);
                limit(rig, scope, json!({"concurrency": {"worker": runs}})).await;
            }
            2 => limit(rig, scope, json!({"timeout_ms": 20_000, "max_attempts": 2})).await,
            _ => {
                let per = ["source", "subject", "type"][fastrand::usize(..3)];
                let runs = fastrand::u32(1..40);
                let rate = json!({"limit": runs, "period_ms": 100, "per": per});
                limit(rig, scope, json!({"rate": rate})).await;
            }
        }
        count += 1;
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..10_000))).await;
    }
    for scope in ["type:mail.line", "type:mail.send"] {
        clear(rig, scope).await;
    }
    count
}

async fn load(rig: &Rig, events: u64) {
    for n in 1..=events {
        let kind = ["mail.line", "mail.send"][n as usize % 2];
        let subject = format!("s-{}", n % 10);
        publish(rig, kind, Some(&subject), n).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
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

async fn order_holds(events: u64) -> usize {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let running = rig.start(worker(&rig, "w-1", &runs));
    rig.wait_for_fact("instance.registered", 1).await;
    let over = AtomicBool::new(false);
    let (count, ()) = tokio::join!(flips(&rig, &over), async {
        load(&rig, events).await;
        over.store(true, Ordering::SeqCst);
    });
    let all = committed(&rig, events).await;
    running.stop().await;
    assert_eq!(all, (1..=events).collect::<Vec<_>>(), "each once");
    let mut by_subject: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (subject, n) in runs.0.ran.lock().unwrap().iter() {
        // Those of the ordered handler.
        if n % 2 == 0 {
            by_subject.entry(subject.clone()).or_default().push(*n);
        }
    }
    for (subject, ran) in by_subject {
        assert!(ran.is_sorted(), "{subject}: {ran:?}");
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_a_subject_holds_however_often_its_limits_change() {
    order_holds(500).await;
}

async fn nothing_is_lost(events: u64, kills: usize) -> usize {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let other = answering(&rig);
    let mut workers = ["w-1", "w-2"].map(|id| killable(worker(&rig, id, &runs)));
    rig.wait_for_fact("instance.registered", 3).await;
    let over = AtomicBool::new(false);
    let killing = async {
        for kill in 0..kills {
            tokio::time::sleep(Duration::from_millis(2 * events / (kills as u64 + 1))).await;
            let running = &mut workers[kill % 2];
            running.abort();
            *running = killable(worker(&rig, &format!("w-{}", kill + 3), &runs));
        }
    };
    let (count, (), ()) = tokio::join!(
        flips(&rig, &over),
        async {
            load(&rig, events).await;
            over.store(true, Ordering::SeqCst);
        },
        killing
    );
    let all = committed(&rig, events).await;
    for worker in workers {
        worker.abort();
    }
    other.stop().await;
    assert_eq!(all, (1..=events).collect::<Vec<_>>(), "each once");
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_workers_that_die_none_loses_or_doubles_what_is_limited() {
    nothing_is_lost(400, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: 1,000 changes"]
async fn a_thousand_changes_of_limits_lose_and_double_nothing() {
    let (first, second) = (order_holds(10_000).await, nothing_is_lost(10_000, 10).await);
    println!("{first} and {second} changes");
}
