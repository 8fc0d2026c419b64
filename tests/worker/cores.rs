//! Handlers that compute: their runs are on many threads, and all that holds of others holds of them.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::handler::RetryPolicy;
use convoke::protocol::error::Code;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use std::collections::BTreeMap;
use std::panic::{catch_unwind, panic_any};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

const EVENTS: &str = "cb:events:sum";
const RESULTS: &str = "cb:results:sum";

/// Subject, number, attempt, and whether the run ended, or began.
type Step = (String, u64, u32, bool);

/// What runs do: all of it holds their threads.
#[derive(Clone, Default)]
struct Bench {
    /// Runs that hold their threads now, those that began, and how many may go on.
    holds: Arc<AtomicUsize>,
    began: Arc<AtomicUsize>,
    let_go: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    history: Arc<Mutex<Vec<Step>>>,
}

impl Bench {
    fn holding(&self) -> usize {
        self.holds.load(Ordering::SeqCst)
    }
}

fn spin(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Holds its thread until it is let go.
fn hold(bench: &Bench) {
    bench.holds.fetch_add(1, Ordering::SeqCst);
    let free = |left: usize| left.checked_sub(1);
    while bench
        .let_go
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, free)
        .is_err()
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    bench.holds.fetch_sub(1, Ordering::SeqCst);
}

async fn sum(context: Context, what: String) -> Result<String, HandlerError> {
    let bench = context.state::<Bench>()?.clone();
    bench.began.fetch_add(1, Ordering::SeqCst);
    match what.as_str() {
        "hold" => hold(&bench),
        "panic" if context.event().attempt() == 1 => panic_any(7),
        "late" => spin(Duration::from_millis(1100)),
        _ => spin(Duration::from_millis(4)),
    }
    bench.ended.fetch_add(1, Ordering::SeqCst);
    Ok(what)
}

/// Computes and yields as tokio recommends. Ends only if nobody stops it.
async fn patient(context: Context, what: String) -> Result<String, HandlerError> {
    let bench = context.state::<Bench>()?.clone();
    let began = Instant::now();
    while what == "for long" && began.elapsed() < Duration::from_secs(10) {
        spin(Duration::from_micros(20));
        tokio::task::consume_budget().await;
    }
    spin(Duration::from_millis(4));
    bench.ended.fetch_add(1, Ordering::SeqCst);
    Ok(what)
}

/// Whether it may block on a future.
async fn enter(_: Context, what: String) -> Result<String, HandlerError> {
    spin(Duration::from_millis(4));
    let enters = || Handle::current().block_on(async {});
    Ok(match catch_unwind(enters) {
        Ok(()) => what,
        Err(_) => "panicked".to_owned(),
    })
}

async fn echo(_: Context, text: String) -> Result<String, HandlerError> {
    Ok(text)
}

fn worker(rig: &Rig, id: &str, bench: &Bench) -> Builder {
    let settings = Settings {
        id: id.into(),
        handler_timeout: Duration::from_secs(60),
        ..rig.settings()
    };
    let builder = Worker::builder().settings(settings).state(bench.clone());
    builder
        .handler("sum.up", sum)
        .handler_with(
            "sum.soon",
            sum,
            Policy::new().timeout(Duration::from_secs(1)).attempts(1),
        )
        .handler_with(
            "sum.patient",
            patient,
            Policy::new().timeout(Duration::from_secs(1)).attempts(1),
        )
        .handler("sum.enter", enter)
        .handler("text.echo", echo)
}

async fn publish(rig: &Rig, kind: &str, what: &str, count: usize) {
    for _ in 0..count {
        let event = Outgoing::new(kind, &what);
        rig.client.publish(&event).await.unwrap();
    }
}

/// Has a type compute until its worker knows that it does; those results are in the stream then.
async fn learned(rig: &Rig, kind: &str) {
    let before = rig.entries(RESULTS).await.len();
    publish(rig, kind, "spin", 6).await;
    rig.wait_for(RESULTS, before + 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_hold_their_threads_run_at_once_and_hold_up_no_other_type() {
    let rig = Rig::new().await;
    let bench = Bench::default();
    let running = rig.start(worker(&rig, "w-1", &bench));
    learned(&rig, "sum.up").await;
    publish(&rig, "sum.up", "hold", 2).await;
    until("two hold their threads", async || bench.holding() == 2).await;
    // Both of the runtime's threads are held.
    let reply = rig.ask("text.echo", &"hello").await.unwrap();
    assert_eq!(reply.decode::<String>().unwrap(), "hello");
    bench.let_go.store(2, Ordering::SeqCst);
    rig.wait_for(RESULTS, 8).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_on_another_thread_that_panics_or_takes_too_long_has_failed_as_others_do() {
    let rig = Rig::new().await;
    let bench = Bench::default();
    let running = rig.start(worker(&rig, "w-1", &bench));
    learned(&rig, "sum.up").await;
    learned(&rig, "sum.soon").await;
    publish(&rig, "sum.up", "panic", 1).await;
    let results = rig.wait_for(RESULTS, 13).await;
    let again = results.iter().find(|result| {
        let said: Option<String> = result
            .get("data")
            .and_then(|data| rmp_serde::from_slice(data).ok());
        said.as_deref() == Some("panic")
    });
    assert!(again.is_some(), "it is tried again");
    let late = rig.refused("sum.soon", &"late").await;
    assert_eq!(late.code, Code::DeadlineExceeded);
    running.stop().await;
    assert_eq!(rig.pending(EVENTS).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_computes_and_yields_is_stopped_by_its_time_out() {
    let rig = Rig::new().await;
    let bench = Bench::default();
    let running = rig.start(worker(&rig, "w-1", &bench));
    learned(&rig, "sum.patient").await;
    let ended = bench.ended.load(Ordering::SeqCst);
    let late = rig.refused("sum.patient", &"for long").await;
    assert_eq!(late.code, Code::DeadlineExceeded);
    assert_eq!(bench.ended.load(Ordering::SeqCst), ended, "it is stopped");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_may_not_block_on_a_future_however_long_its_type_computes() {
    let rig = Rig::new().await;
    let running = rig.start(worker(&rig, "w-1", &Bench::default()));
    for _ in 0..2 {
        learned(&rig, "sum.enter").await;
    }
    running.stop().await;
    for result in rig.entries(RESULTS).await {
        let said: String = rmp_serde::from_slice(result.get("data").unwrap()).unwrap();
        assert_eq!(said, "panicked");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_drains_finishes_what_computes_and_gives_back_what_waits_for_a_core() {
    let rig = Rig::new().await;
    let bench = Bench::default();
    let leaver = rig.start(worker(&rig, "leaver", &bench));
    learned(&rig, "sum.up").await;
    let cores = std::thread::available_parallelism().unwrap().get() + 1;
    let all = cores + 5;
    publish(&rig, "sum.up", "hold", all).await;
    until("one for each core computes, and one", async || {
        bench.holding() == cores && rig.pending(EVENTS).await == all as u64
    })
    .await;
    let began = bench.began.load(Ordering::SeqCst);
    let lets_go = async {
        until("what waits is given back", async || {
            rig.pending(EVENTS).await == cores as u64
        })
        .await;
        bench.let_go.store(cores, Ordering::SeqCst);
    };
    tokio::join!(leaver.stop(), lets_go);
    assert_eq!(bench.began.load(Ordering::SeqCst), began, "no more begins");
    assert_eq!(rig.entries(RESULTS).await.len(), 6 + cores);
    assert_eq!(rig.pending(EVENTS).await, 0);
    bench.let_go.store(5, Ordering::SeqCst);
    let heir = rig.start(worker(&rig, "heir", &bench));
    let results = rig.wait_for(RESULTS, 6 + all).await;
    heir.stop().await;
    let of_heir = results.iter().filter(|one| text(one, "source") == "heir");
    assert_eq!(of_heir.count(), 5);
    assert!(!rig.exists("cb:dead:sum").await, "no attempt is spent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_dropped_begins_nothing_more_and_commits_nothing_of_what_computes() {
    let rig = Rig::new().await;
    let bench = Bench::default();
    let first = worker(&rig, "first", &bench).build().unwrap();
    let first = tokio::spawn(async move { first.run_until(CancellationToken::new()).await });
    learned(&rig, "sum.up").await;
    publish(&rig, "sum.up", "hold", 8).await;
    until("some hold their threads", async || bench.holding() >= 2).await;
    let (began, ended) = (&bench.began, &bench.ended);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    bench.let_go.store(8, Ordering::SeqCst);
    until("all that began has ended", async || {
        bench.holding() == 0 && ended.load(Ordering::SeqCst) >= 6
    })
    .await;
    // One for each core and one had a place; the last of them may have been about to begin.
    let cores = std::thread::available_parallelism().unwrap().get() + 1;
    assert!(began.load(Ordering::SeqCst) <= 6 + cores);
    assert_eq!(rig.entries(RESULTS).await.len(), 6);
    // More than the heir needs: one of the first may still be about to begin.
    bench.let_go.store(100, Ordering::SeqCst);
    let heir = rig.start(worker(&rig, "heir", &bench));
    let results = rig.wait_for(RESULTS, 14).await;
    heir.stop().await;
    assert_eq!(results.len(), 14, "each has one result");
    let of_heir = results.iter().filter(|one| text(one, "source") == "heir");
    assert_eq!(of_heir.count(), 8);
}

/// A step of a subject: every fifth one fails at first.
async fn step(context: Context, n: u64) -> Result<(), HandlerError> {
    let bench = context.state::<Bench>()?.clone();
    let event = context.event();
    let subject = event.subject().unwrap_or_default().to_owned();
    let attempt = event.attempt();
    let note = |ends| {
        let step = (subject.clone(), n, attempt, ends);
        bench.history.lock().unwrap().push(step);
    };
    note(false);
    if n.is_multiple_of(3) {
        spin(Duration::from_millis(1));
        // The rest of it on whatever thread comes next.
        tokio::task::yield_now().await;
        spin(Duration::from_millis(1));
    } else {
        // In one poll: only on several threads are there two at once.
        let held = bench.holds.fetch_add(1, Ordering::SeqCst) + 1;
        bench.began.fetch_max(held, Ordering::SeqCst);
        spin(Duration::from_millis(1));
        bench.holds.fetch_sub(1, Ordering::SeqCst);
    }
    note(true);
    match n.is_multiple_of(5) && attempt == 1 {
        true => Err(HandlerError::unavailable("not yet")),
        false => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_each_subject_holds_on_many_threads_whatever_is_tried_again() {
    const SUBJECTS: u64 = 7;
    const EACH: u64 = 40;
    let rig = Rig::new().await;
    let bench = Bench::default();
    let retry = RetryPolicy {
        base: Duration::from_millis(5),
        ..RetryPolicy::default()
    };
    let policy = Policy::new().ordered().retry(retry);
    let builder = rig.builder().state(bench.clone());
    let running = rig.start(builder.handler_with("sum.step", step, policy));
    let events: Vec<Outgoing> = (0..SUBJECTS * EACH)
        .map(|n| Outgoing::new("sum.step", &(n / SUBJECTS)).subject(format!("s-{}", n % SUBJECTS)))
        .collect();
    for published in rig.client.publish_many(&events).await {
        published.unwrap();
    }
    rig.wait_for(RESULTS, (SUBJECTS * EACH) as usize).await;
    running.stop().await;
    assert!(bench.began.load(Ordering::SeqCst) > 1, "some ran at once");
    let history = bench.history.lock().unwrap().clone();
    let mut subjects: BTreeMap<&str, Vec<&Step>> = BTreeMap::new();
    for step in &history {
        subjects.entry(&step.0).or_default().push(step);
    }
    assert_eq!(subjects.len() as u64, SUBJECTS);
    for (subject, steps) in subjects {
        let (mut next, mut tried_again) = (0, 0);
        for run in steps.chunks(2) {
            let [(_, n, attempt, false), (_, ended, tried, true)] = run else {
                panic!("{subject}: two at once: {run:?}");
            };
            assert_eq!((n, attempt), (ended, tried), "{subject}: two at once");
            match attempt {
                1 => {
                    assert_eq!(*n, next, "{subject}: out of its order");
                    next += 1;
                }
                _ => tried_again += 1,
            }
        }
        assert_eq!((next, tried_again), (EACH, EACH / 5), "{subject}");
    }
}
