//! Failovers under load: who loses what, and who comes back.

use crate::support::fleet::{self, Fleet, Work};
use crate::support::sentinel::Deployment;
use crate::support::{Redis, signal, until};
use crate::{batches, client, times};
use convoke::client::Client;
use convoke::client::publish::{Outgoing, PublishError};
use convoke::protocol::event::Entry;
use redis::Value;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;

const WORKERS: usize = 3;
/// How many replicas confirm a publish, and where the numbers of such events begin. Which replica is
/// promoted does not matter to what both of them confirmed, and to nothing else.
const CONFIRMED: [(u32, u64); 3] = [(2, 0), (1, 500_000_000), (0, 1_000_000_000)];

/// How the primary goes.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// `kill -9`.
    Killed,
    /// It stands still, and comes back as if nothing had been.
    Stopped,
    /// Its clients reach it, its replicas and the Sentinels do not; it comes back.
    CutOff,
    /// The same, and it dies when it took writes for a while.
    CutOffThenKilled,
}

impl Fault {
    const ALL: [Fault; 4] = [
        Fault::CutOff,
        Fault::Killed,
        Fault::CutOffThenKilled,
        Fault::Stopped,
    ];
}

/// What a publisher knows.
#[derive(Default)]
struct Known {
    acknowledged: BTreeSet<u64>,
    unknown: u64,
    rejected: u64,
}

/// Publishes one after the other until told to stop. Confirmed: each until it is acknowledged.
async fn publish(
    client: Client,
    replicas: u32,
    next: Arc<AtomicU64>,
    stop: CancellationToken,
) -> Known {
    let mut known = Known::default();
    let mut n = next.load(Ordering::Relaxed);
    let confirmed = replicas > 0;
    while !stop.is_cancelled() {
        let mut event = Outgoing::new("load.work", &Work { n, ms: n % 5 }).id(format!("e-{n}"));
        if confirmed {
            let within = Duration::from_millis(300);
            event = event.dedup(true).confirm(replicas, within);
        }
        match client.publish(&event).await {
            Ok(_) => {
                known.acknowledged.insert(n);
                n += 1;
            }
            Err(PublishError::Unknown { .. }) => {
                known.unknown += 1;
                n += u64::from(!confirmed);
            }
            Err(PublishError::Rejected { .. }) => {
                known.rejected += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        next.store(n, Ordering::Relaxed);
        if n.is_multiple_of(4) {
            tokio::time::sleep(Duration::from_millis(8)).await;
        }
    }
    known
}

/// Waits until each worker has committed something on the primary, whoever that is, since then.
async fn until_all_consume(deployment: &Deployment, since_ms: u128) {
    until("every worker consumes again", || async {
        let Some(primary) = tokio::task::block_in_place(|| deployment.named()) else {
            return false;
        };
        let redis = &deployment.nodes[primary].redis;
        let sources = sources(redis, since_ms).await.unwrap_or_default();
        sources.len() == WORKERS
    })
    .await;
}

/// Whose results were stored since then.
async fn sources(redis: &Redis, since_ms: u128) -> redis::RedisResult<HashSet<Vec<u8>>> {
    let client = redis::Client::open(redis.admin_url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let mut command = redis::cmd("XREVRANGE");
    command.arg("cb:results:load").arg("+");
    command.arg(since_ms.to_string()).arg("COUNT").arg(1000);
    let reply = command.query_async(&mut connection).await?;
    let entries = convoke::streams::read::entries_of(reply).unwrap_or_default();
    let source = |entry: &Entry| entry.get("source").map(<[u8]>::to_vec);
    Ok(entries.iter().filter_map(source).collect())
}

fn unix_ms() -> u128 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_millis()
}

/// Has the primary go, waits for the next one, and brings the old one back.
async fn fail_over(deployment: &mut Deployment, fault: Fault) -> Duration {
    let old = deployment.primary();
    let pid = deployment.nodes[old].redis.pid();
    let (began, since) = (Instant::now(), unix_ms());
    match fault {
        Fault::Killed => deployment.nodes[old].redis.kill(),
        Fault::Stopped => signal(pid, "STOP"),
        Fault::CutOff => deployment.nodes[old].cut(true),
        Fault::CutOffThenKilled => {
            deployment.nodes[old].cut(true);
            tokio::time::sleep(Duration::from_millis(500)).await;
            deployment.nodes[old].redis.kill();
        }
    }
    tokio::task::block_in_place(|| deployment.until_moved(old));
    until_all_consume(deployment, since).await;
    let back = began.elapsed();
    match fault {
        Fault::Stopped => signal(pid, "CONT"),
        Fault::CutOff => deployment.nodes[old].cut(false),
        Fault::Killed | Fault::CutOffThenKilled => {
            deployment.nodes[old].cut(false);
            tokio::task::block_in_place(|| deployment.revive(old));
        }
    }
    back
}

/// `TORTURE_FAILOVERS` says how many, of the four kinds in turn; `TORTURE_MIN_REPLICAS` below how many
/// replicas the primary refuses writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failovers_lose_no_confirmed_publish_and_every_worker_consumes_again_by_itself() {
    let failovers = times("TORTURE_FAILOVERS", 2);
    let least = times("TORTURE_MIN_REPLICAS", 0).to_string();
    let options = [
        "--min-replicas-to-write",
        &least,
        "--min-replicas-max-lag",
        "2",
    ];
    let mut deployment = tokio::task::block_in_place(|| Deployment::with(&options));
    let url = deployment.url();
    let mut fleet = Fleet::at(&url, WORKERS);
    let pids: Vec<u32> = (0..WORKERS).map(|index| fleet.pid(index)).collect();
    let stop = CancellationToken::new();
    let next = CONFIRMED.map(|(_, first)| Arc::new(AtomicU64::new(first)));
    let publishing = [0, 1, 2].map(|which| {
        let (replicas, next) = (CONFIRMED[which].0, next[which].clone());
        let client = client(&deployment);
        tokio::spawn(publish(client, replicas, next, stop.clone()))
    });
    until_all_consume(&deployment, 0).await;
    let batches = batches::Running::begin(&deployment).await;
    let mut slowest = Duration::ZERO;
    // The first plain event of each fault's time.
    let mut times_of = Vec::new();
    for number in 0..failovers {
        let fault = Fault::ALL[number as usize % Fault::ALL.len()];
        times_of.push((fault, next[2].load(Ordering::Relaxed)));
        let back = fail_over(&mut deployment, fault).await;
        slowest = slowest.max(back);
        println!("{fault:?}: every worker consumes again after {back:.1?}");
        if number + 1 < failovers {
            tokio::task::block_in_place(|| deployment.until_whole());
        }
    }
    batches.complete().await;
    stop.cancel();
    let [by_both, by_one, plain] = publishing;
    let (by_both, by_one, plain) = (
        by_both.await.unwrap(),
        by_one.await.unwrap(),
        plain.await.unwrap(),
    );
    assert!(fleet.all_run());
    let same: Vec<u32> = (0..WORKERS).map(|index| fleet.pid(index)).collect();
    assert_eq!(pids, same, "a worker was started again");

    let redis = &deployment.nodes[deployment.primary()].redis;
    until("nothing is left to do", || all_settled(redis)).await;
    let outcomes = fleet::tally(redis, "cb:results:load", "correlationid").await;
    let lost = |known: &Known, range: Range<u64>| {
        let missing = |n: &&u64| !outcomes.contains_key(format!("e-{n}").as_bytes());
        known.acknowledged.range(range).filter(missing).count()
    };
    let all = 0..u64::MAX;
    assert_eq!(lost(&by_both, all.clone()), 0, "lost, though both had it");
    let twice: Vec<_> = outcomes.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "committed twice: {twice:?}");
    let effects = fleet::tally(redis, "cb:events:effect", "data").await;
    assert!(effects.values().all(|count| *count == 1), "an effect twice");
    let made = |range: Range<u64>| {
        let encoded = range.map(|n| rmp_serde::to_vec_named(&n).unwrap());
        encoded.filter(|n| effects.contains_key(n)).count() as u64
    };
    assert_eq!(made(batches::numbers(batches::ONE)), batches::ONES);
    assert_eq!(made(batches::numbers(batches::FAN)), batches::FANNED);
    for stream in ["cb:dead:load", "cb:dead:system"] {
        let dead = redis::cmd("XLEN").arg(stream).clone();
        let dead: u64 = dead
            .query_async(&mut redis.connection().await)
            .await
            .unwrap();
        assert_eq!(dead, 0, "{stream}");
    }
    fleet.drain();
    let ends = times_of.iter().skip(1).map(|(_, first)| *first);
    for ((fault, first), end) in times_of.iter().zip(ends.chain([u64::MAX])) {
        let told = plain.acknowledged.range(*first..end).count();
        println!(
            "{fault:?}: of {told} plain publishes acknowledged from then on {} lost",
            lost(&plain, *first..end)
        );
    }
    let told = [
        ("both", &by_both),
        ("one of them", &by_one),
        ("none", &plain),
    ]
    .map(|(replicas, known)| {
        format!(
            "{replicas}: {} acknowledged, {} unknown, {} rejected, {} lost",
            known.acknowledged.len(),
            known.unknown,
            known.rejected,
            lost(known, all.clone())
        )
    });
    println!(
        "failovers: {failovers}, min-replicas-to-write {least}; all of {WORKERS} workers consumed again within {slowest:.1?}, none started again; \
         confirmed by {}; nothing committed twice; both batches completed, each with all its effects",
        told.join("; by ")
    );
}

/// Whether every entry of the load was delivered and acknowledged. `lag` does not tell: the server's count
/// of delivered entries is off after a failover.
async fn all_settled(redis: &Redis) -> bool {
    let mut connection = redis.connection().await;
    let info = |of: &str| redis::cmd("XINFO").arg(of).arg("cb:events:load").clone();
    let stream: HashMap<String, Value> = info("STREAM").query_async(&mut connection).await.unwrap();
    let groups: Vec<HashMap<String, Value>> =
        info("GROUPS").query_async(&mut connection).await.unwrap();
    groups[0]["pending"] == Value::Int(0)
        && groups[0]["last-delivered-id"] == stream["last-generated-id"]
}
