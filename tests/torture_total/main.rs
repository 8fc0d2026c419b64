//! Runs that all workers share, while workers are killed and stopped past their lease.

#[path = "../support/mod.rs"]
mod support;

use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::connect::clock::local_now;
use convoke::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use support::fleet::{self, Fleet};
use support::{Redis, signal, torture, until};

/// What began and ended, in this order: what the handlers say of their runs, and the test of processes.
const HISTORY: &str = "cb:test:history";
const TOTAL: u64 = 4;
/// How long a worker lives without a word: half of that, its lease, is longer than a loaded machine stands still.
const LIVES: Duration = Duration::from_secs(14);

#[derive(Serialize, Deserialize, JsonSchema)]
struct Work {
    n: u64,
    ms: u64,
}

/// One line of the history.
#[derive(Serialize, Deserialize, Debug)]
struct Line {
    what: What,
    process: u32,
    /// Of a run: which.
    run: String,
    /// When it began, or the process was stopped, by its own clock.
    at: u64,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Begins,
    Ends,
    /// The process was killed, or is stopped: its lease is to end. What it began before has no seat any more.
    Gone,
}

/// Takes a moment, and says when it began and ended: never longer than it has its seat.
async fn work(context: Context, work: Work) -> Result<u64, HandlerError> {
    let began = local_now();
    let mut redis = context.redis().await?;
    let line = |what| Line {
        what,
        process: std::process::id(),
        run: format!("{}:{}", work.n, context.event().attempt()),
        at: 0,
    };
    let begins = Line {
        at: began,
        ..line(What::Begins)
    };
    let say = |line: Line| {
        let mut add = redis::cmd("XADD");
        add.arg(HISTORY)
            .arg("*")
            .arg("line")
            .arg(serde_json::to_vec(&line).unwrap());
        add
    };
    say(begins).query_async::<String>(&mut redis).await?;
    tokio::time::sleep(Duration::from_millis(work.ms)).await;
    let ends = line(What::Ends);
    say(ends).query_async::<String>(&mut redis).await?;
    context.publish("effect.made", &work.n)?;
    Ok(work.n)
}

#[test]
fn a_worker_process() {
    fleet::worker_process(|worker| worker.handler("load.work", work));
}

/// Sets how many runs go on at the most.
async fn limit(redis: &Redis) {
    let client = fleet::client(redis);
    let wanted = json!({"scope": "type:load.work", "concurrency": {"total": TOTAL}});
    until("the limit is set", async || {
        let asked = Outgoing::new("system.policy.set", &wanted);
        match client.request(asked, Duration::from_secs(10)).await {
            Ok(_) => true,
            Err(RequestError::Remote(error)) => panic!("{error:?}"),
            Err(_) => false,
        }
    })
    .await;
    client.close().await;
}

/// How often each event took effect.
async fn effects(redis: &Redis) -> BTreeMap<u64, u32> {
    let mut all = BTreeMap::new();
    fleet::each_entry(redis, "cb:events:effect", |entry| {
        let n: u64 = rmp_serde::from_slice(entry.get("data").unwrap()).unwrap();
        *all.entry(n).or_default() += 1;
    })
    .await;
    all
}

/// Says that what that process began until now is to have no seat any more.
async fn gone(redis: &Redis, process: u32) {
    let line = Line {
        what: What::Gone,
        process,
        run: String::new(),
        at: local_now(),
    };
    let mut connection = redis.connection().await;
    let mut add = redis::cmd("XADD");
    add.arg(HISTORY)
        .arg("*")
        .arg("line")
        .arg(serde_json::to_vec(&line).unwrap());
    add.query_async::<String>(&mut connection).await.unwrap();
}

/// The most runs that had a seat at a time.
async fn most(redis: &Redis) -> usize {
    let mut lines: Vec<Line> = Vec::new();
    fleet::each_entry(redis, HISTORY, |entry| {
        lines.push(serde_json::from_slice(entry.get("line").unwrap()).unwrap());
    })
    .await;
    let (mut most, mut runs) = (0, BTreeMap::new());
    let mut gone: HashMap<u32, u64> = HashMap::new();
    for line in lines {
        let (process, run) = (line.process, (line.process, line.run));
        match line.what {
            // It said so late: it began before.
            What::Begins if gone.get(&process).is_some_and(|at| line.at <= *at) => {}
            What::Begins => drop(runs.insert(run, line.at)),
            What::Ends => drop(runs.remove(&run)),
            What::Gone => {
                gone.insert(process, line.at);
                runs.retain(|(of, _), _| *of != process);
            }
        }
        assert!(
            runs.len() <= TOTAL as usize,
            "{runs:?}; seed {}",
            torture::seed()
        );
        most = most.max(runs.len());
    }
    most
}

/// Publishes some, of which each takes a moment.
async fn publish(redis: &Redis, from: u64, to: u64, dice: &mut fastrand::Rng) {
    let client = fleet::client(redis);
    for n in from..to {
        let ms = dice.u64(1..40);
        let event = Outgoing::new("load.work", &Work { n, ms });
        client.publish(&event).await.unwrap();
    }
    client.close().await;
}

async fn runs_again(redis: &Redis, published: u64) {
    let before = effects(redis).await.len();
    until("something runs again, or all ran", async || {
        let ran = effects(redis).await.len();
        ran > before || ran as u64 == published
    })
    .await;
}

/// Has workers die and stop while they run events.
async fn go(events: u64, kills: u64, stops: u64) {
    let mut dice = torture::dice("total");
    let redis = Redis::start();
    let first = Fleet::that_live(&redis, 1, LIVES);
    limit(&redis).await;
    first.drain();
    // Whoever starts knows of the limit before its first event.
    let mut fleet = Fleet::that_live(&redis, 3, LIVES);
    let faults = kills + stops;
    let each = events / (faults + 1);
    publish(&redis, 0, each, &mut dice).await;
    for fault in 1..=faults {
        runs_again(&redis, each * fault).await;
        let index = dice.usize(..fleet.len());
        let process = fleet.pid(index);
        // In turns, so that the last of either is not alone.
        if fault * stops / faults > (fault - 1) * stops / faults {
            signal(process, "STOP");
            gone(&redis, process).await;
            let stopped = Instant::now();
            let to = each * (fault + 1);
            publish(&redis, each * fault, to, &mut dice).await;
            let past = LIVES * 2 / 3;
            tokio::time::sleep(past.saturating_sub(stopped.elapsed())).await;
            signal(process, "CONT");
        } else {
            fleet.kill(index, dice.bool());
            gone(&redis, process).await;
            let to = each * (fault + 1);
            publish(&redis, each * fault, to, &mut dice).await;
        }
    }
    let events = each * (faults + 1);
    until_all_ran(&redis, events).await;
    let most = most(&redis).await;
    assert!(most > 1, "they ran one by one");
    let effects = effects(&redis).await;
    assert!(effects.values().all(|count| *count == 1), "{effects:?}");
    fleet.drain();
    until("all seats are free, and the hash lapses", async || {
        let mut connection = redis.connection().await;
        let mut exists = redis::cmd("EXISTS");
        exists.arg("cb:seats:load.work");
        exists.query_async(&mut connection).await == Ok(0u64)
    })
    .await;
    torture::Report::default()
        .fault(kills, "workers killed")
        .fault(stops, "workers stopped past their lease")
        .event(
            events,
            "events, each with one effect, none beyond the total",
        )
        .tell("total");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_runs_go_on_than_may_whoever_is_killed_and_each_event_runs() {
    go(torture::size("TORTURE_TOTAL", 200, 200), 1, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/torture total runs it"]
async fn no_more_runs_go_on_than_may_whoever_is_killed_or_comes_back_after_its_lease() {
    let events = torture::size("TORTURE_TOTAL", 2000, 20_000);
    let kills = torture::size("TORTURE_TOTAL_KILLS", 6, 60);
    let stops = torture::size("TORTURE_TOTAL_STOPS", 4, 30);
    go(events, kills, stops).await;
}

/// Waits as long as events go on to end.
async fn until_all_ran(redis: &Redis, events: u64) {
    let (mut ran, mut since) = (0, Instant::now());
    while ran < events {
        let now = effects(redis).await.len() as u64;
        if now > ran {
            (ran, since) = (now, Instant::now());
        }
        assert!(
            since.elapsed() < Duration::from_secs(120),
            "{ran} of {events} ran, and no more do; seed {}",
            torture::seed()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
