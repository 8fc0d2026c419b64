//! Every two parts of a policy together: what the table at `Policy` says of them, with failures on the
//! way and a worker that drains in the middle.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::handler::policy::RetryPolicy;
use convoke::{Context, HandlerError, Policy, Worker};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tower::layer::util::Identity;

/// A part of a policy, as it is named in a failure.
type Part = (&'static str, fn(Policy) -> Policy);

const PARTS: [Part; 7] = [
    ("ordered", |policy| policy.ordered()),
    ("concurrency", |policy| policy.concurrency(2)),
    ("rate_limit", |policy| {
        policy.rate_limit(8, Duration::from_millis(100))
    }),
    ("circuit", |policy| {
        policy.circuit(2, Duration::from_millis(50))
    }),
    ("cache", |policy| policy.cache(Duration::from_secs(600))),
    ("timeout", |policy| policy.timeout(Duration::from_secs(20))),
    ("layer", |policy| policy.layer(Identity::new())),
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
    failed: HashSet<u64>,
    runs: usize,
}

type Log = Arc<Mutex<Seen>>;

/// Fails three events in a row on their first try.
async fn step(context: Context, n: u64) -> Result<u64, HandlerError> {
    let log = context.state::<Log>()?;
    let subject = context.event().subject().unwrap_or_default().to_owned();
    let fails = {
        let mut seen = log.lock().unwrap();
        let of_subject = seen.running.entry(subject.clone()).or_default();
        *of_subject += 1;
        let of_subject = *of_subject;
        seen.of_subject = seen.of_subject.max(of_subject);
        let at_once = seen.running.values().sum();
        seen.at_once = seen.at_once.max(at_once);
        if context.event().attempt() == 1 {
            seen.started.push((subject.clone(), n));
        }
        seen.runs += 1;
        (12..15).contains(&n) && seen.failed.insert(n)
    };
    tokio::time::sleep(Duration::from_millis(n % 5)).await;
    *log.lock().unwrap().running.get_mut(&subject).unwrap() -= 1;
    match fails {
        true => Err(HandlerError::unavailable("not yet")),
        false => Ok(n),
    }
}

const EVENTS: u64 = 40;

async fn holds(named: &str, policy: Policy) {
    let rig = Rig::new().await;
    let log = Log::default();
    let policy = policy.retry(RetryPolicy {
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
            .handler_with("pair.step", step, policy.clone())
    };
    for n in 0..EVENTS {
        let subject = format!("s-{}", n % 3);
        let event = Outgoing::new("pair.step", &n)
            .subject(subject)
            .id(format!("e-{n}"));
        rig.client.publish(&event).await.unwrap();
    }
    let first = rig.start(worker("first"));
    until("half of them ran", || async {
        rig.entries("cb:results:pair").await.len() >= EVENTS as usize / 2
    })
    .await;
    first.stop().await;
    let second = rig.start(worker("second"));
    let results = rig.wait_for("cb:results:pair", EVENTS as usize).await;
    second.stop().await;
    let answered: HashSet<String> = results.iter().map(|r| text(r, "correlationid")).collect();
    assert_eq!(answered.len(), EVENTS as usize, "{named}: each once");
    assert!(rig.entries("cb:dead:pair").await.is_empty(), "{named}");
    let seen = log.lock().unwrap();
    assert_eq!(
        seen.runs,
        EVENTS as usize + 3,
        "{named}: no try but the failed ones is lost"
    );
    if named.contains("concurrency") {
        assert!(seen.at_once <= 2, "{named}: {} at once", seen.at_once);
    }
    if named.contains("ordered") {
        assert_eq!(seen.of_subject, 1, "{named}");
        for subject in ["s-0", "s-1", "s-2"] {
            let order = seen.started.iter().filter(|(of, _)| of == subject);
            let order: Vec<u64> = order.map(|(_, n)| *n).collect();
            assert!(order.is_sorted(), "{named}: {order:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_parts_of_a_policy_hold_together() {
    let mut pairs = Vec::new();
    for (index, (one, add_one)) in PARTS.iter().enumerate() {
        for (other, add_other) in &PARTS[index + 1..] {
            let policy = add_other(add_one(Policy::new()));
            pairs.push((format!("{one} with {other}"), policy));
        }
    }
    let mut runs = JoinSet::new();
    for (named, policy) in pairs {
        if runs.len() == 4 {
            runs.join_next().await.unwrap().unwrap();
        }
        runs.spawn(async move { holds(&named, policy).await });
    }
    runs.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_parts_of_a_policy_hold_together() {
    let all = PARTS
        .iter()
        .fold(Policy::new(), |policy, (_, add)| add(policy));
    let named: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
    holds(&named.join(" with "), all).await;
}
