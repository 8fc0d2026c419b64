//! Every two parts of a policy together: what the table at `Policy` says of them, with failures on the
//! way and a worker that drains in the middle.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::handler::function::{Encoded, Run};
use convoke::handler::policy::{RetryPolicy, Stack};
use convoke::{Context, HandlerError, Policy, Worker};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::task::{self, Poll};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tower::{Layer, Service};

/// A part of a policy, as it is named in a failure.
type Part = (&'static str, fn(Policy, &Log) -> Policy);

const CONCURRENCY: usize = 2;
const RATE: usize = 8;
const PERIOD: Duration = Duration::from_millis(400);
const TIMEOUT: Duration = Duration::from_secs(2);
const OPEN: Duration = Duration::from_millis(300);

const PARTS: [Part; 7] = [
    ("ordered", |policy, _| policy.ordered()),
    ("concurrency", |policy, _| policy.concurrency(CONCURRENCY)),
    ("rate_limit", |policy, _| {
        policy.rate_limit(RATE as u32, PERIOD)
    }),
    ("circuit", |policy, _| policy.circuit(2, OPEN)),
    ("cache", |policy, _| policy.cache(Duration::from_secs(600))),
    ("timeout", |policy, _| policy.timeout(TIMEOUT)),
    ("layer", |policy, log| policy.layer(Counting(log.clone()))),
];

/// What was seen of the runs.
#[derive(Default)]
struct Seen {
    running: HashMap<String, usize>,
    /// Runs of one subject at a time at the most.
    of_subject: usize,
    /// Runs at a time at the most.
    at_once: usize,
    /// First runs, in order.
    started: Vec<(String, u64)>,
    began: Vec<Instant>,
    /// The same in the first worker alone.
    began_in_first: Vec<Instant>,
    failed: HashSet<u64>,
    /// Runs that went well, by worker and payload.
    well: HashMap<(String, u64), usize>,
    runs: usize,
    /// Calls of the layer.
    layered: usize,
    /// What the second try was told about the one that took too long.
    timed_out: Option<String>,
}

type Log = Arc<Mutex<Seen>>;

/// Counts what passes through it.
#[derive(Clone)]
struct Counting(Log);

#[derive(Clone)]
struct Counted(Log, Stack);

impl Layer<Stack> for Counting {
    type Service = Counted;
    fn layer(&self, inner: Stack) -> Counted {
        Counted(self.0.clone(), inner)
    }
}

impl Service<Context> for Counted {
    type Response = Encoded;
    type Error = HandlerError;
    type Future = Run;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), HandlerError>> {
        self.1.poll_ready(cx)
    }

    fn call(&mut self, context: Context) -> Run {
        self.0.lock().unwrap().layered += 1;
        self.1.call(context)
    }
}

/// Counts as running until it is dropped.
struct Running(Log, String);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.lock().unwrap().running.get_mut(&self.1).unwrap() -= 1;
    }
}

const EVENTS: u64 = 40;
/// Events that fail on their first try.
const FAIL: std::ops::Range<u64> = 10..16;
/// One that takes too long on its first try, where there is a time-out.
const LONG: u64 = 30;
/// As many different payloads the others have where there is a cache, equal ones of one subject.
const EQUAL: u64 = 9;

async fn step(context: Context, payload: u64) -> Result<u64, HandlerError> {
    let log = context.state::<Log>()?.clone();
    let event = context.event();
    let n: u64 = event.id()["e-".len()..].parse().unwrap();
    let subject = event.subject().unwrap_or_default().to_owned();
    let fails = {
        let mut seen = log.lock().unwrap();
        let of_subject = seen.running.entry(subject.clone()).or_default();
        *of_subject += 1;
        let of_subject = *of_subject;
        seen.of_subject = seen.of_subject.max(of_subject);
        let at_once = seen.running.values().sum();
        seen.at_once = seen.at_once.max(at_once);
        seen.began.push(Instant::now());
        if context.instance() == "first" {
            seen.began_in_first.push(Instant::now());
        }
        if event.attempt() == 1 {
            seen.started.push((subject.clone(), n));
        }
        seen.runs += 1;
        FAIL.contains(&n) && seen.failed.insert(n)
    };
    let running = Running(log.clone(), subject);
    if n == LONG && context.state::<Timed>()?.0 {
        match event.entry().get("lasterror") {
            None => tokio::time::sleep(Duration::from_secs(600)).await,
            Some(told) => {
                let told = String::from_utf8_lossy(told).into_owned();
                log.lock().unwrap().timed_out = Some(told);
            }
        }
    }
    tokio::time::sleep(Duration::from_millis(n % 5)).await;
    drop(running);
    if fails {
        return Err(HandlerError::unavailable("not yet"));
    }
    let well = (context.instance().to_owned(), payload);
    *log.lock().unwrap().well.entry(well).or_default() += 1;
    Ok(payload)
}

/// Whether the policy has a time-out of its own.
#[derive(Clone, Copy)]
struct Timed(bool);

async fn holds(named: &str, policy: impl Fn(&Log) -> Policy) {
    let has = |part: &str| named.split(" with ").any(|named| named == part);
    let rig = Rig::new().await;
    let log = Log::default();
    let policy = policy(&log).retry(RetryPolicy {
        base: Duration::from_millis(5),
        cap: Duration::from_millis(20),
        ..RetryPolicy::default()
    });
    let worker = |id: &str| {
        let mut settings = rig.settings();
        settings.id = id.into();
        settings.claim_idle = Duration::from_secs(1);
        Worker::builder()
            .settings(settings)
            .state(log.clone())
            .state(Timed(has("timeout")))
            .handler_with("pair.step", step, policy.clone())
    };
    for n in 0..EVENTS {
        let alike = has("cache") && !FAIL.contains(&n) && n != LONG;
        let payload = if alike { n % EQUAL } else { n };
        let event = Outgoing::new("pair.step", &payload)
            .subject(format!("s-{}", n % 3))
            .id(format!("e-{n}"));
        rig.client.publish(&event).await.unwrap();
    }
    let first = rig.start(worker("first"));
    until("half of them ran, and those that fail", || async {
        let ran = rig.entries("cb:results:pair").await.len();
        let seen = log.lock().unwrap();
        let well = |n: &u64| seen.well.contains_key(&("first".to_owned(), *n));
        // Where a circuit opens, they wait there for their next try.
        let again = !has("circuit") || FAIL.clone().all(|n| well(&n));
        ran >= EVENTS as usize / 2 && seen.failed.len() == FAIL.count() && again
    })
    .await;
    first.stop().await;
    let second = rig.start(worker("second"));
    let results = rig.wait_for("cb:results:pair", EVENTS as usize).await;
    second.stop().await;
    let answered: HashSet<String> = results.iter().map(|r| text(r, "correlationid")).collect();
    assert_eq!(answered.len(), EVENTS as usize, "{named}: each once");
    assert!(rig.entries("cb:dead:pair").await.is_empty(), "{named}");
    let facts = rig.entries("cb:broadcast").await;
    let opened = facts.iter().any(|fact| {
        let data = fact.get("data").unwrap_or_default();
        text(fact, "type") == "circuit.opened" && data.windows(5).any(|part| part == b"first")
    });
    let seen = log.lock().unwrap();
    let lost = FAIL.count() + usize::from(has("timeout"));
    if has("cache") {
        let again: Vec<_> = seen.well.iter().filter(|(_, runs)| **runs > 1).collect();
        assert!(again.is_empty(), "{named}: run again: {again:?}");
        assert!(seen.runs < EVENTS as usize + lost, "{named}");
    } else {
        let runs = EVENTS as usize + lost;
        assert_eq!(
            seen.runs, runs,
            "{named}: no try but the failed ones is lost"
        );
    }
    if has("concurrency") {
        assert!(
            seen.at_once <= CONCURRENCY,
            "{named}: {} at once",
            seen.at_once
        );
    }
    if has("ordered") {
        assert_eq!(seen.of_subject, 1, "{named}");
        for subject in ["s-0", "s-1", "s-2"] {
            let order = seen.started.iter().filter(|(of, _)| of == subject);
            let order: Vec<u64> = order.map(|(_, n)| *n).collect();
            assert!(order.is_sorted(), "{named}: {order:?}");
        }
    }
    if has("rate_limit") {
        let windows = seen.began.windows(RATE + 1);
        let closest = windows.map(|window| window[RATE] - window[0]).min();
        // A run begins a moment after it is counted; on a loaded machine, a long one.
        let least = PERIOD / 4;
        assert!(
            closest >= Some(least),
            "{named}: {RATE} and one in {closest:?}"
        );
    }
    // They mostly fail in a row; what goes well between two of them keeps the circuit closed.
    if opened {
        // Then nothing began for so long.
        let pauses = seen.began_in_first.array_windows();
        let longest = pauses.map(|[one, next]| *next - *one).max();
        assert!(longest >= Some(OPEN), "{named}: {longest:?}");
    }
    if has("timeout") {
        let told = seen.timed_out.as_deref().unwrap_or_default();
        assert!(told.contains("its timeout of 2s"), "{named}: {told:?}");
    }
    if has("layer") {
        // What the cache answers passes through it as well.
        let least = if has("cache") {
            EVENTS as usize + lost
        } else {
            seen.runs
        };
        assert_eq!(seen.layered, least, "{named}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_parts_of_a_policy_hold_together() {
    let mut runs = JoinSet::new();
    for (index, (one, add_one)) in PARTS.iter().enumerate() {
        for (other, add_other) in &PARTS[index + 1..] {
            if runs.len() == 4 {
                runs.join_next().await.unwrap().unwrap();
            }
            runs.spawn(async move {
                let policy = |log: &Log| add_other(add_one(Policy::new(), log), log);
                holds(&format!("{one} with {other}"), policy).await;
            });
        }
    }
    runs.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_parts_of_a_policy_hold_together() {
    let all = |log: &Log| {
        let parts = PARTS.iter();
        parts.fold(Policy::new(), |policy, (_, add)| add(policy, log))
    };
    let named: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
    holds(&named.join(" with "), all).await;
}
