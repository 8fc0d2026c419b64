//! Pending entries and finished ones that are handed to the workers.

use super::super::rig::{add, entries, lines, say, text};
use super::super::worker::Worker;
use super::super::{File, convoke, run};
use super::repairs::{EVENTS, all_are_replayed, last, length, listed, worker};
use crate::support::{self, Redis, name};
use convoke::protocol::json;
use serde_json::json;
use std::collections::BTreeSet;
use std::process::Stdio;

/// What is replayed, in the words of the command.
#[derive(Clone, Copy, Debug, PartialEq)]
enum From {
    Pending,
    Range,
}

impl From {
    fn words(self) -> Vec<&'static str> {
        let from = match self {
            From::Pending => "pending",
            From::Range => "range",
        };
        vec!["replay", from, "order", "--set", "version=2", "--yes"]
    }
}

/// Events of a domain that no worker here reads, all delivered to an instance that is gone; of a range they are finished.
fn delivered(redis: &Redis, from: From, count: usize) {
    let mut connection = redis.connect();
    say(redis, &format!("XGROUP CREATE {EVENTS} workers 0 MKSTREAM"));
    for first in (1..=count).step_by(1000) {
        let (mut pipe, mut ids) = (redis::pipe(), Vec::new());
        for n in first..=count.min(first + 999) {
            let data = json::from_json(&json!({"n": n, "version": 1}));
            let mut command = redis::cmd("XADD");
            command.arg(EVENTS).arg(format!("{n}-1"));
            command.arg(&["type", "order.make", "id", &format!("o-{n}"), "data"]);
            pipe.add_command(command.arg(data).to_owned()).ignore();
            ids.push(format!("{n}-1"));
        }
        pipe.exec(&mut connection).unwrap();
        let mut read = redis::cmd("XREADGROUP");
        read.arg(&["GROUP", "workers", "w-lost", "COUNT", "1000"]);
        let read = read.arg(&["STREAMS", EVENTS, ">"]).to_owned();
        read.exec(&mut connection).unwrap();
        if from == From::Range {
            let mut finish = redis::cmd("XACK");
            finish.arg(EVENTS).arg("workers").arg(ids);
            finish.exec(&mut connection).unwrap();
        }
    }
    say(redis, "HSET cb:instance:w-lost status lost");
}

fn pending(redis: &Redis) -> usize {
    let summary = say(redis, &format!("XPENDING {EVENTS} workers"));
    let redis::Value::Array(summary) = summary else {
        panic!("{summary:?}");
    };
    redis::from_redis_value(summary[0].clone()).unwrap()
}

/// Whether each was published again once, changed, and none is pending any more.
fn each_once(redis: &Redis, count: usize) {
    let events = entries(redis, EVENTS);
    assert_eq!(events.len(), 2 * count);
    let copies = &events[count..];
    let ids: BTreeSet<String> = copies.iter().map(|event| text(event, "id")).collect();
    assert_eq!(ids.len(), count);
    for event in copies {
        let data = json::to_json(event.get("data").unwrap()).unwrap();
        assert_eq!(
            (&data["version"], text(event, "replays")),
            (&json!(2), "1".into())
        );
    }
    assert_eq!(pending(redis), 0);
}

/// How many the facts of a replay tell.
fn told(redis: &Redis, name: &str, from: From) -> u64 {
    let facts = entries(redis, "cb:broadcast");
    let facts = facts
        .iter()
        .filter(|fact| text(fact, "type") == "operator.replayed");
    let counts = facts.map(|fact| {
        let data = json::to_json(fact.get("data").unwrap()).unwrap();
        let is = (
            data["run"].as_str().unwrap(),
            data["from"].as_str().unwrap(),
        );
        assert_eq!(is, (name, from.words()[1]));
        data["count"].as_u64().unwrap()
    });
    counts.sum()
}

/// Has the workers replay all, kills the terminal that follows them and the worker that does it, and follows on from
/// another terminal.
fn terminal_and_worker_are_killed(from: From, count: usize, rate: &str) {
    let redis = Redis::start();
    let mut workers = vec![
        ("w-1", worker(&redis, "w-1")),
        ("w-2", worker(&redis, "w-2")),
    ];
    delivered(&redis, from, count);
    let began = std::time::Instant::now();
    let by_workers = [
        "--detach",
        "--follow",
        "--timeout=30s",
        "--run=v2",
        "--rate",
        rate,
    ];
    let mut terminal = convoke(&redis, &[&from.words()[..], &by_workers].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let so_far = || length(&redis, EVENTS) - count;
    support::eventually("some are replayed", || so_far() > count / 20);
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    let holder = listed(&redis)["holder"].as_str().map(str::to_owned);
    workers.retain(|(id, _)| Some(*id) != holder.as_deref());
    assert_eq!(workers.len(), 1);
    let at_death = so_far();
    assert!(at_death < count);
    all_are_replayed(&redis, "v2", count);
    each_once(&redis, count);
    // On a cluster what was done is told in a step of its own, which goes with the worker.
    let untold = count as u64 - told(&redis, "v2", from);
    assert!(
        untold <= if support::is_cluster() { 50 } else { 0 },
        "{untold}"
    );
    println!(
        "{count} by {from:?}: {at_death} when the worker died, {:.1} s from the command to the end of the look",
        began.elapsed().as_secs_f64()
    );
    let shown = run(&redis, &["replay", "follow"]).done().out;
    let what = if from == From::Range {
        "finished events"
    } else {
        "pending entries"
    };
    assert!(
        shown.contains(what) && shown.contains("(run v2)"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_entries_are_replayed_once_though_terminal_and_worker_are_killed() {
    terminal_and_worker_are_killed(From::Pending, 600, "50");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finished_events_are_replayed_once_though_terminal_and_worker_are_killed() {
    terminal_and_worker_are_killed(From::Range, 600, "50");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "100,000 pending entries: about a minute"]
async fn a_hundred_thousand_pending_entries_are_replayed_once() {
    terminal_and_worker_are_killed(From::Pending, 100_000, "1000000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "100,000 finished events: about a minute"]
async fn a_hundred_thousand_finished_events_are_replayed_once() {
    terminal_and_worker_are_killed(From::Range, 100_000, "1000000");
}

/// Cancels a slow one in the middle; the same command goes on with the rest.
fn cancelled_in_the_middle(from: From) {
    let redis = Redis::start();
    let _worker = worker(&redis, "w-1");
    delivered(&redis, from, 300);
    let slow = ["--detach", "--rate=20", "--run=slow"];
    run(&redis, &[&from.words()[..], &slow].concat()).done();
    let so_far = || length(&redis, EVENTS) - 300;
    support::eventually("some are replayed", || so_far() > 5);
    let cancelled = run(&redis, &["replay", "cancel", "slow", "--format=json"]).done();
    let replayed = cancelled.json()["replayed"].as_u64().unwrap() as usize;
    assert_eq!(so_far(), replayed);
    run(&redis, &["replay", "follow", "slow"]).failed(1, &["cancelled by"]);
    // What was replayed is behind what was there: it is not met again.
    let rest = ["--until=300-1", "--detach", "--follow"];
    let ended = run(&redis, &[&from.words()[..], &rest].concat());
    let left = format!("{replayed} left alone: copied already");
    match from {
        From::Pending => ended.done(),
        From::Range => ended.failed(1, &[&left]),
    };
    each_once(&redis, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_repair_of_pending_entries_leaves_the_rest_with_their_owner() {
    cancelled_in_the_middle(From::Pending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_repair_of_a_range_copies_nothing_more_and_nothing_again() {
    cancelled_in_the_middle(From::Range);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_range_had_not_finished_when_it_was_agreed_to_is_not_copied_once_it_has() {
    let redis = Redis::start();
    let _worker = worker(&redis, "w-1");
    // The worker has its hands full until the rest is finished.
    for n in 1..=100 {
        let (id, told) = (format!("{n}-1"), "deadreason internal deadattempts 5");
        add(&redis, "cb:dead:image", &id, "image.make", &json!(n), told);
    }
    let busy = ["--yes", "--detach", "--rate=1", "--run=busy"];
    run(&redis, &[&["replay", "dead", "image"], &busy[..]].concat()).done();
    let at_work = || length(&redis, "cb:events:image") > 0;
    support::eventually("it is at work", at_work);
    delivered(&redis, From::Range, 20);
    let read = format!("XREADGROUP GROUP workers w-lost STREAMS {EVENTS} >");
    for n in 21..=25 {
        let data = json!({"n": n, "version": 1});
        add(&redis, EVENTS, &format!("{n}-1"), "order.make", &data, "");
        if n == 21 {
            say(&redis, &read);
        }
    }
    let by_workers = ["--detach", "--run=v2"];
    let handed = run(&redis, &[&From::Range.words()[..], &by_workers].concat()).done();
    for left in ["1 left alone: pending", "4 left alone: not delivered yet"] {
        assert!(handed.err.contains(left), "{left}: {handed:?}");
    }
    say(&redis, &read);
    let finish = "workers 21-1 22-1 23-1 24-1 25-1";
    say(&redis, &format!("XACK {EVENTS} {finish}"));
    run(&redis, &["replay", "cancel", "busy"]).done();
    let end = last(&run(&redis, &["replay", "follow", "v2", "--format=json"]).done());
    assert_eq!((&end["replayed"], &end["left"]), (&json!(20), &json!(0)));
    assert_eq!(length(&redis, EVENTS), 25 + 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_is_left_alone_and_if_forced_only_the_replayed_one_counts() {
    let redis = Redis::start();
    let gate = File::new("gate", "");
    let path = gate.path();
    let slow = format!("demo.slow=while [ ! -s {path} ]; do sleep 0.05; done; cat");
    let args = [
        "worker",
        "--id=w-1",
        "--handler-timeout=10m",
        "--exec",
        &slow,
    ];
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &args));
    run(&redis, &["publish", "demo.slow", "--id=s-1", "--data=7"]).done();
    let held = || lines(&run(&redis, &["pending", "--format=json"]).done().out);
    support::eventually("it runs", || held().len() == 1);
    let first = held()[0]["entry"].clone();
    // What nobody may take is counted with its reason, by the workers as by the terminal.
    let events = name("demo", "cb:events:demo");
    let stretch = json!([{"stream": events, "from": [0, 0], "to": [u64::MAX, u64::MAX]}]);
    let plan =
        json!({"name": "all", "plan": {"from": "pending", "stretches": stretch}}).to_string();
    run(&redis, &["request", "system.repair.start", "--data", &plan]).done();
    let followed = run(&redis, &["replay", "follow", "all"]);
    followed.failed(1, &["1 left alone: held by w-1, idle for less than"]);
    let forced = [
        "replay", "pending", "demo", "--force", "--yes", "--detach", "--follow",
    ];
    run(&redis, &forced).done();
    support::eventually("the replayed one runs", || {
        held().first().is_some_and(|one| one["entry"] != first)
    });
    std::fs::write(gate.path(), "open").unwrap();
    support::eventually("nothing is pending any more", || held().is_empty());
    // Both have run to their end when it has left.
    worker.stop().done();
    assert_eq!(entries(&redis, "cb:results:demo").len(), 1);
    assert_eq!(length(&redis, "cb:dead:demo"), 0);
}
